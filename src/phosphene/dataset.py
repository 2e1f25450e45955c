"""Image data sets: an image source, targets that are rows, and a card that says where both came from.

One type serves every origin, real or made. On disk a data set is a folder:

    images.npy    uint8 (or float16/32) (N, C, H, W), read through a memory map
    labels.npy    int64 (N,), or float32 (N, K) with NaN = unlabelled when the task is `multi`
    logits.npy    float16 (N, K), centred; instead of labels.npy where a teacher gave the targets
    seeds.npy     int32 (N, S), optional: what each image was made from
    card.json     the card

Logits are kept rather than probabilities because rows at any temperature follow from them; float16 probabilities would
lose everything but T = 1. Nothing here is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from .core import Batch
from .errors import DatasetError

if TYPE_CHECKING:
    from .hardware import Machine

Index = Tensor | np.ndarray | Sequence[int] | range
PIXELS = ("uint8", "float16", "float32")
CHUNK = 16 << 20  # bytes read at a time when all images are visited


@dataclass
class Card:
    """What a data set is and how it came to be; `card.json` holds exactly these fields.

    `shape` is (C, H, W). `mean`/`std` are the declared normalisation on the pixel scale 0..1, or None where nobody
    declared one; `statistics` holds the measured ones. `label_view` says which view of the image the row describes.
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

    def __post_init__(self) -> None:
        c, h, w = self.shape
        self.shape = (int(c), int(h), int(w))
        self.class_names = None if self.class_names is None else [str(name) for name in self.class_names]
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise DatasetError(f"{len(self.class_names)} class names for {self.classes} classes; give one for each")
        for key in ("mean", "std"):
            given = getattr(self, key)
            if given is not None:
                setattr(self, key, [float(x) for x in given])
                if len(given) not in (1, self.shape[0]):
                    raise DatasetError(f"{key} has {len(given)} values for {self.shape[0]} channels; give one for each")
        if (self.mean is None) != (self.std is None):
            raise DatasetError("a card declares mean and std together, or neither")
        if self.task not in ("single", "multi"):
            raise DatasetError(f"task {self.task!r} is neither 'single' nor 'multi'")

    def dumps(self) -> str:
        """The card as JSON text, keys in a fixed order, so that equal cards are equal bytes."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n"

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
        return f"{folder} is not a folder; name a data set made by `phosphene synthesize` or `phosphene dataset import`"
    if any(folder.glob("journal-*.jsonl")):
        return f"{folder} is unfinished; run the command that was making it again and it goes on"
    return f"{folder} has no card.json, so it is no data set; `phosphene dataset import {folder} --out D` reads images"


class Augmentation(Protocol):
    """What `ImageDataset.batch` asks of an augmentation: moves before normalisation, mixing after it."""

    def move(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor: ...
    def mix(
        self, inputs: Tensor, targets: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]: ...


class Drawn:
    """An image source that is a function: `draw(index (n,)) -> images (n, C, H, W)`, the same for the same index."""

    def __init__(self, draw: Callable[[np.ndarray], np.ndarray], count: int, shape: Sequence[int], dtype: str) -> None:
        self.draw, self.shape, self.dtype = draw, (count, *shape), np.dtype(dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        drawn = np.asarray(self.draw(np.asarray(index)))
        if drawn.shape[1:] != self.shape[1:] or drawn.dtype != self.dtype:
            raise DatasetError(f"the image source drew {drawn.dtype}{drawn.shape}, not {self.dtype}{self.shape[1:]}")
        return drawn


class ImageDataset(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Images with rows. As a torch `Dataset` an item is (normalised float image (C, H, W), row (K,)).

    Rows of a `single` task sum to 1; rows of a `multi` task are independent findings with NaN where nobody looked.
    """

    def __init__(
        self,
        card: Card,
        images: Any,
        *,
        labels: np.ndarray | None = None,
        logits: np.ndarray | None = None,
        seeds: np.ndarray | None = None,
        path: Path | None = None,
        index: np.ndarray | None = None,
    ) -> None:
        self.card, self.path, self.seeds = card, path, seeds
        self._images, self._labels, self._logits, self._index = images, labels, logits, index
        _check(card, images, labels, logits)

    # -- where data sets come from ------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: Path | str) -> ImageDataset:
        """Map the data set in folder `path`; raises `DatasetError` naming the file that is missing or damaged."""
        folder = Path(path)
        card = Card.load(folder)
        arrays = {name: _map(folder / f"{name}.npy") for name in ("labels", "logits", "seeds")}
        images = _map(folder / "images.npy")
        if images is None:
            raise DatasetError(f"{folder / 'images.npy'} is missing; make or import the data set again")
        return cls(card, images, path=folder, **arrays)

    @classmethod
    def from_arrays(
        cls,
        images: np.ndarray | Tensor,
        *,
        labels: np.ndarray | Tensor | Sequence[int] | None = None,
        logits: np.ndarray | Tensor | None = None,
        seeds: np.ndarray | None = None,
        **fields: Any,
    ) -> ImageDataset:
        """A data set in memory.

        `images`: uint8, or float on the scale 0..1 (or any other when raw), (N, C, H, W). `labels`: ints (N,), or rows
        (N, K) with NaN = unlabelled for task `multi`. `logits`: (N, K), centred and stored as float16. `fields`: any
        field of `Card`.
        """
        pixels = _array(images)
        if pixels.dtype == np.float64:
            pixels = pixels.astype(np.float32)
        if pixels.ndim != 4:
            raise DatasetError(f"images have shape {pixels.shape}; four dimensions are needed: (N, C, H, W)")
        task = fields.get("task", "single")
        targets = None if labels is None else _labels(_array(labels), task)
        soft = None if logits is None else centred(_array(logits), task)
        if "classes" not in fields:
            fields["classes"] = _count_classes(fields, targets, soft)
        card = Card(**{**fields, "shape": pixels.shape[1:], "count": len(pixels)})
        card.statistics = card.statistics or statistics(pixels)
        return cls(card, pixels, labels=targets, logits=soft, seeds=seeds)

    @classmethod
    def from_function(
        cls,
        draw: Callable[[np.ndarray], np.ndarray],
        card: Card,
        *,
        dtype: str = "float32",
        labels: np.ndarray | None = None,
        logits: np.ndarray | None = None,
    ) -> ImageDataset:
        """A data set whose images are computed: `draw(index (n,)) -> (n, C, H, W)` of `dtype`, a pure function."""
        source = Drawn(draw, card.count, card.shape, dtype)
        if not card.statistics:
            card = dataclasses.replace(card, statistics=statistics(source, most=2048))
        soft = None if logits is None else centred(_array(logits), card.task)
        return cls(card, source, labels=None if labels is None else _labels(labels, card.task), logits=soft)

    def save(self, path: Path | str) -> ImageDataset:
        """Write this data set (or this view of one) into the new folder `path` and open it from there."""
        folder = Path(path)
        card = dataclasses.replace(self.card, count=len(self), statistics={})
        writer = Writer.create(folder, card, len(self), dtype=str(self._images.dtype), logits=self._logits is not None)
        step = max(1, CHUNK // max(1, int(np.prod(card.shape)) * self._images.dtype.itemsize))
        for start in range(0, len(self) if writer.finished is None else 0, step):
            slots = np.arange(start, min(start + step, len(self)))
            where = self._where(slots)
            writer.write(
                range(start, start + len(slots)),
                self._images[where],
                logits=None if self._logits is None else self._logits[where],
                labels=None if self._labels is None else self._labels[where],
                seeds=None if self.seeds is None else self.seeds[where],
            )
        return writer.close()

    # -- reading ------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._images) if self._index is None else len(self._index)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        one = np.array([i % len(self)])
        return self.normalise(self.pixels(one))[0], self.rows(one)[0]

    def pixels(self, index: Index) -> Tensor:
        """The stored images (n, C, H, W): uint8, or float for sets stored as float. Reads these images only."""
        return torch.from_numpy(np.array(self._images[self._where(index)]))

    def rows(self, index: Index, temperature: float = 1.0) -> Tensor:
        """Target rows (n, K), float32: softmax(logits / T) (sigmoid for `multi`), or one-hot rows of the labels."""
        logits = self.logits(index)
        if logits is not None:
            logits = logits / temperature
            return torch.sigmoid(logits) if self.card.task == "multi" else logits.softmax(1)
        if self._labels is None:
            raise self._unlabelled()
        labels = torch.from_numpy(np.array(self._labels[self._where(index)]))
        if labels.ndim == 2:
            return labels.float()
        return torch.nn.functional.one_hot(labels, self.card.classes).float()

    def logits(self, index: Index) -> Tensor | None:
        """The teacher's centred logits (n, K), float32; None where targets are labels."""
        if self._logits is None:
            return None
        return torch.from_numpy(np.asarray(self._logits[self._where(index)], dtype=np.float32))

    @property
    def soft(self) -> bool:
        """Whether targets are a teacher's logits."""
        return self._logits is not None

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """The arg-max of every row, int64 (N,)."""
        where = self._where(range(len(self)))
        if self._labels is not None and self._labels.ndim == 1:
            return np.array(self._labels[where])
        targets = self._logits if self._logits is not None else self._labels
        if targets is None:
            raise self._unlabelled()
        return np.concatenate([np.nan_to_num(targets[part], nan=-np.inf).argmax(1) for part in _parts(where, 4096)])

    def _unlabelled(self) -> DatasetError:
        return DatasetError(f"data set {self.card.name!r} has neither labels nor logits; label it with a teacher first")

    @property
    def normalisation(self) -> tuple[Tensor, Tensor]:
        """(mean, std), each (C,): the declared ones, else the measured ones."""
        declared = self.card.mean is not None
        mean = self.card.mean if declared else self.card.statistics.get("mean")
        std = self.card.std if declared else self.card.statistics.get("std")
        if mean is None or std is None:
            raise DatasetError(f"the card of {self.card.name!r} has no mean and std; import the data set again")
        channels = self.card.shape[0]
        return torch.tensor(mean).expand(channels), torch.tensor(std).clamp_min(1e-6).expand(channels)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Stored pixels (n, C, H, W) -> float32, mean and std taken off; uint8 counts as 0..255."""
        mean, std = (x.to(pixels.device).view(1, -1, 1, 1) for x in self.normalisation)
        scale = 1 / (255 * std) if pixels.dtype == torch.uint8 else 1 / std
        return torch.addcmul(-mean / std, pixels.to(torch.float32), scale)

    def batch(
        self,
        index: Index,
        *,
        augment: Augmentation | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        machine: Machine | None = None,
    ) -> Batch:
        """The batch of these images, augmented, normalised and on the machine's device.

        Random numbers come from `generator`, else from torch's global CPU state; the same on every device.
        """
        pixels, targets = self.pixels(index), self.rows(index, temperature)
        if machine is not None:  # moved as bytes, a quarter of the traffic
            pixels, targets = pixels.to(machine.device), targets.to(machine.device)
        if augment is not None:
            pixels = augment.move(pixels, generator)
        inputs = self.normalise(pixels)
        if augment is not None:
            inputs, targets = augment.mix(inputs, targets, generator)
        return Batch(inputs if machine is None else machine.place(inputs), targets)

    # -- views --------------------------------------------------------------------------------------------------------

    def subset(self, index: Index) -> ImageDataset:
        """A view of these images, in this order; nothing is copied."""
        arrays = {"labels": self._labels, "logits": self._logits, "seeds": self.seeds}
        return ImageDataset(self.card, self._images, **arrays, path=self.path, index=self._where(index))

    def split(self, fraction: float, seed: int = 0) -> tuple[ImageDataset, ImageDataset]:
        """Two disjoint views, the first with `fraction` of every class, drawn by `seed`; they cover the set."""
        if not 0 < fraction < 1:
            raise DatasetError(f"split fraction {fraction} is not between 0 and 1")
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(self))
        order = order[np.argsort(self.labels[order], kind="stable")]
        # spreading one running total over the classes keeps every class within one image of its fair share
        steps = np.floor(np.arange(1, len(self) + 1) * fraction + 0.5)
        first = np.diff(steps, prepend=0) > 0
        return self.subset(np.sort(order[first])), self.subset(np.sort(order[~first]))

    def _where(self, index: Index) -> np.ndarray:
        wanted = index.numpy() if isinstance(index, Tensor) else np.asarray(index)
        wanted = wanted.astype(np.int64).reshape(-1)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"image {int(wanted.max())} of a data set of {len(self)}")
        return wanted if self._index is None else self._index[wanted]

    # -- identity -----------------------------------------------------------------------------------------------------

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits over the card, the index of a view, and a sample of the content.

        The sample is 64 images and 1,024 targets at even distances, so that it costs milliseconds for any size. It is
        the same in memory and on disk. It tells data sets apart; it does not protect from edits of single pixels.
        """
        digest = hashlib.sha256(self.card.dumps().encode())
        if self._index is not None:
            digest.update(self._index.tobytes())
        for array, most in ((self._images, 64), (self._labels, 1024), (self._logits, 1024)):
            if array is not None and len(array):
                at = np.unique(np.linspace(0, len(array) - 1, most).astype(np.int64))
                digest.update(np.ascontiguousarray(array[at]).tobytes())
        return digest.hexdigest()[:16]

    def __getstate__(self) -> dict[str, Any]:
        """A mapped set travels to worker processes as its path, not as its bytes."""
        state = {k: v for k, v in self.__dict__.items() if k not in ("labels", "fingerprint")}
        if self.path is not None:
            state = {k: v for k, v in state.items() if k not in ("_images", "_labels", "_logits", "seeds")}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.path is not None:
            opened = ImageDataset.open(self.path)
            self._images, self._labels, self._logits = opened._images, opened._labels, opened._logits
            self.seeds = opened.seeds

    def summary(self) -> dict[str, Any]:
        """What the command line prints of a data set it made."""
        mean, std = self.normalisation
        return {
            "path": None if self.path is None else str(self.path),
            "name": self.card.name,
            "origin": self.card.origin,
            "images": len(self),
            "shape": list(self.card.shape),
            "classes": self.card.classes,
            "targets": "logits" if self.soft else "labels" if self._labels is not None else "none",
            "mean": [round(x, 4) for x in mean.tolist()],
            "std": [round(x, 4) for x in std.tolist()],
            "fingerprint": self.fingerprint,
        }

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.card.shape))
        facts = f"{self.card.origin}, {len(self)} x {shape}, {self.card.classes} classes"
        return f"ImageDataset({self.card.name!r}, {facts})"


