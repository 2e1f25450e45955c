"""The search space, and how large the supernet and the final network are.

A supernet may be smaller than the published network, in channels or cells or by a factor of all widths; decisions
mean the same in both. The final network has the published size unless the flags say otherwise.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from .. import spaces
from ..core import Architecture, SearchSpace
from ..data.dataset import Augmentation, ImageDataset
from ..errors import RunError, SettingsError, shown
from ..limits import CELLS
from ..settings import Ge, Gt, Settings
from .supernet import facts

Stem = Literal["auto", "cifar", "imagenet", "tiny"]
GENERATOR = "generator"  # the space of `search gumbel` that needs no images
BLOCKS = ("width", "final_width", "depths")
FLAGS: dict[str, tuple[str, ...]] = {
    "darts": ("channels", "cells", "nodes", "final_channels", "final_cells"),
    "macro": BLOCKS,
    "mbconv": BLOCKS,
    "nasbench201": ("channels", "cells", "final_channels", "final_cells"),
    "shufflenet": BLOCKS,
    "width": ("network", *BLOCKS),
}
"""space -> the flags of its sizes"""
EVERY = frozenset(flag for flags in FLAGS.values() for flag in flags)

DEFAULTS: dict[str, dict[str, int]] = {"darts": {"channels": 16, "cells": 8, "nodes": 4}}
"""space -> sizes of its supernet where they are not those of the published network"""

SCALED = ("channels", "first", "widths", "last")
"""Settings of spaces of blocks that a width multiplies."""


def names() -> tuple[str, ...]:
    """The spaces that can be searched: the package's, then those that were registered."""
    return (*FLAGS, *(name for name in spaces.known() if name not in spaces.SPACES))


SpaceName = Annotated[str, names]


class CellNodes(Settings, heading="Search space and final network"):
    nodes: Annotated[int | None, Ge(1), "darts: nodes of a cell; default 4"] = None


class SupernetCells(CellNodes, heading="Search space, supernet and final network"):
    channels: Annotated[int | None, Ge(1), "supernet: channels of the first cell; default 16"] = None
    cells: Annotated[int | None, Ge(1), "supernet: cells; default 8; nasbench201, of each stage, 5"] = None


class FinalSizes(CellNodes):
    space: Annotated[SpaceName, "search space"] = "darts"
    stem: Annotated[Stem, "first layers; auto: by the size of the input"] = "auto"
    depths: Annotated[str | None, "blocks: layers of each stage, like 2,3,3; default: as published"] = None
    network: Annotated[str | None, "width: network whose channels are chosen; default cifar-resnet20"] = None
    final_channels: Annotated[
        int | None, Ge(1), "final network: channels; default 36, on ImageNet 48; nasbench201 16"
    ] = None
    final_cells: Annotated[int | None, Ge(1), "final network: cells; default 20, on ImageNet 14; nasbench201 5"] = None
    final_width: Annotated[float | None, Gt(0), "final network of blocks: share of the published channels"] = None

    def identity(self, *without: str) -> dict[str, Any]:
        """The fields that decide a result, without the sizes of other spaces, and with those of the usual supernet."""
        usual = DEFAULTS.get(self.space, {})
        return {**usual, **super().identity(*without, *(EVERY - set(flags_of(self.space))))}


class Sizes(FinalSizes, SupernetCells):
    width: Annotated[float | None, Gt(0), "supernet of blocks: share of the published channels"] = None


Sized = TypeVar("Sized", bound=FinalSizes)


def settled(sizes: Sized) -> Sized:
    """The settings with the defaults of their space.

    Raises:
        SettingsError: a flag is given that the space does not take, or no such space.
    """
    if sizes.space not in names():
        raise SettingsError(f"--space {sizes.space} is not one of {', '.join(names())}")
    own = flags_of(sizes.space)
    values = {one.name: getattr(sizes, one.name) for one in fields(sizes)}
    for flag in sorted(EVERY - set(own)):
        if values.get(flag) is not None:
            takes = ", ".join(map(_flag, own)) or "none"
            raise SettingsError(f"{_flag(flag)} {values[flag]} is no size of the {sizes.space} space; it takes {takes}")
    usual: dict[str, Any] = DEFAULTS.get(sizes.space, {})
    return replace(sizes, **{key: size for key, size in usual.items() if values.get(key, size) is None})


