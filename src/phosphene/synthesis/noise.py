"""`phosphene noise`, the baseline of every claim: noise images with the teacher's soft labels."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from ..data.card import Card
from ..data.dataset import ImageDataset
from ..data.writer import Writer
from ..runtime.machine import Machine
from ..runtime.machine import machine as decide_machine
from ..runtime.run import Run
from ..settings import Ge, Gt, RunSettings, command
from ..teachers.teacher import Network, Teacher, TeacherSettings
from .inversion.parametrization import Range, numbered, spectral_noise

CHUNK = 500  # images computed and labelled together; the images depend on it, so it is no flag


class NoiseSettings(TeacherSettings, RunSettings, heading="Data set"):
    images: Annotated[int, Ge(1), "number of images"] = 1000
    spectrum: Annotated[float, Ge(0), "exponent s of the amplitudes, which fall as 1/f^s; 0 for white noise"] = 0.0
    amplitude: Annotated[float, Gt(0), "standard deviation of the pixels, in normalised units of the teacher"] = 1.0


@command
def noise(
    teacher: Network,
    settings: NoiseSettings,
) -> ImageDataset:
    """Noise images with a network's soft labels: the baseline for synthesized images.

    Gaussian pixels with the mean and deviation of the teacher's normalisation, clamped at black and white; white, or
    with a falling spectrum as natural images have it. Soft labels are the teacher's logits on the stored uint8 image.

    Example:
        phosphene noise digits --images 500 --out digits-noise

    Raises:
        TeacherError: the network cannot be loaded.
        SettingsError: a flag cannot be used.
    """
    loaded = settings.load(teacher)
    machine = decide_machine(settings.device, settings.precision)
    run = Run.start("noise", settings, settings.identity(), [loaded.fingerprint], machine)
    if run.finished is None:
        _write(loaded, settings, run)
    return ImageDataset.open(run.path)


def _write(teacher: Teacher, settings: NoiseSettings, run: Run) -> None:
    """Chunk by chunk, each a function of (seed, chunk); chunks in the journal are not written again."""
    machine, images = run.machine, settings.images
    chunks = machine.share(-(-images // CHUNK))
    writer = None
    if not run.estimating:
        ranks: dict[str, Any] = {"rank": machine.rank, "barrier": machine.barrier, "first": machine.first}
        writer = Writer.create(run.path, _card(teacher, settings, run), images, **ranks)
    run.disk(images * (teacher.shape[0] * teacher.shape[1] * teacher.shape[2] + 2 * teacher.classes))

    def make(chunk: int) -> None:
        pixels = draw(chunk, settings.spectrum, settings.amplitude, teacher, run.seed)[: images - chunk * CHUNK]
        logits = teacher.logits(pixels, Machine(machine.device, "fp32"))
        if writer is not None:
            slots = range(chunk * CHUNK, chunk * CHUNK + len(pixels))
            writer.write(slots, pixels, logits=logits, chain=chunk)

    for step in run.steps(f"noise-{machine.rank}", len(chunks), alone=True, keep=False):
        if writer is None or writer.missing([chunks[step]]):
            make(chunks[step])
    if writer is None:
        run.finish({})  # raises the estimate
    assert writer is not None
    for chunk in writer.missing(chunks):  # what was lost before the step from which the run went on
        make(chunk)
    writer.close()
    run.finish({"images": len(ImageDataset.open(run.path))})


def draw(chunk: int, spectrum: float, amplitude: float, teacher: Teacher, seed: int) -> Tensor:
    """`CHUNK` uint8 images ``(CHUNK, C, H, W)``, the same for the same chunk and seed."""
    normalised = amplitude * spectral_noise((CHUNK, *teacher.shape), spectrum, numbered(seed, chunk))
    return Range(torch.tensor(teacher.mean), torch.tensor(teacher.std)).pixels(normalised)


def _card(teacher: Teacher, settings: NoiseSettings, run: Run) -> Card:
    return teacher.card(run.path.name, "noise", {**settings.identity(), "seed": run.seed})