# -- arrays -----------------------------------------------------------------------------------------------------------


def centred(logits: np.ndarray, task: str = "single") -> np.ndarray:
    """Logits (N, K) as they are stored: float16, the mean of each row taken off (a softmax does not see it).

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
    """Per-channel mean and std on the pixel scale 0..1, streamed; over `most` evenly spaced images where given."""
    count, channels = images.shape[0], images.shape[1]
    at = np.arange(count) if most is None or most >= count else np.linspace(0, count - 1, most).astype(np.int64)
    step = max(1, CHUNK // max(1, int(np.prod(images.shape[1:])) * 4))
    total, squares, n = np.zeros(channels), np.zeros(channels), 0
    for part in _parts(at, step):
        x = torch.from_numpy(np.array(images[part])).to(torch.float64 if images.dtype != np.uint8 else torch.float32)
        flat = x.transpose(0, 1).reshape(channels, -1)
        total += flat.sum(1, dtype=torch.float64).numpy()
        squares += flat.square().sum(1, dtype=torch.float64).numpy()
        n += flat.shape[1]
    unit = 255.0 if images.dtype == np.uint8 else 1.0
    mean = total / max(n, 1) / unit
    std = np.sqrt(np.maximum(squares / max(n, 1) / unit**2 - mean**2, 0))
    return {"mean": [round(float(x), 6) for x in mean], "std": [round(float(x), 6) for x in std]}


def _parts(index: np.ndarray, step: int) -> Iterable[np.ndarray]:
    return (index[i : i + step] for i in range(0, len(index), step))


def _array(x: Any) -> np.ndarray:
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)


def _labels(labels: np.ndarray, task: str) -> np.ndarray:
    if task == "multi":
        return labels.astype(np.float32)
    if labels.ndim != 1 or not (np.issubdtype(labels.dtype, np.integer) or (labels == np.floor(labels)).all()):
        raise DatasetError(f"labels {labels.dtype}{labels.shape} are not one integer each; give logits for soft ones")
    return labels.astype(np.int64)


def _count_classes(fields: dict[str, Any], labels: np.ndarray | None, logits: np.ndarray | None) -> int:
    if fields.get("class_names") is not None:
        return len(fields["class_names"])
    table = logits if logits is not None else labels
    if table is None:
        raise DatasetError("a data set without labels or logits needs its number of classes: classes=K")
    return int(table.shape[1]) if table.ndim == 2 else int(table.max(initial=0)) + 1


def _check(card: Card, images: Any, labels: np.ndarray | None, logits: np.ndarray | None) -> None:
    if str(images.dtype) not in PIXELS:
        raise DatasetError(f"images are {images.dtype}; a data set holds one of {', '.join(PIXELS)}")
    if tuple(images.shape) != (card.count, *card.shape):
        there, said = tuple(images.shape), (card.count, *card.shape)
        raise DatasetError(f"images are {there}, but the card says {said}; make or import the data set again")
    for name, array in (("labels", labels), ("logits", logits)):
        if array is not None and len(array) != card.count:
            raise DatasetError(f"{len(array)} {name} for {card.count} images; import again")
        if array is not None and array.ndim == 2 and array.shape[1] != card.classes:
            raise DatasetError(f"{name} have {array.shape[1]} columns for {card.classes} classes; import again")
    if labels is not None and labels.ndim == 1 and len(labels) and not 0 <= labels.min() <= labels.max() < card.classes:
        low, high = labels.min(), labels.max()
        raise DatasetError(f"labels run from {low} to {high}, outside 0..{card.classes - 1}; set the number of classes")


def _map(path: Path) -> np.ndarray | None:
    if not path.exists():
        return None
    try:
        mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        return mapped
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(f"{path} is damaged ({error}); make or import the data set again") from error


# -- the order of batches ---------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    mixed = hashlib.blake2b(f"{seed}/{epoch}/{count}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(mixed, "big") >> 1)
    return torch.randperm(count, generator=generator)


def batches(count: int, batch_size: int, seed: int, step: int) -> Tensor:
    """The indices (batch_size,) of global step `step`: a pure function, so that a resumed run reads what it would have.

    Every epoch is a fresh permutation; what does not fill a batch at its end is left out. With fewer images than
    `batch_size` the batch runs on into the next permutations.
    """
    if count < 1 or batch_size < 1:
        raise DatasetError(f"no batch of {batch_size} from {count} images")
    if count < batch_size:
        flat = torch.arange(step * batch_size, (step + 1) * batch_size)
        first, last = int(flat[0]) // count, int(flat[-1]) // count
        run = torch.cat([_permutation(count, seed, epoch) for epoch in range(first, last + 1)])
        return run[flat - first * count]
    epoch, position = divmod(step, count // batch_size)
    return _permutation(count, seed, epoch)[position * batch_size : (position + 1) * batch_size].clone()


# -- writing ----------------------------------------------------------------------------------------------------------


class Writer:
    """Writes a data set slice by slice; may be killed at any moment and opened again, by one rank or several.

    The files have their final size from the start, so the final bytes do not depend on the order of writing. A slice is
    flushed to disk BEFORE the line that says so is appended to this rank's journal: a line is a promise. Ranks write
    disjoint slots.

        writer = Writer.create(folder, card, count)
        for chain in chains - writer.done:
            writer.write(slots, images, logits=logits, chain=chain)
        data = writer.close()
    """

    def __init__(
        self, path: Path, card: Card, arrays: dict[str, np.ndarray], rank: int, barrier: Callable[[], None]
    ) -> None:
        self.path, self.card, self.rank = path, card, rank
        self.finished: ImageDataset | None = None
        self._arrays, self._barrier = arrays, barrier
        self._identity = hashlib.sha256(card.dumps().encode()).hexdigest()[:16]
        self._lines = self._read()

    @classmethod
    def create(
        cls,
        path: Path | str,
        card: Card,
        count: int,
        *,
        logits: bool = True,
        seeds: int = 0,
        dtype: str = "uint8",
        rank: int = 0,
        barrier: Callable[[], None] = lambda: None,
    ) -> Writer:
        """Begin the data set of `count` images in folder `path`, or go on with it.

        `logits` False: integer labels instead. `seeds`: columns of seeds.npy, 0 for none. `barrier`: waits for all
        ranks, needed when there are several. `finished` is set when the folder already holds this very data set. Raises
        `DatasetError` when it holds another one.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        card = dataclasses.replace(card, count=count)
        shapes: dict[str, tuple[str, tuple[int, ...]]] = {"images": (dtype, (count, *card.shape))}
        if logits:
            shapes["logits"] = ("float16", (count, card.classes))
        elif card.task == "multi":
            shapes["labels"] = ("float32", (count, card.classes))
        else:
            shapes["labels"] = ("int64", (count,))
        if seeds:
            shapes["seeds"] = ("int32", (count, seeds))
        finished = _finished(folder, card)
        arrays = {} if finished else {name: _allocate(folder / f"{name}.npy", *spec) for name, spec in shapes.items()}
        writer = cls(folder, card, arrays, rank, barrier)
        writer.finished = finished
        return writer

    @property
    def done(self) -> set[int]:
        """The chains that are safely on disk, whichever rank wrote them."""
        return {line["chain"] for line in self._lines}

    @property
    def facts(self) -> dict[int, dict[str, Any]]:
        """What `write` was told about each chain, in the order of chains."""
        return {line["chain"]: line["facts"] for line in sorted(self._lines, key=lambda line: line["chain"])}

    def write(
        self,
        slots: Index,
        images: np.ndarray | Tensor,
        *,
        logits: np.ndarray | Tensor | None = None,
        labels: np.ndarray | Tensor | None = None,
        seeds: np.ndarray | Tensor | None = None,
        chain: int | None = None,
        facts: dict[str, Any] | None = None,
    ) -> None:
        """Write images (n, C, H, W) and their targets into these slots; on return they survive a crash.

        `chain`: the number by which `done` knows this slice (default: its first slot). `facts`: JSON to keep with it.
        """
        if self.finished is not None:
            raise DatasetError(f"{self.path} is finished; nothing more can be written into it")
        at = slots.numpy() if isinstance(slots, Tensor) else np.asarray(slots)
        given = {"images": images, "logits": logits, "labels": labels, "seeds": seeds}
        for name, array in self._arrays.items():
            if given[name] is None:
                if name == "labels":  # a set nobody labelled yet
                    continue
                raise DatasetError(f"{self.path} expects {name} with every slice")
            values = _array(given[name])
            array[at] = centred(values, self.card.task) if name == "logits" else values
        for array in self._arrays.values():
            array.flush()  # type: ignore[attr-defined]
        line = {
            "chain": int(at[0]) if chain is None else int(chain),
            "slots": _ranges(at),
            "facts": facts or {},
            "of": self._identity,
        }
        _append(self.path / f"journal-{self.rank}.jsonl", json.dumps(line, sort_keys=True))
        self._lines.append(line)

    def close(self, **fields: Any) -> ImageDataset:
        """Check that every slot is written, measure, write the card with `fields`, remove the journals.

        All ranks call it; rank 0 does it. Raises `DatasetError` when slots are missing.
        """
        self._barrier()
        try:
            if self.rank == 0 and self.finished is None:
                self._lines = self._read()
                self._complete()
                card = dataclasses.replace(self.card, **fields)
                card.statistics = {**statistics(self._arrays["images"]), **card.statistics}
                card.save(self.path)
                for journal in self.path.glob("journal-*.jsonl"):
                    journal.unlink()
        finally:
            self._barrier()
        return ImageDataset.open(self.path)

    def _complete(self) -> None:
        seen = np.zeros(self.card.count, dtype=bool)
        for line in self._lines:
            for start, stop in line["slots"]:
                seen[start:stop] = True
        if not seen.all():
            missing = np.flatnonzero(~seen)
            lack = f"lacks {len(missing)} of {len(seen)} images (the first is {missing[0]})"
            raise DatasetError(f"{self.path} {lack}; run the same command again")

    def _read(self) -> list[dict[str, Any]]:
        lines = []
        for journal in sorted(self.path.glob("journal-*.jsonl")):
            for text in journal.read_text().splitlines():
                try:
                    line = json.loads(text)
                except ValueError:
                    continue  # torn by a kill: its slice is written again
                if line["of"] != self._identity:
                    raise DatasetError(f"{self.path} holds another unfinished data set; name another --out")
                lines.append(line)
        return lines


