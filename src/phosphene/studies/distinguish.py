"""`phosphene study distinguish`: does training accuracy on a data set rank architectures as real test accuracy does?

The same random architectures are trained from scratch on each data set, and for the truth on real images with real
labels, tested on the test set. The two rankings are compared (UnrealNAS §3.1, Fig. 1b-d), beside rankings that need no
training at all: a ranking that is no better than the parameter count has learned no more than the parameter count.

Files: `table.csv` (a line for each ranking), `networks.csv` (one for each architecture), `curves.png`, `scatter.png`,
`tau.png`, `result.json`; `networks/`, a run folder for each network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.dataset import ImageDataset
from ..drawing.figure_style import INK, PALE, colour, figure, save_picture, write_table
from ..errors import Estimate, SettingsError
from ..proxies import SIZES
from ..proxies.inputs import prepared
from ..runtime.machine import machine as decide_machine
from ..runtime.parallel import Jobs
from ..runtime.run import Run
from ..settings import RunSettings, command
from . import truth
from .cached_scores import Proxies, Scorer, input_of, needed, proxy_scorers, score_all
from .candidates import BASELINES, Candidates, baselines, genotypes
from .datasets import DataSets, opened, unreal_kind
from .probing import Probe, Training, check, train_all
from .ranks import Column, interval, kendall, spearman
from .truth import Truth

PUBLISHED = {"random labels": 0.64, "fractals": 0.60, "noise": 0.58}
"""Kendall's τ of the training accuracy in epoch 50 with CIFAR-100 test accuracy (UnrealNAS §3.1)"""


class Distinguish(Truth, Candidates, Proxies, DataSets, Training, Jobs, RunSettings):
    """Comparison."""

    architectures: int = 20


@command
def distinguish(settings: Distinguish) -> dict[str, Any]:
    """Compare how data sets rank random architectures with how real test accuracy ranks them.

    Kendall's tau and Spearman's rho have bootstrap intervals (95 %, over the architectures), and stand beside those of
    parameter count, MACs, depth, the number of parameter-free operations, and any proxy. Architectures, data sets,
    proxies and another truth may be added later with the same --out: what is finished is not computed again.

    Example:
        phosphene study distinguish --data noise --truth-data real --test real-test --epochs 20 --jobs 2 --out ranked

    Raises:
        SettingsError: a flag cannot be used, or there is no truth.
        DatasetError: a data set cannot be read, has no labels, or the test set does not fit.
        ArchitectureError: the truth file names something that is no architecture.
    """
    _check(settings)
    sets = opened(settings.data, ("truth", *BASELINES))
    first = settings.probe(settings.common_size(sets))
    known = None if settings.truth is None else dict(list(truth.read(settings.truth).items())[: settings.architectures])
    texts = list(known) if known else genotypes(settings.architectures, settings.seed)
    probes = {name: [replace(first, arch=text, data=str(d.folder)) for text in texts] for name, d in sets.items()}
    real: list[Probe] = []
    if settings.truth_data is not None:
        real = [replace(settings.trained(first), arch=text) for text in texts]
        probes = {name: _tested(several, real, sets[name]) for name, several in probes.items()}
    home = ImageDataset.open(settings.truth_data) if settings.truth_data else next(iter(sets.values()))
    scorers = _proxies(settings, sets, home)
    networks = [*real, *(probe for several in probes.values() for probe in several)]
    check([*([real] if real else []), *probes.values()])
    here, seed = decide_machine(settings.device, settings.precision), settings.seed
    run = Run.open("study-distinguish", first.common, [], settings.out, here, seed=seed, estimate=settings.estimate)
    if settings.estimate:
        raise Estimate(needed(networks, scorers, texts, settings.out, settings.jobs))
    results = train_all(networks, run.path / "networks", settings, "study distinguish")
    scores = score_all(scorers, texts, run.path / "scores", settings, "study distinguish")

    count = len(texts)
    reached = list(known.values()) if known else [one["test"] for one in results[:count]]  # §3.1: CIFAR-100
    groups = [results[k : k + count] for k in range(len(real), len(networks), count)]
    curves = {name: np.array([one["train"] for one in group]) for name, group in zip(sets, groups, strict=True)}
    free = _sizes(texts, home, first)
    figures = {name: statistics(curve, reached, free["parameters"]) for name, curve in curves.items()}
    for name, one in figures.items():
        one["paper"] = PUBLISHED.get(unreal_kind(sets[name].card))
    beside = {name: agreement(column, reached) for name, column in free.items()}
    proxied = {name: column["score"] for name, column in scores.items()}
    by_proxy = {name: agreement(column, reached) for name, column in proxied.items()}
    _write(run.path, texts, reached, curves, free | proxied, figures, beside | by_proxy)
    best, worst = int(np.argmax(reached)), int(np.argmin(reached))  # the two reference networks of Fig. 1b-d
    trained = {**first.common, "architectures": count, "truth_epochs": settings.truth_epochs or settings.epochs}
    ends = {"best": texts[best], "worst": texts[worst], "truth_best": reached[best], "truth_worst": reached[worst]}
    taus = {name: by_epoch(curve, reached) for name, curve in curves.items()}
    tables = {"distinguish": figures, "baselines": beside, "proxies": by_proxy, "tau_by_epoch": taus}
    return {**run.finish({**trained, **ends, **tables}), "out": str(run.path)}