def flags_of(name: str) -> tuple[str, ...]:
    """The flags of a space's sizes; of one that was registered, those that its constructor has arguments for."""
    if name in FLAGS:
        return FLAGS[name]
    if name == GENERATOR:
        return ("width", "final_width")
    takes = inspect.signature(spaces.known()[name]).parameters
    kept = [flag for flag in ("channels", "cells", "nodes", "depths") if flag in takes]
    final = [f"final_{flag}" for flag in ("channels", "cells") if flag in takes]
    return (*kept, *final, *(("width", "final_width") if "widths" in takes else ()))


def pair(sizes: FinalSizes, images: ImageDataset, augment: Augmentation) -> tuple[SearchSpace, SearchSpace]:
    """(the space of the supernet, the space of the final network), with the decisions of one another.

    Args:
        sizes: `settled`; a supernet that they do not size has its usual size.
        augment: its crop decides the size of the input.

    Raises:
        SettingsError: a size cannot be read.
        ArchitectureError: a network cannot have this size.
    """
    channels, height, width = images.card.shape
    crop = getattr(augment, "crop", None)
    side = (height, width) if crop is None else (crop, crop)
    spec: dict[str, Any] = {"name": sizes.space, "classes": images.card.classes, "shape": [channels, *side]}
    spec |= _stem(sizes)
    spec |= {} if sizes.depths is None else {"depths": _depths(sizes.depths)}
    spec |= {key: value for key, value in (("nodes", sizes.nodes), ("network", sizes.network)) if value is not None}
    supernet = sizes if isinstance(sizes, Sizes) else settled(Sizes(space=sizes.space))
    small = _size(sizes.space, supernet.channels, supernet.cells, supernet.width)
    large = _size(sizes.space, sizes.final_channels, sizes.final_cells, sizes.final_width)
    searched = spaces.space({**spec, **small})
    published = spaces.published(searched.spec["stem"]) if sizes.space == "darts" else {}
    return searched, spaces.space({**spec, **published, **large})


def of_run(folder: Path) -> tuple[SearchSpace, SearchSpace]:
    """(the space of the supernet in a search's run folder, the space of the final network there).

    Raises:
        RunError: the folder has no supernet.
    """
    file = folder / "supernet.json"
    if not file.is_file():
        raise RunError(f"--supernet {folder} has no supernet.json: name the run folder of a finished search with one")
    searched = spaces.space(facts.read(folder)["space"])
    final = folder / "arch.json"
    return searched, spaces.space(Architecture.load(final).space) if final.is_file() else searched


def _size(space: str, channels: int | None, cells: int | None, width: float | None) -> dict[str, Any]:
    """What the spec of a network of this size has beside that of its space."""
    sizes = {"channels": channels, "cells": cells}
    return {key: size for key, size in sizes.items() if size is not None} | _widened(space, width)


def _stem(sizes: FinalSizes) -> dict[str, str]:
    """The stem, where the space has one."""
    if "stem" in inspect.signature(spaces.known()[sizes.space]).parameters:
        return {"stem": sizes.stem}
    if sizes.stem != "auto":
        raise SettingsError(f"--stem {sizes.stem}: a {sizes.space} space has no stems; leave it out")
    return {}


def _depths(text: str) -> list[int]:
    try:
        depths = [int(part) for part in str(text).split(",")]
    except ValueError as error:
        raise SettingsError(
            f"--depths {shown(text, str)} is not whole numbers with commas between, like 2,3,3"
        ) from error
    if min(depths) < 1 or max(depths) > CELLS:
        raise SettingsError(f"--depths {shown(text, str)}: every stage has 1 to {CELLS} layers")
    return depths


def _widened(name: str, factor: float | None) -> dict[str, Any]:
    """The published channels of a space of blocks, multiplied and rounded to even numbers."""
    if factor is None:
        return {}
    takes = inspect.signature(spaces.known()[name]).parameters
    published = {key: takes[key].default for key in SCALED if key in takes}
    if not published and "scale" in takes:
        return {"scale": factor}
    return {key: _times(size, factor) for key, size in published.items() if size is not inspect.Parameter.empty}


def _times(channels: int | Sequence[int], factor: float) -> int | list[int]:
    if isinstance(channels, int):
        return max(2, 2 * round(channels * factor / 2))
    return [max(2, 2 * round(one * factor / 2)) for one in channels]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
