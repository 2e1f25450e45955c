"""Image data sets: images, targets, and a card with the origin of both.

One type serves every origin: real, synthesized, or computed when read. On disk a data set is a folder:

    images.npy    uint8 (or float16/32) (N, C, H, W), read through a memory map
    labels.npy    int64 (N,), or float32 (N, K) with NaN = unlabelled when the task is `multi`
    logits.npy    float16 (N, K), centred; instead of labels.npy where a teacher gave the targets
    regions.npy   float16 (N, R, K), optional: the teacher's logits of the R crops of the card's grid
    seeds.npy     int32 (N, S), optional: what each image was synthesized from
    card.json     the card; where it names a `source`, images and labels are computed and there are no arrays

Logits are kept rather than probabilities because soft labels at any temperature follow from them; float16 probabilities
would lose everything but T = 1. Nothing here is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from typing_extensions import TypedDict

from ..core import Batch
from ..errors import DatasetError, shown
from ..storage import typed
from . import follow, stored
from .arrays import CHUNK, PIXELS, array, centred, check, count_classes, labels_of, parts, sampled, statistics
from .augment import Grid
from .card import REMEDY, Card
from .computed import CATEGORIES, SOURCES, Computed, random_labels
from .procedural.counter import random_subset
from .writer import Writer, alone_in

if TYPE_CHECKING:
    from ..runtime.machine import Machine

Index = Tensor | np.ndarray | Sequence[int] | range


class Augmentation(Protocol):
    """An augmentation of `ImageDataset.batch`: `move` is applied before normalisation, `mix` after it."""

    def move(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor: ...
    def mix(
        self, inputs: Tensor, targets: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]: ...


class ImageDataset(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Images with targets. As a torch `Dataset` an item is (normalised float image (C, H, W), target (K,)).

    Targets of a `single` task sum to 1; those of a `multi` task are independent labels, NaN where unlabelled.
    """

    def __init__(
        self,
        card: Card,
        images: Any,
        *,
        labels: np.ndarray | None = None,
        logits: np.ndarray | None = None,
        seeds: np.ndarray | None = None,
        regions: np.ndarray | None = None,
        path: Path | None = None,
        index: np.ndarray | None = None,
    ) -> None:
        self.card, self.path, self.seeds = card, path, seeds
        self._images, self._labels, self._logits, self._index = images, labels, logits, index
        self._regions = regions
        check(card, images, labels, logits, seeds)
        _check_regions(card, regions)

    # -- where data sets come from ------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: ImageDataset | Path | str) -> ImageDataset:
        """Map the data set in folder `path`, or take one that is open already.

        Raises `DatasetError` naming the file that is missing or damaged, and for a data set of no images.
        """
        if isinstance(path, ImageDataset):
            if not len(path):  # a view: what is whole holds some
                raise DatasetError(f"{path.card.name} holds no images; name a data set that does")
            return path
        if not isinstance(path, str | os.PathLike):
            raise DatasetError(f"{shown(path)} is no data set; give its folder, or an open one")
        folder = Path(path)
        card = Card.load(folder)
        follow.note(folder)
        if card.source is not None:
            data = cls.computed(card, folder, path=folder)
            stored.check(folder, {}, *([CATEGORIES] if card.source.get("kind") == "fractal" else []))
            return data
        arrays = stored.mapped(folder)
        try:
            data = cls(card, path=folder, **arrays)
        except DatasetError as error:
            raise DatasetError(f"{folder}: {error}") from error
        stored.check(folder, arrays)
        return data

    @classmethod
    def computed(cls, card: Card, folder: Path, *, path: Path | None = None) -> ImageDataset:
        """The data set that `card.source` describes; the files and relative paths it names are seen from `folder`.

        `path`: the folder from which it can be opened, once the card is there. Raises `DatasetError`: the source is
        damaged, of an unknown kind, or leans on a file or data set that is not there or was changed.
        """
        source = card.source or {}
        kind, sources = str(source.get("kind")), {**SOURCES, "dataset": (Borrowed, _borrowed)}
        if kind not in sources:
            raise DatasetError(f"{folder} has a source of kind {kind!r}; this version knows {', '.join(sources)}")
        fields, make = sources[kind]
        typed.check(source, fields, f"{folder / 'card.json'}: source", DatasetError, REMEDY)
        arrays = make(card, folder)
        if not card.statistics:
            card = dataclasses.replace(card, statistics=sampled(arrays["images"]))
        return cls(card, **arrays, path=path)

    @classmethod
    def from_arrays(
        cls,
        images: np.ndarray | Tensor,
        *,
        labels: np.ndarray | Tensor | Sequence[int] | None = None,
        logits: np.ndarray | Tensor | None = None,
        seeds: np.ndarray | None = None,
        regions: np.ndarray | None = None,
        **fields: Any,
    ) -> ImageDataset:
        """A data set in memory.

        `images`: uint8, or float on the scale 0..1 (or any other when raw), (N, C, H, W). `labels`: ints (N,), or
        targets (N, K) with NaN = unlabelled for task `multi`. `logits`: (N, K), centred and stored as float16.
        `regions`: float16 (N, R, K), of the crops of the field `grid`. `fields`: any field of `Card`.
        """
        pixels = array(images)
        if pixels.dtype == np.float64:
            pixels = pixels.astype(np.float32)
        if pixels.ndim != 4 or str(pixels.dtype) not in PIXELS:
            wanted = f"four dimensions are needed, (N, C, H, W), of {', '.join(PIXELS)}"
            raise DatasetError(f"images have shape {pixels.shape} and are {pixels.dtype}; {wanted}")
        task = fields.get("task", "single")
        targets = None if labels is None else labels_of(array(labels), task)
        soft = None if logits is None else centred(array(logits), task)
        if "classes" not in fields:
            fields["classes"] = count_classes(fields, targets, soft)
        card = Card(**{**fields, "shape": pixels.shape[1:], "count": len(pixels)})
        for name, values in (("images", pixels), ("labels", targets), ("regions", regions)):
            if values is not None:
                stored.refuse(card.name, name, values)
        card.statistics = card.statistics or statistics(pixels)
        return cls(card, pixels, labels=targets, logits=soft, seeds=seeds, regions=regions)

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
        source = Computed(draw, card.count, card.shape, dtype)
        if not card.statistics:
            card = dataclasses.replace(card, statistics=sampled(source))
        soft = None if logits is None else centred(array(logits), card.task)
        return cls(card, source, labels=None if labels is None else labels_of(labels, card.task), logits=soft)

    def save(self, path: Path | str) -> ImageDataset:
        """Write this data set (or this view of one) into the new folder `path` and open it from there."""
        folder = Path(path)
        ImageDataset.open(self)  # refuses a view of no images
        card = dataclasses.replace(self.card, count=len(self), statistics={}, source=None)
        targets = {"logits": self._logits is not None, "labels": self._labels is not None}
        columns = 0 if self.seeds is None else self.seeds.shape[1]
        each = 0 if self._regions is None else self._regions.shape[1]
        arrays: dict[str, Any] = {"dtype": self.dtype, "seeds": columns, "regions": each, **targets}
        if Writer.is_there(folder, card, len(self)):  # what is finished is only read
            return ImageDataset.open(folder)
        with alone_in(folder):
            self._copy(Writer.create(folder, card, len(self), **arrays))
        return ImageDataset.open(folder)

    def _copy(self, writer: Writer) -> None:
        """Write what is not there yet."""
        step = max(1, CHUNK // max(1, int(np.prod(self.card.shape)) * self._images.dtype.itemsize))
        for start in writer.missing(range(0, len(self), step)):
            slots = np.arange(start, min(start + step, len(self)))
            where = self._where(slots)
            writer.write(
                slots,
                self._images[where],
                logits=None if self._logits is None else self._logits[where],
                labels=None if self._labels is None else self._labels[where],
                seeds=None if self.seeds is None else self.seeds[where],
                regions=None if self._regions is None else self._regions[where],
            )
        writer.close()

    # -- reading ------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._images) if self._index is None else len(self._index)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        one = np.array([i % len(self)])
        return self.normalise(self.pixels(one))[0], self.targets(one)[0]

    def pixels(self, index: Index) -> Tensor:
        """The stored images (n, C, H, W): uint8, or float for sets stored as float. Reads these images only."""
        return torch.from_numpy(np.array(self._images[self._where(index)]))

    def targets(self, index: Index, temperature: float = 1.0, region: Tensor | None = None) -> Tensor:
        """Targets (n, K), float32: softmax(logits / T) (sigmoid for `multi`), or one-hot labels.

        `region`: crop numbers (n,) in the `grid`, one for each image: soft labels of that crop.
        """
        logits = self.logits(index, region)
        if logits is not None:
            logits = logits / temperature
            return torch.sigmoid(logits) if self.card.task == "multi" else logits.softmax(1)
        if self._labels is None:
            raise self._unlabelled()
        labels = torch.from_numpy(np.array(self._labels[self._where(index)]))
        if labels.ndim == 2:
            return labels.float()
        return torch.nn.functional.one_hot(labels, self.card.classes).float()

    def logits(self, index: Index, region: Tensor | None = None) -> Tensor | None:
        """The teacher's centred logits (n, K), float32; None where targets are labels."""
        if region is not None:
            if self._regions is None:
                raise DatasetError(
                    f"{self.card.name} has no soft labels per crop; see `phosphene dataset label --crops`"
                )
            return torch.from_numpy(np.asarray(self._regions[self._where(index), region.numpy()], dtype=np.float32))
        if self._logits is None:
            return None
        return torch.from_numpy(np.asarray(self._logits[self._where(index)], dtype=np.float32))

    @property
    def grid(self) -> Grid | None:
        """The crops that have soft labels; None where there are none."""
        return None if self._regions is None or self.card.grid is None else Grid.of(self.card.grid)

    @property
    def soft(self) -> bool:
        """Whether targets are a teacher's logits."""
        return self._logits is not None

    @property
    def labelled(self) -> bool:
        """Whether there are targets, labels or logits."""
        return self._labels is not None or self._logits is not None

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """The arg-max of every target, int64 (N,)."""
        where = self._where(range(len(self)))
        if self._labels is not None and self._labels.ndim == 1:
            return np.array(self._labels[where])
        targets = self._logits if self._logits is not None else self._labels
        if targets is None:
            raise self._unlabelled()
        return np.concatenate([np.nan_to_num(targets[part], nan=-np.inf).argmax(1) for part in parts(where, 4096)])

    def _unlabelled(self) -> DatasetError:
        return DatasetError(f"data set {self.card.name!r} has neither labels nor logits; see `phosphene dataset label`")

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

    @property
    def folder(self) -> Path | None:
        """The folder that holds this very data set; None in memory, and for a view of a part."""
        return self.path if self._index is None else None

    @property
    def dtype(self) -> str:
        """What a pixel is: uint8 on the scale 0..255, or float16 or float32."""
        return str(self._images.dtype)

    @property
    def region(self) -> int | None:
        """The side of the teacher's square input, where the stored images are larger canvases."""
        shape = (self.card.teacher or {}).get("shape")
        square = shape is not None and shape[1] == shape[2] and max(shape[1:]) < min(self.card.shape[1:])
        return int(shape[1]) if shape is not None and square else None

    @property
    def seen(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of a network's input: that of the teacher, else of the image."""
        channels, height, width = self.card.shape
        return (channels, height, width) if self.region is None else (channels, self.region, self.region)

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
        pixels, targets = self.pixels(index), self.targets(index, temperature)
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
        arrays = {"labels": self._labels, "logits": self._logits, "seeds": self.seeds, "regions": self._regions}
        return ImageDataset(self.card, self._images, **arrays, path=self.path, index=self._where(index))

    def split(self, fraction: float, seed: int = 0) -> tuple[ImageDataset, ImageDataset]:
        """Two disjoint random views that cover the set, the first with `fraction` of every class.

        Unlabelled images are of one class.
        """
        if not 0 < fraction < 1:
            raise DatasetError(f"split fraction {fraction} is not between 0 and 1")
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(self))
        if self.labelled:
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
        for part, most in ((self._images, 64), (self._labels, 1024), (self._logits, 1024), (self._regions, 64)):
            if part is not None and len(part):
                at = np.unique(np.linspace(0, len(part) - 1, most).astype(np.int64))
                digest.update(np.ascontiguousarray(part[at]).tobytes())
        return digest.hexdigest()[:16]

    def __getstate__(self) -> dict[str, Any]:
        """A mapped set travels to worker processes as its path, not as its bytes."""
        state = {k: v for k, v in self.__dict__.items() if k not in ("labels", "fingerprint")}
        if self.path is not None:
            arrays = ("_images", "_labels", "_logits", "seeds", "_regions")
            state = {k: v for k, v in state.items() if k not in arrays}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.path is not None:
            with follow.checked():
                opened = ImageDataset.open(self.path)
            self._images, self._labels, self._logits = opened._images, opened._labels, opened._logits
            self.seeds, self._regions = opened.seeds, opened._regions

    def summary(self) -> dict[str, Any]:
        """The figures that a command prints of its new data set."""
        mean, std = self.normalisation
        return {
            "path": None if self.path is None else str(self.path),
            "name": self.card.name,
            "origin": self.card.origin,
            "images": len(self),
            "shape": list(self.card.shape),
            "classes": self.card.classes,
            "targets": "logits" if self.soft else "labels" if self._labels is not None else "none",
            **({} if self.grid is None else {"regions": len(self.grid)}),
            "mean": [round(x, 4) for x in mean.tolist()],
            "std": [round(x, 4) for x in std.tolist()],
            **{name: value for name, value in self.card.statistics.items() if isinstance(value, float)},
            "fingerprint": self.fingerprint,
        }

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.card.shape))
        facts = f"{self.card.origin}, {len(self)} x {shape}, {self.card.classes} classes"
        return f"ImageDataset({self.card.name!r}, {facts})"