def _check(settings: Distinguish) -> None:
    """Raise `SettingsError` unless there is one truth."""
    if (settings.truth is None) == (settings.truth_data is None):
        raise SettingsError("give one truth: --truth-data with --test, to train it, or --truth, a file")
    if (settings.test is None) != (settings.truth_data is None):
        raise SettingsError("--truth-data and --test belong together: the truth is accuracy on test images")


def _tested(probes: list[Probe], real: list[Probe], data: ImageDataset) -> list[Probe]:
    """The truth's own networks where these are the same but for the test: they are trained once."""
    same = data.fingerprint == ImageDataset.open(real[0].data).fingerprint
    tested = [replace(probe, data=true.data, test=true.test) for probe, true in zip(probes, real, strict=True)]
    return real if same and tested == real else probes


def _proxies(settings: Distinguish, sets: dict[str, ImageDataset], home: ImageDataset) -> dict[str, Scorer]:
    """The scorers of --proxy; sizes have baselines of their own."""
    common = settings.proxy_scorer(channels=settings.channels, cells=settings.cells)
    scorers = proxy_scorers(settings.proxy or [], sets, input_of(home), common)
    return {name: scorer for name, scorer in scorers.items() if name not in SIZES}


def _sizes(texts: Sequence[str], home: ImageDataset, first: Probe) -> dict[str, list[float]]:
    """The rankings by size of the networks that are trained."""
    classes, shape = home.card.classes, home.seen
    return baselines(
        [prepared(t, classes=classes, shape=shape, channels=first.channels, cells=first.cells) for t in texts]
    )


def agreement(column: Column, reached: Sequence[float]) -> dict[str, float]:
    """Kendall's tau and Spearman's rho of a column against the truth, each with its interval."""
    figures: dict[str, float] = {}
    for name, statistic in (("tau", kendall), ("rho", spearman)):
        low, high = interval(statistic, column, reached)
        figures |= {name: statistic(column, reached), f"{name}_low": low, f"{name}_high": high}
    return {name: round(figure, 4) for name, figure in figures.items()}


def by_epoch(curves: np.ndarray, reached: Sequence[float]) -> list[float]:
    """Kendall's tau of the training accuracies (architectures, epochs) with the truth, for each epoch."""
    return [round(kendall(column, reached), 4) for column in curves.T]


def statistics(curves: np.ndarray, reached: Sequence[float], params: Sequence[float]) -> dict[str, Any]:
    """The figures of one data set from its training accuracies (architectures, epochs).

    `best_tau` is the largest of all epochs, an upper bound, since the epoch is chosen with the truth.
    `over_parameters` is tau minus that of the parameter count.
    """
    tau = by_epoch(curves, reached)
    low, high = interval(lambda a, p, t: kendall(a, t) - kendall(p, t), curves[:, -1], params, reached)
    figures = {"best_tau": max((one for one in tau if not math.isnan(one)), default=math.nan)}
    figures["over_parameters"] = tau[-1] - kendall(params, reached)
    figures |= {"over_low": low, "over_high": high}
    return {
        **agreement(curves[:, -1], reached),
        **{name: round(figure, 4) for name, figure in figures.items()},
    }


def _write(
    folder: Path,
    texts: Sequence[str],
    reached: Sequence[float],
    curves: dict[str, np.ndarray],
    free: dict[str, list[float]],
    of_sets: dict[str, Any],
    beside: dict[str, Any],
) -> None:
    """The tables and the figures."""
    shown = list(next(iter(of_sets.values())))
    table = [[name, *(figures.get(key) for key in shown)] for name, figures in (of_sets | beside).items()]
    write_table(folder / "table.csv", ["ranked by", *shown], table)
    columns: dict[str, Any] = {"truth": reached, **{name: curve[:, -1] for name, curve in curves.items()}, **free}
    networks = [[text, *(column[k] for column in columns.values())] for k, text in enumerate(texts)]
    write_table(folder / "networks.csv", ["architecture", *columns], networks)
    draw_curves(curves, reached, folder / "curves.png")
    draw_scatter(curves, reached, of_sets, folder / "scatter.png")
    draw_tau({name: by_epoch(curve, reached) for name, curve in curves.items()}, of_sets, beside, folder / "tau.png")


BEST, WORST = "#2e7d4f", "#c4561b"
ACROSS = 3  # panels in a row
DASHES = ((0, (5, 2)), (0, (2, 2)), (0, (1, 2)), (0, (6, 2, 1, 2)))


