"""Scores of many architectures without training them, cached in files: a study may be interrupted, spread and grown.

A scorer (a proxy here, a supernet in `consistency.supernets`) is a plain value that can travel to a worker; its
`identity` has everything that decides its scores. `score_all` computes them in chunks of a few architectures, each
chunk in a file of its own: `scores/NAME-HASH/0000.json`.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch
from typing_extensions import TypedDict

from .. import spaces
from ..core import Architecture, Batch
from ..data.dataset import ImageDataset
from ..errors import RunError, SettingsError
from ..losses import OBJECTIVES
from ..proxies import PROXIES, SEEING, SIZES, score
from ..proxies.inputs import draw, prepared
from ..runtime.machine import machine as decide_machine
from ..runtime.parallel import Call, Jobs, side_by_side
from ..searches.score import resolve
from ..settings import Ge, Hardware, Seed
from ..storage import typed
from ..storage.typed import write_json
from .probing import ONE_JOB, Probe, estimate_all

Input = tuple[int, tuple[int, ...]]
"""classes, and shape (C, H, W)"""
MEASURED = 3
"""architectures that an estimate scores"""


class Proxies(Seed, Hardware, heading="Training-free scores"):
    proxy: Annotated[list[str] | None, lambda: PROXIES, "training-free score to compare as well; repeat"] = None
    proxy_images: Annotated[int, Ge(1), "images of each data set for proxies that need images"] = 64

    def proxy_scorer(self, channels: int | None, cells: int | None, space: str | None = None) -> ByProxy:
        """The scorer of a proxy, of none and on no input yet."""
        return ByProxy("", None, 0, (), self.proxy_images, channels, cells, space, self.seed, self.device)


class Scorer(Protocol):
    """Scores of architectures, higher for better: a frozen dataclass of plain values."""

    @property
    def few(self) -> int:
        """Number of architectures in a file."""
        ...

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of its scores: it may have several for each architecture."""
        ...

    def identity(self) -> dict[str, Any]:
        """Everything that decides a score, as JSON."""
        ...

    def scores(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """For each architecture a number for each of `figures`."""
        ...


@dataclass(frozen=True)
class ByProxy:
    """A training-free score, on some images of a data set where it needs images.

    `classes` and `shape` (C, H, W) are those of the networks. `space` is the spec, as JSON, of the space whose paths
    they are; None: the published one that their text names.
    """

    proxy: str
    data: str | None
    classes: int
    shape: tuple[int, ...]
    images: int = 64
    channels: int | None = None
    cells: int | None = None
    space: str | None = None
    seed: int = 0
    device: str = "auto"
    few: int = 50
    figures: tuple[str, ...] = ("score",)

    def identity(self) -> dict[str, Any]:
        """All but the folder's name, the device and the files' length; for sizes without seed and images, too."""
        left_out = ("data", "device", "few", "figures", *(("images", "seed") if self.proxy in SIZES else ()))
        left_out += ("space",) if self.space is None else ()
        known = {key: value for key, value in asdict(self).items() if key not in left_out}
        return known if self.data is None else {**known, "data": ImageDataset.open(self.data).fingerprint}

    def scores(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """The proxy of each network, all with initial weights of one seed."""
        batch, objective = self._batch()
        options = {} if objective is None else {"objective": objective}
        scores: list[tuple[float, ...]] = []
        for one in map(self._network, texts):
            space = spaces.space(one.space)
            scores.append((score(self.proxy, space, one.choices, batch, seed=self.seed, **options),))
        return scores

    def _network(self, text: str) -> Architecture:
        if self.space is None:
            return prepared(text, channels=self.channels, cells=self.cells, classes=self.classes, shape=self.shape)
        spec = {**json.loads(self.space), "classes": self.classes, "shape": list(self.shape)}
        sizes = {"channels": self.channels, "cells": self.cells}
        space = spaces.space(spec | {key: n for key, n in sizes.items() if n is not None and key in spec})
        return Architecture(space.spec, resolve([text], space)[text])

    def _batch(self) -> tuple[Batch | None, Any]:
        if self.proxy in SIZES:
            return None, None
        if self.data is None:  # the proxy needs only the number of images and their shape
            return Batch(torch.zeros(self.images, *self.shape), torch.zeros(self.images, self.classes)), None
        data = ImageDataset.open(self.data)
        return draw(data, self.images, self.seed, decide_machine(self.device, "fp32")), OBJECTIVES[data.card.task]


class Chunk(TypedDict):
    """A file of scores: the architectures, and by the name of each figure its values."""

    architectures: list[str]


Scores = list[float | None]


def input_of(data: ImageDataset) -> Input:
    """The classes of a data set, and the input shape of its networks."""
    return data.card.classes, data.seen


def proxy_scorers(
    names: Iterable[str], sets: Mapping[str, ImageDataset], home: Input, common: ByProxy
) -> dict[str, Scorer]:
    """The sizes, and every proxy: once, on networks of the input `home`, or on each data set where it needs images.

    `common` has the settings of all of them.

    Raises:
        SettingsError: a proxy needs images and there are none.
    """
    classes, shape = home
    without = replace(common, data=None, classes=classes, shape=shape)
    scorers: dict[str, Scorer] = {name: replace(without, proxy=name) for name in SIZES}
    for name in dict.fromkeys(names):
        if name not in SEEING:
            scorers[name] = replace(without, proxy=name)
        elif not sets:
            raise SettingsError(f"--proxy {name} sees images: give --proxy-data")
        else:
            scorers |= {f"{name}-{key}": _on(replace(common, proxy=name), data) for key, data in sets.items()}
    return scorers


def _on(scorer: ByProxy, data: ImageDataset) -> ByProxy:
    classes, shape = input_of(data)
    return replace(scorer, data=str(data.folder), classes=classes, shape=shape)


def score_all(
    scorers: Mapping[str, Scorer],
    texts: Sequence[str],
    folder: Path,
    jobs: Jobs = ONE_JOB,
    title: str = "scores",
) -> dict[str, dict[str, list[float]]]:
    """The scores of all architectures for each scorer and figure; those in `folder` are not computed again.

    A longer list of architectures that begins with the shorter one keeps its scores.

    Raises:
        Stopped: after Ctrl-C or SIGTERM; the same call goes on.
        PhospheneError: the error of a scorer; the others are done first.
    """
    chunks = {name: _chunks(name, scorer, texts, folder) for name, scorer in scorers.items()}
    calls: list[Call] = [
        (_score, (scorers[name], chunk, path), {})
        for name, several in chunks.items()
        for path, chunk in several
        if not _cached(path, chunk)
    ]
    side_by_side(calls, jobs=jobs.jobs, backend=jobs.backend, title=title)
    scores: dict[str, dict[str, list[float]]] = {}
    for name, several in chunks.items():
        figures = scorers[name].figures
        parts = [_read(path, figures, len(chunk)) for path, chunk in several]
        scores[name] = {figure: [one for part in parts for one in part[figure]] for figure in figures}
    return scores


def needed(
    networks: Sequence[Probe], scorers: Mapping[str, Scorer], texts: Sequence[str], out: Path | str | None, jobs: int
) -> dict[str, Any]:
    """Minutes and memory for the trainings and scores of a study that its folder does not have."""
    folder = None if out is None else Path(out)
    needs: dict[str, Any] = estimate_all(networks, folder and folder / "networks", jobs).needs
    scoring = _minutes(scorers, texts, folder and folder / "scores", jobs)
    return {**needs, "minutes": round(needs["minutes"] + scoring, 2)}


def _minutes(scorers: Mapping[str, Scorer], texts: Sequence[str], folder: Path | None, jobs: int) -> float:
    """Minutes for the scores that `folder` does not have, measured on one and on a few architectures of each scorer."""
    total = 0.0
    for name, scorer in scorers.items():
        chunks = _chunks(name, scorer, texts, folder or Path())
        left = [chunk for path, chunk in chunks if folder is None or not _cached(path, chunk)]
        if left:
            one, some = (_seconds(scorer, texts[:count]) for count in (1, MEASURED))
            # a chunk takes a constant, for reading images, and a time for each architecture: from two measurements
            each = max(0.0, some - one) / (MEASURED - 1)
            total += len(left) * max(0.0, one - each) + sum(map(len, left)) * each
    return total / 60 / jobs


def _seconds(scorer: Scorer, texts: Sequence[str]) -> float:
    began = time.monotonic()
    scorer.scores(texts)
    return time.monotonic() - began


def _chunks(name: str, scorer: Scorer, texts: Sequence[str], folder: Path) -> list[tuple[Path, list[str]]]:
    """The file of each chunk, and its architectures."""
    identity = json.dumps(scorer.identity(), sort_keys=True)
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    place = folder / (re.sub(r"[^\w-]+", "-", name) + f"-{digest}")
    starts = range(0, len(texts), scorer.few)
    return [(place / f"{k:04d}.json", list(texts[start : start + scorer.few])) for k, start in enumerate(starts)]


def _cached(path: Path, texts: list[str]) -> bool:
    return path.exists() and typed.read(path, Chunk)["architectures"] == texts


def _read(path: Path, figures: Sequence[str], count: int) -> dict[str, list[float]]:
    """The scores of a chunk, by figure."""
    content: dict[str, Any] = dict(typed.read(path, Chunk))
    for figure in figures:
        typed.check(content.get(figure), Scores, f"{path}: {figure}", RunError, typed.REMEDY)
        if len(content[figure]) != count:
            raise RunError(f"{path}: {figure} has {len(content[figure])} scores, not {count}; {typed.REMEDY}")
    return content


def _score(scorer: Scorer, texts: list[str], path: Path) -> None:
    """Score one chunk into its file."""
    columns = zip(*scorer.scores(texts), strict=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"architectures": texts, **dict(zip(scorer.figures, map(list, columns), strict=True))})
