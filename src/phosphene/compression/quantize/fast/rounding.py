"""clamp(round(x / scale), low, high) · scale: for one grid, for a grid per slice, and for full ranges.

A training step rounds every activation and every weight, so that each pass over memory counts, and for weights each
call of torch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ....errors import TeacherError

__all__ = ["NO_GRID", "UNSET", "Round", "RoundSlices", "RoundWhole", "refuse"]

UNSET = "this quantizer has no range yet: let it observe some data, or set its range"
NO_GRID = "cannot be quantized; lower --lr if they are trained, else look into weights and inputs"


def refuse(x: Tensor, scaled: Tensor | None = None) -> None:
    """Raise `TeacherError` where `x` has infinities or NaN.

    One quick sum shows them, of `scaled` where given; only then is every value checked, since finite sums may overflow.
    """
    total = x if scaled is None else scaled
    if not math.isfinite(total.sum().item()) and not bool(x.isfinite().all()):
        raise TeacherError(f"infinities or NaN {NO_GRID}")


class Round(torch.autograd.Function):
    """For scalars; computed in float32, the result and the gradient in the type of `x`.

    Forward takes five passes (division, sum, round, clamp, product; two more for other types), backward one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, low: int, high: int) -> Tensor:
        if math.isnan(scale):
            raise TeacherError(UNSET)
        ctx.save_for_backward(x)
        ctx.ends = (low - 0.5) * scale, (high + 0.5) * scale
        scaled = x.div(scale) if x.dtype == torch.float32 else x.float().div_(scale)
        refuse(x, scaled)  # `scaled` was just written and is in the cache
        return scaled.round_().clamp_(low, high).mul_(scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient where `x` rounds to a value of the grid, else 0."""
        (x,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradient, x, *ctx.ends), None, None, None


class RoundSlices(torch.autograd.Function):
    """For tensors `scale`, `low` and `high` that broadcast over `x`, which is float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.ends = (low - 0.5) * scale, (high + 0.5) * scale
        return x.div(scale).round_().clamp_(low, high).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient where `x` rounds to a value of the grid, else 0."""
        (x,), (low, high) = ctx.saved_tensors, ctx.ends
        return gradient * ((x > low) & (x < high)), None, None, None


class RoundWhole(torch.autograd.Function):
    """The same where each range reaches from the least to the greatest value: no gradient is lost at an end.

    `low` and `high` are of the type of `x`. A value lies beyond the ends only where both ends of a range lie halfway
    between two values: they are rounded to the even ones, which may be one too many.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
        rounded = x.div(scale).round_()
        torch.maximum(rounded, low, out=rounded)  # a clamp between tensors took five times as long
        torch.minimum(rounded, high, out=rounded)
        return rounded.mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient itself."""
        return gradient, None, None, None
