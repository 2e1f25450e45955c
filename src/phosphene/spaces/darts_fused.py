"""Pointwise convolution + affine-free BatchNorm as one matrix product, and the α-weighted sum of many as one sum.

With y = P d per pixel, BatchNorm's statistics follow from the moments of d alone: mean(y) = P m and
var(y) = diag(P cov(d) Pᵀ). So normalising is a product with W = P / sd(y) and a shift, y itself is never stored, and a
node's mixed operations are accumulated by products: node = Σ_k α_k (W_k d_k − W_k m_k). Both functions keep only the d
(and ReLU outputs) for the backward pass, which is derived by hand below and differentiable once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Fold(NamedTuple):
    """What BatchNorm makes of K pointwise convolutions; all but `mean` are of shape (K, out, in) or (K, out)."""

    W: Tensor
    """P / sd(y)"""
    bias: Tensor
    """−W m"""
    mean: Tensor
    """m, of the inputs d: (K, in)"""
    Q: Tensor
    """P cov(d)"""
    r: Tensor
    """1 / sd(y)"""
    var: Tensor


def flat(x: Tensor) -> Tensor:
    """``(N, C, H, W)`` as rows of pixels ``(N H W, C)``; a view where the memory is channels_last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def shaped(rows: Tensor, like: Tensor) -> Tensor:
    """Rows of pixels as maps again, in channels_last memory."""
    n, _, h, w = like.shape
    return rows.view(n, h, w, -1).permute(0, 3, 1, 2)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (C,) and second moments (C, C) over pixels, in float32 or better.

    Products round to the type of `x`; in bfloat16 they are taken image by image and averaged in float32.
    """
    rows = flat(x)
    if x.dtype in (torch.float32, torch.float64):
        return rows.mean(0), rows.t() @ rows / len(rows)
    images = rows.view(x.shape[0], -1, x.shape[1])
    ones = images.new_ones(x.shape[0], 1, images.shape[1])
    mean = torch.bmm(ones, images).float().sum((0, 1)) / len(rows)
    return mean, torch.bmm(images.transpose(1, 2), images).float().sum(0) / len(rows)


def fold(P: Tensor, ds: tuple[Tensor, ...], eps: float) -> Fold:
    """The statistics of the K outputs P_k d_k and the products that normalise them; P is (K, out, in)."""
    found = [moments(d) for d in ds]
    mean, second = torch.stack([m for m, _ in found]), torch.stack([s for _, s in found])
    Q = P @ (second - mean[:, :, None] * mean[:, None, :])
    var = (Q * P).sum(2).clamp_min(0)
    r = (var + eps).rsqrt()
    W = P * r[:, :, None]
    return Fold(W, -(W @ mean[:, :, None])[:, :, 0], mean, Q, r, var)


def unfold(P: Tensor, f: Fold, gW: Tensor, gb: Tensor, alpha: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients through `fold` from those of αW and αb: of P, of α, and (S, c) with ∂L/∂d = … + (d S + c) / pixels."""
    through = gW - gb[:, :, None] * f.mean[:, None, :]  # the shift is −W m
    g_alpha = (through * f.W).sum((1, 2))
    if alpha is not None:
        through, gb = through * alpha[:, None, None], gb * alpha[:, None]
    g_var = -0.5 * f.r**3 * (through * P).sum(2)
    gP = through * f.r[:, :, None] + 2 * g_var[:, :, None] * f.Q
    S = 2 * (P * g_var[:, :, None]).transpose(1, 2) @ P
    c = -(f.W.transpose(1, 2) @ gb[:, :, None] + S @ f.mean[:, :, None])[:, :, 0]
    return gP, g_alpha, S, c


