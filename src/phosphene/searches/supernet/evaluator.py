"""The supernet evaluator: BatchNorm statistics of each candidate's path anew, then its score on held-out images.

    for each candidate a:                                                             (SPOS, §3.4)
        pass training images through path a in training mode; each BatchNorm averages its statistics over the batches
        pass held-out images through path a in evaluation mode; score the predictions

Statistics of all paths together fit none of them, hence the first pass. Images are decoded once for all candidates.
Where a supernet is a chain of layers, candidates that begin with the same layers share their feature maps, statistics
included: BatchNorm of a layer depends on the layers before it alone. The scores are the same bits as without sharing.

`Evaluator.evaluate_or_reject` evaluates on a quarter of the images and of the batches first, and rejects candidates by
that; the others continue from there and get the same bits, too (the rule: `early_stopping`).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import spaces
from ...core import Batch, Choices, SearchSpace
from ...data.augment import View
from ...data.dataset import ImageDataset, batches
from ...errors import DatasetError, NotFinite, RunError, SettingsError, TeacherError
from ...models import weights
from ...runtime.machine import Machine
from ...runtime.machine import machine as decide_machine
from ...spaces.blocks.chain import ChainSupernet
from .facts import read as read_facts
from .shared_prefixes import Maps, Options, Piece, PrefixCache, averaging, common_prefix, statistics

PARTIAL = 0.25
"""share of the held-out images, and of the batches for the statistics, in a partial evaluation"""


By = Literal["kl", "accuracy"]
"""Which of the `Figures` ranks candidates."""


class Figures(NamedTuple):
    """How well a path predicts. `kl`: −KL(targets ‖ predictions) at T, nats an image, 0 at best; `accuracy`: 0 to 1."""

    kl: float
    accuracy: float


class Staged(NamedTuple):
    """A candidate's figures in the partial and in the full evaluation; None: it was rejected after the partial one."""

    partial: Figures
    full: Figures | None


# -- scores ----------------------------------------------------------------------------------------------------------


def top1(output: Tensor, batch: Batch) -> float:
    """Share of images whose predicted class is the targets' arg-max: the accuracy where targets sum to 1."""
    return float((output.argmax(1) == batch.targets.argmax(1)).float().mean())


def multi_label_accuracy(output: Tensor, batch: Batch) -> float:
    """Share of labelled entries (not NaN) whose logit has the right sign: the accuracy of multi-label targets."""
    labelled = ~batch.targets.isnan()
    right = (output > 0) == (batch.targets > 0.5)  # logit 0 is probability 1/2
    return float(right[labelled].float().mean()) if labelled.any() else 0.0


SCORES = {"single": top1, "multi": multi_label_accuracy}
"""card.task -> accuracy"""


def divergence(output: Tensor, targets: Tensor, temperature: float, task: str) -> float:
    """KL(targets ‖ predictions at T) in nats, the mean over images (multi-label: over labelled entries); in float64.

    For one-hot targets it is the cross-entropy.

    Args:
        output: logits ``(N, K)``.
        targets: at the same temperature ``(N, K)``; NaN = unlabelled.
        temperature: divides the logits.
        task: "single": targets sum to 1; "multi": multi-label targets.
    """
    logits, targets = output.double() / temperature, targets.double()
    if task == "single":
        return float(F.kl_div(logits.log_softmax(1), targets, reduction="sum") / len(targets))
    labelled = ~targets.isnan()  # NaN: unlabelled
    targets, logits = targets[labelled], logits[labelled]
    # KL = cross-entropy − entropy of the targets
    entropy = torch.special.entr(targets) + torch.special.entr(1 - targets)  # nats
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return float((cross_entropy - entropy).mean()) if len(targets) else 0.0


# -- the supernet ----------------------------------------------------------------------------------------------------


class Supernet(NamedTuple):
    """A trained supernet from a search's run folder: its space, its network, and what `supernet.json` says."""

    space: SearchSpace
    net: nn.Module
    facts: dict[str, Any]

    @classmethod
    def open(cls, folder: Path | str) -> Supernet:
        """Read `supernet.json` and `supernet.safetensors`.

        Raises:
            RunError: the folder has no supernet, or a damaged one.
        """
        folder = Path(folder)
        if not (folder / "supernet.json").is_file():
            raise RunError(f"{folder} has no supernet.json: name the run folder of a finished search with a supernet")
        facts = read_facts(folder)
        space = spaces.space(facts["space"])
        with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten
            net = space.supernet()
        try:
            file = folder / "supernet.safetensors"
            weights.fit(net, weights.read(file, "--supernet"), str(file))
        except TeacherError as error:
            raise RunError(f"{folder / 'supernet.safetensors'} cannot be read ({error}); search again") from error
        return cls(space, net.eval(), facts)