def _check_regions(card: Card, regions: Any) -> None:
    """Raise `DatasetError` where the soft labels per crop (N, R, K) do not fit the card's grid."""
    expected = (card.count, 0 if card.grid is None else len(Grid.of(card.grid)), card.classes)
    if card.grid is not None and not Grid.of(card.grid).fits(card.shape[1:]):
        raise DatasetError(f"the card's grid has crops outside of images of {card.shape}; label the data set again")
    if regions is not None and (tuple(regions.shape), np.issubdtype(regions.dtype, np.floating)) != (expected, True):
        there = f"{regions.dtype}{tuple(regions.shape)}"
        raise DatasetError(f"soft labels per crop are {there}, but the card has {expected}; label the data set again")


Data = Annotated[ImageDataset | str | Path, "folder of a data set"]
"""The input of commands on one data set."""


# -- images of another data set --------------------------------------------------------------------------------------


class Borrowed(TypedDict):
    """``{"kind": "dataset", "path", "fingerprint", "seed"}``: another data set's images, random labels."""

    kind: Literal["dataset"]
    path: str
    fingerprint: str
    seed: int


def _borrowed(card: Card, folder: Path) -> dict[str, Any]:
    """The source `Borrowed`."""
    source = card.source or {}
    path, remedy = folder / str(source["path"]), "put it back or make this data set again"
    if not path.is_dir():
        raise DatasetError(f"{folder} takes its images from {path}, which is not there; {remedy}, with --store")
    if path.resolve() == folder.resolve():
        raise DatasetError(f"{folder} takes its images from itself; make this data set again")
    follow.check(folder, path)
    base = ImageDataset.open(path)
    if base.fingerprint != source["fingerprint"]:
        raise DatasetError(f"{folder} takes its images from {path}, which is another data set now; {remedy}")
    used = random_subset(len(base), card.count, int(source["seed"]))
    images = functools.partial(_pixels, base if len(used) == len(base) else base.subset(used))
    return {"images": Computed(images, len(used), base.card.shape, base.dtype), "labels": random_labels(card)}


def _pixels(data: ImageDataset, index: np.ndarray) -> np.ndarray:
    return data.pixels(index).numpy()


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
