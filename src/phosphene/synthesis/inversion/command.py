"""`phosphene synthesize`: images with soft labels from a trained network alone (DFNAS section 3.1).

The walk: `synthesize` settles the recipe (presets.py), `Plan` shares the images out to chains (plan.py), and each chain
runs through all rounds of label calibration (loop.py). `Keeper` stores and labels what a round gives.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from ...data.card import Card
from ...data.dataset import ImageDataset
from ...data.writer import Writer
from ...errors import SettingsError
from ...losses import bn_distance, total_variation
from ...runtime.machine import machine as decide_machine
from ...runtime.progress import span
from ...runtime.run import Run
from ...settings import OUTSIDE, Changes, Ge, RunSettings, command
from ...teachers.teacher import Network, Teacher, TeacherSettings
from ..generator.images import write_generated
from .loop import Inverter, cut, label, synthesize_chain, view_offsets
from .plan import Plan, class_shares
from .presets import PRESETS, Inversion, PresetName, Student, resolve

SEEDS = ("class", "round", "slot")  # the columns of seeds.npy


class Synthesis(PresetName, Student, TeacherSettings, RunSettings, heading="Data set"):
    images: Annotated[int, Ge(1), "number of images of the finished data set, over all stored rounds"] = 1000
    generator: Annotated[Path | None, OUTSIDE, "run of `generator train` to sample from instead of an inversion"] = None
    classes_distribution: Annotated[str | None, OUTSIDE, "class shares: K numbers or name=weight, with commas"] = None


@command
def synthesize(
    teacher: Network,
    settings: Synthesis,
    changes: Annotated[Changes[Inversion], PRESETS],
) -> ImageDataset:
    """Synthesize an image data set with soft labels from a trained network alone (DFNAS section 3.1).

    Unset flags have the values of the preset. `--bn-weight 0 --ce-weight 1 --tv-weight 1e-3 --l2-weight 1e-4` is
    DeepDream, the papers' baseline.

    Example:
        phosphene synthesize digits --images 500 --out digits-made
        phosphene synthesize digits --generator generator --images 500 --out generated

    Raises:
        TeacherError: the network cannot be loaded, or has no BatchNorm where the recipe needs it.
        SettingsError: a flag cannot be used.
    """
    recipe = resolve(settings.preset, changes)
    loaded = settings.load(teacher)
    shares = class_shares(settings.classes_distribution, loaded)
    machine = decide_machine(settings.device, settings.precision)
    if settings.generator is not None:
        _check_generated(settings, changes)
        return write_generated(settings.generator, loaded, settings.images, shares, machine, settings)
    student = settings.load_student()
    _check_student(recipe, loaded, student)
    plan = Plan.of(settings.images, recipe, shares)
    inverter = Inverter(recipe, loaded, machine, student)
    run = Run.start(
        "synthesize",
        settings,
        settings.identity() | {"shares": shares} | recipe.identity(),
        [network.fingerprint for network in (loaded, student) if network],
        machine,
    )
    if run.finished is not None:
        return ImageDataset.open(run.path)
    return _synthesize(plan, inverter, run, shares)


def _synthesize(plan: Plan, inverter: Inverter, run: Run, shares: list[float]) -> ImageDataset:
    """This rank's chains one after the other; those that are in the journal are not synthesized again."""
    machine, mine = run.machine, run.machine.share(len(plan.chains))
    card = _card(plan, inverter, run, shares)
    writer = None
    if not run.estimating:
        ranks: dict[str, Any] = {"rank": machine.rank, "barrier": machine.barrier, "first": machine.first}
        writer = Writer.create(run.path, card, plan.images, seeds=len(SEEDS), **ranks)
    run.disk(plan.images * (int(np.prod(card.shape)) + 2 * card.classes + 4 * len(SEEDS)))  # uint8, float16, int32
    began, done = time.monotonic(), 0
    for chain in mine:
        if writer is None or writer.missing(_numbers(chain, plan)):
            keeper = Keeper(chain, plan, inverter, writer)
            title = _title(chain, plan, (time.monotonic() - began) / done * (mine.stop - chain) if done else None)
            synthesize_chain(chain, keeper.classes, inverter, run, keeper, alike=len(mine), title=title)
            done += 1
        if writer is not None and writer.missing(_numbers(chain, plan)):  # lost before the step where the run went on
            synthesize_chain(chain, keeper.classes, inverter, run, keeper, title=title, phase=f"chain-{chain}-again")
    if writer is None:
        run.finish({})  # raises the estimate
    assert writer is not None
    if not writer.finished:
        writer.close(statistics=_summary(writer.gather(), plan))
    data = ImageDataset.open(run.path)
    run.finish({"images": len(data), **data.card.statistics})
    return data


def _numbers(chain: int, plan: Plan) -> list[int]:
    """The journal's names of the rounds of a chain that are kept."""
    rounds = plan.recipe.rounds
    return [plan.number(chain, t) for t in range(rounds - plan.recipe.kept, rounds)]


