"""ZiCo (Li et al. 2023, eq. 15): Σ_l log Σ_ω∈l E|∂L/∂ω| / σ(∂L/∂ω), over minibatches.

Mean and deviation are over minibatches; σ is of the signed gradients, as in the authors' code (their equation has it
of the magnitudes).
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ..core import Batch, Objective
from .passes import gradients

PARTS = 2
"""minibatches, as in the authors' code"""


def zico(net: nn.Module, batch: Batch, objective: Objective, generator: torch.Generator) -> float:
    """Gradients that are large and agree between minibatches; the batch's halves are the two minibatches.

    So it depends on which images are in which half. Weights whose gradients are equal in both are left out, and so are
    layers where all are.
    """
    pieces = zip(batch.inputs.chunk(PARTS), batch.targets.chunk(PARTS), strict=True)
    each = [gradients(net, Batch(*piece), objective) for piece in pieces]
    total = 0.0
    for layer in zip(*each, strict=True):
        stacked = torch.stack(layer).double().flatten(1)
        mean, deviation = stacked.abs().mean(0), stacked.std(0, correction=0)
        varies = deviation > 0
        ratio = float((mean[varies] / deviation[varies]).sum())
        total += math.log(ratio) if ratio > 0 else 0.0
    return total
