"""`phosphene arch compare`: several architectures side by side, drawn, and what tells them apart in figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from .. import spaces
from ..core import Architecture, SearchSpace
from ..errors import SettingsError
from ..runtime.machine import machine as decide_machine
from ..runtime.run import Run
from ..settings import command
from ..spaces.darts.drawing import Titled, draw_beside, draw_side_by_side
from ..spaces.darts.genotype import KINDS, Genotype, of_choices
from ..spaces.darts.operations import OPERATIONS
from .arch_show import NetworkSettings, counted, title

OTHER = (".jpg", ".jpeg", ".gif", ".svg", ".pdf", ".webp")
Cell = Sequence[tuple[str, int]]


class CompareSettings(NetworkSettings, heading="The architectures"):
    classes: int = 10
    size: int = 32
    input_channels: int = 3
    out: Annotated[Path | str | None, "PNG to draw, or a run folder; default: genotypes.png or networks.png"] = None

    def of(self, kind: str) -> dict[str, Any]:
        """What the final networks of a space have in common; what is unset is as in the file."""
        own = {name: getattr(self, name) for name in ("channels", "cells", "scale")}
        if kind == "darts":  # the published size
            own |= {"channels": self.channels or 36, "cells": self.cells or 20}
        own = {name: value for name, value in own.items() if value is not None}
        return own | {"classes": self.classes, "shape": [self.input_channels, self.size, self.size]}


@dataclass(frozen=True)
class Compared:
    """One of the architectures, counted."""

    name: str
    architecture: Architecture
    space: SearchSpace
    costs: dict[str, int]  # parameters and multiply-accumulates

    @property
    def options(self) -> dict[str, str]:
        """What is chosen, by the name of each decision."""
        choices = self.architecture.choices
        return {decision.name: decision.options[choices[decision.name]] for decision in self.space.decisions}

    @property
    def notation(self) -> str:
        """The architecture as its space writes it; of a space without a notation, its options in order."""
        if hasattr(self.space, "notation"):
            return str(self.space.notation(self.architecture.choices))
        return " ".join(self.options.values())


@command
def compare(
    archs: Annotated[list[str], "published names, arch.json files, run folders of searches or texts of one space"],
    settings: CompareSettings,
) -> dict[str, Any]:
    """Draw several architectures of one space side by side, and count what they are made of and what they share.

    All are counted as final networks of one size, whatever number of classes they were searched with. Of cells, `depth`
    is the most operations in a row between input and output, and the agreement of two architectures is the share of
    their edges that have the same input, node and operation; independent random cells of four nodes share 9 %. In
    other spaces `differ` has each layer or edge on which they do not agree, and the agreement is the share that is
    alike. Generators may be compared with published ones, by parameters and multiply-accumulates alone.

    Example:
        phosphene arch compare searched-on-noise searched-on-fractals darts-v2 --out genotypes.png
        phosphene arch compare spos spos-all-xception --size 224 --classes 1000 --out networks.png
        phosphene arch compare autorecon-cifar10 gdfq-cifar

    Raises:
        ArchitectureError: one of them cannot be read or built.
        SettingsError: they are of different spaces or have nothing to compare, or the drawing cannot be written.
    """
    names, kind = _names(archs), _space_of(archs)
    common = settings.of(kind)
    out = None if settings.out is None else Path(settings.out)
    compared = [_compared(name, arch, common) for name, arch in zip(names, archs, strict=True)]
    if kind == "generator" and out is None and not all(one.architecture.choices for one in compared):
        return {"settings": common, "architectures": {one.name: one.costs for one in compared}}
    figures = _of_cells if kind == "darts" else _of_layers
    return figures(compared, common, out)


def _compared(name: str, arch: str, common: dict[str, Any]) -> Compared:
    """The architecture with those of the common settings that its space has."""
    own = {key: value for key, value in common.items() if key in spaces.architecture(arch).space}
    architecture = spaces.architecture(arch, **own)
    space = spaces.space(architecture.space)
    return Compared(name, architecture, space, counted(space, architecture))


def _of_cells(compared: Sequence[Compared], common: dict[str, Any], out: Path | None) -> dict[str, Any]:
    """Architectures of the DARTS space: the operations of their two cells, and the edges that they share."""
    genotypes = {one.name: of_choices(one.architecture.choices) for one in compared}
    path, run = _target(out, common | {"genotypes": {n: str(g) for n, g in genotypes.items()}}, "genotypes.png")
    drawn = [Titled(one.name, _about(one.costs, genotypes[one.name]), genotypes[one.name]) for one in compared]
    draw_side_by_side(drawn, path)
    result = {
        "settings": common,
        "architectures": {one.name: one.costs for one in compared},
        **{kind: {name: facts(getattr(one, kind)) for name, one in genotypes.items()} for kind in KINDS},
        "agreement": {n: {other: agree(a, b) for other, b in genotypes.items()} for n, a in genotypes.items()},
    }
    return {"drawing": str(path), **(result if run is None else run.finish(result))}


def _of_layers(compared: Sequence[Compared], common: dict[str, Any], out: Path | None) -> dict[str, Any]:
    """Architectures of another space: how often each option occurs, and the decisions on which they differ."""
    options = {one.name: one.options for one in compared}
    _check_decisions(options)
    notation = {one.name: one.notation for one in compared}
    drawable = all(hasattr(one.space, "draw") for one in compared)
    if not drawable and out is not None and out.suffix:
        kind = compared[0].space.spec["name"]
        raise SettingsError(f"--out {out}: a {kind} space has no drawing; name a folder, or leave it out")
    path, run = _target(out, common | {"networks": notation}, "networks.png") if drawable or out else (None, None)
    if drawable and path is not None:
        draw_beside([(o.space, o.architecture.choices, f"{o.name}: {_size(o.costs)}") for o in compared], path)
    result = {
        "settings": common,
        "architectures": {one.name: one.costs for one in compared},
        "notation": notation,
        "options": {name: dict(Counter(chosen.values())) for name, chosen in options.items()},
        "differ": differ(options),
        "agreement": {n: {other: _share(a, b) for other, b in options.items()} for n, a in options.items()},
    }
    shown = {"drawing": str(path)} if drawable else {}
    return {**shown, **(result if run is None else run.finish(result))}


def differ(options: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """The decisions on which several architectures do not agree: decision -> architecture -> option."""
    first = next(iter(options.values()))
    chosen = {decision: {name: own[decision] for name, own in options.items()} for decision in first}
    return {decision: by_name for decision, by_name in chosen.items() if len(set(by_name.values())) > 1}


def _share(one: Mapping[str, str], other: Mapping[str, str]) -> float:
    """The share of the decisions on which two architectures agree."""
    return round(sum(other[name] == option for name, option in one.items()) / len(one), 4)


def _check_decisions(options: Mapping[str, Mapping[str, str]]) -> None:
    """Raise `SettingsError` unless all have the same decisions to compare."""
    (first, own), *others = options.items()
    if not own:
        raise SettingsError(
            f"{first} leaves nothing open, so there are no layers to compare; name architectures that a search chose"
        )
    for name, chosen in others:
        if chosen.keys() != own.keys():
            counts = f"{first} has {len(own)} layers and {name} {len(chosen)}"
            raise SettingsError(f"{counts}, or others; only architectures with the same layers can be compared")


def _target(out: Path | None, identity: dict[str, Any], name: str) -> tuple[Path, Run | None]:
    """Where to draw: a PNG, or `name` in a run folder, which a report can show."""
    if out is None or out.suffix.lower() == ".png":
        return out or Path(name), None
    if out.suffix.lower() in OTHER:
        raise SettingsError(f"--out {out}: the drawing is a PNG; name one, or a folder for it")
    run = Run.open("arch-compare", identity, [], out, decide_machine("cpu", "fp32"))
    return run.path / name, run


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


def _space_of(archs: Sequence[str]) -> str:
    """The name of the space that all are of; raises `SettingsError` where they are of several, or of fixed networks."""
    if not archs:
        raise SettingsError("there is nothing to compare: name architectures of one space")
    kinds = [str(spaces.architecture(arch).space["name"]) for arch in archs]
    for arch, kind in zip(archs, kinds, strict=True):
        if kind == "fixed":
            raise SettingsError(f"{title(arch)} has no cells or layers to compare; name architectures of a space")
        if kind != kinds[0]:
            of = f"{title(archs[0])} is of the space {kinds[0]}, {title(arch)} of {kind}"
            raise SettingsError(f"{of}; compare architectures of one space")
    return kinds[0]


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
    return f"{_size(cost)} · {skips[0]} + {skips[1]} skips"


def _size(cost: dict[str, int]) -> str:
    return f"{_short(cost['params'])} parameters · {_short(cost['macs'])} MACs"


def _short(number: int) -> str:
    """Three figures: 3.35 M, 528 M, 61.3 k."""
    unit = 1_000_000 if number >= 1_000_000 else 1_000
    return f"{number / unit:#.3g}".rstrip(".") + (" M" if unit > 1_000 else " k")
