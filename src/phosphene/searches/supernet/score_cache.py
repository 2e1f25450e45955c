"""The score cache: scores of candidates, kept in a journal and computed side by side.

`scores.jsonl` has one line for each architecture: its options in the order of the space's decisions, and its figures.
What is in it is never scored again; a line that was cut short by a kill is dropped.

With early rejection some candidates have a partial evaluation only; their figures are predicted, and marked as
`stopped_early`. The references that a candidate is compared with are those of earlier rounds, whatever the number of
jobs and interruptions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NotRequired

import torch
from typing_extensions import TypedDict

from ...core import Choices, SearchSpace
from ...data.dataset import ImageDataset
from ...errors import RunError
from ...runtime.machine import Machine
from ...runtime.parallel import Call, Jobs, shared_out, side_by_side
from ...settings import Ge, Gt, Settings
from ...storage import typed, whole
from .data import number, parts
from .early_stopping import EarlyRejection, Reference
from .evaluator import By, Evaluator, EvaluatorSetup, Figures, Staged, canonical

Key = tuple[int, ...]
"""Options in the order of the space's decisions."""
Evaluate = Callable[[Sequence[Choices]], list[float]]
"""Candidates -> a score each; higher is better."""

ROUND = 64  # candidates compared with the same references
ALONE = Jobs()
_LOADED: dict[tuple[object, ...], Evaluator] = {}  # of this process, one at a time


class Entry(NamedTuple):
    """A line of the journal; `partial`: the figures of the partial evaluation, if there was one."""

    figures: Figures
    partial: Figures | None = None
    stopped_early: bool = False


class ScoredImages(Settings, heading="Scores on the supernet"):
    held_out: Annotated[int | None, Ge(1), "images of each class that only score; unset: those of training"] = None
    score_images: Annotated[int | None, Ge(1), "held-out images used at most"] = None


class Ranked(ScoredImages):
    by: Annotated[By, "figure that ranks candidates: −KL or accuracy on held-out images"] = "kl"


class Calibrated(Settings, heading="Scores on the supernet"):
    calibration: Annotated[int, Ge(1), "batches for the BatchNorm statistics of each candidate"] = 4


class HeldOut(ScoredImages):
    score_batch: Annotated[int, Ge(1), "images per forward pass when scoring"] = 250
    calibration: Annotated[int, Ge(0), "batches for the BatchNorm statistics of each candidate; 0: training's"] = 4

    def setup(
        self,
        folder: Path,
        facts: dict[str, Any],
        images: ImageDataset,
        machine: Machine,
        *,
        temperature: float | None = None,
        seed: int = 0,
    ) -> EvaluatorSetup:
        """The setup for a data set: by `supernet.json` (`facts`) the images not trained on, and the temperature."""
        train, valid = parts(images, facts.get("parts", {}), self.held_out, seed)
        T = float(facts.get("temperature", 1.0)) if temperature is None else temperature
        crop = cropped(images, facts["space"]["shape"])
        return self.over(EvaluatorSetup(folder, train, valid, temperature=T, crop=crop, seed=seed), machine)

    def over(self, setup: EvaluatorSetup, machine: Machine) -> EvaluatorSetup:
        """A setup with these settings, on this machine."""
        own = {"batch": self.score_batch, "calibration": self.calibration, "images": self.score_images}
        return replace(setup, **own, device=str(machine.device), precision=machine.precision)  # type: ignore[arg-type]


class Scoring(HeldOut, Jobs):
    give_up: Annotated[int | None, Ge(1), "count of best candidates; those hardly among them are rejected early"] = None


class StoredTemperature(Settings, heading="Scores on the supernet"):
    temperature: Annotated[float | None, Gt(0), "temperature of both sides; default: the supernet's"] = None


class Ranking(Ranked, Scoring):
    """Scores on the supernet."""


def cropped(images: ImageDataset, shape: Sequence[int]) -> int | None:
    """The side of the center crop for a network of this input shape; None: the images have this size."""
    return None if tuple(images.card.shape[1:]) == tuple(shape[1:]) else int(shape[1])


class Measured(TypedDict):
    """Figures in a line of the journal."""

    kl: float
    accuracy: float


class Scored(Measured):
    """A line of the journal."""

    options: list[int]
    first: NotRequired[Measured]
    stopped_early: NotRequired[bool]


