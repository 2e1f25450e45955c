"""NASWOT (Mellor et al. 2021, eqs. 2-3): log |det K_H|, K_H[i, j] = N_A − the Hamming distance of two images' codes.

An image's code says of every rectifier whether it is on: where few images share a linear region, the determinant is
large. Rectifiers are caught as the operations that run, so that functions count as modules do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..core import Batch, Objective
from .passes import batch_statistics

NAMES = ("relu", "hardtanh", "leaky_relu", "_prelu_kernel", "elu", "gelu", "silu", "hardswish")
RECTIFIERS = {
    getattr(torch.ops.aten, name + end) for name in NAMES for end in ("", "_") if hasattr(torch.ops.aten, name + end)
}
"""Activations that are off below 0, or nearly; ReLU6 is a hardtanh."""
LEAST = 1e-3
"""of an eigenvalue of K_H, whose entries are whole numbers: equal images have 0, and rounding may say less"""


class Codes(TorchDispatchMode):
    """Adds up K_H over the rectifiers that run inside."""

    def __init__(self, images: int, device: torch.device) -> None:
        super().__init__()
        self.images, self.kernel = images, torch.zeros(images, images, dtype=torch.float64, device=device)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in RECTIFIERS and len(args[0]) == self.images:
            on = (args[0] > 0).flatten(1).float()
            off = 1 - on
            self.kernel += (on @ on.T + off @ off.T).double()  # whole numbers: exact in float32 up to 2²⁴ rectifiers
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def naswot(net: nn.Module, batch: Batch, objective: Objective, generator: torch.Generator) -> float:
    """log |det K_H| of the batch; images that are equal count as nearly so, where the determinant would be 0."""
    with Codes(len(batch.inputs), batch.inputs.device) as codes:
        batch_statistics(net)(batch.inputs)
    return float(torch.linalg.eigvalsh(codes.kernel).clamp_min(LEAST).log().sum())
