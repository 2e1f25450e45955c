"""`phosphene study collapse`: the operations of the current genotype by search epoch (UnrealNAS §5.2, Fig. 5).

Long searches of DARTS fill their cells with skip connections. The study counts the operations of the genotype of each
epoch, on several data sets.

Epochs count from the first step of the architecture: in warm-up epochs all its parameters are equal.
Files: `table.csv`, `skips.png`, `operations.png`, `result.json`; `searches/NAME-SEED`, the run folder of each search.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from ..data.dataset import ImageDataset
from ..drawing.figure_style import INK, PALE, colour, figure, named, save_picture, write_table
from ..errors import RunError, SettingsError
from ..runtime.machine import machine as decide_machine
from ..runtime.parallel import Call, Jobs, side_by_side
from ..runtime.run import Run
from ..searches.settings import SearchEpochs, WarmUp
from ..searches.sizes import SupernetCells
from ..settings import Estimate, Ge, Hardware, RunSettings, command
from ..spaces.darts.genotype import KINDS, Genotype, parse
from ..spaces.darts.operations import OPERATIONS
from ..storage import arrays, typed
from .datasets import DataSets, cut, opened, share, without_common_words
from .searching import Searches, estimate

OPTIONS = OPERATIONS[1:]  # what an edge of a genotype can be
SKIP = OPTIONS.index("skip_connect")
MANY = (4, 6)  # skips in the normal cell: half of its 8 edges, and those of a collapse (UnrealNAS §5.2)

Counts = NDArray[np.int64]
"""(epochs, 2 kinds of cell, 7 operations)"""
Tables = dict[str, NDArray[np.int64]]
"""data set -> counts (seeds, epochs, kinds of cell, operations)"""
Plan = tuple[Run, dict[str, Any], list[tuple[str, int, Path]], list[Call]]
"""the study's run, the settings of its searches, (data set, seed, folder) of each, and the calls that run them"""


class Collapse(DataSets, Searches, SearchEpochs, WarmUp, SupernetCells, Jobs, RunSettings, heading="Searches"):
    runs: Annotated[list[str] | None, "instead of --data: a finished search, FOLDER or NAME=FOLDER; repeatable"] = None
    epochs: int = 100
    channels: int = 16
    cells: int = 8
    nodes: int = 4
    alpha_lr: Annotated[float | None, Ge(0), "learning rate of α; default: the search's own"] = None

    @property
    def search_settings(self) -> dict[str, Any]:
        """The settings of every search, as `config.json` keeps them."""
        settings = {"epochs": self.epochs, "warm_up": self.warm_up, "batch": self.batch}
        settings |= {"channels": self.channels, "cells": self.cells, "nodes": self.nodes}
        return settings | ({} if self.alpha_lr is None else {"alpha_lr": self.alpha_lr})


@dataclass(frozen=True)
class Search:
    """One finished search: its data set and seed, and its counts."""

    data: str
    seed: int
    counts: Counts


@command
def collapse(settings: Collapse) -> dict[str, Any]:
    """Count skip connections, and every operation, in the current genotype by search epoch, for several data sets.

    Searches run side by side, or with --runs are read from folders of finished searches. The same command goes on
    where it was stopped; data sets and seeds may be added later, with the same --out. Each search trains weights on
    --images images, by default as many as every set can give, so that all have as many steps; a set with real labels
    gives as many again to the architecture.

    Example:
        phosphene study collapse --data real --data noise --epochs 50 --seeds 3 --jobs 2 --out collapse
        phosphene study collapse --runs real=found/real-0 --runs noise=found/noise-0

    Raises:
        SettingsError: a flag cannot be used.
        DatasetError: a data set cannot be read.
        RunError: a folder is no finished search.
    """
    if bool(settings.data) == bool(settings.runs):
        raise SettingsError("give either --data, to search, or --runs, to read finished searches")
    run, searched, named, calls = _finished(settings) if settings.runs else _planned(settings)
    if settings.estimate:
        raise estimate("study-collapse", [(call, 1) for call in calls], settings.jobs)
    side_by_side(calls, jobs=settings.jobs, backend=settings.backend, title="study collapse")
    searches = [Search(name, number, history(folder)) for name, number, folder in named]
    _write(searches, run.path)
    return {**run.finish({**searched, "collapse": summary(searches)}), "out": str(run.path)}


