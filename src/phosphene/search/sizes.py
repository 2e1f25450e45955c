"""How large a search's supernet and its final network are: plain tables of the flags that each space takes.

A supernet may be smaller than the published network, in channels or cells or by a factor of all widths; decisions
mean the same in both. What is found is a network of the published size unless the flags say otherwise.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from .. import spaces
from ..core import Architecture, SearchSpace
from ..dataset import Augmentation, ImageDataset
from ..errors import RunError, SettingsError
from ..files import read_json

SpaceName = Literal["darts", "macro", "mbconv", "nasbench201", "shufflenet"]

BLOCKS = ("width", "final_width", "depths")
FLAGS: dict[str, tuple[str, ...]] = {
    "darts": ("channels", "cells", "nodes", "final_channels", "final_cells"),
    "macro": BLOCKS,
    "mbconv": BLOCKS,
    "nasbench201": ("channels", "cells", "final_channels", "final_cells"),
    "shufflenet": BLOCKS,
}
"""space -> the flags of its sizes"""

DEFAULTS: dict[str, dict[str, int]] = {"darts": {"channels": 16, "cells": 8, "nodes": 4}}
"""space -> sizes of its supernet where they are not those of the published network"""

SCALED = ("channels", "first", "widths", "last")
"""Settings of spaces of blocks that a width multiplies."""


def settled(given: dict[str, Any]) -> dict[str, Any]:
    """The settings with the space's defaults, without the flags of other spaces.

    Raises:
        SettingsError: a flag is given that the space does not take, or no such space.
    """
    name = given["space"]
    if name not in FLAGS:
        raise SettingsError(f"--space {name} is not one of {', '.join(FLAGS)}")
    every = {flag for flags in FLAGS.values() for flag in flags}
    for flag in sorted(every - set(FLAGS[name])):
        if given.get(flag) is not None:
            own = ", ".join(map(_flag, FLAGS[name]))
            raise SettingsError(f"{_flag(flag)} {given[flag]} is no size of the {name} space; it takes {own}")
    kept = {key: value for key, value in given.items() if key not in every or key in FLAGS[name]}
    return kept | {key: size for key, size in DEFAULTS.get(name, {}).items() if kept.get(key) is None}


def pair(given: dict[str, Any], images: ImageDataset, augment: Augmentation) -> tuple[SearchSpace, SearchSpace]:
    """(the space of the supernet, the space of the final network), with the decisions of one another.

    Args:
        given: settings, `settled`.
        augment: its crop decides the size of the input.

    Raises:
        SettingsError: a size cannot be read.
        ArchitectureError: a network cannot have this size.
    """
    channels, height, width = images.card.shape
    crop = getattr(augment, "crop", None)
    size = (height, width) if crop is None else (crop, crop)
    spec: dict[str, Any] = {"name": given["space"], "stem": given["stem"], "classes": images.card.classes}
    spec |= {"shape": [channels, *size]}
    if "width" in FLAGS[given["space"]]:
        spec |= {} if given.get("depths") is None else {"depths": _depths(given["depths"])}
        sizes = (_widened(spec["name"], given.get(key), _flag(key)) for key in ("width", "final_width"))
    else:
        spec |= {key: given[key] for key in ("nodes",) if key in given}
        sizes = ({key: given.get(start + key) for key in ("channels", "cells")} for start in ("", "final_"))
    small, large = ({key: size for key, size in own.items() if size is not None} for own in sizes)
    searched = spaces.space({**spec, **small})
    published = spaces.published(searched.spec["stem"]) if spec["name"] == "darts" else {}
    return searched, spaces.space({**spec, **published, **large})


def of_run(folder: Path) -> tuple[SearchSpace, SearchSpace]:
    """(the space of the supernet in a search's run folder, the space of the final network there).

    Raises:
        RunError: the folder has no supernet.
    """
    file = folder / "supernet.json"
    if not file.is_file():
        raise RunError(f"--supernet {folder} has no supernet.json: name the run folder of a finished search with one")
    searched = spaces.space(read_json(file)["space"])
    final = folder / "arch.json"
    return searched, spaces.space(Architecture.load(final).space) if final.is_file() else searched


def _depths(text: str) -> list[int]:
    try:
        return [int(part) for part in str(text).split(",")]
    except ValueError as error:
        raise SettingsError(f"--depths {text} is not whole numbers with commas between, like 2,3,3") from error


def _widened(name: str, factor: float | None, flag: str) -> dict[str, Any]:
    """The published channels of a space of blocks, multiplied and rounded to even numbers."""
    if factor is None:
        return {}
    if not factor > 0:
        raise SettingsError(f"{flag} {factor} is not above 0; 1 is the published width")
    published = {key: p.default for key, p in inspect.signature(spaces.SPACES[name]).parameters.items()}
    return {key: _times(published[key], factor) for key in SCALED if key in published}


def _times(channels: int | Sequence[int], factor: float) -> int | list[int]:
    if isinstance(channels, int):
        return max(2, 2 * round(channels * factor / 2))
    return [max(2, 2 * round(one * factor / 2)) for one in channels]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
