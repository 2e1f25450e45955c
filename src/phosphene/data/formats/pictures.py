"""Sources of pictures: class folders, SOURCE/CLASS/*.png or SOURCE/SPLIT/CLASS/*.png, and data sets of torchvision."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DatasetError, MissingExtra
from ...storage.damage import reading
from . import SPLITS, RawImages, ReadSettings, digest_of, from_pictures, open_picture
from .contents import digest_of_files, digest_of_pictures

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def read_folders(source: str, settings: ReadSettings) -> RawImages:
    """Pictures by class, in the order of the folders' and the files' names; decoded when read."""
    path = _split_folder(Path(source), settings.split)
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    files = [(k, p) for k, folder in enumerate(folders) for p in sorted(folder.rglob("*")) if _is_picture(p)]
    if not files:
        raise DatasetError(f"{path} holds no class folders with images ({', '.join(SUFFIXES)})")
    labels = np.array([k for k, _ in files])
    raw = from_pictures(lambda i: open_picture(files[i][1]), lambda i: str(files[i][1]), labels, len(folders), settings)
    raw.class_names = [os.fsencode(folder.name).decode(errors="replace") for folder in folders]
    raw.digest = digest_of_files([(str(p.relative_to(path)), p) for _, p in files], path.name)
    return raw


def _split_folder(path: Path, split: str | None) -> Path:
    if not path.is_dir():
        raise DatasetError(f"{path} is not a folder of class folders")
    there = {s: path / word for s, words in SPLITS.items() for word in words if (path / word).is_dir()}
    if split is None:
        if there:
            raise DatasetError(f"{path} has several parts; say which with --split {'|'.join(sorted(there))}")
        return path
    if split not in there:
        raise DatasetError(f"{path} has no folder for --split {split}" + (f"; it has {sorted(there)}" if there else ""))
    return there[split]


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")


def read_torchvision(source: str, settings: ReadSettings) -> RawImages:
    """`torchvision:NAME`, downloaded into `settings.downloads` where it is not there yet."""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        raise MissingExtra("torchvision", "vision") from error
    name = source.removeprefix("torchvision:")
    make = getattr(datasets, name, None)
    if not inspect.isclass(make):
        raise DatasetError(f"torchvision has no data set {name!r}; names are case-sensitive, as in torchvision:CIFAR10")
    with reading(f"{source} cannot be loaded", f"put its files into --root {settings.downloads}"):
        items: Any = make(**_arguments(make, name, settings))
        known = getattr(items, "targets", None)  # where it is missing, every picture is decoded once for its label
        labels = np.array([int(k) for k in (known if known is not None else (items[i][1] for i in range(len(items))))])
        names = [str(n) for n in getattr(items, "classes", None) or ()]
    if not len(labels):
        raise DatasetError(f"{source} holds no images")
    classes = len(names) or int(labels.max(initial=0)) + 1

    def get(i: int) -> Any:
        with reading(f"{source} image {i} is not a readable image", f"fetch it again into {settings.downloads}"):
            picture = items[i][0]
            picture.load()  # only Pillow's images have this, and it decodes them
            return picture

    raw = from_pictures(get, lambda i: f"{source} image {i}", labels, classes, settings)
    raw.class_names, raw.digest = names or None, _digest(items, get, labels, source)
    return raw


def _digest(items: Any, get: Callable[[int], Any], labels: np.ndarray, source: str) -> str:
    """Over the labels, and over the files that the set lists, else over the decoded pictures."""
    files = [each[0] for each in getattr(items, "samples", None) or ()]
    if files and all(isinstance(file, str | Path) for file in files):
        contents = digest_of_files([(Path(file).name, Path(file)) for file in files], source)
    else:
        contents = digest_of_pictures(map(get, range(len(labels))), len(labels), source)
    return digest_of(labels.tobytes(), contents.encode())


def _arguments(make: Any, name: str, settings: ReadSettings) -> dict[str, Any]:
    takes = inspect.signature(make).parameters
    arguments: dict[str, Any] = {"root": str(settings.downloads), "download": True}
    if "train" in takes or "split" in takes:
        if settings.split is None:
            raise DatasetError(f"torchvision:{name} has several parts; say which with --split train|test")
        arguments |= {
            "train": settings.split == "train",
            "split": "val" if settings.split == "validation" else settings.split,
        }
    return {key: value for key, value in arguments.items() if key in takes}