def _title(chain: int, plan: Plan, left: float | None) -> str:
    """Title of a chain's progress bar: images done, and the seconds left for all chains once one was timed."""
    done = int(plan.slots(chain, plan.recipe.rounds - plan.recipe.kept)[0])
    all_left = f", {span(left)} left in all" if left is not None else ""
    return f"{done}/{plan.images} images{all_left}; chain {chain + 1} of {len(plan.chains)}"


def _check_generated(settings: Synthesis, changes: Changes[Inversion]) -> None:
    """Refuse flags of an inversion: a trained generator has nothing left to optimize."""
    unused = [*changes.given, *(["student"] if settings.student is not None else [])]
    if unused:
        raise SettingsError(f"--{unused[0].replace('_', '-')} is of an inversion; leave it out with --generator")


def _check_student(recipe: Inversion, teacher: Teacher, student: Teacher | None) -> None:
    if recipe.competition_weight and student is None:
        raise SettingsError(f"--competition-weight {recipe.competition_weight:g} needs a --student to compete with")
    if student is not None and (student.shape[0], student.classes) != (teacher.shape[0], teacher.classes):
        theirs, wanted = (f"{t.shape[0]} channels and {t.classes} classes" for t in (student, teacher))
        raise SettingsError(f"--student {student.name} has {theirs}, the teacher {wanted}; choose one of the same kind")


class Keeper:
    """Called with each finished round of a chain: stores and labels it, and returns the next round's targets."""

    def __init__(self, chain: int, plan: Plan, inverter: Inverter, writer: Writer | None) -> None:
        self.chain, self.plan, self.inverter, self.writer = chain, plan, inverter, writer
        self.classes = torch.tensor(plan.chains[chain])

    def __call__(self, t: int, images: Tensor, targets: Tensor, offsets: Tensor) -> Tensor:
        recipe = self.plan.recipe
        pixels = self.inverter.range.pixels(images)
        logits = label(pixels, recipe.label_view, offsets, self.inverter)  # M(X_t), of the stored bytes
        if self.writer is not None and t >= recipe.rounds - recipe.kept:
            self._store(t, pixels, logits, self._facts(pixels, logits, targets, offsets))
        return torch.softmax(logits / recipe.temperature, dim=1)  # eq. 6: ŷ_t

    def _store(self, t: int, pixels: Tensor, logits: Tensor, facts: dict[str, float]) -> None:
        slots = self.plan.slots(self.chain, t)
        n = len(slots)
        first = sum(len(classes) for classes in self.plan.chains[: self.chain])
        columns = [self.classes, torch.full_like(self.classes, t), first + torch.arange(len(self.classes))]
        seeds = torch.stack(columns, dim=1)[:n].int()
        assert self.writer is not None
        number = self.plan.number(self.chain, t)
        self.writer.write(slots, pixels[:n].cpu(), logits=logits[:n].cpu(), seeds=seeds, chain=number, facts=facts)

    @torch.no_grad()
    def _facts(self, pixels: Tensor, logits: Tensor, targets: Tensor, offsets: Tensor) -> dict[str, float]:
        """Statistics of a round of a chain, of its stored pixels; image terms are of the first labelled view."""
        geometry, teacher = self.inverter.geometry, self.inverter.teacher
        views = view_offsets(self.plan.recipe.label_view, geometry, offsets)
        seen = teacher.normalise(cut(pixels, views[0], geometry) if views else pixels)
        log_p = torch.log_softmax(logits.double(), dim=1)
        facts = {
            "agreement": (logits.argmax(1) == targets.argmax(1)).double().mean(),
            "entropy": -(log_p.exp() * log_p).sum(1).mean(),  # nats
            "total_variation": total_variation(seen),
            "bn_distance": bn_distance(self.inverter.probe(seen)[1]),
        }
        return {name: float(f"{value.item():.6g}") for name, value in facts.items()}


def _summary(facts: dict[int, dict[str, Any]], plan: Plan) -> dict[str, float]:
    """Means over the stored rounds of all chains, whichever rank made them, weighted by their images."""
    rounds = range(plan.recipe.rounds - plan.recipe.kept, plan.recipe.rounds)
    each = [(len(plan.slots(c, t)), facts[plan.number(c, t)]) for c in range(len(plan.chains)) for t in rounds]
    return {name: round(sum(n * fact[name] for n, fact in each) / plan.images, 6) for name in each[0][1]}


def _card(plan: Plan, inverter: Inverter, run: Run, shares: list[float]) -> Card:
    teacher, recipe = inverter.teacher, plan.recipe
    student = {"student": inverter.student.describe()} if inverter.student else {}
    notes = {"seeds": list(SEEDS), **student}
    if recipe.parametrization == "fourier" and inverter.geometry.regional:
        notes["regional"] = "a spectrum belongs to the whole canvas, so that pixels outside of the region move too"
    view = recipe.label_view if inverter.geometry.regional else "full"
    settings = {
        "seed": run.seed,
        "precision": run.machine.precision,
        "images": plan.images,
        "crop": list(inverter.geometry.crop),
        "shares": shares,
        **recipe.identity(),
    }
    canvas = (teacher.shape[0], *inverter.geometry.canvas)
    return teacher.card(run.path.name, "synthesis", settings, shape=canvas, label_view=view, extra=notes)
