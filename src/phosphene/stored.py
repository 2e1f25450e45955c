"""How arrays are stored: centred float16 logits, and statistics measured on the pixel scale 0..1."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import DatasetError

CHUNK = 16 << 20  # bytes read at a time when all images are visited


def centred(logits: np.ndarray, task: str = "single") -> np.ndarray:
    """Logits (N, K) as they are stored: float16, the mean of each row taken off (a softmax does not see it).

    float16 comes back as it is: centring what was rounded once would round it twice.
    """
    if logits.ndim != 2:
        raise DatasetError(f"logits have shape {logits.shape}; (N, K) is needed")
    if logits.dtype == np.float16:
        return logits
    exact = logits.astype(np.float64)
    if task == "single":
        exact -= exact.mean(1, keepdims=True)
    return np.clip(exact, -65504, 65504).astype(np.float16)


def statistics(images: Any, most: int | None = None) -> dict[str, Any]:
    """Per-channel mean and std on the pixel scale 0..1, streamed; over `most` evenly spaced images where given."""
    count, channels = images.shape[0], images.shape[1]
    at = np.arange(count) if most is None or most >= count else np.linspace(0, count - 1, most).astype(np.int64)
    step = max(1, CHUNK // max(1, int(np.prod(images.shape[1:])) * 4))
    total, squares, n = np.zeros(channels), np.zeros(channels), 0
    for part in parts(at, step):
        x = torch.from_numpy(np.array(images[part])).to(torch.float64 if images.dtype != np.uint8 else torch.float32)
        flat = x.transpose(0, 1).reshape(channels, -1)
        total += flat.sum(1, dtype=torch.float64).numpy()
        squares += flat.square().sum(1, dtype=torch.float64).numpy()
        n += flat.shape[1]
    unit = 255.0 if images.dtype == np.uint8 else 1.0
    mean = total / max(n, 1) / unit
    std = np.sqrt(np.maximum(squares / max(n, 1) / unit**2 - mean**2, 0))
    return {"mean": [round(float(x), 6) for x in mean], "std": [round(float(x), 6) for x in std]}


def parts(index: np.ndarray, step: int) -> Iterable[np.ndarray]:
    """The index in pieces of `step`."""
    return (index[i : i + step] for i in range(0, len(index), step))


def array(x: Any) -> np.ndarray:
    """A tensor or anything array-like, as numpy."""
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
