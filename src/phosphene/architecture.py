"""Show an architecture: what it costs, its genotype, and its two cells drawn as graphs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from . import costs, spaces
from .core import Architecture
from .errors import ArchitectureError, SettingsError
from .layout import RADIUS, WIDE, Drawing, arrange
from .spaces.darts import DartsSpace
from .spaces.genotype import KINDS, Genotype

FAMILIES = {
    "sep": ("separable convolution", "#1f5fa8"),
    "dil": ("dilated convolution", "#8a3ca0"),
    "max": ("max pooling", "#b4541a"),
    "avg": ("average pooling", "#a07800"),
    "skip": ("skip", "#2e7d4f"),
}
"""first word of an operation -> (what it is, colour)"""
INK, PALE, OUTSIDE = "#222222", "#c9cdd4", "#e8edf5"
CENTRED = {"ha": "center", "va": "center"}


def show(
    arch: Annotated[str | Path | Architecture, "published name, arch.json, run folder, model or genotype text"],
    *,
    channels: Annotated[int | None, "channels in the first cell; default: as published, or as in the file"] = None,
    cells: Annotated[int | None, "cells; default: as published, or as in the file"] = None,
    classes: Annotated[int | None, "classes; default: 10, or as in the file"] = None,
    size: Annotated[int | None, "side of the input; default: 32, or as in the file"] = None,
    input_channels: Annotated[int | None, "channels of the input; default: 3, or as in the file"] = None,
    auxiliary: Annotated[bool, "count the auxiliary head of training too"] = False,
    stem: Annotated[
        Literal["auto", "cifar", "imagenet", "tiny"] | None, "first layers; default: from the size, or as in the file"
    ] = None,
    out: Annotated[Path | None, "where to draw the cells; default: cells-NAME.png here"] = None,
) -> dict[str, Any]:
    """Count an architecture's parameters and multiply-accumulates, and draw its cells.

    A published name is shown at its published setting: 36 channels and 20 cells, or 48 and 14 from 96 pixels on.

    Example:
        phosphene arch show darts-v2
        phosphene arch show darts-v2 --size 224 --classes 1000 --auxiliary

    Raises:
        ArchitectureError: there is no such architecture, or it cannot have these settings.
        SettingsError: the drawing cannot be written.
    """
    settings: dict[str, Any] = {"channels": channels, "cells": cells, "stem": stem, "auxiliary": auxiliary or None}
    found = resolve(arch, classes, size, input_channels, **settings)
    space = spaces.space(found.space)
    result: dict[str, Any] = {"architecture": _title(arch), **_counted(space, found, auxiliary)}
    result["settings"] = {key: value for key, value in space.spec.items() if key != "name"}
    if isinstance(space, DartsSpace):
        genotype = space.genotype(found.choices)
        result["genotype"] = str(genotype)
        result |= {kind: sentences(getattr(genotype, kind)) for kind in KINDS}
        path = Path(f"cells-{_title(arch)}.png") if out is None else out
        draw_cells(found, path, title=_title(arch))
        result["cells"] = str(path)
    elif out is not None:
        raise SettingsError(f"--out {out}: {_title(arch)} has no cells to draw; leave it out")
    return result


def resolve(
    arch: str | Path | Architecture, classes: int | None, size: int | None, input_channels: int | None, **settings: Any
) -> Architecture:
    """The architecture with the given parts of its input's shape replaced."""
    found = spaces.architecture(arch, classes=classes, **({} if size or input_channels else settings))
    if size is None and input_channels is None:
        return found
    old = found.space["shape"]
    shape = [input_channels or old[0], *((size, size) if size else old[1:])]
    return spaces.architecture(arch, classes=classes, shape=shape, **settings)


def _counted(space: Any, found: Architecture, auxiliary: bool) -> dict[str, int]:
    import torch

    with torch.device("meta"):
        net = space.build(found.choices)
    return {
        "params": costs.params(net, auxiliary),
        "macs": costs.macs(net, space.spec["shape"], auxiliary),
    }


def _title(arch: str | Path | Architecture) -> str:
    """A short name for a figure or a file."""
    if isinstance(arch, Architecture) or str(arch).strip().startswith("Genotype("):
        return "architecture" if isinstance(arch, Architecture) else "genotype"
    path = Path(str(arch))
    name = path.resolve().parent.name if path.name == "arch.json" else path.stem if path.is_file() else path.name
    return re.sub(r"[^\w.-]+", "-", name) or "architecture"


def sentences(cell: Sequence[tuple[str, int]]) -> list[str]:
    """A cell in words: one sum for each node."""
    said = [f"{operation}({state(source)})" for operation, source in cell]
    return [f"{k} = {a} + {b}" for k, (a, b) in enumerate(zip(said[::2], said[1::2], strict=True))]


def state(source: int) -> str:
    """The name of a cell's state: its inputs first, then its nodes from 0."""
    return ("c_{k-2}", "c_{k-1}")[source] if source < 2 else str(source - 2)


def draw_cells(architecture: Architecture | Mapping[str, int], path: Path, title: str | None = None) -> None:
    """Draw the normal and the reduction cell of an architecture, or of its choices, as graphs into a PNG.

    Raises:
        ArchitectureError: it has no cells, or a node without two inputs.
        SettingsError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine as LayoutEngine

    from .spaces.genotype import of_choices

    choices = architecture.choices if isinstance(architecture, Architecture) else dict(architecture)
    if not choices:
        raise ArchitectureError("this architecture has no cells to draw; only those of cell spaces have")
    genotype = of_choices(choices)
    drawings = [arrange(getattr(genotype, kind)) for kind in KINDS]
    figure = Figure((12, 0.9 + sum(d.height for d in drawings)), facecolor="white", layout=LayoutEngine(h_pad=0.08))
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 1, height_ratios=[d.height for d in drawings])
    for panel, drawing, name in zip(panels, drawings, ("normal cell", "reduction cell"), strict=True):
        _draw(panel, drawing, name)
    if title:
        figure.suptitle(title, fontsize=15, fontweight="bold", color=INK)
    _legend(figure, genotype)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise SettingsError(f"--out {path} cannot be written ({error}); name a PNG in an existing folder") from error


def _draw(panel: Any, drawing: Drawing, name: str) -> None:
    """One cell, in inches."""
    left, right, bottom, top = drawing.frame
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
        panel.text(*edge.label, words(edge.operation), **CENTRED, fontsize=11, color=colour, zorder=4, bbox=box)
    for (x, y), text in zip(drawing.points, drawing.names, strict=True):
        panel.add_patch(_shape(x, y, text.startswith("$")))
        panel.text(x, y, text, **CENTRED, fontsize=13, color=INK, zorder=6)


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


def _legend(figure: Any, genotype: Genotype) -> None:
    """The colours that occur."""
    from matplotlib.lines import Line2D

    used = {operation.split("_")[0] for kind in KINDS for operation, _ in getattr(genotype, kind)}
    lines = [Line2D([], [], color=FAMILIES[f][1], linewidth=3, label=FAMILIES[f][0]) for f in FAMILIES if f in used]
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), frameon=False, fontsize=11)
