"""`phosphene distill`: a student for a trained network, without the images that the network was trained on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, cast

import numpy as np
import torch
from torch import nn

from ... import spaces
from ...core import Architecture
from ...costs import budget
from ...data.dataset import ImageDataset
from ...errors import DatasetError, SettingsError
from ...evaluation.evaluate import evaluate
from ...models import weights
from ...runtime.machine import machine as decide_machine
from ...runtime.progress import say
from ...runtime.run import Run
from ...settings import Changes, Hardware, RunSettings, command, ignoring, methods
from ...teachers import loaders
from ...teachers.loaders import read_input
from ...teachers.teacher import Network, Teacher
from ...training import setup
from ...training.recipes import TrainingRecipe
from ...training.setup import Trained
from ...training.train import TrainingData, train
from . import adversarial, fast_datafree
from .adversarial import DfadGenerator
from .methods import (
    AUTORECON,
    DAFL,
    DFAD,
    FAST,
    SHORT,
    AdversarialRecipe,
    AgainstDesign,
    AgainstGenerator,
    DataRecipe,
    FastRecipe,
    Measured,
    OnData,
)
from .student import TestCurve

__all__ = ["distill", "find_student"]

Student = Annotated[
    Architecture | nn.Module | str,
    "network to train: a name, a run folder of a search, an arch.json, or FILE.py:FACTORY (executed)",
]
DataChanges = Annotated[Changes[DataRecipe], {"short": SHORT}]
DfadChanges = Annotated[Changes[AdversarialRecipe], {"dfad": DFAD}]
DaflChanges = Annotated[Changes[AdversarialRecipe], {"dafl": DAFL}]
AutoReconChanges = Annotated[Changes[AdversarialRecipe], {"autorecon": AUTORECON}]
FastChanges = Annotated[Changes[FastRecipe], {"fast": FAST}]


# -- the methods ------------------------------------------------------------------------------------------------------


@command
def data(teacher: Network, student: Student, settings: OnData, changes: DataChanges) -> Trained:
    """Train a student on a data set, real or synthesized, with the teacher's soft labels (DFNAS, §4.3).

    Example:
        phosphene distill data digits cifar-resnet8 --data d --test digits --out student
    """
    if settings.data is None:
        raise SettingsError("--data is missing; give a data set made by `phosphene synthesize` or `dataset import`")
    loaded = settings.load(teacher)
    network = find_student(student, loaded, settings.seed)
    several = settings.data if isinstance(settings.data, list | tuple) else [settings.data]
    sets = [ImageDataset.open(one) for one in several]
    online = settings.rows in (None, "asked")  # the teacher's soft labels of each augmented batch, else stored ones
    for one in sets if not online else []:
        _check_soft_labels(loaded, one)
    own = settings.keywords(TrainingData, RunSettings) | {"data": sets, "teacher": loaded if online else None}
    trained = train(network, **own, **changes.given)
    test = settings.open_test()
    if test is None:
        return trained
    figures = evaluate(trained, data=test, out=trained.path / "test", **settings.keywords(Hardware))
    return replace(trained, result={**trained.result, "accuracy": figures["top1"], "test": figures["data"]})


@command
def dfad(teacher: Network, student: Student, settings: AgainstDesign, changes: DfadChanges) -> Trained:
    """Train a student on a generator's images, where student and teacher disagree most (DFAD, Fang et al. 2019).

    Example:
        phosphene distill dfad digits cifar-resnet8 --epochs 20 --test digits --out student
    """
    return _alternate("dfad", teacher, student, settings, changes.over(DFAD), settings.generator)


@command
def dafl(teacher: Network, student: Student, settings: AgainstDesign, changes: DaflChanges) -> Trained:
    """Train a student on a generator's images of sure predictions, all classes alike (DAFL, Chen et al. 2019).

    Example:
        phosphene distill dafl digits cifar-resnet8 --epochs 20 --test digits --out student
    """
    return _alternate("dafl", teacher, student, settings, changes.over(DAFL), settings.generator)


@command
def autorecon(teacher: Network, student: Student, settings: AgainstDesign, changes: AutoReconChanges) -> Trained:
    """Train a student on images of a searched generator that reconstructs the training data (AutoReCon, §4.3).

    Example:
        phosphene distill autorecon digits cifar-resnet8 --epochs 20 --test digits --out student
    """
    design = "autorecon-cifar10" if settings.generator is None else settings.generator
    return _alternate("autorecon", teacher, student, settings, changes.over(AUTORECON), design)


@command
def fast(teacher: Network, student: Student, settings: AgainstGenerator, changes: FastChanges) -> Trained:
    """Train a student on a pool of images from a generator that adapts in few steps (Fast-Datafree, Fang et al. 2022).

    Example:
        phosphene distill fast digits cifar-resnet8 --epochs 20 --test digits --out student
    """
    loaded, recipe = settings.load(teacher), changes.over(FAST)
    generator = Generator(None, settings.latent or recipe.latent, settings.scale or 1.0, pixels=True)
    return _run("fast", loaded, student, settings, recipe, generator)


METHODS = {"dfad": dfad, "dafl": dafl, "autorecon": autorecon, "fast": fast, "data": ignoring(data, Measured)}


@methods("method", METHODS, default="dfad")
def distill(teacher: Network, student: Student) -> Trained:
    """Distil a trained network into a student without its training data: against a generator, or on a data set.

    Example:
        phosphene distill dfad digits cifar-resnet8 --epochs 20 --test digits --out student

    Unset settings are those published for the method (docs/distillation.md). `accuracy` is that of the last epoch; the
    best of all measured epochs stands beside it under a name that says how it was selected.

    Raises:
        SettingsError: a flag has a value that cannot be used, or belongs to another method.
        TeacherError: the teacher cannot be loaded, or lacks layers that a term of the loss needs.
        DatasetError: the data does not fit the teacher or the student.
        ArchitectureError: STUDENT names no architecture.
    """
    raise NotImplementedError  # `methods` calls the method's own command


# -- against a generator ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Generator:
    """A generator's architecture of the space of generators, or None for DFAD's; `pixels`: images in [0, 1]."""

    architecture: Architecture | None
    latent: int
    scale: float
    pixels: bool = False

    @property
    def classes(self) -> int:
        """Of its one-hot labels; 0 for a generator without labels."""
        return 0 if self.architecture is None else cast(int, self.architecture.space["classes"])

    @property
    def identity(self) -> dict[str, Any]:
        """JSON that identifies it."""
        return {"name": "dfad", "scale": self.scale} if self.architecture is None else asdict(self.architecture)

    def build(self, teacher: Teacher) -> nn.Module:
        """The network for the teacher's images, with fresh weights."""
        if self.architecture is None:
            return DfadGenerator(self.latent, teacher.shape, self.scale, pixels=self.pixels)
        return spaces.network(self.architecture)


