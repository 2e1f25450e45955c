"""The arrays of a data set: as they are stored, measured, and checked against their card."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DatasetError
from ..storage import finite
from .card import MOST_CLASSES, Card

PIXELS = ("uint8", "float16", "float32")
CHUNK = 16 << 20  # bytes read at a time when all images are visited


def centred(logits: np.ndarray, task: str = "single") -> np.ndarray:
    """Logits (N, K) as they are stored: float16, centred per image (softmax is invariant to it).

    float16 comes back as it is: centring what was rounded once would round it twice.
    """
    if logits.ndim != 2 or not np.issubdtype(logits.dtype, np.number):
        raise DatasetError(f"logits have shape {logits.shape} and are {logits.dtype}; (N, K) is needed")
    bad = finite.bad_values(logits)
    if bad is not None:
        raise DatasetError(f"logits have {bad[1]:,} values that are NaN or infinite, from image {bad[0]} on")
    if logits.dtype == np.float16:
        return logits
    exact = logits.astype(np.float64)
    if task == "single":
        exact -= exact.mean(1, keepdims=True)
    return np.clip(exact, -65504, 65504).astype(np.float16)


def statistics(images: Any, most: int | None = None) -> dict[str, Any]:
    """Per-channel mean and std on the pixel scale 0..1, streamed; over `most` evenly spaced images where set."""
    count, channels = images.shape[0], images.shape[1]
    at = np.arange(count) if most is None or most >= count else np.linspace(0, count - 1, most).astype(np.int64)
    step = max(1, CHUNK // max(1, int(np.prod(images.shape[1:])) * 4))
    total, squares, n = np.zeros(channels), np.zeros(channels), 0
    for part in parts(at, step):
        x = torch.from_numpy(np.array(images[part])).to(torch.float64 if images.dtype != np.uint8 else torch.float32)
        flat = x.transpose(0, 1).reshape(channels, -1)
        total += flat.sum(1, dtype=torch.float64).numpy()
        squares += flat.square().sum(1, dtype=torch.float64).numpy()
        n += flat.shape[1]
    unit = 255.0 if images.dtype == np.uint8 else 1.0
    mean = total / max(n, 1) / unit
    std = np.sqrt(np.maximum(squares / max(n, 1) / unit**2 - mean**2, 0))
    return {"mean": [round(float(x), 6) for x in mean], "std": [round(float(x), 6) for x in std]}


def sampled(images: Any) -> dict[str, Any]:
    """`statistics` of at most 2,048 evenly spaced images, and of fewer where they are larger than 64x64 pixels."""
    return statistics(images, most=max(128, 2048 * 64**2 // max(64**2, images.shape[2] * images.shape[3])))


def parts(index: np.ndarray, step: int) -> Iterable[np.ndarray]:
    """The index in pieces of `step`."""
    return (index[i : i + step] for i in range(0, len(index), step))


def array(x: Any) -> np.ndarray:
    """A tensor or anything array-like, as numpy."""
    try:
        return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
    except (TypeError, ValueError) as error:  # bfloat16, or lists of unequal lengths
        raise DatasetError(f"these are no plain numbers of one shape ({error}); give a numpy array") from error


def labels_of(labels: np.ndarray, task: str) -> np.ndarray:
    """Labels as they are stored: int64 (N,), or float32 (N, K) with NaN = unlabelled for task `multi`."""
    numbers = any(np.issubdtype(labels.dtype, kind) for kind in (np.integer, np.floating, np.bool_))
    if task == "multi":
        if labels.ndim != 2 or not numbers:
            raise DatasetError(f"labels {labels.dtype}{labels.shape} are not one target for each class: (N, K)")
        return labels.astype(np.float32)
    if labels.ndim != 1 or not numbers or not (labels == np.floor(labels)).all():
        raise DatasetError(f"labels {labels.dtype}{labels.shape} are not one integer each; give logits for soft ones")
    low, high = labels.min(initial=0), labels.max(initial=0)
    if low < 0 or high >= MOST_CLASSES:
        raise DatasetError(f"labels run from {low} to {high}; they count from 0, and {MOST_CLASSES:,} are most")
    return labels.astype(np.int64)


def count_classes(fields: dict[str, Any], labels: np.ndarray | None, logits: np.ndarray | None) -> int:
    """How many classes a set has: as many as names, else as columns, else up to the largest label."""
    if fields.get("class_names") is not None:
        return len(fields["class_names"])
    table = logits if logits is not None else labels
    if table is None:
        raise DatasetError("a data set without labels or logits needs its number of classes: classes=K")
    return int(table.shape[1]) if table.ndim == 2 else int(table.max(initial=0)) + 1


def check(card: Card, images: Any, labels: Any, logits: Any, seeds: Any = None) -> None:
    """Raise `DatasetError` where the arrays are not those of the card."""
    if card.count < 1:
        raise DatasetError(f"{card.name} holds no images; name a data set that does")
    if str(images.dtype) not in PIXELS:
        raise DatasetError(f"images are {images.dtype}; a data set holds one of {', '.join(PIXELS)}")
    if tuple(images.shape) != (card.count, *card.shape):
        there, expected = tuple(images.shape), (card.count, *card.shape)
        raise DatasetError(f"images are {there}, but the card has {expected}; make or import the data set again")
    for name, values in (("labels", labels), ("logits", logits), ("seeds", seeds)):
        if values is not None and (not values.ndim or len(values) != card.count):
            raise DatasetError(f"{len(values) if values.ndim else 'no'} {name} for {card.count} images; import again")
        if values is not None and name != "seeds" and values.ndim == 2 and values.shape[1] != card.classes:
            raise DatasetError(f"{name} have {values.shape[1]} columns for {card.classes} classes; import again")
    _check_kinds(card, labels, logits, seeds)
    if not isinstance(labels, np.ndarray) or labels.ndim == 2:
        return  # computed labels are in range by construction
    if not 0 <= labels.min() <= labels.max() < card.classes:
        low, high = labels.min(), labels.max()
        raise DatasetError(f"labels run from {low} to {high}, outside 0..{card.classes - 1}; set the number of classes")


def _check_kinds(card: Card, labels: Any, logits: Any, seeds: Any) -> None:
    """Raise `DatasetError` where labels, logits or seeds have other dimensions or types than the task's."""
    kinds = {"labels": (1, np.integer, "(N,) int64") if card.task == "single" else (2, np.floating, "(N, K) float32")}
    kinds |= {"logits": (2, np.floating, "(N, K) float16"), "seeds": (2, np.integer, "(N, S) int32")}
    for name, values in (("labels", labels), ("logits", logits), ("seeds", seeds)):
        if values is not None and (values.ndim, np.issubdtype(values.dtype, kinds[name][1])) != (kinds[name][0], True):
            there = f"{values.dtype}{tuple(values.shape)}"
            raise DatasetError(f"{name} are {there}, but the task {card.task} has {kinds[name][2]}; import again")