class Normalised(torch.autograd.Function):
    """relu(BatchNorm(P_k d_k)) of K maps; also the means and variances of the P_k d_k, without gradients."""

    @staticmethod
    def forward(ctx: Any, eps: float, P: Tensor, *ds: Tensor) -> tuple[Tensor, ...]:
        f = fold(P, ds, eps)
        W, bias = f.W.to(ds[0].dtype), f.bias.to(ds[0].dtype)
        zs = [shaped(torch.addmm(b, flat(d), w.t()).relu_(), d) for d, w, b in zip(ds, W, bias, strict=True)]
        ctx.save_for_backward(P, *f, *ds, *zs)
        ctx.count = len(ds)
        mean = (P @ f.mean[:, :, None])[:, :, 0]
        ctx.mark_non_differentiable(mean, f.var)
        return mean, f.var, *zs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        P, *saved = ctx.saved_tensors
        f, ds, zs = Fold(*saved[:6]), saved[6 : 6 + ctx.count], saved[6 + ctx.count :]
        with torch.autocast(P.device.type, enabled=False):
            gs = [flat(torch.ops.aten.threshold_backward(g, z, 0)) for g, z in zip(grads[2:], zs, strict=True)]
            gW = torch.stack([g.t() @ flat(d) for g, d in zip(gs, ds, strict=True)]).to(P.dtype)
            gb = torch.stack([total(g, d) for g, d in zip(gs, ds, strict=True)]).to(P.dtype)
            gP, _, S, c = unfold(P, f, gW, gb, None)
            into = [through(*each) for each in zip(gs, ds, f.W, S, c, strict=True)]
        return None, gP, *into


class Mixed(torch.autograd.Function):
    """A node: Σ_k α_k BatchNorm(P_k d_k) + Σ_j β_j feature_j; also the means and variances of the P_k d_k."""

    @staticmethod
    def forward(ctx: Any, eps: float, P: Tensor, alpha: Tensor, beta: Tensor, *maps: Tensor) -> tuple[Tensor, ...]:
        ds, features = maps[: len(P)], maps[len(P) :]
        f = fold(P, ds, eps)
        node = (f.bias * alpha[:, None]).sum(0).to(maps[0].dtype).expand(flat(maps[0]).shape[0], -1)
        node = torch.addmm(node[0], flat(ds[0]), (alpha[0] * f.W[0]).to(node.dtype).t())
        for d, w in zip(ds[1:], (f.W * alpha[:, None, None])[1:].to(node.dtype), strict=True):
            node.addmm_(flat(d), w.t())
        for feature, b in zip(features, beta.to(node.dtype), strict=True):
            node.addcmul_(flat(feature), b)
        ctx.save_for_backward(P, alpha, beta, *f, *maps)
        mean = (P @ f.mean[:, :, None])[:, :, 0]
        ctx.mark_non_differentiable(mean, f.var)
        return shaped(node, maps[0]), mean, f.var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        P, alpha, beta, *saved = ctx.saved_tensors
        f, ds, features = Fold(*saved[:6]), saved[6 : 6 + len(P)], saved[6 + len(P) :]
        with torch.autocast(P.device.type, enabled=False):
            g = flat(grads[0])
            gW = torch.stack([g.t() @ flat(d) for d in ds]).to(P.dtype)
            gb = total(g, grads[0]).to(P.dtype).expand(len(P), -1)
            gP, g_alpha, S, c = unfold(P, f, gW, gb, alpha)
            W = f.W * alpha[:, None, None]
            into = [through(g, d, w, s, shift) for d, w, s, shift in zip(ds, W, S, c, strict=True)]
            g_beta = g_features(g, features, beta) if ctx.needs_input_grad[3] else None
            wanted = ctx.needs_input_grad[4 + len(P) :]
            spread = [shaped(g * b, grads[0]) if need else None for b, need in zip(beta.to(g.dtype), wanted, strict=True)]
        return None, gP, g_alpha, g_beta, *into, *spread


def total(g: Tensor, like: Tensor) -> Tensor:
    """Sum of rows, in float32 or better; `like` is the map they came from."""
    if g.dtype in (torch.float32, torch.float64):
        return g.sum(0)
    images = g.view(like.shape[0], -1, g.shape[1])
    return torch.bmm(images.new_ones(len(images), 1, images.shape[1]), images).float().sum((0, 1))


def through(g: Tensor, d: Tensor, W: Tensor, S: Tensor, c: Tensor) -> Tensor:
    """The gradient of one d: through the product and through its moments."""
    rows = flat(d)
    constants = [(x / len(rows)).to(d.dtype) for x in (S, c)]
    into = torch.addmm(constants[1], rows, constants[0])
    return shaped(into.addmm_(g, W.to(d.dtype)), d)


def g_features(g: Tensor, features: list[Tensor], beta: Tensor) -> Tensor:
    """∂L/∂β: the inner product of the node's gradient with each feature."""
    if not features:
        return torch.zeros_like(beta)
    return torch.stack([(g * flat(x)).sum(dtype=beta.dtype) for x in features])
