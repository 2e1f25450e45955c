"""`phosphene unreal …`: data sets without real images or without real labels (UnrealNAS section 3.3).

Images and labels are computed when they are read, as functions of (seed, index); `--store` writes them out.
"""

from __future__ import annotations

import dataclasses
import os
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np

from ..data.card import MOST_CLASSES, MOST_IMAGES, Card
from ..data.computed import CATEGORIES, digest
from ..data.dataset import Data, ImageDataset
from ..data.procedural import fractal as fractals
from ..data.procedural.category import check_filling
from ..data.procedural.counter import random_subset, uniform_labels
from ..data.writer import Writer
from ..errors import SettingsError
from ..runtime.machine import machine as decide_machine
from ..runtime.progress import Progress
from ..runtime.run import Run
from ..settings import Estimate, Ge, Le, Output, Seed, Settings, command
from ..storage import checksums

CHUNK = 4 << 20  # bytes computed, written and journaled at a time
MOST_PIXELS = 1 << 22  # per image, over its channels: data sets are shown 64 images at a time


class RandomLabels(Settings, heading="Data set"):
    classes: Annotated[int | None, Ge(2), Le(MOST_CLASSES), "classes; default: one per 25 (real) or 5 images"] = None

    def count(self, images: int, per_class: int) -> int:
        """The number of classes: unset, `per_class` images each, which keeps the task as hard as in the paper."""
        return max(2, round(images / per_class)) if self.classes is None else self.classes


class UnrealSettings(RandomLabels, Output, Seed, Estimate):
    images: Annotated[int, Ge(1), Le(MOST_IMAGES), "number of images; 25,000: half of CIFAR-10's (Fig. 3)"] = 25_000
    store: Annotated[bool, "write all images and labels now instead of computing them when they are read"] = False


class UnrealImages(UnrealSettings):
    size: Annotated[int, Ge(1), "side of the images in pixels"] = 32
    channels: Annotated[int, Ge(1), "channels of the images"] = 3


class Fractals(UnrealImages, heading="Fractals"):
    categories: Annotated[int, Ge(1), "number of categories: iterated function systems"] = 100
    instances: Annotated[int, Ge(1), "number of images of each category that there are"] = 600
    labels: Annotated[Literal["random", "category"], "labels: random, or the categories (FractalDB)"] = "random"
    size: Annotated[int, Ge(8), Le(1024), "side of the fractals in pixels"] = 32
    points: Annotated[int | None, Ge(1), "points per image; default: FractalDB's density, 1,563 at side 32"] = None
    patch: Annotated[bool, "draw a random 3x3 patch at each point instead of one pixel"] = True
    colour: Annotated[bool, "one hue per map of a system instead of grey"] = False
    filling: Annotated[float, "share of a large image that a category must fill"] = 0.2


@command
def noise(settings: UnrealImages) -> ImageDataset:
    """Images of pure noise with random labels: every pixel N(0, 1), every class equally likely (UnrealNAS, RLRN).

    An image and its label are functions of the seed and their index, so that nothing is stored without --store.

    Example:
        phosphene unreal noise --images 1000 --out noise

    Raises:
        SettingsError: a flag cannot be used.
    """
    size, channels = settings.size, settings.channels
    if channels * size**2 > MOST_PIXELS:
        most = f"channels x size x size may be {MOST_PIXELS:,} at most"
        raise SettingsError(f"--size {size} with --channels {channels} is too large: {most}")
    classes = settings.count(settings.images, per_class=5)  # 25,000 images of 5,000 classes
    identity = settings.identity() | {"classes": classes}
    run = _run("noise", identity, [], settings)
    if run.finished is not None:
        return ImageDataset.open(run.path)
    card = Card(
        name=run.path.name,
        origin="noise",
        shape=(channels, size, size),
        classes=classes,
        count=settings.images,
        mean=[0.0],
        std=[1.0],
        recipe={"command": "unreal noise", **identity, "seed": settings.seed},
        random_labels=True,
        source={"kind": "noise", "seed": settings.seed},
    )
    return _write(card, run, settings.store)