def _finished(folder: Path, card: Card) -> ImageDataset | None:
    if not (folder / "card.json").exists() or any(folder.glob("journal-*.jsonl")):
        return None
    there = ImageDataset.open(folder)
    same = ("name", "origin", "task", "shape", "classes", "count", "recipe", "label_view", "teacher", "mean", "std")
    one, two = (json.loads(each.dumps()) for each in (there.card, card))  # tuples and lists are the same there
    if any(one[key] != two[key] for key in same):
        raise DatasetError(f"{folder} holds another data set ({there!r}); name another --out or remove it")
    return there


def _allocate(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """A mapped .npy of its final size. Ranks may race here: all write the same header and the same length."""
    header = np.lib.format.header_data_from_array_1_0(np.empty(0, dtype)) | {"shape": shape}
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize)
    return np.lib.format.open_memmap(path, mode="r+")


def _append(path: Path, text: str) -> None:
    with open(path, "a+b") as file:
        if file.tell() and not _ends_line(file):  # a torn line of a killed run must not swallow this one
            file.write(b"\n")
        file.write(text.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _ends_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


def _ranges(slots: np.ndarray) -> list[list[int]]:
    """Slots as [start, stop) pairs: [3, 4, 5, 9] -> [[3, 6], [9, 10]]."""
    breaks = np.flatnonzero(np.diff(slots) != 1) + 1
    return [[int(run[0]), int(run[-1]) + 1] for run in np.split(slots, breaks) if len(run)]
