"""The two parts of the data in a bilevel search: images that train the weights, and images that α learns from.

split       disjoint parts, drawn at random within each class, both augmented (DARTS, §3.1)
mirrored    the same images and labels again, each mirrored (UnrealNAS, appendix): random labels cannot be guessed
            for images that were never seen, so a disjoint part would tell α nothing

A search that scores candidates holds out some images of every class instead (`hold_out`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from ...core import Batch
from ...data import targets
from ...data.augment import View
from ...data.dataset import Augmentation, ImageDataset, Index, batches
from ...errors import SettingsError
from ...runtime.machine import Machine
from ...runtime.run import Run
from ...teachers.teacher import Teacher

Validation = Literal["split", "mirrored"]
FRACTIONS: dict[Validation, float] = {"split": 0.5, "mirrored": 1.0}  # usual share of the images that trains weights
HELD_OUT = 32  # images of each class (DFNAS, App. B.3)


@dataclass(frozen=True)
class Parts:
    """How images are shared out between the weights and α, and how both see them.

    `validation`: see above. `fraction`: share of the images that trains the weights; 1 is all of them, where validation
    is mirrored. `augment`: of the training part, and of the other one where that is split off. `temperature`: of the
    soft labels, where the targets are logits or the teacher's. `teacher`: labels every batch as it is seen, instead of
    the stored targets.
    """

    validation: Validation = "split"
    fraction: float = 0.5
    augment: Augmentation | None = None
    temperature: float = 1.0
    teacher: Teacher | None = None

    def training(self, count: int) -> int:
        """How many of `count` images train the weights."""
        return int(count * self.fraction + 0.5)

    def check(self, count: int, batch: int) -> None:
        """Raise `SettingsError` unless either part of `count` images has a batch."""
        split = self.validation == "split"
        if not 0 < self.fraction <= 1 or (split and self.fraction == 1):
            raise SettingsError(f"--train-fraction {self.fraction} is not between 0 and 1; the paper has .5")
        smaller = min(self.training(count), count - self.training(count)) if split else self.training(count)
        if batch > smaller:
            raise SettingsError(f"--batch {batch} does not fit: the smaller part of the data set has {smaller} images")


HALF = Parts()
"""Half of the images for the weights, the other half for α, as they are."""


class Halves:
    """`train` and `valid`, and batches of either; what a batch holds depends on the run's seed and the step alone.

    Args:
        data: what to share out.
        run: its seed and machine; a batch is shared by the machine's ranks.
        parts: how.

    Raises:
        SettingsError: there is no such validation.
        DatasetError: nothing can be learned from the stored targets, and no teacher labels the images.
    """

    def __init__(self, data: ImageDataset, run: Run, parts: Parts = HALF) -> None:
        if parts.validation not in FRACTIONS:
            raise SettingsError(f"--validation {parts.validation} is neither split nor mirrored")
        self.run, self.temperature, self.teacher = run, parts.temperature, parts.teacher
        if parts.teacher is None:
            targets.check(data)
        mirrored = parts.validation == "mirrored"
        self.scored = View(getattr(parts.augment, "crop", None), mirrored)
        """The view of the validation images on which the supernet is scored."""
        self._views = {"train": parts.augment, "valid": self.scored if mirrored else parts.augment}
        shares: dict[str, Any] = {"validation": parts.validation, "fraction": parts.fraction}
        self.parts = {"data": data.fingerprint, **shares, "seed": run.seed}
        """What `supernet.json` says of them."""
        if mirrored and parts.fraction == 1:
            self.train = self.valid = data
        else:
            self.train, rest = data.split(parts.fraction, run.seed)
            self.valid = self.train if mirrored else rest

    def draw(self, part: Literal["train", "valid"], step: int, size: int, purpose: str | None = None) -> Batch:
        """This rank's share of batch number `step` of `size` images, in the order that belongs to the purpose."""
        images = self.train if part == "train" else self.valid
        return draw(images, self.run, purpose or part, step, size, self._views[part], self.temperature, self.teacher)


