"""`phosphene study classes`: the effect of the number of random classes on a search (UnrealNAS §5.3, Fig. 6).

For each data set and number of classes K: images with uniform random labels over K classes, a search on them, its
architecture trained on real data, the accuracy on test data. Beside it random architectures, trained alike, and the
parameters of all: a search may do well by choosing large networks.

Files: `table.csv`, `classes.png`, `result.json`; `found/NAME-K-SEED` and `random/SEED`, each with the run folders
`search`, `train` and `evaluate`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import commands
from ..data.card import MOST_CLASSES
from ..data.dataset import ImageDataset
from ..drawing.figure_style import INK, PALE, colour, figure, save_picture, write_table
from ..errors import DatasetError, SettingsError
from ..evaluation.evaluate import evaluate
from ..runtime.machine import machine as decide_machine
from ..runtime.parallel import Call, Jobs, side_by_side
from ..runtime.progress import say
from ..runtime.run import Run
from ..settings import Estimate, Ge, Hardware, Le, RunSettings, command
from ..synthesis.unreal import relabel
from ..training.train import train as train_network
from .datasets import DataSets, RealTest, cut, opened
from .ranks import interval, spearman
from .searching import Searches, estimate

CLASSES = (2, 50, 100, 200, 1000, 2000, 5000, 10_000)  # UnrealNAS §3.3; for noise Fig. 6 has 10, 100, 1000, 5000 …
RANDOM = "random"  # name of the baselines; a data set may have it, too: baselines have no number of classes
CHANCE = "random architectures"
NAMES = {"top1": "test accuracy, %", "auc": "test AUC"}

Array = NDArray[Any]


class Classes(DataSets, RealTest, Searches, Jobs, RunSettings, heading="Random classes"):
    classes: Annotated[list[int] | None, Ge(2), Le(MOST_CLASSES), "numbers of classes; default: the paper's"] = None
    train: Annotated[str | None, "real data to train the architectures on"] = None
    baselines: Annotated[int, Ge(0), "number of random architectures, trained alike"] = 3
    search_epochs: Annotated[int, Ge(1), "epochs of a search, after its warm-up"] = 50
    search_warm_up: Annotated[int | None, Ge(0), "epochs of warm-up; default: the search's own"] = None
    search_batch: Annotated[int, Ge(1), "images of each part in a step of the search"] = 64
    search_channels: Annotated[int, Ge(1), "channels of a node in the supernet's first cell"] = 16
    search_cells: Annotated[int, Ge(1), "cells of the supernet"] = 8
    search_alpha_lr: Annotated[float | None, Ge(0), "learning rate of α; default: the search's own"] = None
    train_recipe: Annotated[Literal["short", "darts-cifar", "unrealnas-cifar"], "recipe of the training"] = "short"
    train_epochs: Annotated[int | None, Ge(1), "epochs over the real data; default: the recipe's"] = None
    train_steps: Annotated[int | None, Ge(1), "training steps in all, instead of --train-epochs"] = None
    train_batch: Annotated[int | None, Ge(1), "images per training step; default: the recipe's"] = None
    train_channels: Annotated[int | None, Ge(1), "channels of the first cell; default: the recipe's, else 36"] = None
    train_cells: Annotated[int | None, Ge(1), "cells of the trained network; default: the recipe's, else 20"] = None

    @property
    def numbers(self) -> list[int]:
        """The numbers of classes, ascending."""
        return sorted(set(self.classes or CLASSES))

    @property
    def search_settings(self) -> dict[str, Any]:
        """The settings of every search, as `config.json` keeps them."""
        settings: dict[str, Any] = {"epochs": self.search_epochs, "warm_up": self.search_warm_up}
        settings |= {"batch": self.search_batch, "channels": self.search_channels, "cells": self.search_cells}
        return settings | ({} if self.search_alpha_lr is None else {"alpha_lr": self.search_alpha_lr})

    @property
    def train_settings(self) -> dict[str, Any]:
        """The settings of every training, as `config.json` keeps them."""
        length = {"epochs": self.train_epochs, "steps": self.train_steps, "batch": self.train_batch}
        return {"recipe": self.train_recipe, **length, "channels": self.train_channels, "cells": self.train_cells}

    @property
    def place(self) -> dict[str, Any]:
        """Where every stage runs."""
        return self.keywords(Hardware, Estimate)


class Piece(NamedTuple):
    """One network: the origin of its architecture, and its figures. `classes` is None for a random one."""

    data: str
    classes: int | None
    seed: int
    skips: int
    score: float
    params: int


class Line(NamedTuple):
    """The networks of one data set in the figure, an entry each."""

    classes: Array
    scores: Array
    params: Array


@command
def classes(settings: Classes) -> dict[str, Any]:
    """Search with more and fewer random classes, and train the architectures on real data: does their number matter?

    Searches and trainings run side by side; finished ones are not repeated, and the same command goes on. Data sets,
    numbers of classes and seeds may be added later, with the same --out. More classes than images are allowed, with a
    note: most classes then have no image.

    Example:
        phosphene study classes --data noise --data fractal --classes 10 --classes 1000 --train real --test test

    Raises:
        SettingsError: a flag cannot be used.
        DatasetError: a data set cannot be read.
    """
    if settings.train is None or settings.test is None:
        raise SettingsError("--train and --test are both needed: real data to train on, and test data")
    sets, numbers, seed = opened(settings.data), settings.numbers, settings.seed
    count = settings.common_size(sets)
    real, tested = ImageDataset.open(settings.train), ImageDataset.open(settings.test)
    _check_real(real, tested)
    chain = Chain(settings, real, tested)
    identity: dict[str, Any] = {"images": count, "algorithm": settings.algorithm}
    identity |= {"search": settings.search_settings, "train": settings.train_settings}
    inputs, here = [real.fingerprint, tested.fingerprint], decide_machine(settings.device, settings.precision)
    run = Run.open("study-classes", identity, inputs, settings.out, here, seed=seed, estimate=settings.estimate)
    calls: list[Call] = [
        (chain.searched, (name, one, count, seed, k, s, run.path / "found" / f"{name}-{k}-{s}"), {})
        for name, one in sets.items()
        for k in numbers
        for s in range(seed, seed + settings.seeds)
    ]
    if settings.estimate:
        training: Call = (chain.trained, ("darts-v1", seed, run.path), {})
        kinds = [(calls[-1], len(calls)), (training, len(calls) + settings.baselines)]
        raise estimate("study-classes", kinds, settings.jobs)
    seeds = range(seed, seed + settings.baselines)
    calls += [(chain.random, (s, run.path / "random" / str(s)), {}) for s in seeds]
    note = _crowded(numbers, count)
    pieces = side_by_side(calls, jobs=settings.jobs, backend=settings.backend, title="study classes")
    _write(pieces, chain.score, run.path)
    result = run.finish({"images": count, "measure": chain.score, "note": note, **summary(pieces)})
    return {**result, "out": str(run.path)}


@dataclass(frozen=True)
class Chain:
    """Search, train, evaluate: the same settings for every network. Each stage has a run folder of its own."""

    settings: Classes
    real: ImageDataset
    test: ImageDataset

    @property
    def score(self) -> str:
        """The measure: top-1 in per cent, or the mean AUC of multi-label targets."""
        return "auc" if self.real.card.task == "multi" else "top1"

    def searched(
        self, name: str, data: ImageDataset, images: int, draw: int, classes: int, seed: int, folder: Path
    ) -> Piece:
        """A network searched on `images` images of `data`, the same for every seed, with random labels of `seed`."""
        part = relabel(cut(data, images, draw), classes, seed)  # P(label = k) = 1 / K (UnrealNAS §3.3)
        options = self.settings.search_settings | self.settings.place
        search = self.settings.search(part, out=folder / "search", seed=seed, **options)
        return Piece(name, classes, seed, search.result["skips"]["normal"], **self.trained(search.path, seed, folder))

    def random(self, seed: int, folder: Path) -> Piece:
        """A random architecture."""
        search = commands.function("search random")(self.real, out=folder / "search", seed=seed)
        return Piece(RANDOM, None, seed, search.result["skips"]["normal"], **self.trained(search.path, seed, folder))

    def trained(self, arch: Path | str, seed: int, folder: Path) -> dict[str, Any]:
        """Train on the real data and evaluate."""
        options = self.settings.train_settings | self.settings.place
        trained = train_network(str(arch), data=self.real, out=folder / "train", seed=seed, **options)
        measured = evaluate(trained, data=self.test, out=folder / "evaluate", device=self.settings.device)
        return {"score": measured[self.score], "params": trained.result["params"]}


def _check_real(train: ImageDataset, test: ImageDataset) -> None:
    """Raise `DatasetError` where the end of the chain would fail: the training, or its evaluation."""
    inputs = [(data.card.shape, data.card.classes, data.card.task) for data in (train, test)]
    if inputs[0] != inputs[1]:
        kinds = [f"{'x'.join(map(str, shape))}, {classes} classes ({task})" for shape, classes, task in inputs]
        raise DatasetError(f"--test {test.card.name} ({kinds[1]}) does not fit {train.card.name} ({kinds[0]})")
    for flag, data in (("--train", train), ("--test", test)):
        if not len(data):
            raise DatasetError(f"{flag} {data.card.name} holds no images; name a data set that does")
        data.targets([0])  # raises where nobody labelled the images
    labels = test.targets(range(len(test))) if test.card.task == "multi" else None
    if labels is not None and not ((labels >= 0.5).any(0) & (labels < 0.5).any(0)).any():
        raise DatasetError(f"--test {test.card.name} has no label that is both present and absent, so no AUC")


def _crowded(numbers: Sequence[int], images: int) -> str | None:
    """A note where there are more classes than images."""
    crowded = [number for number in numbers if number > images]
    if not crowded:
        return None
    note = f"with {' and '.join(f'{number:,}' for number in crowded)} classes, most have none of the {images:,} images"
    say(note)
    return note


# -- what comes out --------------------------------------------------------------------------------------------------


def summary(pieces: Sequence[Piece]) -> dict[str, Any]:
    """Means and deviations over seeds of each data set and K; the best K of each set; ρ of score and parameters."""
    groups: dict[tuple[str, int | None], list[Piece]] = {}
    for piece in pieces:
        groups.setdefault((piece.data, piece.classes), []).append(piece)
    results = {name if k is None else f"{name}-{k}": _means(name, k, group) for (name, k), group in groups.items()}
    by_set: dict[str, list[dict[str, Any]]] = {}
    for one in results.values():
        if one["classes"] is not None:
            by_set.setdefault(one["data"], []).append(one)
    best = {name: max(several, key=lambda one: one["score"]) for name, several in by_set.items()}
    return {
        "best": {name: {key: one[key] for key in ("classes", "score", "sd")} for name, one in best.items()},
        "results": results,
        **_size([piece.params for piece in pieces], [piece.score for piece in pieces]),
    }


def _means(name: str, classes: int | None, group: Sequence[Piece]) -> dict[str, Any]:
    scores = np.array([piece.score for piece in group])
    return {
        "data": name,
        "classes": classes,
        "networks": len(group),
        "score": round(float(scores.mean()), 4),
        "sd": round(float(scores.std(ddof=1)), 4) if len(group) > 1 else None,
        "params": round(sum(piece.params for piece in group) / len(group)),
        "skips": round(sum(piece.skips for piece in group) / len(group), 4),
    }


def _size(params: Sequence[int], scores: Sequence[float]) -> dict[str, Any]:
    """Spearman's ρ of the score with the parameters, over all networks, and its bootstrap interval."""
    figures = (spearman(params, scores), *interval(spearman, params, scores))
    known = [None if math.isnan(figure) else round(figure, 4) for figure in figures]
    return {"rho_params": known[0], "rho_low": known[1], "rho_high": known[2]}


