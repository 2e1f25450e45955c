"""A generator and a quantized student by turns: GDFQ (Xu et al. 2020), and AutoReCon with its searched generators.

    generator:  L_G = CE(teacher, label) + .1 L_BNS                      GDFQ eqs. 3-4, AutoReCon eq. 1
    student:    L_S = λ CE(student, label) + κ T² KL(teacher ‖ student)  GDFQ eq. 6, on the same images, detached

Both need the teacher's logits of the same images: they are computed once a step, in the generator's own forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ... import spaces
from ...core import Architecture
from ...costs import budget
from ...errors import SettingsError
from ...synthesis.generator.images import check_space
from ...synthesis.generator.latents import LabelMixing, Latents
from ...synthesis.generator.loss import GeneratorLoss, Reconstruction, View, ViewSettings
from ...synthesis.generator.train import BETAS, CHECKED, Trained, agreement, load, macs_of, view_facts, write
from ...synthesis.generator.train import resolve as generator_for
from ...teachers.teacher import Teacher
from .finetune import Seen, fine_tune, learning_rate
from .job import Job
from .methods import Generated, GeneratorSettings
from .network import Quantized

__all__ = ["Generator", "Turns", "alternate", "published", "resolve"]

SMALL = 64  # pixels a side, up to which GDFQ's and AutoReCon's generators for CIFAR are taken
SEARCHED = {"resnet18": "autorecon-resnet18", "resnet50": "autorecon-resnet50", "mobilenetv2": "autorecon-mobilenetv2"}
"""for inputs larger than that: AutoReCon's generator for a network of this name"""
PUBLISHED_VIEW = ViewSettings(clip=False)  # `generator train` clamps, since it stores images as bytes


@dataclass(frozen=True)
class Generator:
    """Architecture, view of its images and initial weights (`start`; None: random) that the settings name."""

    settings: GeneratorSettings
    architecture: Architecture
    view: ViewSettings = PUBLISHED_VIEW
    start: Trained | None = None

    @property
    def learns(self) -> bool:
        """Whether it is trained beside the student."""
        return self.settings.generator_lr > 0

    @property
    def weights(self) -> GeneratorLoss:
        """Weights of the terms of its loss."""
        return GeneratorLoss(label=self.settings.label, bn=self.settings.bn, entropy=self.settings.entropy)

    @property
    def identity(self) -> dict[str, Any]:
        """Its part of a run's identity."""
        start = None if self.start is None else self.start.fingerprint
        rest = {"start": start, "lr": self.settings.generator_lr, **self.settings.keywords(LabelMixing)}
        return asdict(self.architecture) | rest | self.view.identity() | self.weights.identity()

    def latents(self, classes: int, seed: int, stream: str = "train") -> Latents:
        """Latents and targets; only those of training are mixed (Qimera)."""
        mixing = self.settings if stream == "train" else LabelMixing()
        return Latents(classes, self.architecture.space["latent"], seed, stream=stream, mixing=mixing)


def resolve(method: str, settings: Generated, teacher: Teacher) -> Generator:
    """The generator of the settings, for this teacher.

    Raises:
        SettingsError: a flag cannot be used, or there is no default generator for such a teacher.
        ArchitectureError: there is no such generator.
    """
    if settings.generator is None:
        if not settings.generator_lr:
            raise SettingsError("--generator-lr 0 leaves a generator that never learned anything; give --generator RUN")
        arch = settings.arch or published(method, teacher)
        architecture = generator_for(arch, teacher, latent=settings.latent, scale=settings.scale)
        return Generator(settings, architecture, _view(settings, PUBLISHED_VIEW))
    _check_start(settings)
    start = load(settings.generator)
    check_space(start, teacher, settings.generator)
    return Generator(settings, start.architecture, _view(settings, start.view), start)


def _view(settings: GeneratorSettings, default: ViewSettings) -> ViewSettings:
    """The flags that are set, over a default."""
    return ViewSettings(
        low_pass=default.low_pass if settings.low_pass is None else settings.low_pass,
        clip=default.clip if settings.clip is None else settings.clip,
    )


def _check_start(settings: GeneratorSettings) -> None:
    """Raise where a flag has no use beside a trained generator."""
    for name in ("arch", "scale", "latent"):
        if getattr(settings, name) is not None:
            raise SettingsError(f"--{name} {getattr(settings, name)}: --generator brings its own; leave one out")
    for name in ("label", "bn", "entropy"):
        if not settings.generator_lr and getattr(settings, name) != getattr(GeneratorSettings, name):
            raise SettingsError(f"--{name} is for a generator that learns; --generator-lr is 0")


def published(method: str, teacher: Teacher) -> str:
    """The generator published for networks like the teacher; raises `SettingsError` where there is none."""
    small = max(teacher.shape[1:]) <= SMALL
    if method != "autorecon":
        return "gdfq-cifar" if small else "gdfq-imagenet"
    if small:
        return "autorecon-cifar100" if teacher.classes == 100 else "autorecon-cifar10"
    name = teacher.name.lower().replace("_", "").replace("-", "")
    for network, generator in SEARCHED.items():
        if name.endswith(network):
            return generator
    raise SettingsError(
        f"quantize autorecon: no generator was published for {teacher.name} at {teacher.shape[1]}x{teacher.shape[2]}; "
        f"search one (`phosphene search gumbel --space generator`) and give --arch RUN, or one of "
        f"{', '.join(SEARCHED.values())}"
    )


def alternate(job: Job[Generated], generator: Generator) -> tuple[Quantized, dict[str, Any]]:
    """Train generator and student alternately: first the generator alone while ranges are observed, then both."""
    source = Turns(job, generator)
    student, figures = fine_tune(job, source)
    return student, figures | source.close()


