"""Candidates on a trained supernet: BatchNorm statistics of each path anew, then its score on held-out images.

    for each candidate a:                                                             (SPOS, §3.4)
        pass training images through path a in training mode; each BatchNorm keeps the average over the batches
        pass held-out images through path a in evaluation mode; score its answers

Statistics of all paths together fit none of them, hence the first pass. Images are decoded once for all candidates.
Where a supernet is layers in a row, candidates that begin with the same layers share what these compute, statistics
included: BatchNorm of a layer depends on the layers before it alone. The scores are the same bits as without sharing.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import spaces, weights
from .augment import View
from .core import Batch, Choices, SearchSpace
from .dataset import ImageDataset, batches
from .errors import DatasetError, RunError, SettingsError, TeacherError
from .files import read_json
from .hardware import Machine
from .hardware import machine as decide_machine
from .spaces.chain import ChainSupernet

KEPT = 2**31
"""bytes of shared maps that are held at most; beyond, layers are computed again"""


class Figures(NamedTuple):
    """How well a path answers. `kl`: −KL(rows ‖ answers) at T, nats an image, 0 at best; `accuracy`: 0 to 1."""

    kl: float
    accuracy: float


class State(NamedTuple):
    """What layers made of the images so far, batch by batch: of those for the statistics, and of the held-out ones."""

    fitted: list[Tensor]
    scored: list[Tensor]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(x.numel() * x.element_size() for x in (*self.fitted, *self.scored))


# -- scores ----------------------------------------------------------------------------------------------------------


def top1(output: Tensor, batch: Batch) -> float:
    """The share of images whose arg-max is the row's: the score where rows sum to 1."""
    return float((output.argmax(1) == batch.targets.argmax(1)).float().mean())


def findings(output: Tensor, batch: Batch) -> float:
    """The share of labelled findings whose logit has the right sign: the score where findings are independent."""
    known = ~batch.targets.isnan()
    right = (output > 0) == (batch.targets > 0.5)
    return float(right[known].float().mean()) if known.any() else 0.0


SCORES = {"single": top1, "multi": findings}
"""card.task -> accuracy"""


def divergence(output: Tensor, rows: Tensor, temperature: float, task: str) -> float:
    """KL(rows ‖ answers at T) in nats, the mean over images (of findings: over the labelled ones); in float64.

    Of labels, which are one-hot rows, it is the cross-entropy.

    Args:
        output: logits ``(N, K)``.
        rows: the targets at the same temperature ``(N, K)``; NaN = unlabelled.
        temperature: divides the logits.
        task: "single": rows sum to 1; "multi": independent findings.
    """
    sharp, rows = output.double() / temperature, rows.double()
    if task == "single":
        return float(F.kl_div(sharp.log_softmax(1), rows, reduction="sum") / len(rows))
    known = ~rows.isnan()
    rows, sharp = rows[known], sharp[known]
    entropy = torch.special.entr(rows) + torch.special.entr(1 - rows)
    crossed = F.binary_cross_entropy_with_logits(sharp, rows, reduction="none")
    return float((crossed - entropy).mean()) if len(rows) else 0.0


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
        facts = read_json(folder / "supernet.json")
        space = spaces.space(facts["space"])
        with torch.random.fork_rng(devices=[]):  # its first weights are overwritten
            net = space.supernet()
        try:
            net.load_state_dict(weights.read(folder / "supernet.safetensors", "--supernet"))
        except (RuntimeError, TeacherError) as error:
            raise RunError(f"{folder / 'supernet.safetensors'} cannot be read ({error}); search again") from error
        return cls(space, net.eval(), facts)


@dataclass(frozen=True)
class Scoring:
    """How the candidates of a supernet are scored: everything that a process needs to do it.

    Attributes:
        folder: the supernet's run folder.
        train: images for the BatchNorm statistics.
        valid: held-out images.
        temperature: of rows and answers, where the rows are logits; labels count at 1.
        batch: images at once.
        calibration: batches for the statistics; 0 keeps those of the training.
        images: how many held-out images at most, the same share of each class.
        crop: side of the middle of the images that the network sees; None: all of it.
        seed: of the draw of those images.
        device, precision: as for `hardware.machine`.
        share: whether candidates share their first layers.
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

    def scorer(self) -> Scorer:
        """The supernet with the images, ready.

        Raises:
            RunError: the folder has no supernet.
            SettingsError: a number cannot be used.
            DatasetError: the images do not fit the supernet.
        """
        here = decide_machine(self.device, self.precision)
        found = Supernet.open(self.folder)
        self.check(found.space)
        return Scorer(found.space, found.net, self, here)

    def check(self, space: SearchSpace) -> None:
        """Raise unless numbers and images fit the supernet's space."""
        for flag, value, least in (("--score-batch", self.batch, 1), ("--calibration", self.calibration, 0)):
            if value < least:
                raise SettingsError(f"{flag} {value} is less than {least}")
        if not self.temperature > 0:
            raise SettingsError(f"--temperature {self.temperature} is not above 0")
        if self.images is not None and self.images < 1:
            raise SettingsError(f"--score-images {self.images} is less than 1")
        if not len(self.valid) or (self.calibration and not len(self.train)):
            raise SettingsError("no image is left to score, or for the statistics; hold out fewer, or give more data")
        card, (channels, height, width) = self.valid.card, space.spec["shape"]
        inside = self.crop is not None and self.crop <= min(card.shape[1:])
        size = (card.shape[0], *((self.crop, self.crop) if inside else card.shape[1:]))
        if size != (channels, height, width) or card.classes != space.spec["classes"]:
            wants = f"{channels}x{height}x{width} and {space.spec['classes']} classes"
            has = f"{size[0]}x{size[1]}x{size[2]} and {card.classes} classes"
            raise DatasetError(f"data set {card.name!r} has {has}, the supernet {wants}; give data that fit it")


