"""`phosphene study difficulty`: the epochs a network needs to learn a data set (UnrealNAS §3.1, Fig. 1a; §3.3).

One probe network is trained from scratch on each data set. `converged` defines the epoch of convergence from its
training accuracies; there may be none within `--epochs`.

Files: `table.csv`, `curves.png`, `result.json`; `networks/`, a run folder for each network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from ..data.dataset import ImageDataset
from ..drawing.figure_style import INK, colour, figure, save_picture, write_table
from ..runtime.machine import machine as decide_machine
from ..runtime.parallel import Jobs
from ..runtime.run import Run
from ..settings import Gt, Le, RunSettings, command
from .candidates import genotypes
from .datasets import DataSets, Repeats, cut, opened, unreal_kind
from .probing import Training, check, estimate_all, train_all

PUBLISHED = {"real": 31, "random labels": 71, "fractals": 36, "noise": 94}  # epochs to convergence (UnrealNAS §3.1)
MARKS = (50, 90)  # per cent; the epochs to these do not depend on any definition of convergence
NEARBY, FEW = 2000, 25  # images of which the silhouette is measured, at most; of a class, where classes are many


class Difficulty(DataSets, Training, Repeats, Jobs, RunSettings, heading="Convergence"):
    arch: Annotated[str | None, "probe network; default: a random one of the DARTS space, by --seed"] = None
    share: Annotated[float, Gt(0), Le(1), "share of the final accuracy at which a network has converged"] = 0.95
    stop_at: Annotated[float, Gt(0), "training accuracy (%) at which a network's training ends; over 100: never"] = 99.5
    epochs: int = 100


@command
def difficulty(settings: Difficulty) -> dict[str, Any]:
    """Measure how many epochs a network needs to learn each data set, and how far its classes are apart in pixels.

    The same network is trained on as many images of each set, normalised only. Data sets and seeds may be added later
    with the same --out: a network that is finished is not trained again.

    Example:
        phosphene study difficulty --data real --data noise --epochs 30 --channels 8 --cells 5 --out difficulty

    Raises:
        SettingsError: a flag cannot be used.
        DatasetError: a data set cannot be read, or has no labels.
        ArchitectureError: --arch names no architecture.
    """
    sets = opened(settings.data)
    count, seeds = settings.common_size(sets), settings.seeds
    arch = settings.arch or genotypes(1, settings.seed)[0]
    stop_at = settings.stop_at if settings.stop_at <= 100 else None
    first = replace(settings.probe(count), arch=arch, stop_at=stop_at)
    probes = [replace(first, data=str(d.folder), seed=first.seed + k) for d in sets.values() for k in range(seeds)]
    check([probe] for probe in probes[::seeds])
    trained = {"arch": arch, **first.common, "stop_at": stop_at}
    out, here = settings.out, decide_machine(settings.device, settings.precision)
    run = Run.open("study-difficulty", trained, [], out, here, seed=settings.seed, estimate=settings.estimate)
    if settings.estimate:
        raise estimate_all(probes, None if out is None else Path(out) / "networks", settings.jobs)
    results = train_all(probes, run.path / "networks", settings, "study difficulty")
    curves = {name: [one["train"] for one in results[k * seeds : (k + 1) * seeds]] for k, name in enumerate(sets)}
    figures = {name: _figures(sets[name], count, curve, settings) for name, curve in curves.items()}
    columns = list(next(iter(figures.values())))
    write_table(run.path / "table.csv", ["data set", *columns], [[n, *f.values()] for n, f in figures.items()])
    draw_curves(curves, {name: one["each"] for name, one in figures.items()}, settings.epochs, run.path / "curves.png")
    size = {"params": results[0]["params"], "macs": results[0]["macs"]}
    result = run.finish({**trained, "share": settings.share, "seeds": seeds, **size, "difficulty": figures})
    return {**result, "out": str(run.path)}


def _figures(
    data: ImageDataset, images: int, curves: Sequence[Sequence[float]], settings: Difficulty
) -> dict[str, Any]:
    """The figures of one data set: means over seeds, None where a network has not converged."""
    each = [converged(curve, settings.epochs, settings.share, chance(data)) for curve in curves]
    at_least = [settings.epochs if one is None else one for one in each]
    marks = {f"to_{mark}": mean([first_at(curve, mark) for curve in curves]) for mark in MARKS}
    return {
        "epochs": mean(each),
        "at_least": float(np.mean(at_least)),
        "each_at_least": at_least,
        "each": each,
        **marks,
        "final": round(float(np.mean([curve[-1] for curve in curves])), 2),
        "silhouette": silhouette(cut(data, images)),
        "classes": data.card.classes,
        "paper": PUBLISHED.get(unreal_kind(data.card)),
    }


def converged(curve: Sequence[float], epochs: int, share: float = 0.95, chance: float = 0.0) -> int | None:
    """The epoch (from 1) at which a training curve has converged, or None where it has not within `epochs`.

    Let h be a tenth of the epochs, at least two, and the level the mean accuracy of the last h epochs. Convergence
    is the first epoch from which on the accuracy stays at `share` of the level or above it. There is none where the
    curve still rises (the level is more than (1 − share) / 2 of itself above the h epochs before), or where nothing
    was learned (the level is not above `chance`), nor where 2h epochs are not there to see it. A curve that was stopped
    early was at its ceiling, and counts as flat.

    Args:
        curve: accuracies, per cent.
        epochs: epochs that the learning rate was planned for; the curve may have fewer.
    """
    # UnrealNAS §3.1 has epochs to convergence as its measure, and no definition; this one is ours
    stopped = len(curve) < epochs  # by --stop-at
    h = max(2, epochs // 10)
    last, before = curve[-h:], curve[-2 * h : -h]
    level = curve[-1] if stopped else float(np.mean(last))
    rising = not stopped and (len(before) < h or level - float(np.mean(before)) > (1 - share) / 2 * level)
    if level <= chance or rising:
        return None
    # one epoch after the last that is below the share of the level, so that a short peak does not count
    below = np.flatnonzero(np.asarray(curve) < share * level)
    return int(below[-1]) + 2 if len(below) else 1


def first_at(curve: Sequence[float], mark: float) -> int | None:
    """The first epoch (from 1) with this accuracy, or None."""
    there = np.flatnonzero(np.asarray(curve) >= mark)
    return int(there[0]) + 1 if len(there) else None


def mean(values: Sequence[float | None]) -> float | None:
    """The mean, or None where one of them is."""
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), 2) if len(known) == len(values) else None


def chance(data: ImageDataset) -> float:
    """Accuracy of guessing, per cent: the commonest class, and three standard errors of its share."""
    most = float(np.bincount(data.labels).max()) / len(data)
    return 100 * (most + 3 * float(np.sqrt(most * (1 - most) / len(data))))


def silhouette(data: ImageDataset) -> float | None:
    """Mean silhouette of the classes in pixel space, in [-1, 1] (UnrealNAS §3.3): below 0, other classes are nearer.

    Measured on at most 2,000 images of whole classes, or of 25 images a class where they have more; classes with a
    single image have no silhouette and are left out. None where fewer than two classes are left.
    """
    from sklearn.metrics import silhouette_score

    # s = (b − a) / max(a, b): a, b are the mean distances to the own and to the nearest other class (Rousseeuw 1987)
    rng, labels = np.random.default_rng(0), data.labels
    most, chosen = max(NEARBY // data.card.classes, FEW), np.zeros(0, np.int64)
    for label in rng.permutation(np.unique(labels)):
        own = rng.permutation(np.flatnonzero(labels == label))[:most]
        if len(own) > 1 and len(chosen) + len(own) <= NEARBY:
            chosen = np.concatenate([chosen, own])
    if len(np.unique(labels[chosen])) < 2:
        return None
    pixels = data.normalise(data.pixels(chosen)).flatten(1).numpy()
    return round(float(silhouette_score(pixels, labels[chosen])), 4)


# -- the figure ------------------------------------------------------------------------------------------------------


def draw_curves(
    curves: Mapping[str, Sequence[Sequence[float]]],
    epochs_of: Mapping[str, Sequence[int | None]],
    epochs: int,
    path: Path,
) -> None:
    """Fig. 1a: training accuracy by epoch, a line for each data set; a dot where each network converged.

    Over several seeds the line is the mean and the band one standard deviation; a curve that ended early goes on level.
    """
    from matplotlib.ticker import MaxNLocator

    picture, axes = figure(1, 1, (7.2, 4.4))
    axis = axes[0, 0]
    for number, (name, several) in enumerate(curves.items()):
        table = np.array([[*curve, *[curve[-1]] * (epochs - len(curve))] for curve in several])
        x, mean = np.arange(1, epochs + 1), table.mean(0)
        band = table.std(0, ddof=1) if len(table) > 1 else 0 * mean
        trained = max(map(len, several))
        axis.plot(x[:trained], mean[:trained], color=colour(number), linewidth=2, label=_label(name, epochs_of[name]))
        axis.plot(x[trained - 1 :], mean[trained - 1 :], color=colour(number), linewidth=1, linestyle=(0, (1, 2)))
        axis.fill_between(x, mean - band, mean + band, color=colour(number), alpha=0.15, linewidth=0)
        for epoch in (one for one in epochs_of[name] if one is not None):
            axis.plot(epoch, mean[epoch - 1], "o", ms=6, color=colour(number), mec="white", mew=1, zorder=4)
    axis.set_xlim(1, max(2, epochs))
    axis.set_ylim(0, 102)
    axis.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axis.set_xlabel("epoch", color=INK)
    axis.set_ylabel("training accuracy, %", color=INK)
    every = [curve for several in curves.values() for curve in several]
    notes = {
        "dots: converged": any(epoch is not None for each in epochs_of.values() for epoch in each),
        "dotted: stopped at its ceiling": any(len(curve) < epochs for curve in every),
        "bands: one standard deviation over seeds": len(every) > len(curves),
    }
    title = "; ".join(note for note, there in notes.items() if there)
    picture.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9.5, title=title, title_fontsize=8)
    save_picture(picture, path, dpi=140)


def _label(name: str, epochs: Sequence[int | None]) -> str:
    known = [epoch for epoch in epochs if epoch is not None]
    if not known:
        return f"{name}: not converged"
    missing = "" if len(known) == len(epochs) else f" ({len(epochs) - len(known)} of {len(epochs)} not)"
    return f"{name}: {np.mean(known):.3g} epochs{missing}"
