"""Label the images of a data set with a teacher's soft labels; the result is a new data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.augment import Grid, View
from ..data.card import Card
from ..data.dataset import Data, ImageDataset
from ..data.writer import Writer
from ..errors import DatasetError, SettingsError
from ..runtime.machine import Machine
from ..runtime.machine import machine as decide_machine
from ..runtime.run import Run
from ..settings import Estimate, Ge, Hardware, Output, command
from .teacher import TargetKind, Teacher, TeacherSettings

CHUNK, MOST = 64 << 20, 500  # bytes, and images, that are read, labelled and written together


class LabelSettings(TargetKind, TeacherSettings, Output, Hardware, Estimate, heading="Soft labels"):
    teacher: Annotated[Teacher | nn.Module | str | None, "trained network that labels the images"] = None
    crops: Annotated[int | None, Ge(1), "soft labels per crop: positions along each side, or all of fewer"] = None
    pad: Annotated[int | None, Ge(0), "black border in pixels before --crops; default: an eighth or none"] = None
    mirror: Annotated[bool | None, "mirrored crops, too, of --crops; default: only images in colour"] = None
    precision: str = "fp32"


@command
def label(
    data: Data,
    settings: LabelSettings,
) -> ImageDataset:
    """Store a teacher's soft labels for existing images: real ones, noise, fractals, a subset, with or without labels.

    The images are copied unchanged and keep their normalisation; the soft labels are the teacher's logits on its input,
    which is the centre of images that are larger. Searches and training then use crops of that size. The same command
    again resumes where it was stopped.

    With --crops the soft labels of a grid of crops are stored as well, each crop of the teacher's input size, so that
    training (--rows regions) uses the soft labels of the very crop that the student sees, without the teacher.

    Example:
        phosphene dataset label fractals --teacher cifar-resnet20 --checkpoint resnet20.pt --out labelled

    The summary has `agreement`, the share of images whose largest logit is the old label, where both have as many
    classes.

    Raises:
        DatasetError: the data set cannot be read, is empty, or its images do not fit the teacher.
        SettingsError: --teacher is missing, --pad or --mirror is set without --crops, or the grid is impossible.
        TeacherError: it cannot be loaded.
    """
    images = ImageDataset.open(data)
    if settings.teacher is None:
        raise SettingsError("--teacher is missing: name the trained network that labels the images")
    teacher = settings.load(settings.teacher)
    check(images, teacher)
    grid, task = _grid(images, teacher, settings), settings.task or images.card.task
    machine = decide_machine(settings.device, settings.precision)
    figures: dict[str, Any] = {"task": task, **({} if grid is None else {"grid": grid.describe()})}
    inputs = [images.fingerprint, teacher.fingerprint]
    run = Run.open("label", figures, inputs, settings.out, machine, estimate=settings.estimate)
    if run.finished is not None:
        return ImageDataset.open(run.path)
    card = dataclasses.replace(_card(images, teacher), name=run.path.name, task=task)
    card.grid = None if grid is None else grid.describe()
    writer = _write(run, images, teacher, card, grid)
    if writer is None:
        run.finish({})  # raises the estimate
    assert writer is not None
    if not writer.finished:
        writer.close(statistics=_agreement(images, card, writer.gather().values()))
    labelled = ImageDataset.open(run.path)
    run.finish({"images": len(labelled), "agreement": labelled.card.statistics.get("agreement")})
    return labelled


def check(images: ImageDataset, teacher: Teacher) -> None:
    """Raise `DatasetError` where neither the images nor a square crop of them fit the teacher."""
    shape, (channels, height, width) = images.card.shape, teacher.shape
    if not len(images):
        raise DatasetError(f"{images.card.name} holds no images; name a data set that does")
    larger = height == width and shape[0] == channels and min(shape[1:]) > height
    if tuple(shape) != teacher.shape and not larger:
        has, sees = ("x".join(map(str, each)) for each in (shape, teacher.shape))
        wanted = f"those, or larger ones of {channels} channels" if height == width else "those"
        raise DatasetError(f"{images.card.name} has images of {has}, but {teacher.name} takes {sees}; give it {wanted}")


def _grid(images: ImageDataset, teacher: Teacher, settings: LabelSettings) -> Grid | None:
    """The grid of crops by the settings; by default the crops of `train`."""
    if settings.crops is None:
        for flag, value in (("--pad", settings.pad), ("--mirror", settings.mirror)):
            if value is not None:
                raise SettingsError(f"{flag} is for soft labels per crop; give --crops, or leave it out")
        return None
    channels, height, width = images.card.shape
    equal = (height, width) == teacher.shape[1:]
    pad = (min(height, width) // 8 if equal else 0) if settings.pad is None else settings.pad
    mirror = channels == 3 if settings.mirror is None else settings.mirror
    return Grid.even((height, width), teacher.shape[1:], settings.crops, pad, mirror)


def _write(run: Run, images: ImageDataset, teacher: Teacher, card: Card, grid: Grid | None) -> Writer | None:
    """Label and copy the images chunk by chunk; what is journaled is not done again. None for an estimate."""
    machine, view = run.machine, View(None if tuple(card.shape) == teacher.shape else teacher.shape[1])
    each = 0 if grid is None else len(grid)
    bytes_each = int(np.prod(card.shape)) * np.dtype(images.dtype).itemsize + 2 * each * card.classes
    size = max(1, min(MOST, CHUNK // bytes_each))
    chunks = machine.share(-(-len(images) // size))
    ranks: dict[str, Any] = {"rank": machine.rank, "barrier": machine.barrier, "first": machine.first}
    own: dict[str, Any] = {"dtype": images.dtype, "regions": each, **ranks}
    writer = None if run.estimating else Writer.create(run.path, card, len(images), **own)
    run.disk(len(images) * (bytes_each + 2 * card.classes))

    def make(chunk: int) -> None:
        slots = np.arange(chunk * size, min((chunk + 1) * size, len(images)))
        pixels = images.pixels(slots)
        logits = teacher.logits(view.move(pixels).to(machine.device), machine).cpu()
        regions = None if grid is None else _crop_logits(grid, pixels, teacher, machine)
        if writer is not None:
            same = int((images.labels[slots] == logits.argmax(1).numpy()).sum()) if images.labelled else 0
            writer.write(slots, pixels, logits=logits, regions=regions, chain=chunk, facts={"same": same})

    for step in run.steps(f"label-{machine.rank}", len(chunks), alone=True, keep=False):
        if writer is None or writer.missing([chunks[step]]):
            make(chunks[step])
    for chunk in [] if writer is None else writer.missing(chunks):  # lost before the step from which the run went on
        make(chunk)
    return writer


def _crop_logits(grid: Grid, pixels: Tensor, teacher: Teacher, machine: Machine) -> Tensor:
    """The teacher's logits ``(N, R, K)`` of all crops of images ``(N, C, H, W)``."""
    images = pixels.to(machine.device)
    numbers = (torch.full((len(pixels),), region) for region in range(len(grid)))
    return torch.stack([teacher.logits(grid.cut(images, number), machine).cpu() for number in numbers], 1)


def _agreement(images: ImageDataset, card: Card, facts: Iterable[dict[str, Any]]) -> dict[str, float]:
    """`agreement`, the share of images whose largest logit is the old label; empty where it is undefined."""
    old = images.card
    if not images.labelled or "multi" in (old.task, card.task) or old.classes != card.classes:
        return {}
    return {"agreement": round(sum(fact["same"] for fact in facts) / len(images), 4)}


def _card(images: ImageDataset, teacher: Teacher) -> Card:
    """The card of the images with the teacher and its classes; their normalisation stays."""
    mean, std = (values.tolist() for values in images.normalisation)
    return dataclasses.replace(
        images.card,
        origin=f"{images.card.origin}, labelled",
        classes=teacher.classes,
        class_names=list(teacher.class_names) if teacher.class_names else None,
        mean=mean,
        std=std,
        label_view="full" if tuple(images.card.shape) == teacher.shape else "centre",
        count=len(images),
        teacher=teacher.describe(),
        recipe={"command": "dataset label", "data": images.card.name, "of": images.fingerprint},
        statistics={},
        random_labels=False,
        source=None,
        grid=None,
    )
