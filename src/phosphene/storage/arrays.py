"""Arrays in .npy and .npz: nothing is unpickled, and any damage is one error that names the file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DatasetError, PhospheneError, is_memory
from . import whole


def save(path: Path, array: np.ndarray) -> None:
    """Write an .npy, whole or not at all."""
    with whole.replacing(path, array.nbytes) as temporary:
        np.save(temporary, array, allow_pickle=False)


def mapped(path: Path, error: type[PhospheneError] = DatasetError, remedy: str = "make it again") -> np.ndarray:
    """A memory map of an .npy, read-only; raises `error` where it is missing or damaged."""
    with reading(path, error, remedy):
        loaded: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        return loaded


@contextlib.contextmanager
def read_npz(
    path: Path, error: type[PhospheneError] = DatasetError, remedy: str = "fetch or make it again"
) -> Iterator[Any]:
    """The arrays of an .npz by name; an error of reading one of them inside the block names the file, too."""
    with reading(path, error, remedy), np.load(path, allow_pickle=False) as arrays:
        if not hasattr(arrays, "files"):
            raise ValueError("it is an .npy, not an .npz")
        yield arrays


@contextlib.contextmanager
def reading(path: Path, error: type[PhospheneError], remedy: str) -> Iterator[None]:
    """Inside, whatever numpy, zipfile or zlib raise of a damaged file is `error`; a lack of memory is not damage."""
    try:
        yield
    except PhospheneError:
        raise
    except Exception as why:  # a damaged header can raise nearly anything
        if is_memory(why):
            raise
        first = (str(why).splitlines() or [type(why).__name__])[0]
        raise error(f"{path} cannot be read as plain arrays ({first}); {remedy}") from why