def draw(
    images: ImageDataset,
    run: Run,
    purpose: str,
    step: int,
    size: int,
    augment: Augmentation | None,
    temperature: float = 1.0,
    teacher: Teacher | None = None,
) -> Batch:
    """This rank's share of batch number `step` of `size` images: a function of the run's seed, purpose and step alone.

    Args:
        purpose: names the order of the images and the chances of the augmentation.
        temperature: of the soft labels, where the targets are logits.
        teacher: labels these very images, as they are seen; None: the stored targets.
    """
    machine = run.machine
    index = batches(len(images), size, number(run.seed, purpose), step)[machine.rank :: machine.world]
    generator = torch.Generator().manual_seed(number(run.seed, purpose, step, machine.rank))
    return look(images, index, machine, augment, temperature, teacher, generator)


def look(
    images: ImageDataset,
    index: Index,
    machine: Machine,
    augment: Augmentation | None,
    temperature: float = 1.0,
    teacher: Teacher | None = None,
    generator: torch.Generator | None = None,
) -> Batch:
    """The batch of these very images: with the stored targets, or with the teacher's soft labels of the view."""
    if teacher is None:
        settings: dict[str, Any] = {"temperature": temperature, "generator": generator, "machine": machine}
        return images.batch(index, augment=augment, **settings)
    pixels = images.pixels(index).to(machine.device)
    pixels = pixels if augment is None else augment.move(pixels, generator)
    inputs = images.normalise(pixels)
    if augment is not None:  # of the images alone: the teacher labels the mixed ones
        inputs, _ = augment.mix(inputs, inputs.new_zeros(len(inputs), 1), generator)
    return Batch(machine.place(inputs), teacher.soft_labels(inputs, images, temperature, machine))


def hold_out(data: ImageDataset, each: int, seed: int) -> tuple[ImageDataset, ImageDataset]:
    """(the rest, `each` images of every class), drawn by `seed`; classes are the arg-max of targets (DFNAS, App. B.3).

    A class gives no more than half of its images: a teacher finds few of some classes in noise.

    Raises:
        SettingsError: no class has more than `each` images; `each` is less than 1.
        DatasetError: the images are unlabelled.
    """
    targets.check(data)
    labels = data.labels
    there, counts = np.unique(labels, return_counts=True)
    if each < 1 or counts.max() <= each:
        least = f"class {there[counts.argmax()]} has {counts.max()} images, and no other one has more"
        raise SettingsError(f"--held-out {each} images of each class cannot be had: {least}; give 1 or more, and fewer")
    order = np.random.default_rng(number(seed, "held out")).permutation(len(data))
    taken = [order[labels[order] == label][: min(each, count // 2)] for label, count in zip(there, counts, strict=True)]
    held = np.sort(np.concatenate(taken))
    return data.subset(np.setdiff1d(order, held)), data.subset(held)


def parts(data: ImageDataset, facts: dict[str, Any], each: int | None, seed: int) -> tuple[ImageDataset, ImageDataset]:
    """The images for BatchNorm's statistics and those to score a supernet on: those that it was not trained on.

    Args:
        data: the data set.
        facts: `parts` of `supernet.json`: how the supernet's data set was shared out; the same is done to this one.
        each: images of every class to hold out, where the data set is another one or `facts` say nothing; None: 32,
            or a fifth of the images of a class, on average, where that is less.
        seed: of that draw.
    """
    if each is None and facts.get("data") == data.fingerprint:
        if "held_out" in facts:
            return hold_out(data, int(facts["held_out"]), int(facts["seed"]))
        if facts.get("validation") == "split":
            return data.split(float(facts["fraction"]), int(facts["seed"]))
    if each is None:
        each = max(1, min(HELD_OUT, len(data) // (5 * len(np.unique(data.labels)))))
    return hold_out(data, each, seed)


def number(*what: object) -> int:
    """A seed for this purpose, the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:7], "little")


def check_batch(batch: int, run: Run) -> None:
    """Raise `SettingsError` where the ranks cannot share a batch evenly."""
    if batch % run.machine.world:
        raise SettingsError(f"--batch {batch} cannot be shared by {run.machine.world} processes; take a multiple of it")