def _alternate(
    method: str,
    network: Teacher | nn.Module | str,
    student: Architecture | nn.Module | str,
    settings: AgainstDesign,
    recipe: AdversarialRecipe,
    design: Architecture | str | None,
) -> Trained:
    """Any method of generator and student by turns."""
    teacher = settings.load(network)
    if design is None:
        if recipe.label:
            raise SettingsError(f"--label {recipe.label} needs a generator that takes labels; see --generator")
        generator = Generator(None, settings.latent or recipe.latent, settings.scale or 1.0)
    else:
        architecture = spaces.architecture(design, classes=teacher.classes, shape=teacher.shape)
        if architecture.space["name"] != "generator":
            name = architecture.space["name"]
            raise SettingsError(f"--generator {design} is of the space {name}; give one that generates images")
        architecture = spaces.architecture(architecture, latent=settings.latent, scale=settings.scale)
        latent, scale = cast(int, architecture.space["latent"]), cast(float, architecture.space["scale"])
        generator = Generator(architecture, latent, scale)
    return _run(method, teacher, student, settings, recipe, generator)


def _run(
    method: str,
    teacher: Teacher,
    student: Architecture | nn.Module | str,
    settings: AgainstGenerator,
    recipe: AdversarialRecipe | FastRecipe,
    generator: Generator,
) -> Trained:
    """Distil, or read the finished run."""
    architecture, test = find_student(student, teacher, settings.seed), settings.open_test()
    recipe, machine = replace(recipe, latent=generator.latent), decide_machine(settings.device, settings.precision)
    if recipe.batch < 2 * machine.world:
        raise SettingsError(f"--batch {recipe.batch} is less than two images for {machine.world} processes; raise it")
    described = _described(teacher)
    identity = {"method": method, "generator": generator.identity, **recipe.identity()}
    if isinstance(architecture, nn.Module):
        design, identity["student"] = None, {"weights": weights.digest(architecture)}
    else:
        design = setup.design(architecture, teacher.classes, teacher.shape, TrainingRecipe())
        identity["student"] = asdict(architecture)
    identity |= {} if test is None else {"test_every": settings.test_every}
    inputs = [teacher.fingerprint, *([] if test is None else [test.fingerprint])]
    run = Run.start("distill", settings, identity, inputs, machine)
    with run.seeded("weights"):
        net = setup.build(architecture, design)
    setup.check_output(net, teacher.shape, described)
    if run.finished is not None:
        say(f"{run.path} is finished")
        final, bare = setup.finish(net, design)
        weights.fit(final, weights.read(run.path / "weights.safetensors"), str(run.path / "weights.safetensors"))
        result = run.finished
    else:
        tests = TestCurve(teacher, test, recipe.epochs, settings.test_every, machine)
        figures = _loop(run, teacher, net, generator, recipe, tests)
        final, bare = setup.finish(net, design)
        info = setup.write(run, final, bare, described, teacher.shape)
        size = {"params": budget.params(final), "macs": budget.macs(final, teacher.shape)}
        same = {"fingerprint": weights.digest(final, info["mean"], info["std"])}  # as evaluate's results have it
        result = run.finish({"method": method, **figures, **size, **same})
    return Trained(final.eval(), dict(read_input(run.path)), run.path, result, bare)


