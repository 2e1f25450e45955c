"""A data set's card, `card.json` (content, origin, how to make it again), and the arrays that must fit it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .. import limits
from ..errors import DatasetError, SettingsError

PIXELS = ("uint8", "float16", "float32")
MOST_CLASSES, MOST_IMAGES = limits.CLASSES, 10**10  # beyond, heads and labels fit into no memory
CHUNK = 16 << 20  # bytes read at a time when all images are visited
YOUNGER = ("random_labels", "source", "grid")  # fields that the first cards did not have


@dataclass
class Card:
    """What a data set is and how it came to be; `card.json` holds these fields.

    `shape` is (C, H, W). `mean`/`std` are the declared normalisation on the pixel scale 0..1, or None where none is
    declared; `statistics` holds the measured ones. `label_view`: the view of the image that the label describes.
    `random_labels`: the labels are independent of the images. `source`: how images and labels are computed that are not
    stored, ``{"kind": "noise" | "fractal" | "dataset", ...}``; None where they are stored. `grid`: of which regions of
    each image there are soft labels (`augment.Grid`); None where there are only those of `label_view`.
    """

    name: str = "unnamed"
    origin: str = "memory"
    task: Literal["single", "multi"] = "single"
    shape: tuple[int, int, int] = (3, 32, 32)
    classes: int = 10
    class_names: list[str] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    label_view: str = "full"
    count: int = 0
    teacher: dict[str, Any] | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    statistics: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    random_labels: bool = False
    source: dict[str, Any] | None = None
    grid: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        c, h, w = self.shape
        self.shape = (int(c), int(h), int(w))
        self.class_names = None if self.class_names is None else [str(name) for name in self.class_names]
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise DatasetError(f"{len(self.class_names)} class names for {self.classes} classes; give one for each")
        for key in ("mean", "std"):
            values = getattr(self, key)
            if values is not None:
                setattr(self, key, [float(x) for x in values])
                if len(values) not in (1, self.shape[0]):
                    raise DatasetError(
                        f"{key} has {len(values)} values for {self.shape[0]} channels; give one for each"
                    )
        if (self.mean is None) != (self.std is None):
            raise DatasetError("a card declares mean and std together, or neither")
        if self.source is not None and not isinstance(self.source, dict):
            raise DatasetError(f"source {self.source!r} is not a table of settings; make the data set again")
        if self.task not in ("single", "multi"):
            raise DatasetError(f"task {self.task!r} is neither 'single' nor 'multi'")

    def dumps(self) -> str:
        """The card as JSON text, keys in a fixed order, so that equal cards are equal bytes.

        Fields of `YOUNGER` are left out where they are unset, so that older data sets keep their fingerprints.
        """
        fields = dataclasses.asdict(self)
        kept = {key: value for key, value in fields.items() if key not in YOUNGER or value}
        return json.dumps(kept, indent=1, sort_keys=True) + "\n"

    def save(self, folder: Path) -> None:
        """Write `card.json` into `folder` atomically."""
        part = folder / "card.json.part"
        part.write_text(self.dumps())
        os.replace(part, folder / "card.json")

    @classmethod
    def load(cls, folder: Path) -> Card:
        """Read `card.json` of `folder`; raises `DatasetError` when it is missing or damaged."""
        path = folder / "card.json"
        if not path.is_file():
            raise DatasetError(_why_no_card(folder))
        try:
            fields = json.loads(path.read_text())
            return cls(**{**fields, "shape": tuple(fields["shape"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{path} is damaged ({error}); make or import the data set again") from error


def _why_no_card(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is not a folder; name a data set of `phosphene synthesize` or `phosphene dataset import`"
    if any(folder.glob("journal-*.jsonl")):
        return f"{folder} is unfinished; run the command that was making it again and it goes on"
    return f"{folder} has no card.json, so it is no data set; `phosphene dataset import {folder} --out D` reads images"


def read_size(size: str | int | Sequence[int]) -> tuple[int, int]:
    """``32``, ``"32"``, ``"224x160"`` or ``(224, 160)`` -> (H, W); raises `SettingsError`."""
    try:
        sides = [int(side) for side in (str(size).lower().split("x") if isinstance(size, str | int) else size)]
    except ValueError as error:
        raise SettingsError(f"--size {size} is not a side in pixels like 32, nor HEIGHTxWIDTH like 224x160") from error
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise SettingsError(f"--size {size} is not a side in pixels like 32, nor HEIGHTxWIDTH like 224x160")
    if max(sides) > limits.SIDE:
        raise SettingsError(f"--size {size}: a side may have {limits.SIDE:,} pixels at most")
    return sides[0], sides[-1]


def read_names(names: str | Path | Sequence[str] | None, classes: int) -> tuple[str, ...] | None:
    """Names with commas between, a file of one a line, or a sequence; raises `SettingsError` if they are too few."""
    if names is None:
        return None
    if isinstance(names, str | Path):
        names = [name.strip() for name in _written(str(names)) if name.strip()]
    if len(names) != classes:
        raise SettingsError(f"--class-names has {len(names)} names for {classes} classes")
    return tuple(names)


def _written(names: str) -> list[str]:
    """The lines of a file, else what stands between commas: a long list is no file's name."""
    with contextlib.suppress(OSError):
        if Path(names).is_file():
            try:
                return Path(names).read_text(encoding="utf-8").splitlines()
            except UnicodeDecodeError as error:
                raise SettingsError(f"--class-names {names} is not a text file in UTF-8 ({error})") from error
    return names.split(",")


