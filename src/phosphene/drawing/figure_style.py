"""How figures look: one colour a data set, few lines of ink, a table beside every figure; and named scatter plots."""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import SettingsError, shown
from ..storage import whole

COLOURS = ("#1f5fa8", "#c4561b", "#2e7d4f", "#8a3ca0", "#a07800", "#b0305a", "#3b8ea5", "#6b6b6b")
"""of the data sets, in the order of the command line"""
FORMULA = "formula"
LINE, LINES = 200, 20  # letters of a line, and lines of a text
INK, PALE = "#222222", "#9a9aa0"
DOT = 4  # half the side of a scatter plot's point, in pixels at 100 dots an inch
PLACES = [(9, 0, "left", "center"), (0, 8, "center", "bottom"), (0, -8, "center", "top"), (-9, 0, "right", "center")]
PLACES += [(7, 7, "left", "bottom"), (7, -7, "left", "top"), (-7, 7, "right", "bottom"), (-7, -7, "right", "top")]
FAR = (1, 2.5, 4, 6, 9)  # multiples of the offsets in PLACES at which a name is tried, nearest first


def colour(number: int) -> str:
    """The colour of the data set of this number."""
    return COLOURS[number % len(COLOURS)]


def figure(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    """A figure of `size` inches and its axes (rows, columns), without frames; `options` go to `subplots`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=size, layout="constrained", facecolor="white")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots(rows, columns, squeeze=False, **options)
    for axis in axes.flat:
        quiet(axis)
    return drawn, axes


def quiet(axis: Any) -> None:
    """No frame but the two axes, a pale grid across."""
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set(color=PALE, linewidth=0.8)
    axis.tick_params(length=3, color=PALE, labelcolor=INK, labelsize=9)
    axis.grid(axis="y", color=PALE, alpha=0.25, linewidth=0.6)
    axis.set_axisbelow(True)


def save_picture(picture: Any, path: str | Path, **options: Any) -> None:
    """Write a figure or a `PIL` image, whole or not at all; `options` are of the figure's `savefig`.

    Names in a figure are as they are: a ``$`` begins no formula.

    Raises:
        SettingsError: the name's suffix is of no kind of picture.
        StorageError: the file cannot be written.
    """
    try:
        with whole.replacing(Path(path)) as temporary:
            _save_figure(picture, temporary, **options) if hasattr(picture, "savefig") else picture.save(temporary)
    except ValueError as error:
        raise SettingsError(f"--out {path} cannot be written ({shown(error, str)}); name a .png") from error


def _save_figure(drawn: Any, path: Path, **options: Any) -> None:
    literal(drawn)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a letter that the font lacks is drawn as a box
        drawn.savefig(path, **options)


def literal(drawn: Any) -> None:
    """Let the texts of a figure be printed as they are; those with the `gid` "formula" alone are formulas."""
    from matplotlib.text import Text

    for text in drawn.findobj(Text):
        written = text.get_text()
        if "$" in written and r"\mathdefault" not in written and text.get_gid() != FORMULA:
            text.set_parse_math(False)
        if not written.isprintable():
            text.set_text("\n".join(shown(line, str, LINE) for line in written.split("\n")[:LINES]))


def named(label: str) -> str:
    """A name as a legend takes it, which leaves out what begins with an underscore."""
    return f" {label}" if label.startswith("_") else label


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write rows as CSV with a line of column names; None is an empty cell."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    whole.write(path, file.getvalue().encode(errors="backslashreplace"))


# -- scatter plots: a named point for each label that two groups of figures share --------------------------------------


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


def draw_scatter(path: Path, shown: Sequence[Point], x: str, y: str, y_from: float = 0.0) -> None:
    """A scatter of the points as a PNG, each with its name beside it; bars are standard deviations.

    Args:
        y_from: where the vertical axis begins (such as chance level); lower where a point is.
    """
    drawn, axes = figure(1, 1, (7.2, 4.4))
    axis = axes[0, 0]
    axis.grid(color=PALE, alpha=0.25, linewidth=0.6)
    style = {"fmt": "o", "ms": 6, "color": COLOURS[0], "ecolor": PALE, "mec": "white"}
    for one in shown:
        axis.errorbar(one.x, one.y, one.dy or None, one.dx or None, **style)
    ends = [one.x + one.dx for one in shown], [one.y + one.dy for one in shown]
    right, top = (max([value for value in values if value > 0], default=1.0) for values in ends)
    low = min([y_from, *(one.y for one in shown)])
    axis.set(xlim=(0, 1.25 * right), ylim=(low, top + 0.1 * (top - low or 1)))
    axis.set_xlabel(x, color=INK)
    axis.set_ylabel(y, color=INK)
    literal(drawn)
    drawn.draw_without_rendering()  # the positions of all artists are known from here on
    write_names(axis, shown)
    save_picture(drawn, path, dpi=140)


def write_names(axis: Any, shown: Sequence[Point]) -> list[Any]:
    """A name beside each point, where it hides no point and no other name; returns the names' boxes."""
    from matplotlib.transforms import Bbox

    spots = axis.transData.transform([(one.x, one.y) for one in shown])
    taken = [Bbox.from_extents(x - DOT, y - DOT, x + DOT, y + DOT) for x, y in spots]
    for index in sorted(range(len(shown)), key=lambda k: -shown[k].y):
        taken.append(_place(axis, shown[index], spots, index, taken))
    return taken[len(shown) :]


def _place(axis: Any, one: Point, spots: Any, index: int, taken: Sequence[Any]) -> Any:
    """The name at the first free place; a name that is far away, or nearer to another point, has a line."""
    style = {"color": INK, "fontsize": 9, "textcoords": "offset points", "parse_math": False}
    for far, (dx, dy, ha, va) in product(FAR, PLACES):
        text = axis.annotate(shown(one.label, str), (one.x, one.y), (far * dx, far * dy), ha=ha, va=va, **style)
        box = text.get_window_extent()
        near = [_distance(box, spot) for spot in spots]
        if (far > 1 or near[index] == min(near)) and _free(box, axis.bbox, taken):
            break
        if (far, dx, dy) != (FAR[-1], *PLACES[-1][:2]):  # the very last place is better than no name
            text.remove()
    if far > 1:
        line = {"arrowstyle": "-", "color": PALE, "lw": 0.6, "shrinkA": 0, "shrinkB": 4}
        axis.annotate("", (one.x, one.y), (far * dx, far * dy), textcoords="offset points", arrowprops=line)
    return box


def _free(box: Any, frame: Any, taken: Sequence[Any]) -> bool:
    inside = frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1
    return inside and not any(box.overlaps(other) for other in taken)


def _distance(box: Any, spot: Sequence[float]) -> float:
    """From a point to the nearest place of a box, in pixels."""
    x, y = spot
    return math.hypot(max(box.x0 - x, 0.0, x - box.x1), max(box.y0 - y, 0.0, y - box.y1))