def _loop(
    run: Run,
    teacher: Teacher,
    student: nn.Module,
    generator: Generator,
    recipe: AdversarialRecipe | FastRecipe,
    tests: TestCurve,
) -> dict[str, Any]:
    """Train the student by its method's loop; its figures."""
    with run.seeded("generator"):
        net = generator.build(teacher)
    if isinstance(recipe, FastRecipe):
        figures = fast_datafree.distil(run, teacher, student, net, recipe, tests)
    else:
        figures = adversarial.distil(run, teacher, student, net, generator.classes, recipe, tests)
    return {**figures, **tests.result(), "generator_params": budget.params(net)}


# -- the student ------------------------------------------------------------------------------------------------------


def find_student(student: Architecture | nn.Module | str, teacher: Teacher, seed: int) -> Architecture | nn.Module:
    """The architecture of this name, or the network of one's own code with weights initialized from the seed.

    Raises:
        ArchitectureError: there is none of this name.
    """
    if not isinstance(student, str) or ".py:" not in student:
        return setup.find(student)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return loaders.find(student, True, None).build(teacher.classes, teacher.shape[0])


def _check_soft_labels(teacher: Teacher, data: ImageDataset) -> None:
    """Refuse the stored soft labels of another teacher."""
    known = data.card.teacher or {}
    if not data.soft or known.get("fingerprint") != teacher.fingerprint:
        whose = f"soft labels of {known.get('name', 'another network')}" if data.soft else "hard labels"
        raise DatasetError(
            f"{data.card.name} has {whose}, not soft labels of {teacher.name}; see `phosphene dataset label`"
        )


def _described(teacher: Teacher) -> ImageDataset:
    """One black image whose card describes the teacher's images, which are the student's, too."""
    return ImageDataset.from_arrays(
        np.zeros((1, *teacher.shape), np.uint8),
        labels=[0],
        classes=teacher.classes,
        class_names=list(teacher.class_names) if teacher.class_names else None,
        name=teacher.name,
        mean=list(teacher.mean),
        std=list(teacher.std),
    )
