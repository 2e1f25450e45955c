"""Show an architecture: what it costs, how it is written, and its cells or layers drawn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from .. import spaces
from ..core import Architecture, SearchSpace
from ..costs import budget
from ..costs.tables import input_shape
from ..errors import SettingsError
from ..settings import DRAWINGS, CellSizes, Ge, Gt, check_file, command
from ..spaces.darts.drawing import draw_cells
from ..spaces.darts.genotype import KINDS
from ..spaces.darts.space import DartsSpace


class NetworkSettings(CellSizes, heading="The final network (unset: as published, or as in the file)"):
    classes: Annotated[int | None, Ge(1), "number of classes"] = None
    size: Annotated[int | None, Ge(1), "side of the input in pixels"] = None
    input_channels: Annotated[int | None, Ge(1), "input channels: 1 for grey, 3 for colour"] = None
    scale: Annotated[float | None, Gt(0), "width of a generator, relative to 64 channels"] = None


class ShowSettings(NetworkSettings, heading="The architecture"):
    auxiliary: Annotated[bool, "count the auxiliary head of training as well"] = False
    stem: Annotated[Literal["auto", "cifar", "imagenet", "tiny"] | None, "first layers; auto: by the input size"] = None
    out: Annotated[Path | str | None, "PNG to draw; default: cells-NAME.png or layers-NAME.png here"] = None


@command
def show(
    arch: Annotated[str | Path | Architecture, "published name, arch.json, run folder, model or genotype text"],
    settings: ShowSettings,
) -> dict[str, Any]:
    """Count an architecture's parameters and multiply-accumulates, and draw its cells or its layers.

    A published name is shown at its published setting: 36 channels and 20 cells, or 48 and 14 from 96 pixels on.

    Example:
        phosphene arch show darts-v2
        phosphene arch show darts-v2 --size 224 --classes 1000 --auxiliary
        phosphene arch show autorecon-cifar10 --scale 2

    Raises:
        ArchitectureError: there is no such architecture, or it cannot have these settings.
        SettingsError: the drawing cannot be written.
    """
    check_file("--out", settings.out, DRAWINGS)
    architecture = resolve(arch, settings)
    space = spaces.space(architecture.space)
    shown = {"architecture": title(arch), **counted(space, architecture, settings.auxiliary)}
    shown["settings"] = {key: value for key, value in space.spec.items() if key != "name"}
    if isinstance(space, DartsSpace):
        genotype = space.genotype(architecture.choices)
        path = Path(settings.out or f"cells-{title(arch)}.png")
        draw_cells(architecture, path, title=title(arch))
        cells = {kind: sentences(getattr(genotype, kind)) for kind in KINDS}
        return {**shown, "genotype": str(genotype), **cells, "cells": str(path)}
    if hasattr(space, "draw") and hasattr(space, "notation") and space.decisions:
        path = Path(settings.out or f"layers-{title(arch)}.png")
        space.draw(architecture.choices, path, title=title(arch))
        return {**shown, "notation": space.notation(architecture.choices), "drawing": str(path)}
    if settings.out is not None:
        raise SettingsError(f"--out {settings.out}: {title(arch)} has nothing to draw; leave it out")
    return shown


def resolve(arch: str | Path | Architecture, settings: ShowSettings) -> Architecture:
    """The architecture with the settings that are set."""
    own: dict[str, Any] = {name: getattr(settings, name) for name in ("channels", "cells", "stem", "scale")}
    own |= {"auxiliary": settings.auxiliary or None, "classes": settings.classes}
    if settings.size is None and settings.input_channels is None:
        return spaces.architecture(arch, **own)
    channels, *sides = spaces.architecture(arch, classes=settings.classes).space["shape"]
    sides = [settings.size] * 2 if settings.size else sides
    return spaces.architecture(arch, **own, shape=[settings.input_channels or channels, *sides])


def counted(space: SearchSpace, architecture: Architecture, auxiliary: bool = False) -> dict[str, int]:
    """Parameters and multiply-accumulates of the final network."""
    import torch

    with torch.device("meta"):
        net = space.build(architecture.choices)
    return {
        "params": budget.params(net, auxiliary),
        "macs": budget.macs(net, input_shape(space), auxiliary),
    }


def title(arch: str | Path | Architecture) -> str:
    """A short name for a figure or a file."""
    if isinstance(arch, Architecture) or str(arch).strip().startswith("Genotype("):
        return "architecture" if isinstance(arch, Architecture) else "genotype"
    if set(str(arch)) & set("|[ "):  # a text that says the architecture itself
        return "architecture"
    path = Path(str(arch))
    name = path.resolve().parent.name if path.name == "arch.json" else path.stem if path.is_file() else path.name
    return re.sub(r"[^\w.-]+", "-", name) or "architecture"


def sentences(cell: Sequence[tuple[str, int]]) -> list[str]:
    """A cell in words: one sum for each node."""
    terms = [f"{operation}({state(source)})" for operation, source in cell]
    return [f"{k} = {a} + {b}" for k, (a, b) in enumerate(zip(terms[::2], terms[1::2], strict=True))]


def state(source: int) -> str:
    """The name of a cell's state: its inputs first, then its nodes from 0."""
    return ("c_{k-2}", "c_{k-1}")[source] if source < 2 else str(source - 2)
