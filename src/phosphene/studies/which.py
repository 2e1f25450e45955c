"""`phosphene study which`: of several data sets, the one that ranks networks most reliably in the same minutes.

A few random networks are trained twice on each data set: from two seeds, or on two disjoint halves of the images. The
agreement of the two rankings is the reliability of the data set. It needs no real data and no test set, and for the
same reason it is no evidence of correctness: a ranking may be wrong each time in the same way, and the mere size of a
network is ranked very reliably. Where accuracies are known, `--truth` adds Kendall's τ with them.

Files: `plan.json` (epochs on each set, written once: a resumed study ends as one without stops), `table.csv`,
`networks.csv`, `reliability.png`, `repeats.png`, `result.json`; `networks/`, a run folder for each network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from typing_extensions import TypedDict

from ..data.dataset import ImageDataset
from ..drawing.figure_style import INK, colour, figure, named, save_picture, write_table
from ..errors import Estimate, SettingsError
from ..proxies.inputs import prepared
from ..runtime.machine import machine as decide_machine
from ..runtime.parallel import Jobs
from ..runtime.run import Run
from ..settings import Gt, RunSettings, command
from ..storage import typed
from ..storage.typed import write_json
from . import truth
from .candidates import Candidates, baselines, genotypes
from .datasets import DataSets, opened
from .probing import Probe, Training, check, measure, train_all
from .ranks import interval, kendall, spearman, split_half
from .truth import TruthFile

MEASURED = 3  # networks of which the speed on a data set is the mean
SPENT = 0.9  # share of the budget for the steps; the rest is for starting and drawing
LONG = 1000  # epochs of the networks that are measured: minutes come rounded
ACROSS = 3  # panels of a figure side by side


class Which(DataSets, Candidates, TruthFile, Training, Jobs, RunSettings, heading="Budget"):
    budget: Annotated[float, Gt(0), "minutes in all, shared equally by the data sets"] = 10.0
    by: Annotated[Literal["seeds", "halves"], "train each network from two seeds, or on two halves"] = "seeds"
    architectures: int = 8
    channels: int | None = 8
    cells: int | None = 5


@command
def which(settings: Which) -> dict[str, Any]:
    """Find the data set that ranks networks most reliably in the same number of minutes: how well a ranking repeats.

    Reliability is not correctness: a data set can rank wrongly each time in the same way, and the mere size of a
    network is ranked reliably, too. With --truth, Kendall's tau with known accuracies stands beside it.

    Example:
        phosphene study which --data real --data noise --data fractal --budget 30 --out which

    Raises:
        SettingsError: a flag cannot be used, or the budget is too short for an epoch.
        DatasetError: a data set cannot be read, or has no labels.
    """
    sets = opened(settings.data)
    count, out = settings.common_size(sets), settings.out
    known = None if settings.truth is None else dict(list(truth.read(settings.truth).items())[: settings.architectures])
    texts = list(known) if known else genotypes(settings.architectures, settings.seed)
    first = replace(settings.probe(count), epochs=LONG)
    pairs = {
        name: [twice(replace(first, arch=text, data=str(data.folder)), settings.by) for text in texts]
        for name, data in sets.items()
    }
    check([probe for pair in several for probe in pair] for several in pairs.values())
    trained = {name: value for name, value in first.common.items() if name != "epochs"}
    trained |= {"budget": settings.budget, "by": settings.by, "epochs": settings.epochs, "architectures": texts}
    inputs, here = [one.fingerprint for one in sets.values()], decide_machine(settings.device, settings.precision)
    run = Run.open("study-which", trained, inputs, out, here, seed=settings.seed, estimate=settings.estimate)
    if settings.estimate:
        raise Estimate({"stage": "study-which", **plan(pairs, settings.budget, settings.epochs, settings.jobs)})
    if not (run.path / "plan.json").exists():
        write_json(run.path / "plan.json", plan(pairs, settings.budget, settings.epochs, settings.jobs))
    planned = typed.read(run.path / "plan.json", Plan)
    networks = [
        replace(probe, epochs=planned["epochs"][name]) for name, two in pairs.items() for pair in two for probe in pair
    ]
    results = train_all(networks, run.path / "networks", settings, "study which")

    curves = _curves([one["train"] for one in results], sets, len(texts))
    finals = {name: curve[..., -1] for name, curve in curves.items()}
    params = _parameters(texts, next(iter(sets.values())), first)
    reached = list(known.values()) if known else None
    figures = {name: statistics(final, params, reached) for name, final in finals.items()}
    for name in figures:
        figures[name] |= {"epochs": planned["epochs"][name], "minutes": planned["minutes_each"][name]}
    _write(run.path, texts, curves, params, reached, figures)
    facts = {**trained, "architectures": len(texts), "which": figures, **verdict(finals, figures)}
    return {**run.finish(facts), "out": str(run.path)}


def twice(probe: Probe, by: str) -> tuple[Probe, Probe]:
    """The two trainings of one network on one data set."""
    if by == "halves":
        return replace(probe, half=0), replace(probe, half=1)
    return probe, replace(probe, seed=probe.seed + 1)


class Plan(TypedDict):
    """`plan.json`: epochs and minutes of a training on each data set."""

    minutes: float
    epochs: dict[str, int]
    minutes_each: dict[str, float]


def plan(pairs: Mapping[str, Sequence[tuple[Probe, Probe]]], budget: float, most: int, jobs: int) -> dict[str, Any]:
    """Epochs on each data set: as many as fit into its equal share of the budget, `most` at most.

    Raises `SettingsError` where one of them gets none.
    """
    epoch = {name: _minutes(two) * 2 * len(two) / jobs for name, two in pairs.items()}  # of all its networks
    share = SPENT * budget / len(pairs)
    slowest = max(epoch, key=lambda name: epoch[name])
    if epoch[slowest] > share:
        least = epoch[slowest] * len(pairs) / SPENT
        remedy = f"give at least {least:.2g} minutes, or fewer --images, --architectures or --channels"
        networks = f"{len(pairs[slowest])} networks on {slowest}"
        raise SettingsError(f"--budget {budget:g} is too short for an epoch of {networks}; {remedy}")
    epochs = {name: min(most, int(share / minutes)) for name, minutes in epoch.items()}
    each = {name: round(epochs[name] * minutes, 4) for name, minutes in epoch.items()}
    return {"minutes": round(sum(each.values()), 2), "epochs": epochs, "minutes_each": each}


def _minutes(pairs: Sequence[tuple[Probe, Probe]]) -> float:
    """Minutes of one epoch of one network, the mean of a few; never 0, although measured minutes are rounded."""
    return max(0.005, float(np.mean([measure(pair[0])["minutes"] for pair in pairs[:MEASURED]]))) / LONG


def _curves(trained: Sequence[Sequence[float]], sets: Mapping[str, ImageDataset], count: int) -> dict[str, np.ndarray]:
    """Training accuracies of each data set: (networks, 2 trainings, epochs)."""
    parts = [trained[k * 2 * count : (k + 1) * 2 * count] for k in range(len(sets))]
    return {name: np.array(part).reshape(count, 2, -1) for name, part in zip(sets, parts, strict=True)}


def _parameters(texts: Sequence[str], home: ImageDataset, first: Probe) -> list[float]:
    """The parameter count of each architecture."""
    classes, shape = home.card.classes, home.seen
    designs = [prepared(t, classes=classes, shape=shape, channels=first.channels, cells=first.cells) for t in texts]
    return baselines(designs)["parameters"]


def statistics(final: np.ndarray, params: Sequence[float], reached: Sequence[float] | None) -> dict[str, Any]:
    """The figures of one data set from its networks' two accuracies (networks, 2).

    `by_size` is Spearman's ρ of the mean accuracy with the parameter count: a ranking that follows it closely is a
    reliable way of counting parameters.
    """
    low, high = interval(split_half, *final.T)
    mean = final.mean(1)
    figures = {"reliability": split_half(*final.T), "low": low, "high": high, "by_size": spearman(mean, params)}
    if reached is not None:
        low, high = interval(kendall, mean, reached)
        figures |= {"tau": kendall(mean, reached), "tau_low": low, "tau_high": high}
    return {name: round(figure, 4) for name, figure in figures.items()}


def verdict(finals: Mapping[str, np.ndarray], figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The most reliable data set, and whether the difference to the next one is significant with these networks."""
    order = sorted(figures, key=lambda name: np.nan_to_num(figures[name]["reliability"], nan=-2), reverse=True)
    best = order[0]
    text = f"{best} ranks these networks most reliably in its share of the minutes ({_reliability(figures[best])})"
    apart = None
    if len(order) > 1:
        columns = [*finals[best].T, *finals[order[1]].T]
        low, _ = interval(lambda a, b, c, d: split_half(a, b) - split_half(c, d), *columns)
        apart = bool(low > 0)
        before = "clearly before" if apart else "not clearly before"
        text += f", {before} {order[1]} ({_reliability(figures[order[1]])})"
    text += ". Reliable means that the ranking repeats, not that it is right: size, too, is ranked reliably."
    return {"most_reliable": best, "told_apart": apart, "verdict": text}


