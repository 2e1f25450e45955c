"""grad-norm (Abdelfattah et al., Zero-cost proxies for lightweight NAS, §3.1): Σ_l ‖∂L/∂θ_l‖₂."""

from __future__ import annotations

import torch
from torch import nn

from ..core import Batch, Objective
from .passes import gradients


def grad_norm(net: nn.Module, batch: Batch, objective: Objective, generator: torch.Generator) -> float:
    """The sum over layers of the Euclidean norm of the gradient by their weights, of one batch."""
    return float(sum(gradient.double().norm() for gradient in gradients(net, batch, objective)))
