"""Checks for NaN and infinities: one pass over the values, in pieces, with nothing copied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PIECE = 1 << 22  # values of an array that are read at a time


def first_bad(tensors: Mapping[str, Tensor]) -> str | None:
    """``name has 3 of 64 values that are not finite`` of the first such tensor; None where all are finite."""
    for name, tensor in tensors.items():
        if bad := count_bad(tensor):
            return f"{name} has {bad:,} of {tensor.numel():,} values that are NaN or infinite"
    return None


def count_bad(tensor: Tensor) -> int:
    """How many values are NaN or infinite."""
    return 0 if is_finite(tensor) else int((~tensor.isfinite()).sum())


def is_finite(tensor: Tensor) -> bool:
    """Whether every value is; integers are.

    A sum that is finite has only finite terms, and costs one pass that stores nothing; one that is not may have
    overflowed, so that the values themselves decide.
    """
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.layout != torch.strided or tensor.is_meta:
        return True
    values = tensor.detach()
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


def bad_values(array: Any, *, nan: bool = False) -> tuple[int, int] | None:
    """(index of the first part with values that are not finite, how many values) of an array ``(N, …)``, or None.

    `nan`: NaN is a value here, as it is for targets that are unlabelled.
    """
    if not np.issubdtype(array.dtype, np.floating):
        return None
    found, first = 0, 0
    for start, piece in _pieces(array):
        bad = np.isinf(piece) if nan else ~np.isfinite(piece)
        if bad.any():
            if not found:
                first = start + int(np.flatnonzero(bad.reshape(len(piece), -1).any(1))[0])
            found += int(bad.sum())
    return (first, found) if found else None


def states(things: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of everything among a loop's states that must stay finite: weights, statistics, tensors."""
    for name, thing in things.items():
        if isinstance(thing, nn.Module):
            yield from ((f"{name}.{key}", value) for key, value in _values(thing))
        elif isinstance(thing, Tensor):
            yield name, thing
        elif isinstance(thing, Mapping):
            yield from ((f"{name}.{key}", value) for key, value in states(thing))
        elif isinstance(thing, list):
            yield from ((f"{name}.{key}", value) for key, value in states({str(i): x for i, x in enumerate(thing)}))


def _values(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _pieces(array: Any) -> Iterator[tuple[int, np.ndarray]]:
    step = max(1, PIECE // max(1, int(np.prod(array.shape[1:]))))
    for start in range(0, len(array), step):
        yield start, np.asarray(array[start : start + step])