def _finished(settings: Collapse) -> Plan:
    """The searches of --runs, of which none is run."""
    named = named_searches(settings.runs or [])
    identity, here = {"of": "searches that are done"}, decide_machine(settings.device, settings.precision)
    run = Run.open("study-collapse", identity, [], settings.out, here, estimate=settings.estimate)
    return run, {}, named, []


def _planned(settings: Collapse) -> Plan:
    """The searches on --data."""
    sets, seed = opened(settings.data), settings.seed
    shares = {name: share(one) for name, one in sets.items()}
    count = settings.common_size(sets, shares)
    searched = {"algorithm": settings.algorithm, "images": count, **settings.search_settings}
    here = decide_machine(settings.device, settings.precision)
    run = Run.open("study-collapse", searched, [], settings.out, here, seed=seed, estimate=settings.estimate)
    seeds = range(seed, seed + settings.seeds)
    named = [(name, number, run.path / "searches" / f"{name}-{number}") for name in sets for number in seeds]
    calls: list[Call] = [
        (search, (settings, sets[name], shares[name] * count, number, folder), {}) for name, number, folder in named
    ]
    return run, searched, named, calls


def search(settings: Collapse, data: ImageDataset, images: int, seed: int, folder: Path) -> None:
    """One search in a run folder of its own; a finished one is not repeated.

    All seeds search on the same images, `images` of them sampled with --seed.
    """
    part = cut(data, images, settings.seed)
    out = None if settings.estimate else folder
    settings.search(part, out=out, seed=seed, **settings.search_settings, **settings.keywords(Hardware, Estimate))


# -- reading searches ------------------------------------------------------------------------------------------------


class Config(TypedDict):
    """What is read of `config.json`."""

    stage: NotRequired[str]
    seed: NotRequired[int]


class Logged(TypedDict):
    """What is read of a line of `metrics.jsonl`."""

    epoch: NotRequired[int]
    genotype: NotRequired[str]


def _config(folder: Path) -> Config:
    return typed.read(folder / "config.json", Config, RunError, "run that search again")


def history(folder: Path) -> Counts:
    """The counts of a finished search, for each epoch in which the architecture moved.

    Raises `RunError` where the folder holds no finished search that logged its genotypes.
    """
    if not (folder / "result.json").exists() or _config(folder).get("stage") != "search":
        raise RunError(f"{folder} is no finished search; finish it, or name another folder")
    lines = typed.lines(folder / "metrics.jsonl", Logged, RunError, "run that search again")
    genotypes = [parse(line["genotype"]) for line in lines if "epoch" in line and "genotype" in line]
    genotypes = genotypes[_warm_up(folder) :]  # 5 warm-up epochs on unreal data (UnrealNAS §4.1)
    if not genotypes:
        raise RunError(f"{folder} logged no genotypes; name a search by darts or sgas")
    return np.array([counts(genotype) for genotype in genotypes])


def counts(genotype: Genotype) -> list[list[int]]:
    """The number of each operation in each kind of cell."""
    cells = [[operation for operation, _ in getattr(genotype, kind)] for kind in KINDS]
    return [[cell.count(option) for option in OPTIONS] for cell in cells]


def _warm_up(folder: Path) -> int:
    """Epochs before the first step of the architecture parameters."""
    path = folder / "alphas.npy"
    if not path.exists():
        return 0
    alphas = arrays.mapped(path, RunError, "run that search again")
    if alphas.ndim != 3:
        raise RunError(f"{path} has shape {alphas.shape}, not (epochs, decisions, options); run that search again")
    moved = (alphas != alphas[:1]).any(axis=(1, 2))
    return int(moved.argmax()) - 1 if moved.any() else 0