@command
def fractal(settings: Fractals) -> ImageDataset:
    """Fractal images by FractalDB's rule, with random labels or their categories (UnrealNAS, RLGD).

    Categories are kept in the folder's categories.json; an image is a function of them, the seed and its index, so
    that nothing else is stored without --store.

    Example:
        phosphene unreal fractal --images 1000 --out fractals

    Raises:
        SettingsError: a flag cannot be used.
    """
    images = min(settings.images, settings.categories * settings.instances)
    classes = _fractal_classes(settings, images)
    _check_drawing(settings)
    check_filling(settings.filling, "--filling")
    drawing = {
        "points": settings.points or fractals.points_of(settings.size),
        "patch": settings.patch,
        "colour": settings.colour,
    }
    identity = settings.identity() | {"images": images, "classes": classes, **drawing}
    run = _run("fractal", identity, [], settings)
    if run.finished is not None:
        return ImageDataset.open(run.path)
    _find_categories(run, settings.categories, settings.filling)
    card = Card(
        name=run.path.name,
        origin="fractals",
        shape=(settings.channels, settings.size, settings.size),
        classes=classes,
        count=images,
        recipe={"command": "unreal fractal", **identity, "seed": settings.seed},
        random_labels=settings.labels == "random",
        source={
            "kind": "fractal",
            "seed": settings.seed,
            "categories": digest(run.path / CATEGORIES),
            "labels": settings.labels,
            **drawing,
        },
    )
    return _write(card, run, settings.store)


@command
def random_labels(data: Data, settings: UnrealSettings) -> ImageDataset:
    """Real images with random labels, every class equally likely (UnrealNAS, RLRD).

    The images stay where they are: the new folder names theirs, and reading it fails if they were moved or changed.
    Of more images than --images a random subset is used.

    Example:
        phosphene unreal random-labels cifar10-train --out random

    Raises:
        DatasetError: DATA is missing, damaged or empty.
        SettingsError: a flag cannot be used.
    """
    base = ImageDataset.open(data)
    if base.folder is None and not settings.store:
        raise SettingsError(f"{base.card.name} is in memory or a view, so there is no folder to refer to; give --store")
    images, seed = min(settings.images, len(base)), settings.seed
    classes = settings.count(images, per_class=25)  # 25,000 images of 1,000 classes
    identity = settings.identity() | {"images": images, "classes": classes}
    run = _run("random-labels", identity, [base.fingerprint], settings)
    if run.finished is not None:
        return ImageDataset.open(run.path)
    used = base.subset(random_subset(len(base), images, seed))
    recipe = {"command": "unreal random-labels", "data": base.card.name, "of": base.fingerprint, **identity}
    card = dataclasses.replace(_relabelled(used, classes, recipe | {"seed": seed}), name=run.path.name)
    if settings.store:
        return _write(card, run, True, relabel(used, classes, seed))
    assert base.folder is not None
    path = os.path.relpath(base.folder.resolve(), run.path.resolve())
    card.source = {"kind": "dataset", "path": path, "fingerprint": base.fingerprint, "seed": seed}
    return _write(card, run, False)


def relabel(data: ImageDataset, classes: int, seed: int) -> ImageDataset:
    """A view of `data`: the same images, labels uniform over `classes` that depend on (seed, position) alone.

    Raises `SettingsError` for less than two classes, and for more than ten million.
    """
    RandomLabels(classes=classes)  # checks the bounds
    card = _relabelled(data, classes, {"relabelled": data.fingerprint, "classes": classes, "seed": seed})
    labels = uniform_labels(np.arange(len(data)), seed=seed, classes=classes)
    return ImageDataset.from_function(partial(_pixels, data), card, dtype=data.dtype, labels=labels)


def _pixels(data: ImageDataset, index: np.ndarray) -> np.ndarray:
    return data.pixels(index).numpy()


def _relabelled(data: ImageDataset, classes: int, recipe: dict[str, Any]) -> Card:
    """The card of `data` with other labels: normalisation, canvas and teacher's view stay those of the images."""
    mean, std = (x.tolist() for x in data.normalisation)
    return dataclasses.replace(
        data.card,
        origin=f"{data.card.origin}, random labels",
        task="single",
        classes=classes,
        class_names=None,
        count=len(data),
        recipe=recipe,
        statistics=data.card.statistics or {"mean": mean, "std": std},
        random_labels=True,
        source=None,
    )


