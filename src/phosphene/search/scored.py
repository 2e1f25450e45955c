"""Scores of candidates, remembered in a journal and worked out side by side.

`scores.jsonl` has one line for each architecture: its options in the order of the space's decisions, and its figures.
What is in it is never scored again; a line that was cut short by a kill is dropped.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from ..core import Choices, SearchSpace
from ..dataset import ImageDataset
from ..errors import RunError
from ..hardware import Machine
from ..parallel import Backend, Call, side_by_side
from ..scoring import Figures, Scorer, Scoring, canonical
from .halves import parts

By = Literal["kl", "accuracy"]
Evaluate = Callable[[Sequence[Choices]], list[float]]
"""Candidates -> a score each; higher is better."""

PARTS = 4  # calls of each worker: a kill loses what they are at
_HERE: dict[tuple[object, ...], Scorer] = {}  # of this process, one at a time


def scoring(
    folder: Path,
    facts: dict[str, Any],
    images: ImageDataset,
    machine: Machine,
    *,
    temperature: float | None = None,
    held_out: int | None = None,
    seed: int = 0,
) -> Scoring:
    """How to score on this data set by what `supernet.json` says: the images it was not trained on, its temperature."""
    train, valid = parts(images, facts.get("parts", {}), held_out, seed)
    T = float(facts.get("temperature", 1.0)) if temperature is None else temperature
    crop, where = (
        cropped(images, facts["space"]["shape"]),
        {"device": str(machine.device), "precision": machine.precision},
    )
    return Scoring(folder, train, valid, temperature=T, crop=crop, seed=seed, **where)  # type: ignore[arg-type]


def cropped(images: ImageDataset, shape: Sequence[int]) -> int | None:
    """The side of the middle that a network of this input shape sees of larger images; None: all of it."""
    return None if tuple(images.card.shape[1:]) == tuple(shape[1:]) else int(shape[1])


class Scores:
    """``scores(candidates)`` gives the `Figures` of each, from the journal where they are known.

    Args:
        space: the supernet's space.
        how: the supernet and the images.
        journal: the file; made where it is missing. It belongs to one supernet and one way to score.
        machine: its ranks share the candidates.
        jobs, backend: processes side by side, see `parallel`; results are the same bits.
        paths: score each path as it is; else networks that are alike (`canonical`) are one path and one score.

    Raises:
        RunError: the journal holds something else.
    """

    def __init__(
        self,
        space: SearchSpace,
        how: Scoring,
        journal: Path,
        machine: Machine,
        *,
        jobs: int = 1,
        backend: Backend = "joblib",
        paths: bool = False,
    ) -> None:
        self.space, self.how, self.journal, self.machine = space, how, journal, machine
        self.jobs, self.backend, self.paths = jobs, backend, paths
        self.names = [decision.name for decision in space.decisions]
        self.known = _read(journal, self.names)

    def __call__(self, candidates: Sequence[Choices]) -> list[Figures]:
        """The figures of each candidate, in order."""
        keys = [self.key(choices) for choices in candidates]
        new = sorted({key for key in keys if key not in self.known})
        for start in range(0, len(new), self.round):
            self._score(new[start : start + self.round])
        return [self.known[key] for key in keys]

    def by(self, figure: By) -> Evaluate:
        """One figure alone, as searches take it."""
        return lambda candidates: [float(getattr(figures, figure)) for figures in self(candidates)]

    def key(self, choices: Choices) -> tuple[int, ...]:
        """What a score is remembered by: the options, of networks alike the canonical ones."""
        made = choices if self.paths else canonical(self.space, choices)
        return tuple(made[name] for name in self.names)

    def settle(self) -> None:
        """Sort the journal's lines, so that they do not tell in which order they came, and let the supernet go."""
        _HERE.clear()
        if self.machine.rank == 0 and self.known:
            fresh = self.journal.with_name(self.journal.name + ".new")
            fresh.write_text("".join(_line(key, self.known[key]) for key in sorted(self.known)))
            os.replace(fresh, self.journal)
        self.machine.barrier()

    @property
    def round(self) -> int:
        """How many candidates are scored between two writes: many share their first layers, few are lost by a kill."""
        return 64 * self.jobs * self.machine.world

    def _score(self, keys: list[tuple[int, ...]]) -> None:
        """Score these and write them down; ranks take a part each."""
        world, rank = self.machine.world, self.machine.rank
        mine = keys[len(keys) * rank // world : len(keys) * (rank + 1) // world]
        found = dict(zip(mine, self._side_by_side(mine), strict=True))
        if world > 1:
            everyone: list[dict[tuple[int, ...], Figures]] = [{} for _ in range(world)]
            torch.distributed.all_gather_object(everyone, found)
            found = {key: figures for part in everyone for key, figures in part.items()}
        self.known |= found
        if rank == 0:
            with open(self.journal, "a") as file:
                file.writelines(_line(key, figures) for key, figures in found.items())
                file.flush()
                os.fsync(file.fileno())

    def _side_by_side(self, keys: list[tuple[int, ...]]) -> list[Figures]:
        choices = [dict(zip(self.names, key, strict=True)) for key in keys]
        count = 1 if self.jobs == 1 else min(len(choices), PARTS * self.jobs)
        bounds = [len(choices) * k // max(1, count) for k in range(count + 1)]
        pieces = [choices[a:b] for a, b in itertools.pairwise(bounds)]
        calls: list[Call] = [(score_part, (self.how, piece), {}) for piece in pieces]
        found = side_by_side(calls, jobs=self.jobs, backend=self.backend, title="scores") if calls else []
        return [Figures(*figures) for part in found for figures in part]


def score_part(how: Scoring, candidates: Sequence[Choices]) -> list[Figures]:
    """The figures of these candidates, in whatever process; the supernet stays loaded for the next call."""
    key = _identity(how)
    if key not in _HERE:
        _HERE.clear()
        _HERE[key] = how.scorer()
    return _HERE[key](candidates)


def _identity(how: Scoring) -> tuple[object, ...]:
    """Equal where one scorer serves both: the same supernet file, images and settings."""
    file = (how.folder / "supernet.safetensors").stat()
    rest = (how.temperature, how.batch, how.calibration, how.images, how.crop, how.seed, how.device, how.precision)
    return (how.folder, file.st_mtime_ns, file.st_size, how.train.fingerprint, how.valid.fingerprint, how.share, *rest)


def _line(key: tuple[int, ...], figures: Figures) -> str:
    return json.dumps({"options": list(key), **figures._asdict()}) + "\n"


def _read(journal: Path, names: Sequence[str]) -> dict[tuple[int, ...], Figures]:
    """The whole lines of a journal; what a kill left of a last one is cut off."""
    if not journal.exists():
        return {}
    content = journal.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with open(journal, "r+b") as file:
            file.truncate(len(whole))
    found = {}
    try:
        for line in whole.decode().splitlines():
            entry = json.loads(line)
            found[tuple(int(option) for option in entry["options"])] = Figures(entry["kl"], entry["accuracy"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{journal} is no journal of scores ({error!r}); remove it and run again") from error
    if any(len(key) != len(names) for key in found):
        raise RunError(f"{journal} has scores of another space; name another --out")
    return found