def named_searches(texts: Sequence[str]) -> list[tuple[str, int, Path]]:
    """(data set, seed, folder) of FOLDER or NAME=FOLDER; without a NAME the folder's, less what all of them share.

    Raises `RunError` for what is no run folder, and `SettingsError` where two are called alike.
    """
    folders = [Path(text.partition("=")[2] or text) for text in texts]
    labels = [text.partition("=")[0] if "=" in text else "" for text in texts]
    for folder in folders:
        if not (folder / "config.json").exists():
            raise RunError(f"--runs {folder} is no run folder; name the folder of a search, as FOLDER or NAME=FOLDER")
    numbers = [_config(folder).get("seed", 0) for folder in folders]
    bare = [re.sub(rf"[-_]?{n}$", "", f.resolve().name) for f, n in zip(folders, numbers, strict=True)]
    names = [label or name for label, name in zip(labels, without_common_words(bare, "[-_]"), strict=True)]
    pairs = list(zip(names, numbers, strict=True))
    for pair in pairs:
        if pairs.count(pair) > 1:
            raise SettingsError(f"--runs has two searches called {pair[0]}, seed {pair[1]}; name them as NAME=FOLDER")
    return [(name, number, folder) for (name, number), folder in zip(pairs, folders, strict=True)]


# -- what comes out --------------------------------------------------------------------------------------------------


def grouped(searches: Sequence[Search]) -> Tables:
    """Counts by data set, as long as the shortest search on it."""
    groups: dict[str, list[Counts]] = {}
    for one in searches:
        groups.setdefault(one.data, []).append(one.counts)
    shortest = {name: min(map(len, several)) for name, several in groups.items()}
    return {name: np.stack([c[: shortest[name]] for c in several]) for name, several in groups.items()}


def summary(searches: Sequence[Search]) -> dict[str, dict[str, Any]]:
    """Figures by data set, of the normal cell unless their name says otherwise."""
    figures = {}
    for name, table in grouped(searches).items():
        skips = table[..., SKIP]  # (seeds, epochs, kinds)
        normal, last = skips[..., 0], skips[:, -1]
        figures[name] = {
            "searches": len(table),
            "epochs": table.shape[1],
            "skips": float(last[:, 0].mean()),
            "skips_sd": _deviation(last[:, 0]),
            "skips_both_cells": float(last.sum(1).mean()),
            "most": float(normal.max(1).mean()),
            "each_last": last[:, 0].tolist(),
            **{f"first_{many}": [_first(line >= many) for line in normal] for many in MANY},
        }
    return figures


def _first(reached: NDArray[np.bool_]) -> int | None:
    """The first epoch, counted from 1, in which it was so."""
    return int(reached.argmax()) + 1 if reached.any() else None


def _deviation(values: NDArray[Any]) -> float | None:
    """The standard deviation of a sample; None for one value."""
    return round(float(values.std(ddof=1)), 4) if len(values) > 1 else None


def _write(searches: Sequence[Search], folder: Path) -> None:
    table = [
        (one.data, one.seed, epoch, kind, option, int(one.counts[epoch - 1, k, o]))
        for one in searches
        for epoch in range(1, len(one.counts) + 1)
        for k, kind in enumerate(KINDS)
        for o, option in enumerate(OPTIONS)
    ]
    write_table(folder / "table.csv", ("data", "seed", "epoch", "kind", "operation", "count"), table)
    draw_skips(grouped(searches), folder / "skips.png")
    draw_operations(grouped(searches), folder / "operations.png")


# -- the figures -----------------------------------------------------------------------------------------------------

SHADES = {  # of the operations, by family as in the drawings of cells
    "skip_connect": "#2e7d4f",
    "max_pool_3x3": "#b4541a",
    "avg_pool_3x3": "#d9a441",
    "sep_conv_3x3": "#1f5fa8",
    "sep_conv_5x5": "#6fa3d8",
    "dil_conv_3x3": "#8a3ca0",
    "dil_conv_5x5": "#c48fd3",
}
TITLES = {"normal": "normal cell", "reduce": "reduction cell"}


