"""Widths of a network that the package knows: searched (MetaPruning, Liu et al. 2019), or one share everywhere."""

from __future__ import annotations

import torch
from torch import nn
from typing_extensions import TypedDict

from ...core import Architecture
from ...costs import budget as costs
from ...costs.bounds import Timing
from ...costs.budget import Budget
from ...errors import BudgetError, SettingsError
from ...runtime.parallel import Jobs
from ...runtime.run import Run
from ...searches.evolution import Population
from ...searches.spos import HeldOutScores, spos
from ...settings import RunSettings
from ...spaces.width.designs import DESIGNS
from ...spaces.width.space import WidthSpace
from ...teachers.teacher import Teacher
from ...training.recipes import Temperature
from . import plan
from .plan import MetaPruning, Original, Uniform


def searched(
    run: Run, original: Original, space: WidthSpace, bounds: dict[str, str | None], settings: MetaPruning
) -> Architecture:
    """MetaPruning: a PruningNet trained on the images, then evolution on its scores within the bounds, both SPOS's."""
    return spos(
        original.images,
        space="width",
        network=space.spec["network"],
        teacher=original.online,
        crop=original.crop,
        epochs=settings.supernet_epochs,
        steps=settings.supernet_steps,
        batch=settings.supernet_batch,
        lr=settings.supernet_lr,
        weight_decay=settings.supernet_weight_decay,
        sampling=settings.sampling,
        **bounds,
        **settings.keywords(Timing, Temperature, HeldOutScores, Population, Jobs, RunSettings)
        | {"out": run.path / "search"},
    )


class Chosen(TypedDict):
    """`uniform.json`: the one share of all streams."""

    option: int


def uniform(run: Run, original: Original, space: WidthSpace, budget: Budget, settings: Uniform) -> Architecture:
    """The largest share within the bounds, the same in every stream; `uniform.json` keeps it."""
    prices = space.prices(costs.count)

    def largest() -> dict[str, object]:
        for option in reversed(range(len(space.decisions[0].options))):
            choices = space.uniform(option)
            figures: dict[str, float] = dict(zip(("params", "macs"), prices.of(choices), strict=True))
            if budget.latency is not None:
                with torch.random.fork_rng(devices=[]):
                    net, shape = space.build(choices), original.teacher.shape
                    figures["latency"] = plan.milliseconds(net, shape, settings, run.machine)
            over, below = plan.outside(budget, figures)
            if over <= 0:
                plan.check_window(below, figures)
                return {"share": space.decisions[0].options[option], "option": option}
        raise BudgetError("no width is narrow enough for the bounds; raise them")

    return Architecture(space.spec, space.uniform(plan.once(run, "uniform.json", largest, Chosen)["option"]))


def widest(space: WidthSpace) -> Architecture:
    """The original network's own widths."""
    return Architecture(space.spec, space.uniform(len(space.decisions[0].options) - 1))


def width_space(teacher: Teacher, network: str | None, why: str) -> WidthSpace:
    """The space of the widths of the teacher's network, or of another one that is named.

    Raises:
        SettingsError: the teacher is no network of `DESIGNS`, and none is named.
    """
    if network is None:
        network = network_of(teacher)
    if network is None:
        raise SettingsError(
            f"--method {why} chooses the widths of a network that it knows, and {teacher.name} is none of "
            f"{', '.join(DESIGNS)}; name one with --network, or take --method group-norm"
        )
    return WidthSpace(network=network, shape=teacher.shape, classes=teacher.classes)


def network_of(teacher: Teacher) -> str | None:
    """The name of the network that has the teacher's weights' shapes and its MACs, if there is one."""
    shapes, counted = _shapes(teacher.net), costs.macs(teacher.net, teacher.shape)
    most = costs.params(teacher.net)
    for name in DESIGNS:
        space = WidthSpace(network=name, shape=teacher.shape, classes=teacher.classes)
        full = widest(space).choices
        _, macs = space.prices(costs.count).of(full)
        if macs != counted:
            continue
        with torch.device("meta"):
            net = space.build(full)
        if _shapes(net) == shapes and costs.params(net) == most:
            return name
    return None


def _shapes(net: nn.Module) -> list[tuple[int, ...]]:
    return sorted(tuple(p.shape) for p in net.parameters() if p.ndim > 1)