# -- arrays -----------------------------------------------------------------------------------------------------------


def centred(logits: np.ndarray, task: str = "single") -> np.ndarray:
    """Logits (N, K) as they are stored: float16, centred per image (softmax is invariant to it).

    float16 comes back as it is: centring what was rounded once would round it twice.
    """
    if logits.ndim != 2:
        raise DatasetError(f"logits have shape {logits.shape}; (N, K) is needed")
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


def check(card: Card, images: Any, labels: Any, logits: Any) -> None:
    """Raise `DatasetError` where the arrays are not those of the card."""
    if card.count < 1:
        raise DatasetError(f"{card.name} holds no images; name a data set that does")
    if str(images.dtype) not in PIXELS:
        raise DatasetError(f"images are {images.dtype}; a data set holds one of {', '.join(PIXELS)}")
    if tuple(images.shape) != (card.count, *card.shape):
        there, expected = tuple(images.shape), (card.count, *card.shape)
        raise DatasetError(f"images are {there}, but the card has {expected}; make or import the data set again")
    for name, values in (("labels", labels), ("logits", logits)):
        if values is not None and len(values) != card.count:
            raise DatasetError(f"{len(values)} {name} for {card.count} images; import again")
        if values is not None and values.ndim == 2 and values.shape[1] != card.classes:
            raise DatasetError(f"{name} have {values.shape[1]} columns for {card.classes} classes; import again")
    _check_kinds(card, labels, logits)
    if not isinstance(labels, np.ndarray) or labels.ndim == 2:
        return  # computed labels are in range by construction
    if not 0 <= labels.min() <= labels.max() < card.classes:
        low, high = labels.min(), labels.max()
        raise DatasetError(f"labels run from {low} to {high}, outside 0..{card.classes - 1}; set the number of classes")


def _check_kinds(card: Card, labels: Any, logits: Any) -> None:
    """Raise `DatasetError` where labels or logits have other dimensions or types than the task's."""
    kinds = {"labels": (1, np.integer, "(N,) int64") if card.task == "single" else (2, np.floating, "(N, K) float32")}
    kinds["logits"] = (2, np.floating, "(N, K) float16")
    for name, values in (("labels", labels), ("logits", logits)):
        if values is not None and (values.ndim, np.issubdtype(values.dtype, kinds[name][1])) != (kinds[name][0], True):
            there = f"{values.dtype}{tuple(values.shape)}"
            raise DatasetError(f"{name} are {there}, but the task {card.task} has {kinds[name][2]}; import again")


def mapped(path: Path) -> np.ndarray | None:
    """A memory map of an .npy, None where there is no such file; raises `DatasetError` for anything else."""
    if not path.exists():
        return None
    try:
        loaded: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        return loaded
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(f"{path} is damaged ({error}); make or import the data set again") from error
