"""Draw cells as graphs: those of one architecture below each other, those of several side by side.

`draw_beside` combines the drawings of architectures of other spaces.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...core import Architecture, Choices
from ...drawing.figure_style import FORMULA
from ...errors import ArchitectureError
from ..canvas import blank, save
from .genotype import KINDS, Genotype, of_choices
from .graph_layout import RADIUS, WIDE, Drawing, arrange

FAMILIES = {
    "sep": ("separable convolution", "#1f5fa8"),
    "dil": ("dilated convolution", "#8a3ca0"),
    "max": ("max pooling", "#b4541a"),
    "avg": ("average pooling", "#a07800"),
    "skip": ("skip", "#2e7d4f"),
}
"""first word of an operation -> (what it is, colour)"""
INK, PALE, OUTSIDE = "#222222", "#c9cdd4", "#e8edf5"
NAMES = ("normal cell", "reduction cell")
MARGIN, GUTTER, HEADING, LEGEND = 0.2, 0.5, 1.0, 0.7  # inches about, between, above the cells, and at the bottom
CENTRED = {"ha": "center", "va": "center"}


def draw_cells(architecture: Architecture | Mapping[str, int], path: Path, title: str | None = None) -> None:
    """Draw the normal and the reduction cell of an architecture, or of its choices, as graphs into a PNG.

    Raises:
        ArchitectureError: it has no cells, or a node without two inputs.
        SettingsError: the file cannot be written.
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine as LayoutEngine

    choices = architecture.choices if isinstance(architecture, Architecture) else dict(architecture)
    if not choices:
        raise ArchitectureError("this architecture has no cells to draw; only those of cell spaces have")
    genotype = of_choices(choices)
    drawings = [arrange(getattr(genotype, kind)) for kind in KINDS]
    figure = blank(12, 0.9 + sum(d.height for d in drawings))
    figure.set_layout_engine(LayoutEngine(h_pad=0.08))
    panels = figure.subplots(2, 1, height_ratios=[d.height for d in drawings])
    for panel, drawing, name in zip(panels, drawings, NAMES, strict=True):
        _draw(panel, drawing, name, drawing.frame)
    if title:
        figure.suptitle(title, fontsize=15, fontweight="bold", color=INK)
    _legend(figure, [genotype], "outside lower center")
    save(figure, path)


class Titled(NamedTuple):
    """An architecture with the name and the line of text above its cells."""

    name: str
    about: str
    genotype: Genotype


def draw_side_by_side(architectures: Sequence[Titled], path: Path) -> None:
    """Draw the cells of several architectures into one PNG, each in a column under its name, at most three in a row.

    All cells are drawn to one scale. Raises `SettingsError` where the file cannot be written.
    """
    count = len(architectures)
    columns = count if count <= 3 else 2 if count == 4 else 3
    rows = [architectures[first : first + columns] for first in range(0, count, columns)]
    cells = [[[arrange(getattr(one.genotype, kind)) for kind in KINDS] for one in row] for row in rows]
    wide = max(d.frame[1] - d.frame[0] for row in cells for pair in row for d in pair)
    tall = [[max(pair[k].height for pair in row) for k in range(len(KINDS))] for row in cells]
    width, height = columns * (wide + GUTTER) - GUTTER + 2 * MARGIN, sum(HEADING + sum(pair) for pair in tall) + LEGEND
    figure = blank(width, height)
    top = height
    for row, drawings, heights in zip(rows, cells, tall, strict=True):
        for column, (one, pair) in enumerate(zip(row, drawings, strict=True)):
            left = MARGIN + column * (wide + GUTTER)
            _heading(figure, one, (left + wide / 2) / width, (top - 0.35) / height, 0.33 / height)
            below = top - HEADING
            for drawing, name, tallest in zip(pair, NAMES, heights, strict=True):
                below -= tallest
                panel = figure.add_axes((left / width, below / height, wide / width, tallest / height))
                _draw(panel, drawing, name, _enlarged(drawing.frame, wide, tallest), 13)
        top -= HEADING + sum(heights)
    _legend(figure, [one.genotype for one in architectures], "lower center")
    save(figure, path, dpi=100)


