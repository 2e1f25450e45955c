"""Fake quantization: real numbers rounded to the 2^b values that an integer of b bits can represent.

    q = clamp(round(x / scale) + zero_point, 0, 2^b - 1)        x̂ = (q - zero_point) · scale

Asymmetric, so that the range may lie on one side of zero, and zero is always one of the values: padding, rectified
pixels and pruned weights stay exact. Gradients go straight through the rounding and are 0 beyond the ends of the range.

`torch.fake_quantize_per_*_affine` is the same function and is used on CUDA. On a CPU it took 40 ms for two million
values, the four vectorized passes of fast/rounding.py 0.4 ms; and it maps NaN to the lowest value.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...errors import SettingsError, TeacherError
from .fast.rounding import NO_GRID, UNSET, Round, RoundSlices, RoundWhole, refuse

__all__ = ["BITS", "ActivationQuantizer", "WeightQuantizer", "codes", "fake_quantize", "grid", "levels", "span"]

BITS = (2, 8)
"""fewest and most"""


def levels(bits: int) -> int:
    """The highest code, 2^b - 1; raises `SettingsError` for widths that are not 2 to 8 bits."""
    if not BITS[0] <= bits <= BITS[1]:
        raise SettingsError(f"{bits} bits: give {BITS[0]} to {BITS[1]}")
    return (1 << bits) - 1


def grid(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale (float32) and zero point (int32 in 0..2^b - 1) of the ranges from `low` to `high`, of any one shape.

    A range is widened to include zero. One with nothing in it but zero gets scale 1.

    Raises:
        SettingsError: no such width.
        TeacherError: a range is not finite (on CUDA, where a check would wait for the device, the scale is NaN).
    """
    scale, zeros = _grid(low, high, levels(bits))
    return scale, zeros.int()


def _grid(low: Tensor, high: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The same with the zero points as float32, in few operations: a training step needs the grid of every weight.

    They are in 0..top without a clamp: a range includes zero, so that -low / scale exceeds top by 1e-7 at most.
    """
    low, high = low.float().clamp_max(0), high.float().clamp_min(0)
    scale = (high - low).div_(top)  # 2^b - 1 steps
    if scale.device.type == "cuda":
        scale = scale.masked_fill(~scale.isfinite(), torch.nan)
    elif not math.isfinite(scale.sum().item()):
        _refuse_ends(low, high, scale)
    scale = scale.masked_fill_(scale < torch.finfo(torch.float32).tiny, 1.0)  # nothing but zero
    return scale, low.div_(scale).round_().neg_()


def _refuse_ends(low: Tensor, high: Tensor, scale: Tensor) -> None:
    """Raise for the first scale that is not finite, if there is one: sums overflow, too."""
    if not bool(scale.isfinite().all()):
        at = int((~scale.isfinite()).flatten().nonzero()[0])
        ends = f"{float(low.flatten()[at]):g} to {float(high.flatten()[at]):g}"
        raise TeacherError(f"infinities or NaN, from {ends}, {NO_GRID}")


def span(x: Tensor, axis: int | None = None) -> tuple[Tensor, Tensor]:
    """Least and greatest value, of all of `x` or of each slice along `axis` ``(C,)``; no gradient."""
    x = x.detach()
    if axis is None:
        low, high = torch.aminmax(x)
        return low, high
    others = [i for i in range(x.ndim) if i != axis % x.ndim]
    return x.amin(others), x.amax(others)  # an aminmax along one dimension took ten times as long


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, axis: int | None = None) -> Tensor:
    """`x` on the grid, of the same shape and type; computed in float32.

    Args:
        scale, zero_point: from `grid`: scalars, or ``(C,)`` with `axis`.
        axis: the one with a grid per slice.

    Raises:
        TeacherError: `x` has infinities or NaN, or the grid was never set (on CUDA the result is NaN).
    """
    top = levels(bits)
    if x.device.type == "cuda":
        return _by_torch(x, scale, zero_point, top, axis)
    if axis is None:
        zero = int(zero_point)
        result: Tensor = Round.apply(x, scale.item(), -zero, top - zero)
        return result
    refuse(x.detach())
    if scale.isnan().any():
        raise TeacherError(UNSET)
    shape = _along(x, axis)
    zeros = zero_point.view(shape)
    rounded: Tensor = RoundSlices.apply(x.float(), scale.view(shape), -zeros, top - zeros)
    return rounded.to(x.dtype)


def _along(x: Tensor, axis: int | None) -> list[int]:
    """The shape in which values of this axis' slices broadcast over `x`."""
    return [] if axis is None else [-1 if i == axis % x.ndim else 1 for i in range(x.ndim)]


def _by_torch(x: Tensor, scale: Tensor, zero_point: Tensor, top: int, axis: int | None) -> Tensor:
    """One kernel, without waiting for the device: one value that is not finite makes the entire result NaN."""
    scale = scale + 0 * x.detach().sum(dtype=torch.float32)  # 0 · inf = NaN
    if axis is None:
        return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero_point, 0, top).to(x.dtype)
    return torch.fake_quantize_per_channel_affine(x.float(), scale, zero_point, axis, 0, top).to(x.dtype)


