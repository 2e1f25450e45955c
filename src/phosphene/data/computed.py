"""Images and labels that are computed when they are read: `Card.source` as arrays that are functions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Lt
from typing_extensions import TypedDict

from ..errors import DatasetError
from .card import Card
from .procedural import counter, fractal

CATEGORIES = "categories.json"


class Computed:
    """An array that is a function: `draw(index (n,)) -> (n, *shape)` of `dtype`, the same for the same index."""

    def __init__(self, draw: Callable[[np.ndarray], np.ndarray], count: int, shape: Sequence[int], dtype: str) -> None:
        self.draw, self.shape, self.dtype = draw, (count, *shape), np.dtype(dtype)

    @property
    def ndim(self) -> int:
        """The number of dimensions, the first one included."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        values = np.asarray(self.draw(np.asarray(index)))
        if values.shape[1:] != self.shape[1:] or values.dtype != self.dtype:
            raise DatasetError(
                f"the image source returned {values.dtype}{values.shape}, not {self.dtype}{self.shape[1:]}"
            )
        return values


def random_labels(card: Card) -> Computed:
    """Labels (N,) that are uniform over the card's classes, by the source's seed."""
    draw = partial(counter.uniform_labels, seed=int(source_of(card)["seed"]), classes=card.classes)
    return Computed(draw, card.count, (), "int64")


class Noise(TypedDict):
    """Independent N(0, 1) pixels of a seed."""

    kind: Literal["noise"]
    seed: int


class Fractal(TypedDict):
    """Fractals of the categories whose digest this is; labels are random, or the categories."""

    kind: Literal["fractal"]
    seed: int
    categories: str
    labels: Literal["random", "category"]
    points: Annotated[int, Ge(1), Lt(1 << 31)]
    patch: bool
    colour: bool


def _noise(card: Card, folder: Path) -> dict[str, Any]:
    """Source ``{"kind": "noise", "seed"}``."""
    draw = partial(counter.noise_images, seed=int(source_of(card)["seed"]), shape=card.shape)
    return {"images": Computed(draw, card.count, card.shape, "float32"), "labels": random_labels(card)}


def digest(path: Path) -> str:
    """16 hex digits over a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def source_of(card: Card) -> dict[str, Any]:
    """The card's source of computed images; raises `DatasetError` where they are stored."""
    if card.source is None:
        raise DatasetError(f"the card of {card.name!r} names no source of images; make the data set again")
    return card.source


def _fractal(card: Card, folder: Path) -> dict[str, Any]:
    """Source ``{"kind": "fractal", "seed", "categories", "labels", "points", "patch", "colour"}``.

    `categories` is the digest of the file `CATEGORIES` in the folder; `labels` is "random" or "category".
    """
    source, path = source_of(card), folder / CATEGORIES
    categories = fractal.load(path)
    if digest(path) != source["categories"]:
        raise DatasetError(f"{path} is not the file of categories that this data set was made with; make it again")
    options: dict[str, Any] = {name: bool(source[name]) for name in ("patch", "colour")}
    options |= {name: int(source[name]) for name in ("seed", "points")}
    options |= {"size": card.shape[1], "channels": card.shape[0]}
    images = Computed(partial(fractal.draw, categories, **options), card.count, card.shape, "uint8")
    if source["labels"] == "random":
        return {"images": images, "labels": random_labels(card)}
    if len(categories) != card.classes:
        raise DatasetError(f"{folder} has {len(categories)} categories for {card.classes} classes; make it again")
    category = partial(counter.category_labels, categories=len(categories))
    return {"images": images, "labels": Computed(category, card.count, (), "int64")}


SOURCES: dict[str, tuple[Any, Callable[[Card, Path], dict[str, Any]]]] = {
    "noise": (Noise, _noise),
    "fractal": (Fractal, _fractal),
}
"""Card.source["kind"] -> its types, and the images and labels of that card, whose file is in that folder."""