def draw_beside(architectures: Sequence[tuple[Any, Choices, str]], path: Path) -> None:
    """Draw several (space, choices, title) by their spaces' own drawings into one PNG, below each other.

    Strips of layers are wide: in a column the same layers stand below each other. Raises `SettingsError` where the file
    cannot be written.
    """
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.png" for number in range(len(architectures))]
        for (space, choices, title), file in zip(architectures, files, strict=True):
            space.draw(choices, file, title=title)
        drawings = [Image.open(file).convert("RGB") for file in files]
    sheet = Image.new("RGB", (max(d.width for d in drawings), sum(d.height for d in drawings)), "white")
    top = 0
    for drawing in drawings:
        sheet.paste(drawing, (0, top))
        top += drawing.height
    save(sheet, path)


def _heading(figure: Any, titled: Titled, x: float, y: float, down: float) -> None:
    """The architecture's name and the line of text below it."""
    figure.text(x, y, titled.name, **CENTRED, fontsize=20, fontweight="bold", color=INK)
    figure.text(x, y - down, titled.about, **CENTRED, fontsize=14, color=INK)


def _enlarged(frame: tuple[float, float, float, float], wide: float, tall: float) -> tuple[float, float, float, float]:
    """The frame with paper added at the right and below, so that inches stay inches."""
    left, _, _, top = frame
    return left, left + wide, top - tall, top


def _draw(panel: Any, drawing: Drawing, name: str, frame: tuple[float, float, float, float], size: float = 11) -> None:
    """One cell, in inches; `size` is of the labels, in points: up to 13 they fit."""
    left, right, bottom, top = frame
    panel.set_xlim(left, right)
    panel.set_ylim(bottom, top)
    panel.set_aspect("equal")
    panel.axis("off")
    panel.text(left + 0.1, top - 0.1, name, fontsize=13, color=INK, va="top", style="italic")
    for control in drawing.joins:
        _draw_curve(panel, control, PALE, "-", 1)
    for edge in drawing.edges:
        colour = FAMILIES[edge.operation.split("_")[0]][1]
        _draw_curve(panel, edge.control, colour, "-|>", 2)
        box = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none"}
        panel.text(*edge.label, words(edge.operation), **CENTRED, fontsize=size, color=colour, zorder=4, bbox=box)
    for (x, y), text in zip(drawing.points, drawing.names, strict=True):
        panel.add_patch(_shape(x, y, text.startswith("$")))
        panel.text(x, y, text, **CENTRED, fontsize=13, color=INK, zorder=6, gid=FORMULA)


def _shape(x: float, y: float, box: bool) -> Any:
    """A rounded box for what enters and leaves the cell, a circle for a node."""
    from matplotlib.patches import Circle, FancyBboxPatch

    style: dict[str, Any] = {"edgecolor": INK, "linewidth": 1.3, "zorder": 5, "facecolor": OUTSIDE if box else "white"}
    if not box:
        return Circle((x, y), RADIUS, **style)
    w, h = WIDE - 0.06, RADIUS - 0.06
    return FancyBboxPatch((x - w, y - h), 2 * w, 2 * h, boxstyle="round,pad=0.06", **style)


def _draw_curve(panel: Any, control: Any, colour: str, style: str, order: int) -> None:
    """A cubic, with an arrow head where the style has one."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Curve

    curve = Curve(control, [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4])
    width = 2.0 if order > 1 else 1.3
    panel.add_patch(
        FancyArrowPatch(
            path=curve, arrowstyle=style, color=colour, linewidth=width, mutation_scale=15, zorder=order, fill=order > 1
        )
    )


def words(operation: str) -> str:
    """sep_conv_3x3 -> sep conv 3×3"""
    return re.sub(r"(\d)x(\d)", r"\1×\2", operation.removesuffix("_connect")).replace("_", " ")


def _legend(figure: Any, genotypes: Sequence[Genotype], where: str) -> None:
    """A legend of the operations that occur."""
    from matplotlib.lines import Line2D

    used = {operation.split("_")[0] for g in genotypes for kind in KINDS for operation, _ in getattr(g, kind)}
    lines = [Line2D([], [], color=FAMILIES[f][1], linewidth=3, label=FAMILIES[f][0]) for f in FAMILIES if f in used]
    size = 11 if len(genotypes) == 1 else 15
    figure.legend(handles=lines, loc=where, ncols=len(lines), frameon=False, fontsize=size)