def codes(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, axis: int | None = None) -> Tensor:
    """The integers q of `x`, uint8, of its shape."""
    shape = _along(x, axis)
    q = (x.detach().float() / scale.view(shape)).round() + zero_point.view(shape)
    return q.clamp(0, levels(bits)).to(torch.uint8)


class WeightQuantizer(nn.Module):
    """A parametrization (`torch.nn.utils.parametrize`): the weight on its grid, least to greatest value at each call.

    Args:
        weight: of the shape that the grids are for.
        bits: 2 to 8.
        axis: that of the output channels, each with a grid; None: one grid for the tensor.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, weight: Tensor, bits: int, axis: int | None = 0) -> None:
        super().__init__()
        self.bits, self.axis = bits, axis
        self.enabled = True
        self.fixed = False
        """whether the grid is the one in the buffers, set by `fix`, instead of the weight's own"""
        scale, zero_point = self.grid(weight)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)

    def grid(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point ``(C,)``, or scalars, of a weight."""
        return (self.scale, self.zero_point) if self.fixed else grid(*span(weight, self.axis), self.bits)

    def fix(self, weight: Tensor) -> None:
        """Keep this weight's grid from now on."""
        scale, zero_point = self.grid(weight)
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)
        self.fixed = True

    def forward(self, weight: Tensor) -> Tensor:
        """The quantized weight, of the same shape."""
        if not self.enabled:
            return weight
        if self.fixed or weight.device.type == "cuda":
            return fake_quantize(weight, *self.grid(weight), self.bits, self.axis)
        # the same as `fake_quantize` in fewer calls: the range is the weight's own, so that nothing lies beyond it
        top, shape = levels(self.bits), _along(weight, self.axis)
        scale, zeros = (part.view(shape) for part in _grid(*span(weight, self.axis), top))
        rounded: Tensor = RoundWhole.apply(weight.float(), scale, -zeros, top - zeros)
        return rounded.to(weight.dtype)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, axis={self.axis}"


class ActivationQuantizer(nn.Module):
    """One grid for a tensor; its range is a moving average while `observing`, and fixed otherwise.

    m_t = d·m_{t-1} + (1 - d)·x_t begins at 0, so that m_t / (1 - d^t) is the average (Kingma and Ba 2015, §3). The
    divisor is averaged beside the ends, and m_t is stored uncorrected: GDFQ's code corrects it again at every step.
    """

    moving: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, bits: int, decay: float = 0.9) -> None:
        super().__init__()
        levels(bits)
        self.bits, self.decay = bits, decay
        self.enabled = True
        self.observing = False
        self.register_buffer("moving", torch.zeros(3))  # low, high, 1 - d^t
        self.register_buffer("scale", torch.tensor(torch.nan))  # unset
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32))

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Add the range of a tensor of any shape to the average."""
        low, high = span(x)
        self.moving.lerp_(torch.stack([low, high, torch.ones_like(low)]).float(), 1 - self.decay)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Set the grid to that of the current average."""
        self.set_range(*(self.moving[:2] / self.moving[2]))

    @torch.no_grad()
    def set_range(self, low: Tensor | float, high: Tensor | float) -> None:
        """Set the grid to that of this range."""
        least, greatest = (torch.as_tensor(end, device=self.scale.device) for end in (low, high))
        scale, zero_point = grid(least, greatest, self.bits)
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    @property
    def range(self) -> tuple[float, float]:
        """The least and the greatest value of the grid; NaN while it is unset."""
        low = -int(self.zero_point) * float(self.scale)
        return low, low + levels(self.bits) * float(self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """`x` quantized, of the same shape and type."""
        if self.observing:
            self.observe(x)
        return fake_quantize(x, self.scale, self.zero_point, self.bits) if self.enabled else x

    def extra_repr(self) -> str:
        return f"bits={self.bits}, range={self.range}"
