"""`phosphene generator train`: a generator of labelled images learns from a trained network alone.

The loss is AutoReCon's eq. 1, which is GDFQ's; the latents of a step are a function of (seed, step).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NotRequired

import torch
from torch import Tensor, nn
from typing_extensions import TypedDict

from ... import spaces
from ...core import Architecture
from ...costs import budget as costs
from ...errors import ArchitectureError, SettingsError
from ...models.weights import digest, fit
from ...models.weights import read as read_weights
from ...runtime.machine import Machine
from ...runtime.machine import machine as decide_machine
from ...runtime.run import Run
from ...settings import OUTSIDE, Ge, Gt, Le, LearningRate, RunSettings, Settings, command
from ...storage import checksums, tensors, typed
from ...storage.typed import write_json
from ...teachers.teacher import Network, Teacher, TeacherSettings
from ..inversion.presets import Student
from .latents import LabelMixing, Latents, images
from .loss import GeneratorLoss, Reconstruction, View, ViewSettings

BETAS = (0.5, 0.999)  # of Adam, as in GDFQ
CHECKED = 4  # batches that a finished generator is measured on
LOGGED = 400  # points of the curve at most


class Seen(TypedDict):
    """Low-pass and clamp of the training; absent in older files."""

    low_pass: NotRequired[Annotated[float, Ge(0)]]
    clip: NotRequired[bool]


class Facts(TypedDict):
    """`generator.json`."""

    view: Seen


class Trained(NamedTuple):
    """A trained generator: its architecture, the network in evaluation mode, and how its images are seen."""

    architecture: Architecture
    net: nn.Module
    view: ViewSettings
    fingerprint: str


class GeneratorSize(Settings, heading="Generator"):
    latent: Annotated[int | None, OUTSIDE, Ge(1), "length of the latent z; default: as published or in the file"] = None
    scale: Annotated[float | None, OUTSIDE, Gt(0), Le(64), "multiplier of channels; default 1, or the file's"] = None


class GeneratorTraining(
    LearningRate,
    GeneratorSize,
    GeneratorLoss,
    ViewSettings,
    LabelMixing,
    Student,
    TeacherSettings,
    RunSettings,
    heading="Training",
):
    arch: Annotated[Architecture | str, OUTSIDE, "name like gdfq-imagenet, arch.json or a search run"] = "gdfq-cifar"
    steps: Annotated[int, Ge(1), "number of batches (GDFQ: 80,000)"] = 2000
    batch: Annotated[int, Ge(2), "images per step over all processes (GDFQ: 200)"] = 128
    lr: float = 1e-3
    schedule: Annotated[Literal["cosine", "quarters"], "learning rate: to 0, or a tenth a quarter (GDFQ)"] = "cosine"


@command
def train(
    teacher: Network,
    settings: GeneratorTraining,
) -> dict[str, Any]:
    """Train a generator of labelled images against a trained network, without any data (AutoReCon eq. 1; GDFQ).

    The folder then holds arch.json, weights.safetensors and generator.json. `agreement` is the percentage of new
    images that the teacher assigns to the label they were generated for. The same command again resumes the run.

    Example:
        phosphene generator train digits --steps 300 --scale 0.25 --out generator

    Raises:
        TeacherError: the network cannot be loaded, or lacks the layers that a term of the loss needs.
        ArchitectureError: there is no such generator.
        SettingsError: a flag cannot be used.
    """
    loaded, student = settings.load(teacher), settings.load_student()
    if student is not None and (student.shape, student.classes) != (loaded.shape, loaded.classes):
        raise SettingsError(f"--student {student.name} takes other images or has other classes than {loaded.name}")
    architecture = resolve(settings.arch, loaded, latent=settings.latent, scale=settings.scale)
    machine = decide_machine(settings.device, settings.precision)
    placed = None if student is None else machine.place(student.net)
    loss = Reconstruction(loaded, machine, settings, settings, student=placed)  # eq. 1
    latents = Latents(loaded.classes, architecture.space["latent"], settings.seed, mixing=settings)  # z and y by step
    run = Run.start(
        "generator",
        settings,
        settings.identity() | {"space": architecture.space, "choices": architecture.choices},
        [network.fingerprint for network in (loaded, student) if network],
        machine,
    )
    if run.finished is not None:
        return run.finished
    net = optimise(architecture, loss, latents, run, settings)  # only G is trained: T is frozen
    run.disk(sum(tensor.numel() * tensor.element_size() for tensor in net.state_dict().values()))
    result = measured(net, loss, Latents(loaded.classes, latents.latent, settings.seed, stream="test"), settings.batch)
    if not run.estimating:
        write(run, architecture, net, {"teacher": loaded.describe(), "view": view_facts(settings)})
    return run.finish(result | {"params": costs.params(net), "macs": macs_of(architecture)})


def resolve(arch: Architecture | str, teacher: Teacher, **settings: Any) -> Architecture:
    """The generator of images and labels of this teacher.

    Raises:
        ArchitectureError: `arch` is no generator.
    """
    architecture = spaces.architecture(arch)
    space = architecture.space["name"]
    if space != "generator":
        raise ArchitectureError(f"--arch {arch}: the space {space} has no generators; give gdfq-cifar")
    return spaces.architecture(architecture, classes=teacher.classes, shape=teacher.shape, **settings)


def rate(schedule: str, step: int, steps: int) -> float:
    """What the learning rate is multiplied by at a step."""
    if schedule == "quarters":
        return 0.1 ** (4 * step // steps)  # GDFQ: at 100, 200 and 300 of 400 epochs
    return (1 + math.cos(math.pi * step / steps)) / 2


def optimise(
    architecture: Architecture, loss: Reconstruction, latents: Latents, run: Run, settings: GeneratorTraining
) -> nn.Module:
    """The generator after all steps of Adam, each on latents of its own (GDFQ Algorithm 1 without the student)."""
    machine, steps = run.machine, settings.steps
    share = max(2, settings.batch // machine.world)  # BatchNorm needs two
    with run.seeded("generator"):
        net = machine.place(spaces.network(architecture))  # G
    machine.agree(net)
    adam = torch.optim.Adam(net.parameters(), settings.lr, BETAS)  # GDFQ: 1e-3
    for step in run.steps("generator", steps, net=net, adam=adam):
        adam.param_groups[0]["lr"] = settings.lr * rate(settings.schedule, step, steps)
        inputs, targets = latents.batch(step * machine.world + machine.rank, share)  # z ~ N(0, 1), y uniform
        targets = machine.place(targets)
        with machine.autocast():
            generated: Tensor = net.train()(machine.place(inputs))  # G(z, y)
        terms, logits = loss.terms(generated, targets)  # eq. 1
        total = torch.stack(list(terms.values())).sum()  # L_R
        adam.zero_grad()
        total.backward()
        machine.average(parameter.grad for parameter in net.parameters())
        adam.step()
        if step % max(1, steps // LOGGED) == 0 or step == steps - 1:
            run.log(loss=total, **terms, agreement=agreement(logits, targets))
    return net


def agreement(logits: Tensor, targets: Tensor) -> Tensor:
    """Percentage of the images whose most likely class is that of their target."""
    return 100 * (logits.argmax(dim=1) == targets.argmax(dim=1)).double().mean()


@torch.no_grad()
def measured(net: nn.Module, loss: Reconstruction, latents: Latents, batch: int) -> dict[str, float]:
    """Terms and agreement on new latents, in evaluation mode: each image by itself, as they are stored."""
    net.eval()  # running statistics: no image depends on others
    sums: dict[str, float] = {}
    for step in range(CHECKED):
        inputs, targets = latents.batch(step, batch)
        targets = loss.machine.place(targets)
        with loss.machine.autocast():
            generated = net(loss.machine.place(inputs))
        terms, logits = loss.terms(generated, targets)
        for name, value in {**terms, "agreement": agreement(logits, targets)}.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    return {name: float(f"{value / CHECKED:.6g}") for name, value in sums.items()}


def macs_of(architecture: Architecture) -> int:
    """Multiply-accumulates per image."""
    return costs.measure(spaces.space(architecture.space), architecture.choices)[1]


def view_facts(view: ViewSettings) -> dict[str, Any]:
    """What generator.json keeps of the view that a generator was trained with."""
    return {"low_pass": view.low_pass, "clip": view.clip}


def write(run: Run, architecture: Architecture, net: nn.Module, facts: dict[str, Any]) -> None:
    """arch.json, generator.json, weights.safetensors."""
    run.machine.average(buffer for buffer in net.buffers() if buffer.is_floating_point())  # of each rank's own images
    if run.machine.rank == 0:
        architecture.save(run.path / "arch.json")
        write_json(run.path / "generator.json", facts)
        checksums.record(run.path, "generator.json")
        tensors.save(run.path / "weights.safetensors", net.state_dict())
    run.machine.barrier()


def load(path: str | Path) -> Trained:
    """A trained generator from its run folder.

    Raises:
        SettingsError: the folder is no finished run of `phosphene generator train`.
        ArchitectureError, TeacherError: its files are damaged.
    """
    folder = Path(path)
    if not all((folder / name).is_file() for name in ("arch.json", "generator.json", "weights.safetensors")):
        raise SettingsError(f"--generator {path} is no finished run of `phosphene generator train`")
    checksums.verify(folder, "generator.json", error=SettingsError, remedy="train it again")
    view = typed.read(folder / "generator.json", Facts, SettingsError, "train it again")["view"]
    seen = ViewSettings(low_pass=float(view.get("low_pass", 0.0)), clip=view.get("clip", True))
    architecture = spaces.architecture(folder / "arch.json")
    with torch.random.fork_rng(devices=[]):
        net = spaces.network(architecture)
    fit(net, read_weights(folder / "weights.safetensors", "--generator"), str(path))
    net.eval().requires_grad_(False)
    return Trained(architecture, net, seen, digest(net))


def view_of(trained: Trained, teacher: Teacher, machine: Machine) -> View:
    """How the teacher of its training saw the generator's images."""
    return View(teacher, machine, trained.view)


def pixels(trained: Trained, inputs: Tensor, view: View, machine: Machine) -> Tensor:
    """uint8 images ``(N, C, H, W)`` on the CPU for latents ``(N, latent + classes)``."""
    with torch.no_grad():
        return view.range.pixels(images(trained.net, inputs, view, machine)).cpu()