@dataclass(frozen=True)
class EvaluatorSetup:
    """Everything that a process needs to build an `Evaluator`.

    Attributes:
        folder: the supernet's run folder.
        train: images for the BatchNorm statistics.
        valid: held-out images.
        temperature: of targets and predictions, where soft labels are stored as logits; labels count at 1.
        batch: images per forward pass.
        calibration: batches for the statistics; 0 keeps those of the supernet's training.
        images: held-out images at most, the same share of each class.
        crop: side of the center crop that the network sees; None: the whole image.
        seed: of the sample of those images.
        device, precision: as for `machine.machine`.
        share: whether candidates share the feature maps of their first layers.
    """

    folder: Path
    train: ImageDataset
    valid: ImageDataset
    temperature: float = 1.0
    batch: int = 250
    calibration: int = 4
    images: int | None = None
    crop: int | None = None
    seed: int = 0
    device: str = "cpu"
    precision: str = "fp32"
    share: bool = True

    def evaluator(self) -> Evaluator:
        """The evaluator, with the supernet and the images loaded.

        Raises:
            RunError: the folder has no supernet.
            SettingsError: a number is out of range.
            DatasetError: the images do not fit the supernet.
        """
        machine = decide_machine(self.device, self.precision)
        supernet = Supernet.open(self.folder)
        self.check(supernet.space)
        return Evaluator(supernet.space, supernet.net, self, machine)

    def check(self, space: SearchSpace) -> None:
        """Raise unless numbers and images fit the supernet's space."""
        if not self.temperature > 0:
            raise SettingsError(f"--temperature must be above 0 (got {self.temperature})")
        if not len(self.valid) or (self.calibration and not len(self.train)):
            raise SettingsError("no image is left to score, or for the statistics; lower --held-out, or give more data")
        card, (channels, height, width) = self.valid.card, space.spec["shape"]
        inside = self.crop is not None and self.crop <= min(card.shape[1:])
        size = (card.shape[0], *((self.crop, self.crop) if inside else card.shape[1:]))
        if size != (channels, height, width) or card.classes != space.spec["classes"]:
            wants = f"{channels}x{height}x{width} and {space.spec['classes']} classes"
            has = f"{size[0]}x{size[1]}x{size[2]} and {card.classes} classes"
            raise DatasetError(f"data set {card.name!r} has {has}, the supernet {wants}; give data that fit it")


# -- the passes ------------------------------------------------------------------------------------------------------


