"""`phosphene arch compare`: cells of several architectures side by side, and what tells them apart in figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from . import spaces
from .architecture import counted, title
from .cells import Drawn, draw_side_by_side
from .core import Architecture
from .errors import SettingsError
from .hardware import machine as decide_machine
from .run import Run
from .spaces.darts import DartsSpace
from .spaces.genotype import KINDS, Genotype, of_choices
from .spaces.operations import OPERATIONS

OTHER = (".jpg", ".jpeg", ".gif", ".svg", ".pdf", ".webp")
Cell = Sequence[tuple[str, int]]


def compare(
    archs: Annotated[list[str], "published names, arch.json files, run folders of searches or genotype texts"],
    *,
    channels: Annotated[int, "channels in the first cell"] = 36,
    cells: Annotated[int, "cells"] = 20,
    classes: Annotated[int, "classes"] = 10,
    size: Annotated[int, "side of the input"] = 32,
    input_channels: Annotated[int, "channels of the input"] = 3,
    out: Annotated[Path | None, "the PNG to draw, or a folder for it; default: genotypes.png here"] = None,
) -> dict[str, Any]:
    """Draw the cells of several architectures side by side, and count what they are made of and what they share.

    All are counted as final networks of one size, whatever number of classes they were searched with. `depth` is the
    most operations in a row between a cell's input and its output. The agreement of two architectures is the share of
    their edges that have the same input, node and operation; independent random cells of four nodes share 9 %.

    Example:
        phosphene arch compare found-on-noise found-on-fractals darts-v2 --out genotypes.png

    Raises:
        ArchitectureError: one of them cannot be read or built.
        SettingsError: one has no cells, or the drawing cannot be written.
    """
    names = _names(archs)
    shape = (input_channels, size, size)
    found = [_resolved(arch, classes=classes, shape=shape, channels=channels, cells=cells) for arch in archs]
    genotypes = [of_choices(architecture.choices) for architecture in found]
    costs = [counted(spaces.space(architecture.space), architecture) for architecture in found]
    settings = {"channels": channels, "cells": cells, "classes": classes, "shape": list(shape)}
    pairs = list(zip(names, genotypes, strict=True))
    path, run = _target(out, settings | {"genotypes": {name: str(one) for name, one in pairs}})
    draw_side_by_side([Drawn(n, _about(c, g), g) for n, c, g in zip(names, costs, genotypes, strict=True)], path)
    agreement = {name: {other: agree(a, b) for other, b in pairs} for name, a in pairs}
    result = {
        "settings": settings,
        "architectures": dict(zip(names, costs, strict=True)),
        **{kind: {name: facts(getattr(genotype, kind)) for name, genotype in pairs} for kind in KINDS},
        "agreement": agreement,
    }
    return {"drawing": str(path), **(result if run is None else run.finish(result))}


def _target(out: Path | None, settings: dict[str, Any]) -> tuple[Path, Run | None]:
    """Where to draw: a PNG, or one in a run folder, which a report can show."""
    if out is None or out.suffix.lower() == ".png":
        return out or Path("genotypes.png"), None
    if out.suffix.lower() in OTHER:
        raise SettingsError(f"--out {out}: the drawing is a PNG; name one, or a folder for it")
    run = Run.open("arch-compare", settings, [], out, decide_machine("cpu", "fp32"))
    return run.path / "genotypes.png", run


def facts(cell: Cell) -> dict[str, int]:
    """How deep a cell is, and how often each operation occurs."""
    operations = [operation for operation, _ in cell]
    return {"depth": depth(cell)} | {operation: operations.count(operation) for operation in OPERATIONS[1:]}


def depth(cell: Cell) -> int:
    """The most operations in a row from an input of the cell to its output."""
    levels = [0, 0]
    for first in range(0, len(cell), 2):
        levels.append(1 + max(levels[source] for _, source in cell[first : first + 2]))
    return max(levels)


def agree(one: Genotype, other: Genotype) -> float:
    """The share of edges with the same cell, input, node and operation; of the one with more edges."""
    edges = [
        {(kind, k // 2, *edge) for kind in KINDS for k, edge in enumerate(getattr(genotype, kind))}
        for genotype in (one, other)
    ]
    return round(len(edges[0] & edges[1]) / max(map(len, edges)), 4)


def _resolved(arch: str, **settings: Any) -> Architecture:
    found = spaces.architecture(arch)
    if not isinstance(spaces.space(found.space), DartsSpace):
        raise SettingsError(f"{title(arch)} has no cells to compare; name architectures of a cell space")
    return spaces.architecture(arch, **settings)


def _names(archs: Sequence[str]) -> list[str]:
    """Short names; where they are alike, with the folder above, and then with a number."""
    names = [title(arch) for arch in archs]
    folders = [Path(arch).parent if Path(arch).name == "arch.json" else Path(arch) for arch in archs]
    above = [f"{folder.parent.name}/".lstrip("/") for folder in folders]
    names = [a + n if names.count(n) > 1 else n for a, n in zip(above, names, strict=True)]
    return [n if names.count(n) == 1 else f"{n} ({names[:k].count(n) + 1})" for k, n in enumerate(names)]


def _about(cost: dict[str, int], genotype: Genotype) -> str:
    """Under the name of a drawing."""
    skips = [facts(getattr(genotype, kind))["skip_connect"] for kind in KINDS]
    return f"{_short(cost['params'])} parameters · {_short(cost['macs'])} MACs · {skips[0]} + {skips[1]} skips"


def _short(number: int) -> str:
    """Three figures: 3.35 M, 528 M, 61.3 k."""
    unit = 1_000_000 if number >= 1_000_000 else 1_000
    return f"{number / unit:#.3g}".rstrip(".") + (" M" if unit > 1_000 else " k")