def _reliability(figures: Mapping[str, float]) -> str:
    return f"{figures['reliability']:.2f}, 95 % interval {figures['low']:.2f} to {figures['high']:.2f}"


def _write(
    folder: Path,
    texts: Sequence[str],
    curves: Mapping[str, np.ndarray],
    params: Sequence[float],
    reached: Sequence[float] | None,
    figures: Mapping[str, Mapping[str, Any]],
) -> None:
    """The tables and the figures."""
    shown = list(next(iter(figures.values())))
    write_table(folder / "table.csv", ["data set", *shown], [[name, *f.values()] for name, f in figures.items()])
    columns: dict[str, Any] = {f"{name} {k + 1}": curve[:, k, -1] for name, curve in curves.items() for k in (0, 1)}
    columns |= {"parameters": params} | ({} if reached is None else {"truth": reached})
    networks = [[text, *(column[k] for column in columns.values())] for k, text in enumerate(texts)]
    write_table(folder / "networks.csv", ["architecture", *columns], networks)
    grown = {name: [split_half(*column.T) for column in np.moveaxis(curve, 2, 0)] for name, curve in curves.items()}
    draw_reliability(grown, figures, folder / "reliability.png")
    draw_repeats({name: curve[..., -1] for name, curve in curves.items()}, figures, folder / "repeats.png")


