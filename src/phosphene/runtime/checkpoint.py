"""State on disk: written whole or not at all, checksummed, never unpickled into code."""

from __future__ import annotations

import hashlib
import io
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..storage import whole

_MAGIC = b"phosphene checkpoint 1\n"
_STAMP = len(_MAGIC) + 64 + 1  # magic, hexadecimal sha256, newline


class DamagedError(Exception):
    """The file is cut short or altered."""


def write(path: Path, payload: dict[str, Any]) -> None:
    """Write atomically: a reader sees the old file or the new one; the old one stays beside it as `.before`."""
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    body = buffer.getvalue()
    stamp = _MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n"
    with whole.replacing(path, len(body)) as fresh:
        with open(fresh, "wb") as file:
            file.write(stamp + body)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.replace(path, before(path))


def read(path: Path) -> dict[str, Any]:
    """Read and verify one file; raises `DamagedError` or `FileNotFoundError`."""
    if path.is_dir():
        raise DamagedError(str(path))
    content = path.read_bytes()
    body = content[_STAMP:]
    if not content.startswith(_MAGIC) or content[len(_MAGIC) : _STAMP - 1].decode("ascii", "replace") != (
        hashlib.sha256(body).hexdigest()
    ):
        raise DamagedError(str(path))
    loaded: dict[str, Any] = torch.load(io.BytesIO(body), weights_only=True)
    return loaded


def before(path: Path) -> Path:
    """Where the checkpoint before this one lies."""
    return path.with_name(path.name + ".before")


def capture(thing: Any) -> Any:
    """The state of a module, optimizer, tensor, generator, plain value, or a dict or list of these."""
    if isinstance(thing, torch.Generator):
        return thing.get_state()
    if isinstance(thing, Tensor):
        return thing.detach()
    if hasattr(thing, "state_dict"):
        return thing.state_dict()
    if isinstance(thing, Mapping):
        return {key: capture(value) for key, value in thing.items()}
    if isinstance(thing, list):
        return [capture(value) for value in thing]
    return thing


def restore(thing: Any, state: Any) -> None:
    """Put a captured state back, in place: tensors keep their identity, dicts and lists are refilled."""
    if isinstance(thing, torch.Generator):
        thing.set_state(state)
    elif isinstance(thing, Tensor):
        with torch.no_grad():
            thing.copy_(state)
    elif hasattr(thing, "load_state_dict"):
        thing.load_state_dict(state)
    elif isinstance(thing, dict):
        _refill(thing, state)
    elif isinstance(thing, list):
        _refill_list(thing, state)
    else:
        raise TypeError(f"a {type(thing).__name__} cannot be restored in place; pass a dict or a list that holds it")


def _refill(thing: dict[Any, Any], state: dict[Any, Any]) -> None:
    for key in [key for key in thing if key not in state]:
        del thing[key]
    for key, value in state.items():
        if key in thing and _keeps_identity(thing[key]):
            restore(thing[key], value)
        else:
            thing[key] = value


def _refill_list(thing: list[Any], state: list[Any]) -> None:
    if len(thing) == len(state) and all(map(_keeps_identity, thing)):
        for item, value in zip(thing, state, strict=True):
            restore(item, value)
    else:
        thing[:] = state


def _keeps_identity(thing: Any) -> bool:
    return isinstance(thing, (Tensor, torch.Generator, dict, list)) or hasattr(thing, "load_state_dict")


def capture_randomness() -> dict[str, Any]:
    """The states of the global random generators: torch (every device), numpy, Python."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "python": [version, list(internal), gauss_next],
    }


def restore_randomness(state: dict[str, Any]) -> None:
    """Put the global random generators back."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))


def seed_randomness(*what: object) -> None:
    """Seed every global random generator from these values."""
    digest = hashlib.sha256(repr(what).encode()).digest()
    number = int.from_bytes(digest[:8], "little") >> 1
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)
