"""Several data sets as one: their images end to end, and the batches in which each has its share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ..errors import DatasetError, SettingsError
from .card import Card
from .dataset import ImageDataset, batches

Data = ImageDataset | str | Path


class Joined(ImageDataset):
    """The images of several data sets, those of the first one first; nothing is copied.

    `parts` are the sets; `shares` their parts of every batch, None where every image is seen equally often.
    """

    parts: tuple[ImageDataset, ...] = ()
    shares: tuple[float, ...] | None = None


class _EndToEnd:
    """Arrays of several sets as one: `read(part, index)` of each, as `dtype`."""

    def __init__(self, parts: Sequence[ImageDataset], shape: tuple[int, ...], dtype: str, read: Any) -> None:
        self._parts, self._read = parts, read
        self._ends = np.cumsum([len(part) for part in parts])
        self.shape, self.dtype, self.ndim = (int(self._ends[-1]), *shape), np.dtype(dtype), 1 + len(shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """The values of images `index` (n,); with crops ``index, (n,)``, of these crops."""
        where, *further = index if isinstance(index, tuple) else (index,)
        where = np.asarray(where)
        owner = np.searchsorted(self._ends, where, side="right")
        shape = self.shape[1 + len(further) :]
        values = np.empty((len(where), *shape), self.dtype)
        for k, part in enumerate(self._parts):
            mine = owner == k
            if mine.any():
                values[mine] = self._read(
                    part, where[mine] - self._ends[k] + len(part), *(more[mine] for more in further)
                )
        return values


def join(data: Data | Sequence[Data], shares: str | None = None) -> ImageDataset:
    """The data set, or several of them as one.

    Smaller images get black pixels around, as `--pad` has them, so that canvases may be mixed with images of their
    crops' size. Pixels are normalised as the first set's are. There are targets where all sets have logits, or all
    labels; soft labels per crop where all have them, of one grid.

    Args:
        data: folders or open data sets.
        shares: parts of each batch, like "2,1": numbers above 0; None: in proportion to the images.

    Raises:
        SettingsError: there is no data set, or not one share for each.
        DatasetError: they differ in classes, channels, the size that a network sees, or the scale of their pixels.
    """
    sets: list[Data] = list(data) if isinstance(data, list | tuple) else [cast(Data, data)]
    if not sets:
        raise SettingsError("--data is missing; give a data set")
    parts = [ImageDataset.open(one) for one in sets]
    weights = _shares(shares, len(parts))
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    for other in parts[1:]:
        _check(first, other)
    height, width = (max(part.card.shape[axis] for part in parts) for axis in (1, 2))
    shape = (first.card.shape[0], height, width)
    dtype = first.dtype if len({part.dtype for part in parts}) == 1 else "float32"
    images = _EndToEnd(parts, shape, dtype, lambda part, at: _pixels(part, at, height, width, dtype))
    joined = Joined(_card(parts, shape, len(images)), images, **_targets(parts))
    joined.parts, joined.shares = tuple(parts), weights
    return joined


def next_batch(data: ImageDataset, size: int, seed: int, step: int) -> Tensor:
    """The indices (size,) of global step `step`, as `dataset.batches` has them; with shares, of each set its part."""
    if not isinstance(data, Joined) or data.shares is None:
        return batches(len(data), size, seed, step)
    indices, start = [], 0
    for k, (part, count) in enumerate(zip(data.parts, counts(data.shares, size), strict=True)):
        indices.append(start + batches(len(part), count, seed + k, step))
        start += len(part)
    return torch.cat(indices)


def counts(shares: Sequence[float], size: int) -> list[int]:
    """How many of `size` images each share is, by largest remainders; raises `SettingsError` where one has none."""
    exact = [size * share / sum(shares) for share in shares]
    parts = [int(x) for x in exact]
    for k in sorted(range(len(shares)), key=lambda k: (parts[k] - exact[k], k))[: size - sum(parts)]:
        parts[k] += 1
    if 0 in parts:
        text = ",".join(f"{share:g}" for share in shares)
        raise SettingsError(f"--shares {text} leaves a data set no image of a batch of {size}; raise it, or --batch")
    return parts


def _shares(text: str | None, parts: int) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise SettingsError(f"--shares {text} is not numbers with commas between, like 2,1") from error
    if len(shares) != parts or not all(0 < share < float("inf") for share in shares):
        raise SettingsError(f"--shares {text}: one number above 0 is needed for each of {parts} data sets")
    return shares


def _check(one: ImageDataset, other: ImageDataset) -> None:
    """Raise `DatasetError` where two sets cannot be mixed."""
    names = f"{one.card.name} and {other.card.name} cannot be mixed"
    for what, a, b in (
        ("classes", one.card.classes, other.card.classes),
        ("task", one.card.task, other.card.task),
        ("network inputs of", one.seen, other.seen),
    ):
        if a != b:
            raise DatasetError(f"{names}: {what} {a} and {b}; mix sets that are alike in this")
    mine, theirs = (torch.stack(each.normalisation) for each in (one, other))
    if not one.dtype == other.dtype == "uint8" and not torch.allclose(mine, theirs, atol=2e-3):
        raise DatasetError(f"{names}: one has float pixels, normalised in another way; store both as uint8")


def _pixels(part: ImageDataset, index: np.ndarray, height: int, width: int, dtype: str) -> np.ndarray:
    """Stored pixels of a set (n, C, height, width), with black ones around where its images are smaller."""
    pixels = part.pixels(index).numpy()
    if str(pixels.dtype) != dtype:
        pixels = pixels.astype(np.float32) / (255 if pixels.dtype == np.uint8 else 1)
    down, across = height - pixels.shape[2], width - pixels.shape[3]
    edges = ((0, 0), (0, 0), (down // 2, down - down // 2), (across // 2, across - across // 2))
    return np.pad(pixels, edges) if down or across else pixels


def _targets(parts: Sequence[ImageDataset]) -> dict[str, Any]:
    """Logits, labels and soft labels per crop, as far as all sets have them."""
    card, arrays = parts[0].card, {}
    if all(part.soft for part in parts):
        arrays["logits"] = _EndToEnd(parts, (card.classes,), "float32", lambda part, at: _array(part.logits(at)))
    elif all(part.labelled and not part.soft for part in parts):
        multi = card.task == "multi"
        shape, dtype = ((card.classes,), "float32") if multi else ((), "int64")
        read = (lambda part, at: part.targets(at).numpy()) if multi else (lambda part, at: part.labels[at])
        arrays["labels"] = _EndToEnd(parts, shape, dtype, read)
    grid = _grid(parts)
    if grid is not None:
        arrays["regions"] = _EndToEnd(parts, (len(grid), card.classes), "float32", _regions)
    return arrays


def _regions(part: ImageDataset, index: np.ndarray, region: np.ndarray | None = None) -> np.ndarray:
    """Logits (n, K) of these crops, or (n, R, K) of all."""
    if region is not None:
        return _array(part.logits(index, torch.from_numpy(region)))
    assert part.grid is not None
    every = [np.full(len(index), number) for number in range(len(part.grid))]
    return np.stack([_regions(part, index, number) for number in every], 1)


def _array(logits: Tensor | None) -> np.ndarray:
    assert logits is not None
    return logits.numpy()


def _grid(parts: Sequence[ImageDataset]) -> Any:
    grids = {part.grid for part in parts}
    sizes = {part.card.shape for part in parts}
    return parts[0].grid if len(grids) == len(sizes) == 1 else None


def _card(parts: Sequence[ImageDataset], shape: tuple[int, int, int], count: int) -> Card:
    """The card of the first set, with the teacher of those that are larger than its input."""
    first, canvas = parts[0].card, next((part for part in parts if part.region is not None), parts[0])
    mean, std = ([float(x) for x in values] for values in parts[0].normalisation)
    fields: dict[str, Any] = {"shape": shape, "count": count, "mean": mean, "std": std, "source": None}
    fields |= {"name": " + ".join(part.card.name for part in parts), "origin": "several data sets"}
    fields |= {"teacher": canvas.card.teacher, "recipe": {"joined": [part.fingerprint for part in parts]}}
    fields |= {"grid": first.grid if _grid(parts) else None, "extra": {}, "statistics": {"mean": mean, "std": std}}
    fields |= {"random_labels": any(part.card.random_labels for part in parts)}
    return replace(first, **fields)