def _write(pieces: Sequence[Piece], score: str, folder: Path) -> None:
    table = [(p.data, p.classes, p.seed, p.score, p.params, p.skips) for p in pieces]
    write_table(folder / "table.csv", ("data", "classes", "seed", score, "params", "skips_normal"), table)
    searched, chance = ([p for p in pieces if (p.classes is None) == random] for random in (False, True))
    columns = {name: [p for p in searched if p.data == name] for name in dict.fromkeys(p.data for p in searched)}
    lines = {
        name: Line(*(np.array([getattr(p, key) for p in several], float) for key in ("classes", "score", "params")))
        for name, several in columns.items()
    }
    draw(lines, [p.score for p in chance], [p.params for p in chance], score, folder / "classes.png")


# -- the figure ------------------------------------------------------------------------------------------------------


def draw(lines: dict[str, Line], chance: Sequence[float], chance_params: Sequence[int], score: str, path: Path) -> None:
    """Fig. 6: a line for each data set over K on a logarithmic scale, random architectures as a band across."""
    picture, axes = figure(2, 1, (8.5, 7), sharex=True, height_ratios=(3, 2))
    upper, lower = axes[:, 0]
    millions = max([*chance_params, *(line.params.max() for line in lines.values())]) >= 1e6
    unit = 1e6 if millions else 1e3
    for number, (name, line) in enumerate(lines.items()):
        shift = 1.04 ** (number - (len(lines) - 1) / 2)  # of the classes, so that bars do not hide one another
        _line(upper, line.classes, line.scores, shift, number, name)
        _line(lower, line.classes, line.params / unit, shift, number, name)
    _band(upper, np.array(chance, float))
    _band(lower, np.array(chance_params, float) / unit)
    _logarithmic(lower, sorted({k for line in lines.values() for k in line.classes.tolist()}))
    upper.set_ylabel(NAMES.get(score, score), fontsize=10, color=INK)
    lower.set_ylabel(f"parameters, {'millions' if millions else 'thousands'}", fontsize=10, color=INK)
    lower.set_xlabel("random classes", fontsize=10, color=INK)
    legend: dict[str, Any] = {"loc": "outside lower center", "ncols": 5, "frameon": False, "fontsize": 10}
    title = (
        "dots: single networks; lines, bars and band: mean and one standard deviation; in brackets: networks a point"
    )
    entries = dict(zip(*reversed(upper.get_legend_handles_labels()), strict=True))
    ordered = sorted(entries, key=lambda label: label.startswith(CHANCE))
    picture.legend([entries[label] for label in ordered], ordered, **legend, title=title, title_fontsize=8)
    save_picture(picture, path, dpi=120)