# -- the passes ------------------------------------------------------------------------------------------------------

Piece = tuple[nn.Module, Callable[[Tensor], Tensor]]
"""(what holds the BatchNorm layers, what is called)"""


class Scorer:
    """``scorer(candidates)`` gives the `Figures` of each; nothing of the network changes but running statistics."""

    def __init__(self, space: SearchSpace, net: nn.Module, how: Scoring, machine: Machine) -> None:
        self.space, self.net, self.how, self.machine = space, machine.place(net).eval(), how, machine
        self.names = [decision.name for decision in space.decisions]
        self.task = how.valid.card.task
        self.temperature = how.temperature if how.valid.soft else 1.0
        view, size = View(how.crop), how.batch
        scored = how.valid
        if how.images is not None and how.images < len(scored):
            scored = scored.split(how.images / len(scored), how.seed)[0]
        read = {"augment": view, "temperature": self.temperature, "machine": machine}
        index = (range(k, min(k + size, len(scored))) for k in range(0, len(scored), size))
        held_out = [scored.batch(part, **read) for part in index]  # type: ignore[arg-type]
        drawn = (batches(len(how.train), min(size, len(how.train)), how.seed, k) for k in range(how.calibration))
        fitted = [how.train.batch(part, **read).inputs for part in drawn]  # type: ignore[arg-type]
        self.rows = [batch.targets for batch in held_out]
        self.start = State(fitted, [batch.inputs for batch in held_out])
        if isinstance(net, ChainSupernet) and how.share:
            with torch.no_grad():
                self.start = self._through((net.first, net.first), self.start)  # the same for all candidates
        self.in_parts = isinstance(net, ChainSupernet)

    @torch.no_grad()
    def __call__(self, candidates: Sequence[Choices]) -> list[Figures]:
        """The figures of each candidate, in order; the order and the company of candidates change nothing."""
        paths = [tuple(choices[name] for name in self.names) for choices in candidates]
        order = sorted(set(paths))
        common = [shared(a, b) if self.in_parts and self.how.share else 0 for a, b in itertools.pairwise(order)]
        held: dict[int, State] = {0: self.start}
        found: dict[tuple[int, ...], Figures] = {}
        for k, path in enumerate(order):
            begin = common[k - 1] if k else 0
            held = {depth: state for depth, state in held.items() if depth <= begin}
            depth = max(held)
            state, wanted = held[depth], later(common[k:], depth)
            for piece in self._pieces(path)[depth:]:
                state, depth = self._through(piece, state), depth + 1
                if depth in wanted and sum(s.size for s in held.values()) + state.size <= KEPT:
                    held[depth] = state
            found[path] = self._figures(state.scored)
        return [found[path] for path in paths]

    def _pieces(self, path: tuple[int, ...]) -> list[Piece]:
        """What a candidate computes after the shared start: one piece a decision and the end, or all in one."""
        net: Any = self.net
        if not self.in_parts:
            gates = dict(zip(self.names, path, strict=True))
            return [(net, lambda x: net(x, gates))]
        chosen = [layer.options[option] for layer, option in zip(net.layers, path, strict=True)]
        first = [] if self.how.share else [net.first]
        return [(module, module) for module in (*first, *chosen, net.last)]

    def _through(self, piece: Piece, state: State) -> State:
        """Both passes through one piece: statistics first, then the held-out images with them."""
        module, forward = piece
        with self.machine.autocast():
            with averaging(module) if state.fitted else contextlib.nullcontext():
                fitted = [forward(x) for x in state.fitted]
            return State(fitted, [forward(x) for x in state.scored])

    def _figures(self, outputs: list[Tensor]) -> Figures:
        """Means over all held-out images."""
        total, answers, rows = sum(map(len, outputs)), torch.cat(outputs).float(), torch.cat(self.rows)
        assert total == len(rows)
        kl = -divergence(answers, rows, self.temperature, self.task)
        return Figures(kl, SCORES[self.task](answers, Batch(answers, rows)))


@contextlib.contextmanager
def averaging(module: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm starts anew, normalises each batch by itself and averages over the batches; dropout rests."""
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    module.train()
    for layer in module.modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            layer.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the average of all batches
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        module.eval()


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first options two paths have in common."""
    return next((k for k, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))


def later(common: Sequence[int], depth: int) -> set[int]:
    """The depths, deeper than `depth`, from which later paths go on; `common`: of this path and the next, and so on."""
    found: set[int] = set()
    for low in itertools.accumulate(common, min):
        if low <= depth:
            break
        found.add(low)
    return found


def canonical(space: SearchSpace, choices: Choices) -> Choices:
    """The choices that stand for all networks alike, where the space knows them as choices; else the choices."""
    known = getattr(space, "canonical", None)
    found = None if known is None else known(choices)
    return dict(found) if isinstance(found, Mapping) else dict(choices)