def draw_curves(curves: Mapping[str, np.ndarray], reached: Sequence[float], path: Path) -> None:
    """Fig. 1b-d: learning curves of the networks with the best and the worst truth on each data set; others grey."""
    best, worst = int(np.argmax(reached)), int(np.argmin(reached))
    picture, panels = _panels(curves, 3.3)
    for axis, table in zip(panels, curves.values(), strict=True):
        x = np.arange(1, table.shape[1] + 1)
        axis.plot(x, table.T, color=PALE, linewidth=0.6, alpha=0.5)
        for number, shade, title in ((best, BEST, "best"), (worst, WORST, "worst")):
            label = f"{title} by the truth: {reached[number]:.4g}"
            axis.plot(x, table[number], color=shade, linewidth=2.2, label=label)
        axis.plot([], [], color=PALE, linewidth=0.8, label="the others")
        _epochs(axis, table.shape[1])
        axis.set_ylim(bottom=0)
        axis.set_xlabel("epoch", fontsize=9, color=INK)
    _left(panels, "training accuracy, %")
    lines = panels[0].get_legend_handles_labels()
    picture.legend(*lines, loc="outside lower center", ncols=3, frameon=False, fontsize=9.5)
    save_picture(picture, path, dpi=140)


def draw_scatter(
    curves: Mapping[str, np.ndarray], reached: Sequence[float], figures: Mapping[str, Mapping[str, Any]], path: Path
) -> None:
    """A point for each network: training accuracy at the probe epoch across, the truth upwards."""
    picture, panels = _panels(curves, 3.3)
    for number, (axis, (name, table)) in enumerate(zip(panels, curves.items(), strict=True)):
        axis.plot(table[:, -1], reached, "o", ms=6, color=colour(number), mec="white", mew=0.8, alpha=0.9)
        axis.margins(0.08)
        axis.set_xlabel(f"training accuracy, epoch {table.shape[1]}, %", fontsize=9, color=INK)
        axis.set_title(f"{name}: τ {_tau(figures[name])}", fontsize=10.5, color=INK, loc="left")
    _left(panels, "the truth")
    save_picture(picture, path, dpi=140)


def draw_tau(
    taus: Mapping[str, Sequence[float]],
    of_sets: Mapping[str, Mapping[str, Any]],
    beside: Mapping[str, Mapping[str, Any]],
    path: Path,
) -> None:
    """Kendall's τ by epoch, a line for each data set with its interval at the probe epoch; baselines as level lines."""
    picture, axes = figure(1, 1, (7.6, 4.6))
    axis = axes[0, 0]
    epochs = max(map(len, taus.values()))
    for number, (name, figures) in enumerate(of_sets.items()):
        tau, end = taus[name], epochs + 0.012 * epochs * (1 + number)  # intervals side by side
        axis.plot(range(1, len(tau) + 1), tau, color=colour(number), linewidth=2, label=f"{name}: {_tau(figures)}")
        if not math.isnan(figures["tau_low"]):
            axis.plot([end] * 2, [figures["tau_low"], figures["tau_high"]], color=colour(number), linewidth=1.5)
            axis.plot(end, figures["tau"], "o", ms=5, color=colour(number))
    for dash, (name, figures) in zip(DASHES, beside.items(), strict=False):
        if not math.isnan(figures["tau"]):
            label = f"{name}: {_tau(figures)}"
            axis.axhline(figures["tau"], color="#77777d", linewidth=1, linestyle=dash, label=label, zorder=1)
    axis.axhline(0, color=INK, linewidth=0.8, zorder=1)
    _epochs(axis, epochs)
    axis.set_xlim(1, epochs * (1.03 + 0.012 * len(of_sets)))
    axis.set_xlabel("epoch", color=INK)
    axis.set_ylabel("Kendall's τ with the truth", color=INK)
    title = "τ at the probe epoch with its 95 % interval; dashed: without training"
    picture.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9, title=title, title_fontsize=8.5)
    save_picture(picture, path, dpi=140)


def _tau(figures: Mapping[str, float]) -> str:
    """Kendall's τ with its interval; in words where it is not defined."""
    if math.isnan(figures["tau"]):
        return "none, all are equal"
    return f"{figures['tau']:.2f} [{figures['tau_low']:.2f}, {figures['tau_high']:.2f}]"


def _panels(curves: Mapping[str, np.ndarray], height: float) -> tuple[Any, list[Any]]:
    """A figure and one axis for each data set, with its name."""
    columns = min(ACROSS, len(curves)) if len(curves) != 4 else 2
    lines = -(-len(curves) // columns)
    picture, axes = figure(lines, columns, (max(4.4, 3.7 * columns), height * lines + 0.3))
    for axis in axes.flat[len(curves) :]:
        axis.remove()
    panels = list(axes.flat[: len(curves)])
    for axis, name in zip(panels, curves, strict=True):
        axis.set_title(name, fontsize=10.5, color=INK, loc="left")
    return picture, panels


def _left(panels: Sequence[Any], text: str) -> None:
    for axis in panels:
        if axis.get_subplotspec().is_first_col():
            axis.set_ylabel(text, fontsize=9, color=INK)


def _epochs(axis: Any, epochs: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_xlim(1, max(2, epochs))
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
