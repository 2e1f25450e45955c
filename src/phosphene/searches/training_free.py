"""Search without training: evolution on a training-free score of each candidate.

    evolve as `evolution` does, where the score of a is a proxy of the network of a, with fresh weights

All networks have their weights initialized from one seed and see the same images, so the score is a function of the
architecture alone. It is computed once for equivalent networks; an interrupted run repeats at most one generation.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from .. import proxies, spaces
from ..core import Architecture, Batch, Choices, Objective, Score, SearchSpace
from ..costs.bounds import SoftBounds
from ..costs.budget import Budget
from ..data import targets
from ..data.dataset import ImageDataset
from ..errors import SettingsError
from ..proxies import GRADED, LEAST, PROXIES, SIZES
from ..proxies.inputs import OFF, LabelTeacher, ProxyImages, draw
from ..runtime.machine import machine as decide_machine
from ..runtime.parallel import Call, Jobs, shared_out, side_by_side
from ..runtime.run import Run
from ..settings import Device, command
from ..teachers.teacher import Teacher
from ..training.recipes import Crop
from .evolution import Evolution, penalized, write
from .outcome import SearchResult, search_images
from .proposals import best, choices_of, network_key
from .settings import Data, SearchRun, augmentation, check_teacher, open_data
from .sizes import FinalSizes, pair, settled


class TrainingFree(
    FinalSizes, Crop, ProxyImages, LabelTeacher, Evolution, Jobs, SoftBounds, SearchRun, Device, heading="Score"
):
    proxy: Annotated[str, lambda: PROXIES, "training-free score of a network, one of `phosphene proxies`"] = "naswot"
    images: int = 64


def search(
    space: SearchSpace,
    data: ImageDataset,
    objective: Objective,
    score: Score,
    budget: Budget,
    run: Run,
    *,
    steps: int = 0,
    settings: TrainingFree,
    teacher: Teacher | None = None,
) -> Architecture:
    """Search the architecture whose untrained network has the highest proxy.

    Writes what `evolution.search` writes but for the journal of scores.

    Args:
        space: of the final network, which is scored.
        data: images and targets of proxies that depend on them.
        objective: the loss of proxies that need one.
        score, steps: unused; nothing is trained.
        budget: kept by every candidate.
        run: its folder and machine; its seed decides images and weights, too.
        settings: the proxy, its images, the evolution, jobs.
        teacher: its soft labels are the targets instead of the data set's own.

    Raises:
        SettingsError: there is no such proxy, or the data are too few.
        BudgetError: nothing keeps the budget.
    """
    batch = None
    if settings.proxy not in SIZES:
        batch = draw(data, settings.images, run.seed, decide_machine(str(run.machine.device), "fp32"), teacher)
    scores = ProxyScores(Fresh(settings.proxy, space.spec, batch, objective, run.seed), space, settings)
    archive = settings.evolve(space, penalized(scores, budget, settings.soft_weight), budget, run)
    write(run, archive, settings.proxy)
    return Architecture(space.spec, choices_of(space, best(archive, 1)[0]))


@dataclass(frozen=True)
class Fresh:
    """The proxy of networks with fresh weights: everything that a process needs to compute it."""

    proxy: str
    spec: dict[str, Any]
    batch: Batch | None
    objective: Objective
    seed: int

    def __call__(self, candidates: Sequence[Choices]) -> list[float]:
        """The score of each candidate, without the parts of its network that only training needs."""
        space = spaces.space({key: OFF.get(key, value) for key, value in self.spec.items()})
        score = partial(proxies.score, self.proxy, space, seed=self.seed, objective=self.objective)
        return [score(choices, self.batch) for choices in candidates]


class ProxyScores:
    """``scores(candidates)`` gives the proxy of each; equivalent networks are scored once."""

    def __init__(self, fresh: Fresh, space: SearchSpace, workers: Jobs) -> None:
        self.fresh, self.space, self.workers = fresh, space, workers
        self.known: dict[Hashable, float] = {}

    def __call__(self, candidates: Sequence[Choices]) -> list[float]:
        """The scores, in order."""
        keys = [network_key(self.space, choices) for choices in candidates]
        new = {key: choices for key, choices in zip(keys, candidates, strict=True) if key not in self.known}
        self.known |= dict(zip(new, self._side_by_side(list(new.values())), strict=True))
        return [self.known[key] for key in keys]

    def _side_by_side(self, choices: list[Choices]) -> list[float]:
        jobs = self.workers.jobs
        if jobs == 1 or len(choices) < 2:
            return self.fresh(choices)
        calls: list[Call] = [(self.fresh, (choices[part],), {}) for part in shared_out(len(choices), jobs)]
        parts = side_by_side(calls, jobs=jobs, backend=self.workers.backend, title="scores")
        return [value for part in parts for value in part]


@command
def training_free(data: Data = None, *, settings: TrainingFree) -> SearchResult:
    """Evolve architectures on a training-free score: nothing is trained, a candidate takes a second.

    What the score is worth on these data is not known: `phosphene study consistency` measures it. Without a bound the
    largest network often wins. Networks are scored at their final size, in float32 or float64 always.

    Example:
        phosphene search training-free --data d --proxy zen --space macro --macs 60M --candidates 200 --out found
        phosphene search training-free --data d --proxy naswot --method population --generations 5 --jobs 2

    Raises:
        SettingsError: there is no such proxy, or a setting that cannot be used.
        DatasetError: the data set cannot be read, or its images are not labelled and the proxy needs labels.
        ArchitectureError: the space cannot be built with these settings.
        BudgetError: no architecture keeps the bounds.
        TeacherError: the teacher cannot be loaded.
    """
    opened, settings = open_data(data), settled(settings)
    teacher = settings.loaded()
    _check_images(settings, opened, teacher)
    augment = augmentation(opened, settings.crop)
    if teacher is not None:
        check_teacher(teacher, opened, augment)
    _, final = pair(settings, opened, augment)
    fingerprint = None if teacher is None else teacher.fingerprint
    identity = settings.identity() | {"teacher": fingerprint, "precision": "fp32"}
    algorithm, machine = partial(search, settings=settings, teacher=teacher), decide_machine(settings.device, "fp32")
    return search_images("training-free", algorithm, opened, augment, settings, identity, (final, final), machine)


def _check_images(settings: TrainingFree, data: ImageDataset, teacher: Teacher | None) -> None:
    """Raise where the images are too few, or have no labels and the proxy needs them."""
    if settings.proxy not in SIZES and settings.images > len(data):
        name, count = data.card.name, len(data)
        raise SettingsError(f"--images {settings.images}: {name} has {count}; give {LEAST} to {count}")
    if settings.proxy in GRADED and teacher is None:
        targets.check(data)
