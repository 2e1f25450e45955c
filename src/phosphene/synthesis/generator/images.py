"""`phosphene synthesize TEACHER --generator RUN`: a trained generator's images with the teacher's soft labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...data.card import Card
from ...data.dataset import ImageDataset
from ...data.writer import Writer
from ...errors import SettingsError
from ...runtime.machine import Machine
from ...runtime.run import Run
from ...settings import RunSettings
from ...teachers.teacher import Teacher
from ..inversion.parametrization import numbered
from ..inversion.plan import apportion
from .train import Trained, load, pixels, view_of

CHUNK = 500  # images sampled, labelled and journaled together; the latents depend on it, so it is no flag


@dataclass(frozen=True)
class Order:
    """The images to be sampled: `classes` has one label each."""

    trained: Trained
    teacher: Teacher
    classes: Tensor
    seed: int

    def latents(self, chunk: int) -> Tensor:
        """z beside one-hot targets ``(n, latent + classes)``, the same for the same chunk and seed."""
        labels = self.classes[chunk * CHUNK : (chunk + 1) * CHUNK]
        z = torch.randn(CHUNK, self.trained.architecture.space["latent"], generator=numbered(self.seed, chunk))
        return torch.cat([z[: len(labels)], F.one_hot(labels, self.teacher.classes).float()], dim=1)


def write_generated(
    path: str | Path, teacher: Teacher, images: int, shares: list[float], machine: Machine, settings: RunSettings
) -> ImageDataset:
    """Write a data set of `images` images of a trained generator, their labels apportioned by `shares`.

    Raises:
        SettingsError: the folder is no generator, or one of other images or classes than the teacher's.
    """
    trained = load(path)
    check_space(trained, teacher, path)
    labels = torch.tensor(apportion(images, shares))
    shuffled = torch.randperm(images, generator=numbered(settings.seed, -1))  # every chunk has all classes
    order = Order(trained, teacher, labels[shuffled], settings.seed)
    identity = {"generator": trained.fingerprint, "images": images, "shares": shares}
    inputs = [teacher.fingerprint, trained.fingerprint]
    run = Run.start("synthesize", settings, identity, inputs, machine)
    if run.finished is None:
        _write(order, identity, run)
    return ImageDataset.open(run.path)


def check_space(trained: Trained, teacher: Teacher, path: str | Path) -> None:
    """Raises `SettingsError` where the images or classes of a generator are not those of the teacher."""
    space = trained.architecture.space
    its, wanted = (list(space["shape"]), space["classes"]), (list(teacher.shape), teacher.classes)
    if its != wanted:
        theirs, ours = (f"images of {shape} and {classes} classes" for shape, classes in (its, wanted))
        raise SettingsError(f"--generator {path} has {theirs}, {teacher.name} {ours}; train one for it")


def _write(order: Order, identity: dict[str, Any], run: Run) -> None:
    """Chunk by chunk; chunks in the journal are not sampled again."""
    machine, teacher, images = run.machine, order.teacher, len(order.classes)
    chunks, exact = machine.share(-(-images // CHUNK)), Machine(machine.device, "fp32")
    order.trained.net.to(machine.device)
    view, writer = view_of(order.trained, teacher, machine), None
    card = _card(order, identity, run)
    if not run.estimating:
        ranks: dict[str, Any] = {"rank": machine.rank, "barrier": machine.barrier, "first": machine.first}
        writer = Writer.create(run.path, card, images, **ranks)
    run.disk(images * (teacher.shape[0] * teacher.shape[1] * teacher.shape[2] + 2 * teacher.classes))

    def make(chunk: int) -> None:
        stored = pixels(order.trained, order.latents(chunk), view, exact)
        logits = teacher.logits(machine.place(stored), exact).cpu()
        if writer is not None:
            slots = range(chunk * CHUNK, chunk * CHUNK + len(stored))
            wanted = order.classes[slots.start : slots.stop]
            facts = {"agreement": float((logits.argmax(1) == wanted).double().mean())}
            writer.write(slots, stored, logits=logits, chain=chunk, facts=facts)

    for step in run.steps(f"images-{machine.rank}", len(chunks), alone=True, keep=False):
        if writer is None or writer.missing([chunks[step]]):
            make(chunks[step])
    if writer is None:
        run.finish({})  # raises the estimate
    assert writer is not None
    for chunk in writer.missing(chunks):  # what was lost before the step from which the run went on
        make(chunk)
    if not writer.finished:
        everyone = writer.gather()
        right = sum(min(CHUNK, images - chunk * CHUNK) * fact["agreement"] for chunk, fact in everyone.items())
        writer.close(statistics={"agreement": round(right / images, 6)})
    run.finish({"images": images, "agreement": ImageDataset.open(run.path).card.statistics["agreement"]})


def _card(order: Order, identity: dict[str, Any], run: Run) -> Card:
    architecture = order.trained.architecture
    recipe = {**identity, "seed": run.seed, "space": architecture.space, "choices": architecture.choices}
    return order.teacher.card(run.path.name, "generator", recipe)
