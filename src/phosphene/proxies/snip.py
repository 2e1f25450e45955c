"""SNIP (Lee et al. 2019), as a score of networks (Abdelfattah et al., §3.1): Σ |∂L/∂θ ⊙ θ|.

θ · ∂L/∂θ is the derivative of the loss by a mask c on the weight, L(c ⊙ θ), at c = 1.
"""

from __future__ import annotations

import torch
from torch import nn

from ..core import Batch, Objective
from .passes import gradients, weights


def snip(net: nn.Module, batch: Batch, objective: Objective, generator: torch.Generator) -> float:
    """The sum over all weights of how much the loss would change, at first order, if they were masked."""
    found = gradients(net, batch, objective)
    return float(sum((w.detach() * g).double().abs().sum() for w, g in zip(weights(net), found, strict=True)))
