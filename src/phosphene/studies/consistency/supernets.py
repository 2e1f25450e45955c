"""Supernets that score architectures: each path's predictions on a trained supernet, and on an untrained one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch

from ... import spaces
from ...core import SearchSpace
from ...data.dataset import ImageDataset
from ...errors import RunError, SettingsError
from ...runtime.machine import machine as decide_machine
from ...searches.score import resolve
from ...searches.supernet.evaluator import Evaluator, canonical
from ...searches.supernet.facts import read as read_facts
from ...searches.supernet.score_cache import HeldOut
from ...settings import Hardware, Seed
from ..datasets import apart, named_folders
from ..ranks import ranks

KINDS = ("kl", "accuracy", "both")
WEIGHTS = "supernet.safetensors"


class Supernets(HeldOut, Seed, Hardware, heading="Supernets"):
    supernet: Annotated[list[str] | None, "run folder of a supernet, or NAME=FOLDER; repeat"] = None
    supernet_data: Annotated[list[str] | None, "data set of a supernet; repeat in their order, or one for all"] = None
    score: Annotated[list[str] | None, lambda: KINDS, "kl (−KL, default), accuracy, both (mean rank); repeat"] = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """Scores of a supernet, the first under its own name."""
        return tuple(dict.fromkeys(self.score or ("kl",)))

    def scorer(self, folder: str, data: str) -> BySupernet:
        """The scorer of one supernet."""
        return BySupernet(
            folder,
            data,
            held_out=self.held_out,
            images=self.score_images,
            calibration=self.calibration,
            batch=self.score_batch,
            seed=self.seed,
            device=self.device,
            precision=self.precision,
        )


@dataclass(frozen=True)
class BySupernet:
    """Scores on the supernet of a search's run folder, on the images of `data` that it was not trained on.

    `untrained` has its space and its images, and random weights of `seed`. The other fields are as in `HeldOut`;
    equal networks have one score.
    """

    folder: str
    data: str
    untrained: bool = False
    held_out: int | None = None
    images: int | None = None
    calibration: int = 4
    batch: int = 250
    temperature: float | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    few: int = 100
    figures: tuple[str, ...] = ("kl", "accuracy")

    def identity(self) -> dict[str, Any]:
        """The settings, the supernet's content, and the data set's, but not their folders."""
        left_out = ("folder", "data", "device", "few", "figures")
        known = {key: value for key, value in asdict(self).items() if key not in left_out}
        precision = decide_machine(self.device, self.precision).precision
        files = ("supernet.json",) if self.untrained else ("supernet.json", WEIGHTS)
        digests = {name: hashlib.sha256((Path(self.folder) / name).read_bytes()).hexdigest() for name in files}
        return {**known, **digests, "data": ImageDataset.open(self.data).fingerprint, "precision": precision}

    def scores(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """−KL at the training temperature, and accuracy, of each path after re-estimating its BatchNorm statistics."""
        # DFNAS appendix A ranks paths by accuracy; −KL to the teacher's soft labels needs no real label
        supernet = self._load()
        choices = resolve(list(texts), supernet.space)
        return [tuple(one) for one in supernet([canonical(supernet.space, choices[text]) for text in texts])]

    def _load(self) -> Evaluator:
        here = decide_machine(self.device, self.precision)
        scoring = HeldOut(
            held_out=self.held_out,
            score_images=self.images,
            score_batch=self.batch,
            calibration=self.calibration,
        )
        data, trained = ImageDataset.open(self.data), facts(self.folder)
        setup = scoring.setup(Path(self.folder), trained, data, here, temperature=self.temperature, seed=self.seed)
        if not self.untrained:
            return setup.evaluator()
        space = space_of(self.folder)
        setup.check(space)
        with torch.random.fork_rng(devices=[]):  # the baseline: what the space's structure alone ranks
            torch.manual_seed(self.seed)
            net = space.supernet()
        return Evaluator(space, net, setup, here)


def facts(folder: str | Path) -> dict[str, Any]:
    """The contents of `supernet.json`; raises `RunError` where the folder has no supernet."""
    for name in ("supernet.json", WEIGHTS):
        if not (Path(folder) / name).is_file():
            raise RunError(f"{folder} has no {name}: name the run folder of a finished search with a supernet")
    return read_facts(Path(folder))


def space_of(folder: str | Path) -> SearchSpace:
    """The supernet's space."""
    return spaces.space(facts(folder)["space"])


def supernets(settings: Supernets) -> dict[str, BySupernet]:
    """The scorers of FOLDER or NAME=FOLDER, each with the data set at its place, or all with the only one.

    Raises:
        SettingsError: there are more or fewer data sets than supernets.
        RunError: a folder has no supernet.
    """
    if not settings.supernet:
        return {}
    data, count = settings.supernet_data or [], len(settings.supernet)
    if len(data) not in (1, count):
        remedy = "give one for each, in their order, or one for all"
        raise SettingsError(f"--supernet-data has {len(data)} data sets for {count} supernets; {remedy}")
    named = named_folders(settings.supernet)
    for _, folder in named:
        facts(folder)
    sets = data * count if len(data) == 1 else data
    return {name: settings.scorer(folder, d) for (name, folder), d in zip(named, sets, strict=True)}


def untrained(trained: Mapping[str, BySupernet]) -> dict[str, BySupernet]:
    """An untrained supernet for each space of these, on the data set of the first supernet that has it."""
    by_space: dict[str, BySupernet] = {}
    for scorer in trained.values():
        by_space.setdefault(repr(space_of(scorer.folder).spec), replace(scorer, untrained=True))
    return dict(zip(apart(["untrained"] * len(by_space)), by_space.values(), strict=True))


def columns_of(name: str, scores: Mapping[str, list[float]], kinds: Sequence[str]) -> dict[str, list[float]]:
    """The rankings of one scorer: a proxy has one, a supernet one for each kind, the first under its own name.

    "both" is the mean of the two ranks.
    """
    if "score" in scores:
        return {name: scores["score"]}
    both = (ranks(scores["kl"]) + ranks(scores["accuracy"])) / 2
    columns = {**scores, "both": both.tolist()}
    return {name if kind == kinds[0] else f"{name}-{kind}": columns[kind] for kind in kinds}