class ScoreCache:
    """``cache(candidates)`` gives the `Figures` of each, from the journal where they are known.

    Args:
        space: the supernet's space.
        setup: the supernet and the images.
        journal: the file, created if missing. It belongs to one supernet and one setup.
        machine: its ranks share the candidates.
        workers: processes side by side, see `parallel`; results are the same bits.
        paths: score each path separately; else equivalent networks (`canonical`) are one path and one score.
        rejection: early rejection; None: all candidates are evaluated in full.

    Raises:
        RunError: the journal holds something else.
    """

    def __init__(
        self,
        space: SearchSpace,
        setup: EvaluatorSetup,
        journal: Path,
        machine: Machine,
        workers: Jobs = ALONE,
        *,
        paths: bool = False,
        rejection: EarlyRejection | None = None,
    ) -> None:
        self.space, self.setup, self.journal, self.machine = space, setup, journal, machine
        self.workers, self.paths = workers, paths
        self.rejection = rejection
        self.names = [decision.name for decision in space.decisions]
        self.known = _read(journal, self.names)

    def __call__(self, candidates: Sequence[Choices]) -> list[Figures]:
        """The figures of each candidate, in order."""
        keys = [self.key(choices) for choices in candidates]
        if self.rejection is None:
            new = sorted({key for key in keys if key not in self.known})
            for start in range(0, len(new), self.round):
                self._score(new[start : start + self.round])
        else:
            self._score_or_reject(keys)
        return [self.known[key].figures for key in keys]

    def by(self, figure: By) -> Evaluate:
        """One figure alone, as searches take it."""
        return lambda candidates: [float(getattr(figures, figure)) for figures in self(candidates)]

    def stopped_early(self, choices: Choices) -> bool:
        """Whether its figures are predicted from a partial evaluation."""
        return self.known[self.key(choices)].stopped_early

    @property
    def stopped(self) -> int:
        """The number of candidates with predicted figures."""
        return sum(entry.stopped_early for entry in self.known.values())

    def key(self, choices: Choices) -> Key:
        """The key of a score: the options, of equivalent networks the canonical ones."""
        own = choices if self.paths else canonical(self.space, choices)
        return tuple(own[name] for name in self.names)

    def close(self) -> None:
        """Sort the journal's lines, so that they are the same in whatever order they came; unload the supernet."""
        _LOADED.clear()
        if self.machine.rank == 0 and self.known:
            whole.write(self.journal, "".join(_line(key, self.known[key]) for key in sorted(self.known)))
        self.machine.barrier()

    @property
    def round(self) -> int:
        """Candidates scored between two writes: enough to share their first layers, few to lose by a kill."""
        return ROUND * self.workers.jobs * self.machine.world

    def rounds(self, candidates: Sequence[Choices]) -> list[list[Choices]]:
        """The candidates in the rounds of early rejection, whatever was scored before."""
        return [self._choices(part) for part in _rounds({self.key(choices) for choices in candidates}, False)]

    def _score_or_reject(self, keys: Sequence[Key]) -> None:
        """Score in rounds: the references of a round are earlier rounds, and what was known before all of these."""
        assert self.rejection is not None
        before = self.known.keys() - set(keys)
        for part in _rounds(set(keys), self.rejection.ready(self._references(before))):
            if new := [key for key in part if key not in self.known]:
                self._score(new, self._references(before))
            before = before | set(part)

    def _references(self, keys: Iterable[Key]) -> list[Reference]:
        """Those of them that were evaluated in full, sorted."""
        full = [key for key in sorted(keys) if not self.known[key].stopped_early]
        known = [(self._choices([key])[0], *self.known[key][:2]) for key in full]
        return [Reference(choices, partial, figures) for choices, figures, partial in known if partial is not None]

    def _choices(self, keys: Sequence[Key]) -> list[Choices]:
        return [dict(zip(self.names, key, strict=True)) for key in keys]

    def _score(self, keys: list[Key], references: Sequence[Reference] = ()) -> None:
        """Score these and append them to the journal; ranks take a part each."""
        world, rank = self.machine.world, self.machine.rank
        mine = keys[len(keys) * rank // world : len(keys) * (rank + 1) // world]
        entries = dict(zip(mine, self._side_by_side(self._choices(mine), references), strict=True))
        if world > 1:
            everyone: list[dict[Key, Entry]] = [{} for _ in range(world)]
            torch.distributed.all_gather_object(everyone, entries)
            entries = {key: entry for part in everyone for key, entry in part.items()}
        self.known |= entries
        if rank == 0:
            with whole.storing(self.journal), open(self.journal, "a") as file:
                file.writelines(_line(key, entry) for key, entry in entries.items())
                file.flush()
                os.fsync(file.fileno())

    def _side_by_side(self, choices: list[Choices], references: Sequence[Reference]) -> list[Entry]:
        pieces = shared_out(len(choices), self.workers.jobs)
        if self.rejection is None:
            calls: list[Call] = [(score_part, (self.setup, choices[piece]), {}) for piece in pieces]
        else:
            by, thresholds = self.rejection.by, self.rejection.thresholds(choices, references)
            calls = [
                (score_or_reject_part, (self.setup, choices[piece], by, thresholds[piece]), {}) for piece in pieces
            ]
        jobs, backend = self.workers.jobs, self.workers.backend
        parts = side_by_side(calls, jobs=jobs, backend=backend, title="scores") if calls else []
        return [self._entry(result, references) for part in parts for result in part]

    def _entry(self, result: Figures | Staged, references: Sequence[Reference]) -> Entry:
        if isinstance(result, Figures):
            return Entry(result)
        if result.full is not None:
            return Entry(result.full, result.partial)
        assert self.rejection is not None
        return Entry(self.rejection.predicted(result.partial, references), result.partial, True)


def score_part(setup: EvaluatorSetup, candidates: Sequence[Choices]) -> list[Figures]:
    """The figures of these candidates, in whatever process; the supernet stays loaded for the next call."""
    return _evaluator(setup)(candidates)


def score_or_reject_part(
    setup: EvaluatorSetup, candidates: Sequence[Choices], by: By, thresholds: Sequence[float]
) -> list[Staged]:
    """`Evaluator.evaluate_or_reject`, likewise."""
    return _evaluator(setup).evaluate_or_reject(candidates, by, thresholds)


def _evaluator(setup: EvaluatorSetup) -> Evaluator:
    key = _identity(setup)
    if key not in _LOADED:
        _LOADED.clear()
        _LOADED[key] = setup.evaluator()
    return _LOADED[key]


def _rounds(keys: Collection[Key], begun: bool) -> list[list[Key]]:
    """Sorted in rounds, since neighbours share layers; unless `begun`, the first round is a random sample of all."""
    sampled = [] if begun else sorted(keys, key=lambda key: number("first round", key))[:ROUND]
    rest = sorted(set(keys) - set(sampled))
    rounds = [sorted(sampled), *(rest[k : k + ROUND] for k in range(0, len(rest), ROUND))]
    return [part for part in rounds if part]


def _identity(setup: EvaluatorSetup) -> tuple[object, ...]:
    """Equal where one evaluator serves both: the same supernet file, images and settings."""
    file = (setup.folder / "supernet.safetensors").stat()
    images = {"train": setup.train.fingerprint, "valid": setup.valid.fingerprint}
    return (file.st_mtime_ns, file.st_size, *{**vars(setup), **images}.values())


def _line(key: Key, entry: Entry) -> str:
    line: dict[str, Any] = {"options": list(key), **entry.figures._asdict()}
    line |= {} if entry.partial is None else {"first": entry.partial._asdict()}
    line |= {"stopped_early": True} if entry.stopped_early else {}
    return json.dumps(line) + "\n"


def _entry_of(line: Scored) -> Entry:
    partial = Figures(line["first"]["kl"], line["first"]["accuracy"]) if "first" in line else None
    return Entry(Figures(line["kl"], line["accuracy"]), partial, line.get("stopped_early", False))


def _read(journal: Path, names: Sequence[str]) -> dict[Key, Entry]:
    """The complete lines of a journal; an incomplete last one, of a kill, is cut off."""
    if not journal.exists():
        return {}
    content = journal.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if len(complete) < len(content):
        with open(journal, "r+b") as file:
            file.truncate(len(complete))
    scored = typed.lines(journal, Scored, RunError, "remove it and run again")
    entries = {tuple(line["options"]): _entry_of(line) for line in scored}
    if any(len(key) != len(names) for key in entries):
        raise RunError(f"{journal} has scores of another space; name another --out")
    return entries