# -- the figures -----------------------------------------------------------------------------------------------------


def draw_reliability(
    grown: Mapping[str, Sequence[float]], all_figures: Mapping[str, Mapping[str, Any]], path: Path
) -> None:
    """Left: reliability after each epoch, by the minutes until then. Right: at the end, with its interval."""
    picture, axes = figure(1, 2, (9.6, 4.2), width_ratios=(2, 1), sharey=True)
    growth, end = axes[0]
    for number, (name, line) in enumerate(grown.items()):
        figures, shade = all_figures[name], colour(number)
        minutes = np.arange(1, len(line) + 1) / len(line) * figures["minutes"]
        growth.plot(minutes, line, color=shade, linewidth=2, marker="o", ms=3.5, label=named(name))
        if not math.isnan(figures["low"]):
            end.plot([number] * 2, [figures["low"], figures["high"]], color=shade, linewidth=2)
        end.plot(number, figures["reliability"], "o", ms=8, color=shade, mec="white", mew=1)
    growth.set_xlim(left=0)
    growth.set_ylim(top=1.04)
    growth.set_xlabel("minutes, all networks of a data set", color=INK)
    growth.set_ylabel("reliability: how well the ranking repeats", color=INK)
    end.set_xticks(range(len(grown)), list(grown), rotation=25, ha="right")
    end.set_xlim(-0.6, len(grown) - 0.4)
    end.set_title("at the end, 95 % interval", fontsize=10, color=INK, loc="left")
    for axis in (growth, end):
        axis.axhline(0, color=INK, linewidth=0.8, zorder=1)
    picture.legend(
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=9.5,
        title="a reliable ranking may be wrong",
        title_fontsize=8.5,
    )
    save_picture(picture, path, dpi=140)


def draw_repeats(finals: Mapping[str, np.ndarray], figures: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """A panel for each data set, a point for each network: the accuracy of one training against the other's."""
    columns = 2 if len(finals) == 4 else min(ACROSS, len(finals))
    rows = -(-len(finals) // columns)
    picture, axes = figure(rows, columns, (max(4.2, 3.5 * columns), 3.4 * rows))
    for axis in axes.flat[len(finals) :]:
        axis.remove()
    for number, (axis, (name, table)) in enumerate(zip(axes.flat, finals.items(), strict=False)):
        low, high = table.min(), table.max()
        room = 0.08 * (high - low) or 1.0
        axis.plot([low - room, high + room], [low - room, high + room], color="#9a9aa0", linewidth=0.8, zorder=1)
        axis.plot(*table.T, "o", ms=7, color=colour(number), mec="white", mew=0.8)
        axis.set(xlim=(low - room, high + room), ylim=(low - room, high + room), aspect="equal")
        axis.set_title(f"{name}: reliability {figures[name]['reliability']:.2f}", fontsize=10.5, color=INK, loc="left")
        axis.set_xlabel("training accuracy, %", fontsize=9, color=INK)
        axis.set_ylabel("trained again, %", fontsize=9, color=INK)
    save_picture(picture, path, dpi=140)
