"""Figures of a recorded result against others: a named point for each label that two groups share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

INK, PALE, POINT = "#222222", "#9a9aa0", "#1f5fa8"
APART = 0.055  # of the axis' height between two names, so that they can be read


class Point(NamedTuple):
    """Means, and standard deviations over seeds (0 where there is one)."""

    label: str
    x: float
    y: float
    dx: float = 0.0
    dy: float = 0.0


def points(figures: Sequence[dict[str, Any]], x: str, y: str) -> list[Point]:
    """The figures of group `y` against those of group `x` that have the same label, as far as both were measured."""
    of_x, of_y = ({f["label"]: f for f in figures if f.get("group") == group} for group in (x, y))
    both = [(label, of_x[label], of_y[label]) for label in of_y if label in of_x]
    known = [one for one in both if one[1]["mean"] is not None and one[2]["mean"] is not None]
    return [Point(label, a["mean"], b["mean"], a["sd"] or 0.0, b["sd"] or 0.0) for label, a, b in known]


def draw(path: Path, found: Sequence[Point], x: str, y: str) -> None:
    """A scatter of the points as a PNG; bars are standard deviations. Axes begin at 0."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(7.2, 4.4), layout="constrained", facecolor="white")
    FigureCanvasAgg(drawn)
    axis = drawn.subplots()
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set(color=PALE, linewidth=0.8)
    axis.tick_params(length=3, color=PALE, labelcolor=INK, labelsize=9)
    axis.grid(color=PALE, alpha=0.25, linewidth=0.6)
    for one in found:
        axis.errorbar(
            one.x, one.y, one.dy or None, one.dx or None, fmt="o", ms=6, color=POINT, ecolor=PALE, mec="white"
        )
    right, top = (1.08 * max([value for value in values if value > 0], default=1.0) for values in _columns(found))
    axis.set(xlim=(0, 1.8 * right), ylim=(min(0.0, *(one.y for one in found), 0.0), top))  # room for the names
    heights = _spread([one.y for one in found], APART * top)
    line = {"arrowstyle": "-", "color": PALE, "lw": 0.6, "relpos": (0, 0.5)}
    for one, height in zip(found, heights, strict=True):
        place = (1.02 * right, height)
        axis.annotate(one.label, (one.x, one.y), place, color=INK, fontsize=9, va="center", arrowprops=line)
    axis.set_xlabel(x, color=INK)
    axis.set_ylabel(y, color=INK)
    drawn.savefig(path, dpi=140)


def _columns(found: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [one.x + one.dx for one in found], [one.y + one.dy for one in found]


def _spread(values: Sequence[float], apart: float) -> list[float]:
    """The values moved upwards, lowest first, until they are so far apart."""
    heights = list(values)
    floor = -float("inf")
    for index in sorted(range(len(values)), key=lambda k: values[k]):
        heights[index] = floor = max(values[index], floor + apart)
    return heights
