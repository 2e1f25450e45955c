"""What a generator is trained on: the teacher's answer to its images, and the terms of the published losses.

Every term is lower where the generator does better, and is weighted by the recipe.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import TeacherError
from ..hardware import Machine
from ..objectives import competition, soft_cross_entropy
from ..synthesis.folding import Inside, Layer
from ..synthesis.probe import Probe
from ..teacher import Teacher
from ..weights import head
from .distil_settings import DistilRecipe


class Answer(NamedTuple):
    """A teacher's `logits` ``(N, K)``, the `features` ``(N, F)`` its last linear layer takes, the layers' `gaps`."""

    logits: Tensor
    features: Tensor | None
    gaps: Tensor | None
    """Mean and variance of each BatchNorm layer's input minus the running ones, ``(2, C)``, all layers end to end."""


class Watched:
    """A teacher that is asked for what the terms of a recipe need, and no more.

    Args:
        teacher: the trained network.
        recipe: says by its weights what is needed.
        machine: device, precision and memory layout.

    Raises:
        TeacherError: it has no BatchNorm layer or no linear layer to look at.
    """

    def __init__(self, teacher: Teacher, recipe: DistilRecipe, machine: Machine) -> None:
        self._machine, self._net = machine, machine.place(teacher.net)
        self._moments = Moments(teacher, machine) if recipe.bn else None
        self._features: Tensor | None = None
        if self._moments is not None and not self._moments.layers:
            raise TeacherError(f"{teacher.name} has no BatchNorm layers to hold images to; use --bn 0")
        self._last = None
        if recipe.activation:
            name = (head(teacher.net) or "").removesuffix(".weight")
            self._last = teacher.net.get_submodule(name) if name else None
            if self._last is None:
                raise TeacherError(f"{teacher.name} has no linear layer whose input is looked at; use --activation 0")

    @property
    def channels(self) -> int:
        """How many channels all gaps have together."""
        return 0 if self._moments is None else len(self._moments.owner)

    @torch.no_grad()
    def logits(self, inputs: Tensor) -> Tensor:
        """Logits ``(N, K)`` for normalised `inputs` ``(N, C, H, W)``, without gradients."""
        with self._machine.autocast():
            found: Tensor = self._net(self._machine.place(inputs))
        return found.float()

    def __call__(self, inputs: Tensor) -> Answer:
        """All that the recipe needs, differentiable with respect to the inputs; one pass of the teacher."""
        gaps = features = None
        if self._moments is not None and self._last is None:
            logits, gaps = self._moments.gaps(inputs)
            return Answer(logits, None, gaps)
        handle = self._last.register_forward_pre_hook(self._keep) if self._last is not None else None
        try:
            with self._machine.autocast():
                logits = self._net(self._machine.place(inputs))
        finally:
            if handle is not None:
                handle.remove()
        features, self._features = self._features, None
        if self._moments is not None:
            _, gaps = self._moments.gaps(inputs)
        return Answer(logits.float(), features, gaps)

    def _keep(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._features = args[0].float()

    def norms(self, gaps: Tensor) -> Tensor:
        """Σ_l ‖mean_l‖₂ + ‖var_l‖₂ of gaps (DeepInversion, Fast-Datafree)."""
        squared = self._by_layer(gaps)
        return torch.where(squared > 0, squared.clamp_min(1e-30).sqrt(), 0).sum()  # no gradient at 0, as in norm()

    def squares(self, gaps: Tensor) -> Tensor:
        """The mean over the layers of MSE(mean_l) + MSE(var_l) of gaps (GDFQ's L_BNS)."""
        assert self._moments is not None
        return (self._by_layer(gaps) / self._moments.widths).sum(0).mean()

    def _by_layer(self, gaps: Tensor) -> Tensor:
        """Sums of squares ``(2, L)``."""
        moments = self._moments
        assert moments is not None
        return gaps.new_zeros(2, len(moments.widths)).index_add(1, moments.owner, gaps.square())


class Moments(Probe):
    """A probe that tells every channel's statistics, not only the layers' distances."""

    def __init__(self, teacher: Teacher, machine: Machine) -> None:
        super().__init__(teacher, machine)
        layers, device = self._kept, machine.device
        self.widths = torch.tensor([len(layer.mean) for layer in layers], dtype=torch.long, device=device)
        self.owner = torch.repeat_interleave(torch.arange(len(layers), device=device), self.widths)
        names = ("scale", "shift", "mean", "var")
        joined = [torch.cat([getattr(layer, name).double() for layer in layers]) for name in names] if layers else []
        self._layers = [part.float().to(device) for part in joined]

    def _prepare(self, net: nn.Module, shape: tuple[int, int, int]) -> tuple[Inside, list[Layer], torch.dtype]:
        inside, self._kept, kind = super()._prepare(net, shape)
        return inside, self._kept, kind

    def gaps(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(N, K)``, and how far each channel's mean and biased variance are from the running ones."""
        logits, moments = self._inside(self._machine.place(inputs).to(self._type))
        scale, shift, mean, var = self._layers
        first, second = torch.cat(moments, dim=1)  # of scale·x + shift
        found = torch.stack([(first - shift) / scale, (second - first.square()) / scale.square()])
        return logits.float(), found - torch.stack([mean, var])


def energy(
    recipe: DistilRecipe,
    teacher: Watched,
    answer: Answer,
    ask: Callable[[], Tensor],
    rows: Tensor | None,
    gaps: Tensor | None = None,
) -> dict[str, Tensor]:
    """The generator's terms, weighted; terms of weight 0 are not computed.

    Args:
        recipe: the weights.
        teacher: what gave the answer.
        answer: to the generator's images.
        ask: the student's logits ``(N, K)`` for the same images.
        rows: the labels that the images were made for ``(N, K)``.
        gaps: instead of the answer's, where they are averaged over batches.
    """
    r, terms = recipe, {}
    if r.adversarial:
        against = competition if r.disagreement == "js" else agreement
        terms["adversarial"] = r.adversarial * against(answer.logits, ask())
    if r.label:
        assert rows is not None
        terms["label"] = r.label * soft_cross_entropy(answer.logits, rows)  # AutoReCon eq. 1
    if r.one_hot:
        terms["one_hot"] = r.one_hot * one_hot(answer.logits)
    if r.entropy:
        terms["entropy"] = r.entropy * information(answer.logits)
    if r.activation:
        assert answer.features is not None
        terms["activation"] = r.activation * activation(answer.features)
    if r.bn:
        gaps = answer.gaps if gaps is None else gaps
        assert gaps is not None
        terms["bn"] = r.bn * (teacher.norms(gaps) if r.bn_measure == "norms" else teacher.squares(gaps))
    return terms


def agreement(teacher: Tensor, student: Tensor) -> Tensor:
    """−mean |t − s| over all logits ``(N, K)``: what DFAD's generator lowers (Fang et al. 2019, eq. 4)."""
    return -F.l1_loss(student, teacher)


def one_hot(logits: Tensor) -> Tensor:
    """Cross-entropy to the arg-max of the logits ``(N, K)`` themselves: low = sure (DAFL's L_oh)."""
    return F.cross_entropy(logits, logits.detach().argmax(1))


def information(logits: Tensor) -> Tensor:
    """−H(p̄) in nats, p̄ the batch's mean probabilities, of logits ``(N, K)``: low = all classes alike (DAFL's L_ie)."""
    log = logits.log_softmax(1).logsumexp(0) - math.log(len(logits))  # of p̄; its gradient is finite where p̄ is 0
    return (log.exp() * log).sum()


def activation(features: Tensor) -> Tensor:
    """−mean |f| over all entries of features ``(N, F)``: low = strong features (DAFL's L_a)."""
    return -features.abs().mean()