def draw_skips(tables: Tables, path: Path) -> None:
    """Fig. 5: skip connections by epoch, one line for each data set, a band of one standard deviation over seeds."""
    picture, axes = figure(1, 2, (10, 4.2))
    edges = int(next(iter(tables.values()))[0, 0, 0].sum())
    for axis, title, most, kinds in zip(
        axes[0], ("normal cell", "both cells"), (edges, 2 * edges), (1, 2), strict=True
    ):
        for number, (name, table) in enumerate(tables.items()):
            skips = table[:, :, :kinds, SKIP].sum(2)
            epochs, hair = np.arange(1, skips.shape[1] + 1), 0.012 * most * (number - (len(tables) - 1) / 2)
            mean, band = skips.mean(0) + hair, skips.std(0, ddof=1) if len(skips) > 1 else 0 * skips[0]
            axis.plot(epochs, mean, color=colour(number), linewidth=1.8, label=named(f"{name} ({len(skips)})"))
            axis.fill_between(epochs, mean - band, mean + band, color=colour(number), alpha=0.15, linewidth=0)
        chance = kinds * edges / len(OPTIONS)  # skips of random cells, in expectation
        axis.axhline(chance, color=PALE, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        last = max(table.shape[1] for table in tables.values())
        axis.text(last, chance, "random cells", fontsize=8, color=PALE, ha="right", va="bottom")
        _epochs(axis, last, most // 4)
        axis.set_ylim(-0.03 * most, most)
        axis.set_title(f"skip connections, {title} ({most} edges)", fontsize=11, color=INK, loc="left")
    several = any(len(table) > 1 for table in tables.values())
    note = "mean and one standard deviation over searches, their number in brackets; " if several else ""
    legend = {"loc": "outside lower center", "ncols": 4, "frameon": False, "fontsize": 10, "title_fontsize": 8}
    lines = axes[0, 0].get_legend_handles_labels()
    picture.legend(*lines, **legend, title=f"{note}lines are set apart by a hair")
    save_picture(picture, path, dpi=120)


def draw_operations(tables: Tables, path: Path) -> None:
    """All operations of the genotype by epoch, stacked: data sets below each other, kinds of cell side by side."""
    picture, axes = figure(len(tables), 2, (10, 1.2 + 2.1 * len(tables)), sharex=True, sharey=True)
    order = list(SHADES)
    for pair, (name, table) in zip(axes, tables.items(), strict=True):
        epochs = np.arange(1, table.shape[1] + 1)
        for k, (axis, kind) in enumerate(zip(pair, KINDS, strict=True)):
            mean = [table[:, :, k, OPTIONS.index(option)].mean(0) for option in order]
            axis.stackplot(epochs, mean, colors=[SHADES[option] for option in order], linewidth=0)
            axis.set_title(f"{name}, {TITLES[kind]}", fontsize=10, color=INK, loc="left")
            axis.set_ylim(0, table[0, 0, k].sum())
    for axis in axes[-1]:
        _epochs(axis, max(table.shape[1] for table in tables.values()), 2)
    for axis in axes[:, 0]:
        axis.set_ylabel("edges", fontsize=9, color=INK)
    from matplotlib.patches import Patch

    patches = [Patch(color=SHADES[option], label=option.replace("_", " ")) for option in order]
    picture.legend(handles=patches, loc="outside upper center", ncols=7, frameon=False, fontsize=8.5)
    save_picture(picture, path, dpi=120)


def _epochs(axis: Any, last: int, ticks: int) -> None:
    """Integer ticks: epochs below, edges at the side, one every `ticks`."""
    from matplotlib.ticker import MaxNLocator, MultipleLocator

    axis.set_xlim(1, max(2, last))
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axis.yaxis.set_major_locator(MultipleLocator(max(1, ticks)))
    axis.set_xlabel("search epoch", fontsize=9, color=INK)
