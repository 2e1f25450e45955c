"""The figures of the audit: BatchNorm distances layer by layer, how far real images are, and the nearest pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ...drawing.contact_sheet import sheet, tiles_of
from ...drawing.figure_style import INK, PALE, figure, named, save_picture

SHADES = {"made": "#1f5fa8", "noise": "#8a8a8f", "real": "#2e7d4f", "real test": "#a07800"}
BINS = 40

Shown = tuple[np.ndarray, dict[str, Any]]
"""Pixels (n, C, H, W) and their card's statistics."""


def draw_layers(distances: Mapping[str, tuple[Sequence[float], Sequence[float]]], path: Path) -> None:
    """Distance to the teacher's statistics by layer, on a logarithmic scale: of the means and of the variances."""
    from matplotlib.ticker import MaxNLocator

    picture, axes = figure(1, 2, (9.4, 3.8), sharex=True)
    for number, (axis, what) in enumerate(zip(axes[0], ("mean", "variance"), strict=True)):
        for name, both in distances.items():
            x = np.arange(1, len(both[number]) + 1)
            width = 2.2 if name == "made" else 1.3
            style = (0, (3, 2)) if name == "real test" else "-"  # it lies on that of the training images
            looks = {"color": SHADES[name], "linewidth": width, "linestyle": style}
            axis.plot(x, both[number], marker="o", ms=3, label=named(name), **looks)
        axis.set_yscale("log")
        axis.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axis.set_title(f"distance of the {what}", fontsize=10.5, color=INK, loc="left")
        axis.set_xlabel("BatchNorm layer", fontsize=9, color=INK)
    picture.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9.5
    )
    save_picture(picture, path, dpi=140)


def draw_nearest(
    distances: Mapping[str, Mapping[str, Tensor]], copies: Mapping[str, Mapping[str, float]], path: Path
) -> None:
    """Histograms of the distance to the nearest training image, a panel for each space; dotted: the percentile."""
    picture, axes = figure(1, len(distances), (9.4, 3.8))
    for axis, (space, of_sets) in zip(axes[0], distances.items(), strict=True):
        most = max(float(one.max()) for name, one in of_sets.items() if name != "noise")
        edges = np.linspace(0, most * 1.02 + 1e-9, BINS + 1)
        for name, one in of_sets.items():
            shares = np.histogram(one.numpy(), edges)[0] / len(one)
            filled = {"alpha": 0.25, "linewidth": 0} if name != "noise" else {"alpha": 0}
            axis.stairs(shares, edges, fill=True, color=SHADES[name], **filled)
            axis.stairs(shares, edges, color=SHADES[name], linewidth=1.6, label=named(_label(name, one, most)))
        axis.axvline(copies[space]["below"], color=PALE, linestyle=(0, (1, 2)), linewidth=1.2)
        unit = "root mean square of pixels in 0..1" if space == "pixels" else "Euclidean"
        axis.set_title(
            f"{space}: {100 * copies[space]['share']:.3g} % of the synthesized left of the line",
            fontsize=10.5,
            color=INK,
            loc="left",
        )
        axis.set_xlabel(f"distance to the nearest training image ({unit})", fontsize=9, color=INK)
        axis.set_xlim(left=0)
        axis.set_ylim(0, 1.4 * axis.dataLim.y1)  # room for the legend
        axis.legend(loc="upper right", frameon=False, fontsize=9)
    axes[0, 0].set_ylabel("share of images", fontsize=9, color=INK)
    save_picture(picture, path, dpi=140)


def _label(name: str, distances: Tensor, most: float) -> str:
    """The name of a set, with the share of its images beyond the axis."""
    beyond = float((distances > most * 1.02).float().mean())
    text = "real, to the others" if name == "real" else name
    return f"{text} ({100 * beyond:.3g} % beyond)" if beyond else text


def draw_pairs(pairs: Sequence[tuple[str, str, Shown, Shown]], path: Path) -> None:
    """For each space and set the images whose nearest training image is nearest, and below them that image."""
    lines = []
    for space, name, (images, known), (nearest, known_real) in pairs:
        lines.append((f"{name}, by {space}", tiles_of(images, known)))
        lines.append(("nearest in training", tiles_of(nearest, known_real)))
    save_picture(sheet(lines), path)