class Turns:
    """A `Source` that trains a generator by one step for each batch, before the student takes it.

    With a learning rate of 0 the generator stays as it is: it is then in evaluation mode, as when images are stored.
    """

    def __init__(self, job: Job[Generated], generator: Generator) -> None:
        self.job, self.generator, self.machine = job, generator, job.run.machine
        with job.run.seeded("generator"):
            net = spaces.network(generator.architecture)
        if generator.start is not None:  # a warm-up of its own, which does not depend on the bits
            net.load_state_dict(generator.start.net.state_dict())
        self.net: nn.Module = self.machine.place(net).train(generator.learns).requires_grad_(generator.learns)
        self.machine.agree(self.net)
        self.states: dict[str, Any] = {"generator": self.net}
        self.share = max(2, job.settings.batch // self.machine.world)  # this rank's images; BatchNorm needs two
        self.train = generator.latents(job.teacher.classes, job.run.seed)
        self.view = View(job.teacher, self.machine, generator.view)
        self.last: dict[str, Tensor] = {}
        if generator.learns:
            self.loss = Reconstruction(job.teacher, self.machine, generator.weights, generator.view)
            self.adam = torch.optim.Adam(self.net.parameters(), generator.settings.generator_lr, BETAS)
            self.states["adam"] = self.adam

    @property
    def warmup(self) -> int:
        """Steps before the student's: none are needed where nothing has to be learned or averaged first."""
        needed = self.generator.learns or self.job.settings.ranges == "minmax"
        return self.job.settings.warmup_steps if needed else 0

    def batch(self, step: int) -> Seen:
        """One step of the generator; the batch that it was taken on, and the teacher's logits of it."""
        number = step * self.machine.world + self.machine.rank  # every rank has latents of its own
        inputs, targets = self.train.batch(number, self.share)  # z ~ N(0, 1), y uniform
        if not self.generator.learns:
            return self._seen(inputs, targets)
        targets = self.machine.place(targets)
        with self.machine.autocast():
            images: Tensor = self.net(self.machine.place(inputs))  # G(z|y)
        terms, logits = self.loss.terms(images, targets)  # eqs. 3-4, and the teacher's logits for eq. 6
        self._descend(torch.stack(list(terms.values())).sum(), step)
        self.last = {f"generator_{name}": term.detach() for name, term in terms.items()}
        self.last["agreement"] = agreement(logits.detach(), targets)
        # the images of before this step, as in the published code; a second pass of generator and teacher is saved
        return Seen(self.view(images.detach()), logits.detach(), targets)

    @property
    def sampled(self) -> int:
        """`--images`, in full batches."""
        return -(-self.job.settings.images // self.share) * self.share

    def sample(self) -> Iterator[Tensor]:
        """Images of latents that are never trained on, the same on every rank."""
        latents = self.generator.latents(self.job.teacher.classes, self.job.run.seed, "ranges")
        for chunk in range(self.sampled // self.share):
            with torch.no_grad(), self.machine.autocast():
                images = self.net(self.machine.place(latents.batch(chunk, self.share).inputs))
            yield self.machine.place(self.view(images))

    @property
    def name(self) -> str:
        """These images in a result."""
        return "generated images"

    def figures(self) -> dict[str, Tensor]:
        """Terms of the generator's loss and the agreement in the last batch."""
        return self.last

    def close(self) -> dict[str, Any]:
        """Save the generator beside the result; its size, and how often the teacher predicts the label of an image."""
        job, generator = self.job, self.generator
        if not job.run.estimating:
            facts = {"teacher": job.teacher.describe(), "view": view_facts(generator.view)}
            write(job.run, generator.architecture, self.net, facts)
        return {**_described(generator.architecture, self.net), "generator_agreement": self._agreement()}

    def _agreement(self) -> float:
        """Percent of new images, each generated by itself, whose likeliest class is their label."""
        self.net.eval()  # BatchNorm with its running statistics: an image depends on its own latent alone
        latents = self.generator.latents(self.job.teacher.classes, self.job.run.seed, "test")
        batches = [latents.batch(chunk, self.job.settings.batch) for chunk in range(CHECKED)]
        seen = [self._seen(*batch) for batch in batches]
        return round(float(torch.stack([agreement(one.logits, one.targets) for one in seen]).mean()), 4)

    def _descend(self, loss: Tensor, step: int) -> None:
        """One step of Adam; the rate is constant in the warm-up and then falls as the student's does."""
        done = max(0, step - self.warmup)  # steps of the student
        rate = learning_rate(self.job.settings, done, self.generator.settings.generator_lr)
        self.adam.param_groups[0]["lr"] = rate
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        self.machine.average(p.grad for p in self.net.parameters())  # over ranks
        self.adam.step()

    @torch.no_grad()
    def _seen(self, inputs: Tensor, targets: Tensor) -> Seen:
        """A batch of a generator that stays as it is."""
        with self.machine.autocast():
            images = self.view(self.net(self.machine.place(inputs)))
            logits: Tensor = self.machine.place(self.job.teacher.net)(self.machine.place(images))
        return Seen(images, logits.float(), self.machine.place(targets))


def _described(architecture: Architecture, net: nn.Module) -> dict[str, Any]:
    """The generator in a result."""
    space: Any = spaces.space(architecture.space)
    design = {"generator": space.notation(architecture.choices), "generator_scale": architecture.space["scale"]}
    return {**design, "generator_params": budget.params(net), "generator_macs": macs_of(architecture)}