def _line(axis: Any, classes: Array, values: Array, shift: float, number: int, name: str) -> None:
    at = np.unique(classes)
    groups = [values[classes == k] for k in at]
    means = [group.mean() for group in groups]
    bars = [group.std(ddof=1) if len(group) > 1 else 0.0 for group in groups]
    style: dict[str, Any] = {"color": colour(number), "linewidth": 1.8, "elinewidth": 1.3, "capsize": 3}
    counts = sorted({len(group) for group in groups})
    label = f"{name} ({'–'.join(map(str, dict.fromkeys((counts[0], counts[-1]))))})"
    axis.errorbar(at * shift, means, bars if any(bars) else None, **style, marker="o", markersize=5, label=label)
    if any(len(group) > 1 for group in groups):
        axis.scatter(classes * shift, values, s=16, color=colour(number), alpha=0.45, linewidth=0)


def _band(axis: Any, values: Array) -> None:
    """Mean and deviation of the random architectures, across."""
    if not len(values):
        return
    mean, deviation = values.mean(), values.std(ddof=1) if len(values) > 1 else 0.0
    axis.axhline(mean, color=PALE, linewidth=1.3, linestyle=(0, (4, 3)), zorder=1, label=f"{CHANCE} ({len(values)})")
    axis.axhspan(mean - deviation, mean + deviation, color=PALE, alpha=0.15, linewidth=0, zorder=0)


def _logarithmic(axis: Any, classes: Sequence[float]) -> None:
    """A tick at every K there is."""
    axis.set_xscale("log")
    axis.set_xticks(classes, [f"{k / 1000:g}k" if k >= 1000 else f"{k:g}" for k in classes])
    axis.minorticks_off()
    axis.set_xlim(classes[0] / 1.25, classes[-1] * 1.25)
