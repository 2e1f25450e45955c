"""The arrays in a data set's folder: mapped, and read only as they were written, all of them, with finite values."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import DatasetError
from ..storage import arrays, checksums, finite
from . import follow
from .card import REMEDY

ARRAYS = ("images", "labels", "logits", "seeds", "regions")
_finite: set[checksums.State] = set()  # arrays that were read


def mapped(folder: Path) -> dict[str, np.ndarray]:
    """The arrays that are there, by name; raises `DatasetError` naming the file that is damaged or missing."""
    there = {name: folder / f"{name}.npy" for name in ARRAYS if (folder / f"{name}.npy").exists()}
    written = checksums.names(folder, DatasetError, REMEDY)
    for name in ARRAYS:
        if name not in there and (name == "images" or f"{name}.npy" in written):
            raise DatasetError(f"{folder / name}.npy is missing; {REMEDY}")
    return {name: arrays.mapped(path, DatasetError, REMEDY) for name, path in there.items()}


def check(folder: Path, there: dict[str, np.ndarray], *others: str) -> None:
    """Raise `DatasetError` where an array, `card.json` or one of the `others` is not what was written, once a process.

    What a checksum tells of is finite, since nothing else is written; arrays from before there were checksums are read
    for it.
    """
    if follow.is_checked():
        return
    files = {name: f"{name}.npy" for name in there}
    checksums.verify(folder, "card.json", *others, *files.values(), error=DatasetError, remedy=REMEDY)
    written = checksums.names(folder, DatasetError, REMEDY)
    for name, file in files.items():
        if file not in written and not checksums.is_off():
            _check_finite(folder / file, name, there[name])


def _check_finite(path: Path, name: str, array: np.ndarray) -> None:
    state = checksums.state_of(path)
    if state not in _finite:
        refuse(f"{path}", name, array)
        _finite.add(state)


def refuse(where: str, name: str, array: np.ndarray, slots: np.ndarray | None = None) -> None:
    """Raise `DatasetError` for values that are NaN or infinite; labels may be NaN, for unlabelled.

    `slots`: the numbers of these images, where they are not the first ones.
    """
    bad = finite.bad_values(array, nan=name == "labels")
    if bad is not None:
        first, count = bad
        first = first if slots is None else int(slots[first])
        what = "infinite" if name == "labels" else "NaN or infinite"
        raise DatasetError(f"{where}: {count:,} values of {name} are {what}, from image {first} on; {REMEDY}")
