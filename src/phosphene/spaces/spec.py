"""Specs of spaces as files have them: each setting of its type and of a size that a machine can hold."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any

import torch
from torch import nn

from ..errors import ArchitectureError, shown
from ..limits import CELLS, CHANNELS, CLASSES, LIMITS, SIDE

__all__ = ["check", "check_size"]

DEEPEST = 10_000  # cells times the nodes of each


def _whole(value: Any, most: float) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and abs(int(value)) <= most


def _wholes(value: Any, most: float) -> bool:
    return isinstance(value, list | tuple) and len(value) <= CELLS and all(_whole(one, most) for one in value)


def _up_to(most: float) -> Callable[[Any], bool]:
    return lambda value: _whole(value, most)


def _shape(value: Any) -> bool:
    return _wholes(value, SIDE)


def _depths(value: Any) -> bool:
    return _wholes(value, CELLS) and sum(value) <= CELLS


def _fraction(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _object(value: Any) -> bool:
    return isinstance(value, Mapping)


def _kept(value: Any) -> bool:
    sides = [side for layer in value.values() for side in _values(layer)] if isinstance(value, Mapping) else [None]
    return all(isinstance(side, list | tuple) and all(_whole(channel, 1 << 31) for channel in side) for side in sides)


def _values(layer: Any) -> list[Any]:
    return list(layer.values()) if isinstance(layer, Mapping) else [None]


CHANNEL_COUNT = (_up_to(CHANNELS), f"a whole number up to {CHANNELS}")
TEXT, FRACTION, FLAG = (_text, "a text"), (_fraction, "a finite number"), (_flag, "true or false")

SETTINGS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "shape": (_shape, f"[channels, height, width], each up to {SIDE}"),
    "classes": (_up_to(CLASSES), f"a whole number up to {CLASSES}"),
    **dict.fromkeys(("channels", "first", "last", "latent"), CHANNEL_COUNT),
    **{key: (_up_to(LIMITS[key]), f"a whole number up to {LIMITS[key]}") for key in ("cells", "nodes")},
    "widths": (lambda value: _wholes(value, CHANNELS), f"a list of whole numbers up to {CHANNELS}"),
    "depths": (_depths, f"a list of whole numbers, together up to {CELLS}"),
    **dict.fromkeys(("scale", "drop_path", "dropout"), FRACTION),
    **dict.fromkeys(("affine", "auxiliary", "auxiliary_norm"), FLAG),
    **dict.fromkeys(("model", "network", "design", "stem"), TEXT),
    "of": (_object, "an architecture"),
    "kept": (_kept, "layers, their inputs or outputs, and the channels that they keep"),
}
"""setting of any space of the package -> (whether a value can be one, what it should be)"""
OPTIONAL = ("depths", "shape", "classes")


def check(name: str, settings: Mapping[str, Any]) -> None:
    """Raise `ArchitectureError` for a setting of a space of the package that has another type, or no bounds."""
    for key, value in settings.items():
        fits, wanted = SETTINGS[key]
        if not fits(value) and not (value is None and key in OPTIONAL):
            raise ArchitectureError(f"a {name} space: {key} should be {wanted} (got {shown(value)})")
    if _product(settings, "cells", "nodes") > DEEPEST:
        raise ArchitectureError(f"a {name} space: cells times nodes should be at most {DEEPEST}; lower one of them")


def _product(settings: Mapping[str, Any], *keys: str) -> int:
    return math.prod(settings[key] for key in keys if key in settings)


def check_size(build: Callable[[], nn.Module]) -> None:
    """Raise `ArchitectureError` where the network's weights alone take over half of the machine's memory."""
    memory = _memory()
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            size = sum(p.numel() * p.element_size() for p in build().parameters())
    except ArchitectureError:
        raise
    except Exception:  # user-defined spaces need not be able to be built without values
        return
    if memory and size > memory / 2:
        holds = f"{size / 2**30:.0f} GiB, and this machine has {memory / 2**30:.0f} GiB of memory"
        raise ArchitectureError(f"the network's weights take {holds}; lower its channels, cells or classes")


def _memory() -> int:
    """The machine's memory in bytes; 0 where it cannot be asked."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