# -- fractals ---------------------------------------------------------------------------------------------------------


def _fractal_classes(settings: Fractals, images: int) -> int:
    if settings.labels == "random":
        return settings.count(images, per_class=5)  # 25,000 images of 5,000 classes
    if settings.classes not in (None, settings.categories):
        raise SettingsError(
            f"--classes {settings.classes}: with --labels category there are as many as --categories; leave it out"
        )
    if settings.categories < 2:
        raise SettingsError(f"--categories must be at least 2 with --labels category (got {settings.categories})")
    return settings.categories


def _check_drawing(settings: Fractals) -> None:
    size, channels, points = settings.size, settings.channels, settings.points
    if channels not in (1, 3):
        raise SettingsError(f"--channels {channels} is not 1 or 3")
    if settings.colour and channels == 1:
        raise SettingsError("--colour needs --channels 3")
    if points is not None and points < 8 * size:
        raise SettingsError(f"--points {points} are too few to see at --size {size}; give {8 * size} at least")


def _find_categories(run: Run, count: int, filling: float) -> None:
    """Search the categories and write their file, unless it exists: a second or two with numba, half a minute without.

    An estimate repeats the search of the first category, and continues with that one alone.
    """
    path, machine = run.path / CATEGORIES, run.machine
    if run.estimating:
        for _ in run.steps("categories", count):
            fractals.save(fractals.find_categories(1, run.seed, filling=filling), path)
    if machine.rank == 0 and not path.exists():
        bar = Progress(f"{run.stage} categories", count, 0)
        systems = fractals.find_categories(count, run.seed, filling=filling, progress=lambda n, _: bar.update(n, {}))
        bar.close()
        fractals.save(systems, path)
    machine.barrier()


# -- writing ----------------------------------------------------------------------------------------------------------


def _run(kind: str, identity: dict[str, Any], inputs: list[str], settings: UnrealSettings) -> Run:
    machine = decide_machine("cpu", "fp32")
    return Run.open(
        f"unreal-{kind}", identity, inputs, settings.out, machine, seed=settings.seed, estimate=settings.estimate
    )


def _write(card: Card, run: Run, store: bool, data: ImageDataset | None = None) -> ImageDataset:
    """Write the card; with `store` also every image of `data`, by default those that the card's source describes."""
    data = ImageDataset.computed(card, run.path) if data is None else data
    if store:
        _store(dataclasses.replace(card, statistics=data.card.statistics, source=None), data, run)
    elif run.machine.rank == 0 and not run.estimating:
        data.card.save(run.path)
        checksums.record(run.path, "card.json", *([CATEGORIES] if (run.path / CATEGORIES).exists() else []))
    run.machine.barrier()
    run.finish({"images": card.count, "classes": card.classes})
    return ImageDataset.open(run.path)


def _store(card: Card, data: ImageDataset, run: Run) -> None:
    """Copy `data` into the run's folder chunk by chunk; chunks in the journal are not computed again."""
    machine, bytes_each = run.machine, int(np.prod(card.shape)) * np.dtype(data.dtype).itemsize
    size = max(1, CHUNK // bytes_each)
    chunks = machine.share(-(-len(data) // size))
    writer = None
    if not run.estimating:
        ranks: dict[str, Any] = {"rank": machine.rank, "barrier": machine.barrier, "first": machine.first}
        writer = Writer.create(run.path, card, len(data), logits=False, dtype=data.dtype, **ranks)
    run.disk(len(data) * (bytes_each + 8))

    def draw(chunk: int) -> None:
        part = data.subset(slots := range(chunk * size, min((chunk + 1) * size, len(data))))
        pixels, labels = part.pixels(range(len(part))), part.labels
        if writer is not None:
            writer.write(slots, pixels, labels=labels, chain=chunk)

    for step in run.steps(f"draw-{machine.rank}", len(chunks), alone=True, keep=False):
        if writer is None or writer.missing([chunks[step]]):
            draw(chunks[step])
    if writer is not None:
        for chunk in writer.missing(chunks):  # what was lost before the step from which the run went on
            draw(chunk)
        writer.close()
