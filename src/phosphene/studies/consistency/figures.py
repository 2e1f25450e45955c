"""The figures of the consistency study: every architecture's score against its truth, and every ranking's ρ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...drawing.figure_style import INK, PALE, colour, figure, save_picture

ACROSS = 3  # panels in a row


def draw_scatter(
    columns: Mapping[str, Sequence[float]],
    reached: Sequence[float],
    figures: Mapping[str, Mapping[str, Any]],
    path: Path,
    baselines: bool = False,
) -> None:
    """A panel for each ranking, a point for each architecture: truth across, score upwards (DFNAS Figs. 5 and 6)."""
    across = 2 if len(columns) in (2, 4) else min(ACROSS, len(columns))
    rows = -(-len(columns) // across)
    picture, axes = figure(rows, across, (max(4.4, 3.7 * across), 3.4 * rows + 0.2))
    size = float(np.clip(10 - math.log2(max(2, len(reached))) / 1.2, 3, 6))
    for axis in axes.flat[len(columns) :]:
        axis.remove()
    for number, (axis, (name, column)) in enumerate(zip(axes.flat, columns.items(), strict=False)):
        shade = PALE if baselines else colour(number)
        axis.plot(reached, column, "o", ms=size, color=shade, mec="white", mew=0.3, alpha=0.8)
        axis.margins(0.06)
        axis.set_title(f"{name}: ρ {rho_text(figures[name])}", fontsize=10, color=INK, loc="left")
        axis.ticklabel_format(axis="y", style="sci", scilimits=(-3, 5), useOffset=False)
        if number + across >= len(columns):
            axis.set_xlabel("true accuracy", fontsize=9, color=INK)
        if number % across == 0:
            axis.set_ylabel("size or score" if baselines else "score", fontsize=9, color=INK)
    save_picture(picture, path, dpi=140)


def draw_rho(ranked: Mapping[str, Mapping[str, Any]], beside: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Spearman's ρ of every ranking with its interval; the baselines grey, the best of them a dashed line."""
    lines = {name: figures for name, figures in {**ranked, **beside}.items() if figures["rho"] is not None}
    picture, axes = figure(1, 1, (7.4, 0.34 * max(3, len(lines)) + 0.9))
    axis = axes[0, 0]
    for place, (name, figures) in enumerate(lines.items()):
        shade = PALE if name in beside else colour(list(ranked).index(name))
        if figures["rho_low"] is not None:
            axis.plot([figures["rho_low"], figures["rho_high"]], [place] * 2, color=shade, linewidth=2)
        axis.plot(figures["rho"], place, "o", ms=7, color=shade, mec="white", mew=0.8)
    if known := [f["rho"] for f in beside.values() if f["rho"] is not None]:
        axis.axvline(max(known), color=PALE, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axis.axvline(0, color=INK, linewidth=0.8, zorder=1)
    axis.set_yticks(range(len(lines)), list(lines), fontsize=9.5, color=INK)
    axis.set_ylim(len(lines) - 0.4, -0.6)
    axis.set_xlim(right=1.02)
    axis.grid(axis="y", visible=False)
    axis.grid(axis="x", color=PALE, alpha=0.25, linewidth=0.6)
    axis.set_xlabel("Spearman's ρ with the truth, 95 % interval; grey: baselines, dashed: the best of them", color=INK)
    save_picture(picture, path, dpi=140)


def rho_text(figures: Mapping[str, Any]) -> str:
    """A correlation with its interval; in words where it is not defined."""
    if figures["rho"] is None:
        return "none, all are equal"
    if figures["rho_low"] is None:
        return f"{figures['rho']:.2f}"
    return f"{figures['rho']:.2f} [{figures['rho_low']:.2f}, {figures['rho_high']:.2f}]"
