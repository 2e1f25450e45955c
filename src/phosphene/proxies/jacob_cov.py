"""jacob_cov (Mellor et al., NAS without training, first version): how differently a network answers to its inputs.

With v_i the eigenvalues of the correlation matrix of the images' Jacobians, −Σ_i (log(v_i + k) + 1 / (v_i + k)): the
score is highest where the Jacobians of different images are uncorrelated.
"""

from __future__ import annotations

import torch
from torch import nn

from ..core import Batch, Objective
from .passes import batch_statistics

K = 1e-5


def jacob_cov(net: nn.Module, batch: Batch, objective: Objective, generator: torch.Generator) -> float:
    """From the gradient of the summed logits by each image. Jacobians that are all zero count as equal."""
    inputs = batch.inputs.detach().clone().requires_grad_()
    with torch.enable_grad():
        (found,) = torch.autograd.grad(batch_statistics(net)(inputs).sum(), inputs, allow_unused=True)
    rows = torch.zeros_like(inputs) if found is None else found
    correlation = torch.corrcoef(rows.flatten(1).double()).nan_to_num(1.0)
    eigenvalues = torch.linalg.eigvalsh(correlation).clamp_min(0)  # rounding may leave one below
    return float(-((eigenvalues + K).log() + 1 / (eigenvalues + K)).sum())
