"""Real images in: class folders, an .npz, CIFAR's own batches, CheXpert's CSVs, or a set of torchvision."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from ..errors import DatasetError
from ..runtime.progress import Progress
from ..settings import OUTSIDE, Seed, Settings, command
from ..storage.damage import reading
from .card import Card, read_names
from .dataset import Data, ImageDataset
from .formats import ChexpertSettings, RawImages, chexpert, cifar_files, npz, pictures
from .writer import Writer, alone_in

READERS: dict[str, Callable[[str, ChexpertSettings], RawImages]] = {
    "folders": pictures.read_folders,
    "npz": npz.read,
    "cifar": cifar_files.read,
    "chexpert": chexpert.read,
    "torchvision": pictures.read_torchvision,
}
CHUNK = 256  # images decoded, written and journaled at a time


class NewDataset(Settings, heading="New data set"):
    out: Annotated[Path | None, OUTSIDE, "folder of the new data set; default: runs/COMMAND-NAME"] = None
    name: Annotated[str | None, "name of the new data set; default: from its source"] = None


class ImportSettings(NewDataset, ChexpertSettings, heading="Source"):
    format: Annotated[Literal["auto", "folders", "npz", "cifar", "chexpert", "torchvision"], "source format"] = "auto"
    class_names: Annotated[str | None, "class names with commas, or a file of one a line; default: the source's"] = None


@command
def import_(
    source: Annotated[str, "class folders, .npz, CIFAR batches (folder, .tar.gz), CheXpert folder, torchvision:NAME"],
    settings: ImportSettings,
) -> ImageDataset:
    """Import real images as a data set: class folders, .npz, CIFAR's and CheXpert's own files, torchvision's data sets.

    An .npz may call its arrays images/labels, x/y or data/targets, alone or joined to train, val or test on either side
    (x_train, test_images, ...), as (N, H, W), (N, H, W, C) or (N, C, H, W). Labels of shape (N, K) that are not one-hot
    are multi-label targets, NaN where unlabelled. CheXpert's X-rays become 320x320, the shorter side scaled and the
    longer one cropped at the centre, unless --size says otherwise. Raises `DatasetError` naming the file or flag.

    Example:
        phosphene dataset import cifar10.npz --split test --out data/cifar10-test
    """
    if settings.channels not in (None, 1, 3):
        raise DatasetError(f"--channels {settings.channels} is neither 1 nor 3")
    kind, split = _kind(source) if settings.format == "auto" else settings.format, settings.split
    _check_policies(source, settings, kind)
    raw = READERS[kind](source, settings)
    _check(raw, source, split)
    stem = re.sub(r"(\.npz|\.tar\.gz|\.tgz|\.tar)$", "", source.removeprefix("torchvision:").rstrip("/").split("/")[-1])
    name = settings.name or "-".join(filter(None, (stem.lower(), split)))
    names = read_names(settings.class_names, raw.classes) if settings.class_names else raw.class_names
    recipe = {"source": source, "split": split, "format": kind, "size": settings.size, "digest": raw.digest}
    card = Card(
        name=name,
        origin="real",
        task=raw.task,
        shape=raw.shape,
        classes=raw.classes,
        class_names=None if names is None else list(names),
        recipe=recipe | raw.about,
    )
    return _write(raw, card, Path(settings.out or Path("runs") / f"import-{name}"))


def _check(raw: RawImages, source: str, split: str | None) -> None:
    """Refuse a source without images, and labels that are none of its classes."""
    if not len(raw.labels):
        raise DatasetError(f"{source} holds no images" + (f" of --split {split}" if split else ""))
    if raw.task == "single" and not 0 <= raw.labels.min() <= raw.labels.max() < raw.classes:
        low, high = raw.labels.min(), raw.labels.max()
        raise DatasetError(f"{source} has labels from {low} to {high}, but {raw.classes} classes; is it whole?")


def _check_policies(source: str, settings: ChexpertSettings, kind: str) -> None:
    """Refuse CheXpert's settings for other sources."""
    policies = {name: getattr(settings, name) for name in ("uncertain", "blank", "findings", "views")}
    explicit = [f"--{name} {value}" for name, value in policies.items() if value is not None]
    if explicit and kind != "chexpert":
        raise DatasetError(f"{explicit[0]} is for CheXpert's layout, {source} is read as {kind}; leave it out")


def _write(raw: RawImages, card: Card, out: Path) -> ImageDataset:
    if not Writer.is_there(out, card, len(raw.labels)):  # what is finished is only read
        with alone_in(out):
            _fill(raw, card, out)
    return ImageDataset.open(out)


def _fill(raw: RawImages, card: Card, out: Path) -> None:
    """Decode and write what is not there yet."""
    writer = Writer.create(out, card, len(raw.labels), logits=False, dtype=raw.dtype)
    count = len(raw.labels)
    starts = writer.missing(range(0, count, CHUNK))
    bar = Progress(f"importing {card.name}", count, count - sum(min(CHUNK, count - start) for start in starts))
    try:
        for start in starts:
            slots = range(start, min(start + CHUNK, count))
            writer.write(slots, raw.read(slots), labels=raw.labels[slots.start : slots.stop])
            bar.update(slots.stop, {})
    finally:
        bar.close()
    writer.close()


def _kind(source: str) -> str:
    if source.startswith("torchvision:"):
        return "torchvision"
    path = Path(source)
    if not source or not path.exists():
        raise DatasetError(f"{source} is not there; give a folder, an .npz, CIFAR's batches or torchvision:NAME")
    if path.suffix == ".npz":
        return "npz"
    if path.is_file() and not _is_archive(path):
        raise DatasetError(f"{source} is neither an .npz nor a .tar.gz of CIFAR batches; say which with --format")
    if path.is_dir() and chexpert.is_chexpert(path):
        return "chexpert"
    has_batches = path.is_file() or any(cifar_files.is_batch(p.name) for p in path.iterdir() if p.is_file())
    return "cifar" if has_batches else "folders"


def _is_archive(path: Path) -> bool:
    with reading(f"{path} is a damaged archive", "fetch it again"):
        return tarfile.is_tarfile(path)


class SubsetSettings(NewDataset, Seed, heading="Subset"):
    images: Annotated[int | None, "number of images to take"] = None


@command
def subset(
    data: Data,
    settings: SubsetSettings,
) -> ImageDataset:
    """Copy a random part of a data set, with the same share of every class.

    Use it to compare data sets at equal size; the order of the images stays.

    Example:
        phosphene dataset subset cifar10-train --images 5000 --out part

    Raises:
        DatasetError: the data set cannot be read, or has fewer images than --images.
    """
    original, images, seed = ImageDataset.open(data), settings.images, settings.seed
    if images is None or not 1 <= images <= len(original):
        problem = "--images is missing" if images is None else f"--images {images} is out of range"
        raise DatasetError(f"{problem}: {original.card.name} has {len(original)}; give 1 to {len(original)}")
    name = settings.name or f"{original.card.name}-{images}"
    part = (
        original.subset(range(images)) if images == len(original) else original.split(images / len(original), seed)[0]
    )
    recipe = {"subset_of": original.card.name, "fingerprint": original.fingerprint, "images": images, "seed": seed}
    part.card = replace(part.card, name=name, recipe={**part.card.recipe, **recipe})
    return part.save(Path(settings.out or Path("runs") / f"subset-{name}"))
