"""Gumbel-softmax search of generators (AutoReCon, Zhu et al. 2021, Algorithm 1, stage 1): no data, a teacher alone.

Both phases draw latents z ~ N(0, 1) and labels of their own, and minimize the reconstruction loss of eq. 1. What is
found is an architecture; `phosphene generator train --arch` trains it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from .. import spaces
from ..core import Architecture, Batch, Choices, SearchSpace
from ..costs.budget import Budget
from ..data.dataset import ImageDataset
from ..errors import SettingsError
from ..runtime.machine import machine as decide_machine
from ..runtime.run import Run
from ..settings import Changes
from ..storage import arrays
from ..synthesis.generator.latents import Latents
from ..synthesis.generator.loss import GeneratorLoss, Reconstruction
from ..synthesis.generator.train import agreement
from .gumbel import GENERATORS, Gumbel, GumbelSetup, Part, learn, updates
from .outcome import SearchResult, run_search
from .sizes import GENERATOR
from .supernet.data import check_batch
from .supernet.steps import save

CHECKED = 4  # batches on which the chosen generator is held against its labels
OF_IMAGES: tuple[str, ...] = ("channels", "cells", "nodes", "depths", "network", "final_channels", "final_cells")
OF_IMAGES += ("validation", "train_fraction", "crop", "pad", "flip", "temperature")


class Drawn:
    """This rank's share of the latents of a step, from a stream of their own for either part."""

    def __init__(self, classes: int, latent: int, run: Run) -> None:
        self.machine = run.machine
        self.streams = {part: Latents(classes, latent, run.seed, stream=part) for part in ("train", "valid", "test")}

    def __call__(self, part: Part | str, step: int, size: int) -> Batch:
        """`inputs`: z beside the one-hot label; `targets`: the label."""
        world = self.machine.world
        latents = self.streams[part].batch(step * world + self.machine.rank, size // world)  # z ~ N(0, 1), y uniform
        return Batch(self.machine.place(latents.inputs), self.machine.place(latents.targets))


def search_generators(
    data: ImageDataset | str | Path | None, changes: Changes[GumbelSetup], settings: Gumbel
) -> SearchResult:
    """`phosphene search gumbel --space generator`.

    Raises:
        SettingsError: there is no teacher, or a setting is of searches on images.
        TeacherError: the teacher cannot be loaded or has no BatchNorm.
        ArchitectureError: a size that no generator has.
        BudgetError: no generator keeps the bounds.
    """
    _check(data, changes, settings)
    setup = changes.over(GENERATORS)
    latent, width, final_width = settings.latent or 100, settings.width or 1.0, settings.final_width or 1.0
    settings = replace(settings, latent=latent, width=width, final_width=final_width)
    steps, teacher = settings.total(setup.warm_up, setup.weight_steps or 100), settings.loaded()
    assert teacher is not None  # `_check`
    machine = decide_machine(settings.device, settings.precision)
    loss = Reconstruction(teacher, machine, GeneratorLoss(label=settings.label, bn=settings.bn))  # eq. 1
    spec = {"name": GENERATOR, "shape": list(teacher.shape), "classes": teacher.classes, "latent": latent}
    small, large = (spaces.space({**spec, "scale": scale}) for scale in (width, final_width))  # searched, final
    identity = settings.identity(*OF_IMAGES, "stem") | setup.identity(*OF_IMAGES)
    run = partial(search, small, loss, settings=settings, setup=setup, steps=steps)
    return run_search("gumbel", run, settings, identity, [teacher.fingerprint], (small, large), machine)


def _check(data: ImageDataset | str | Path | None, changes: Changes[GumbelSetup], settings: Gumbel) -> None:
    """Refuse what only searches on images take."""
    values = {"data": data, **changes.given}
    values |= {name: getattr(settings, name) for name in OF_IMAGES if hasattr(settings, name)}
    values |= {name: value for name in ("setup", "stem") if (value := getattr(settings, name)) != "auto"}
    for name in ("data", *OF_IMAGES, "setup", "stem"):
        if values.get(name) is not None:
            flag = name.replace("_", "-")
            raise SettingsError(f"--{flag} {values[name]} is not for generators, which need no images; leave it out")
    if settings.teacher is None:
        raise SettingsError("--space generator needs --teacher: the network that the generator learns from")
    if settings.batch < 2:
        raise SettingsError(f"--batch {settings.batch} is less than 2, which BatchNorm statistics need")


def search(
    space: SearchSpace,
    loss: Reconstruction,
    budget: Budget,
    run: Run,
    settings: Gumbel,
    setup: GumbelSetup = GENERATORS,
    *,
    steps: int,
) -> Architecture:
    """Search a generator by Gumbel-softmax.

    Writes what `gumbel.search` writes; `score` in `supernet.json` is the share of images of the chosen generator, on
    latents of a third stream, that the teacher classifies as their label, with the weights of the supernet.

    Args:
        space: of generators.
        loss: holds the teacher.
        budget, run, settings, setup, steps: as in `gumbel.search`; a batch is of latents.

    Raises:
        SettingsError: as `gumbel.search`.
        BudgetError: nothing keeps the budget.
    """
    check_batch(settings.batch, run)
    draw, machine = Drawn(space.spec["classes"], space.spec["latent"], run), run.machine  # z and y of both phases
    plan = updates(steps, setup.weight_steps or 100, setup.alpha_steps or 100, setup.warm_up)  # T_1 of w, V_1 of α
    net, choices, history = learn(space, draw, loss, budget, run, settings, setup, plan=plan)  # Algorithm 1, stage 1
    score = agreeing(net, choices, draw, loss, settings.batch)  # share of T(G(z, y)) that is y
    machine.average(buffer for buffer in net.buffers() if buffer.is_floating_point())  # of each rank's own latents
    if machine.rank == 0:
        arrays.save(run.path / "alphas.npy", history.numpy())
    save(run, space, net, gates=choices, score=score, steps=steps)
    return Architecture(space.spec, choices)


@torch.no_grad()
def agreeing(net: nn.Module, choices: Choices, draw: Drawn, loss: Reconstruction, batch: int) -> float:
    """The share of images of one path, with BatchNorm statistics of their batch, that have their label."""
    shares = []
    for step in range(CHECKED):
        latents = draw("test", step, batch)  # a stream that neither phase has seen
        with draw.machine.autocast():
            images = net(latents.inputs, choices)  # G(z, y) of the chosen path
        _, logits = loss.terms(images, latents.targets)  # T(G(z, y))
        shares.append(agreement(logits, latents.targets) / 100)  # percent -> 0..1
    share = torch.stack(shares).mean()
    draw.machine.average([share])
    return float(share)
