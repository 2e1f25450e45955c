"""Arrays in .npy and .npz: nothing is unpickled, and any damage is one error that names the file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DatasetError, PhospheneError
from . import whole
from .damage import reading

FAILED = "cannot be read as plain arrays"


def save(path: Path, array: np.ndarray) -> None:
    """Write an .npy, whole or not at all."""
    with whole.replacing(path, array.nbytes) as temporary:
        np.save(temporary, array, allow_pickle=False)


def mapped(path: Path, error: type[PhospheneError] = DatasetError, remedy: str = "make it again") -> np.ndarray:
    """A memory map of an .npy, read-only; raises `error` where it is missing or damaged."""
    with reading(f"{path} {FAILED}", remedy, error):
        loaded: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        return loaded


@contextlib.contextmanager
def read_npz(
    path: Path, error: type[PhospheneError] = DatasetError, remedy: str = "fetch or make it again"
) -> Iterator[Any]:
    """The arrays of an .npz by name; an error of reading one of them inside the block names the file, too."""
    with reading(f"{path} {FAILED}", remedy, error), np.load(path, allow_pickle=False) as arrays:
        if not hasattr(arrays, "files"):
            raise ValueError("it is an .npy, not an .npz")
        yield arrays