class Evaluator:
    """``evaluator(candidates)`` gives the `Figures` of each; only the network's running statistics change."""

    def __init__(self, space: SearchSpace, net: nn.Module, setup: EvaluatorSetup, machine: Machine) -> None:
        self.space, self.net, self.setup, self.machine = space, machine.place(net).eval(), setup, machine
        self.names = [decision.name for decision in space.decisions]
        self.task = setup.valid.card.task
        self.temperature = setup.temperature if setup.valid.soft else 1.0  # labels count at T = 1
        self.held_out = setup.valid
        if setup.images is not None and setup.images < len(setup.valid):
            self.held_out = setup.valid.split(setup.images / len(setup.valid), setup.seed)[0]
        count, size = len(setup.train), min(setup.batch, len(setup.train))
        indices = (batches(count, size, setup.seed, k) for k in range(setup.calibration))  # the same for all candidates
        calibration = [self._read(setup.train, index).inputs for index in indices]
        held_out = self._batches(self.held_out)
        self.targets = [batch.targets for batch in held_out]
        self.start = Maps(calibration, [batch.inputs for batch in held_out])
        self.partial_calibration = calibration[: math.ceil(PARTIAL * len(calibration))]  # a quarter of the batches
        if isinstance(net, ChainSupernet) and setup.share:
            with torch.no_grad():
                self.start = self._through((net.first, net.first), self.start)  # the same for all candidates
        self.is_chain = isinstance(net, ChainSupernet)

    @torch.no_grad()
    def __call__(self, candidates: Sequence[Choices]) -> list[Figures]:
        """The figures of each candidate, in order, whatever the order and the other candidates are."""
        paths, order, common = self._ordered(candidates)
        prefixes, figures = PrefixCache(self.start), dict[Options, Figures]()
        for k, path in enumerate(order):
            maps = prefixes(path, self._pieces(path), common[k:], lambda _, piece, maps: self._through(piece, maps))
            figures[path] = self._figures(maps.held_out, self.targets)
        return [figures[path] for path in paths]

    @torch.no_grad()
    def evaluate_or_reject(self, candidates: Sequence[Choices], by: By, thresholds: Sequence[float]) -> list[Staged]:
        """As a call, but a candidate whose figure `by` is below its threshold in the partial evaluation is rejected.

        The partial evaluation has `PARTIAL` of the held-out images, the same share of each class, and the statistics of
        the same share of the batches. Those of the other candidates continue from there: the same bits as in a call.
        """
        paths, order, common = self._ordered(candidates)
        threshold = dict(zip(paths, thresholds, strict=True))
        start, rest, targets = self._partial
        partial_prefixes, full_prefixes = PrefixCache(start), PrefixCache(rest)
        partial_statistics: list[list[Tensor]] = []  # of each piece of this path, after the partial evaluation
        staged: dict[Options, Staged] = {}

        def begin(depth: int, piece: Piece, maps: Maps) -> Maps:
            maps = self._through(piece, maps)
            partial_statistics[depth:] = [statistics(piece[0])]
            return maps

        def resume(depth: int, piece: Piece, maps: Maps) -> Maps:
            return self._through(piece, maps, partial_statistics[depth])

        for k, path in enumerate(order):
            pieces = self._pieces(path)
            partial = self._figures(partial_prefixes(path, pieces, common[k:], begin).held_out, targets)
            staged[path] = Staged(partial, None)  # rejected, unless it goes on
            if not getattr(partial, by) < threshold[path]:
                maps = full_prefixes(path, pieces, common[k:], resume)
                staged[path] = Staged(partial, self._figures(maps.held_out, self.targets))
        return [staged[path] for path in paths]

    def _ordered(self, candidates: Sequence[Choices]) -> tuple[list[Options], list[Options], list[int]]:
        """(the path of each, all paths sorted and each once, how many layers each of these shares with the next)."""
        paths = [tuple(choices[name] for name in self.names) for choices in candidates]
        order = sorted(set(paths))  # so that neighbours share most layers
        sharing = self.is_chain and self.setup.share
        return paths, order, [common_prefix(a, b) if sharing else 0 for a, b in itertools.pairwise(order)]

    @functools.cached_property
    def _partial(self) -> tuple[Maps, Maps, list[Tensor]]:
        """(inputs of the partial evaluation, those of the rest, the targets of the partial one)."""
        net: Any = self.net
        images = self._batches(self.held_out.split(PARTIAL, self.setup.seed)[0])
        start = Maps(self.partial_calibration, [batch.inputs for batch in images])
        if self.is_chain and self.setup.share:
            start = self._through((net.first, net.first), start)
        rest = Maps(self.start.calibration[len(self.partial_calibration) :], self.start.held_out)
        return start, rest, [batch.targets for batch in images]

    def _read(self, images: ImageDataset, index: Sequence[int] | Tensor) -> Batch:
        view, T = View(self.setup.crop), self.temperature
        return images.batch(index, augment=view, temperature=T, machine=self.machine)

    def _batches(self, images: ImageDataset) -> list[Batch]:
        count, size = len(images), self.setup.batch
        return [self._read(images, range(k, min(k + size, count))) for k in range(0, count, size)]

    def _pieces(self, path: tuple[int, ...]) -> list[Piece]:
        """What a candidate computes after the shared start: a piece for each decision and the end, or all in one."""
        net: Any = self.net
        if not self.is_chain:
            gates = dict(zip(self.names, path, strict=True))
            return [(net, lambda x: net(x, gates))]
        chosen = [layer.options[option] for layer, option in zip(net.layers, path, strict=True)]
        first = [] if self.setup.share else [net.first]
        return [(module, module) for module in (*first, *chosen, net.last)]

    def _through(self, piece: Piece, maps: Maps, since: list[Tensor] | None = None) -> Maps:
        """Both passes through one piece: statistics first (continuing those in `since`), then the held-out images."""
        module, forward = piece
        calibrates = bool(maps.calibration) or since is not None
        with self.machine.autocast():
            with averaging(module, since) if calibrates else contextlib.nullcontext():
                calibration = [forward(x) for x in maps.calibration]  # training images: statistics of this path
            return Maps(calibration, [forward(x) for x in maps.held_out])  # held-out images, with them

    def _figures(self, outputs: list[Tensor], targets: list[Tensor]) -> Figures:
        """Means over all images."""
        output, target = torch.cat(outputs).float(), torch.cat(targets)
        kl = -divergence(output, target, self.temperature, self.task)  # 0 at best
        figures = Figures(kl, SCORES[self.task](output, Batch(output, target)))
        if not all(map(math.isfinite, figures)):
            remedy = "look at the supernet's weights, the targets and --temperature"
            raise NotFinite(f"a candidate's score is not finite (−KL {kl:g}, accuracy {figures.accuracy:g}); {remedy}")
        return figures


def canonical(space: SearchSpace, choices: Choices) -> Choices:
    """The choices that represent all equivalent networks, where the space knows them as choices; else the choices."""
    canonical_of = getattr(space, "canonical", None)
    representative = None if canonical_of is None else canonical_of(choices)
    return dict(representative) if isinstance(representative, Mapping) else dict(choices)
