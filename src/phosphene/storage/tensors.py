"""Weights in .safetensors: written whole and finite, with a checksum beside them, and read only unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from safetensors.torch import save as packed
from torch import Tensor

from ..errors import NotFinite, PhospheneError, RunError
from . import checksums, finite, whole
from .damage import reading


def save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors into a run's folder, and their checksum.

    Raises:
        NotFinite: one of them has values that are NaN or infinite; nothing is written.
        StorageError: the file cannot be written.
    """
    stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    if bad := finite.first_bad(stored):
        raise NotFinite(f"{path} is not written: {bad}; lower the learning rate, and name another --out")
    whole.write(path, packed(stored))
    checksums.record(path.parent, path.name)


def load(path: Path, error: type[PhospheneError] = RunError, remedy: str = "make it again") -> dict[str, Tensor]:
    """Name -> tensor, on the CPU; raises `error` where the file is missing, damaged or not what was written."""
    checksums.verify(path.parent, path.name, error=error, remedy=remedy)
    with reading(f"{path} cannot be read", remedy, error):
        return load_file(path)
