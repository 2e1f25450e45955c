"""Weights files: read without running anything, taken out of their wrappers, fitted to a network, fingerprinted."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import TeacherError, is_memory, shown
from ..storage import checksums, finite

__all__ = ["check", "digest", "fit", "head", "read", "stem"]

WRAPPERS = ("model_ema", "state_dict_ema", "ema", "state_dict", "model", "net", "network")  # averaged weights first
PREFIXES = ("module.", "_orig_mod.")
COUNTERS = ("num_batches_tracked", "n_averaged")
DEEPEST = 16  # wrappers around wrappers, and prefixes before prefixes

LFS = b"version https://git-lfs"
MAGIC = {
    LFS: "is a git LFS pointer, not the weights; run git lfs pull",
    b"<": "is a page of HTML or XML, not weights; download the file itself",
    b"\x89PNG": "is a picture, not weights",
    b"\xff\xd8\xff": "is a picture, not weights",
    b"GIF8": "is a picture, not weights",
    b"\x93NUMPY": "is a numpy array, not weights; save the network's state_dict()",
    b"\x89HDF": "is an HDF5 file, not weights of PyTorch; save the network's state_dict()",
    b"\x1f\x8b": "is compressed by gzip; unpack it first",
}
"""first bytes -> what such a file is, and what to do"""


def read(path: str | Path, flag: str = "--checkpoint") -> dict[str, Tensor]:
    """Name -> tensor of a .safetensors, .pt, .pth or .th file, out of its wrappers; nothing is unpickled but tensors.

    `flag`: the flag that errors name.

    Raises:
        TeacherError: there is no such file, or it holds anything but weights.
    """
    path = Path(path)
    _check_file(path, flag)
    checksums.verify(path.parent, path.name, error=TeacherError, remedy="make it again")
    try:
        if path.suffix == ".safetensors":
            content: object = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # readers of damaged files raise nearly anything
        if is_memory(error):
            raise
        raise TeacherError(f"{flag} {path} {_why(path, error)}") from error
    weights = _strip(_unwrap(content, path, flag))
    for name, tensor in weights.items():
        if odd := _odd(tensor):
            raise TeacherError(f"{flag} {path}: {_shown(name)} is {odd}, not a plain tensor; save those")
    return weights


def _check_file(path: Path, flag: str) -> None:
    """Raise `TeacherError` where there is no file."""
    try:
        folder, there = path.is_dir(), path.is_file()
    except OSError as error:  # a name that is too long, a folder that may not be searched
        raise TeacherError(f"{flag} {path} cannot be read ({error.strerror}); name a file of weights") from error
    if folder:
        raise TeacherError(f"{flag} {path} is a folder; name the file of weights in it")
    if not there:
        raise TeacherError(f"{flag} {path}: there is no such file")


def _why(path: Path, error: Exception) -> str:
    """Why a file of weights was not read, and what to do."""
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as denied:
        return f"cannot be read ({denied.strerror})"
    if kind := _kind(start, path.suffix == ".safetensors"):
        return kind
    if isinstance(error, pickle.UnpicklingError) and start[:1] in (b"P", b"\x80"):  # of torch.save, new or old
        return (
            "holds Python objects beside weights, which are never run; "
            "save its state_dict() alone, best as .safetensors"
        )
    said = "no tensors of PyTorch" if isinstance(error, pickle.UnpicklingError) else _first_line(error)
    return f"cannot be read ({said}); is it complete?"


def _kind(start: bytes, named_safetensors: bool) -> str | None:
    """What a file with this start is, where it is none of weights or has the name of another kind."""
    if not start:
        return "is an empty file; copy or download it again"
    if known := next((said for magic, said in MAGIC.items() if start.lstrip().startswith(magic)), None):
        return known
    if start[:2] == b"PK" and (named_safetensors or b"/data.pkl" not in start):
        return "is a zip archive" + (
            "; name it .pt if `torch.save` wrote it" if b".pkl" in start else "; unpack it first"
        )
    if not named_safetensors and start[8:10] == b'{"':
        return "has the format of safetensors; name it .safetensors"
    text = start.decode("utf-8", "replace")
    broken = "\ufffd" in text[:-1]  # but for a letter cut in two at the end
    return None if broken or not all(c.isprintable() or c.isspace() for c in text) else "is text, not weights"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _unwrap(content: object, path: Path, flag: str) -> dict[str, Tensor]:
    for _ in range(DEEPEST):
        inner = _inside(content)
        if inner is None:
            break
        content = inner
    else:
        raise TeacherError(f"{flag} {path} has wrappers within wrappers without end; save a state_dict() alone")
    entries = content if isinstance(content, Mapping) else {}
    weights = {k: v for k, v in entries.items() if isinstance(k, str) and isinstance(v, Tensor) and k != "n_averaged"}
    if not weights:
        names = [_shown(key) for _, key in zip(range(10), entries, strict=False)]
        kind = f"the keys {', '.join(names)}" if entries else f"a {type(content).__name__}"
        raise TeacherError(f"{flag} {path} has no weights in it, but {kind}; save a state_dict()")
    return weights


def _inside(content: object) -> object | None:
    """What a wrapper is around; None for anything else."""
    if not isinstance(content, Mapping):
        return None
    return next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)


def _strip(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes that all names have."""
    for _ in range(DEEPEST):
        prefix = next((one for one in PREFIXES if all(key.startswith(one) for key in weights)), None)
        if prefix is None:
            break
        weights = {key[len(prefix) :]: value for key, value in weights.items()}
    return weights


def _shown(name: object) -> str:
    """A name for a message: one line, not too long."""
    return shown(name, str) if isinstance(name, str | int | float) else f"a {type(name).__name__}"


def _odd(tensor: object) -> str | None:
    """What sets it apart from a plain tensor; None for one."""
    if not isinstance(tensor, Tensor):
        return f"a {type(tensor).__name__}"
    if is_lazy(tensor):
        return "without a shape yet (of a lazy layer)"
    if tensor.device.type == "meta":
        return "on the device meta, without values"
    if tensor.layout is not torch.strided or tensor.is_quantized:
        return "quantized" if tensor.is_quantized else "sparse"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"of {tensor.numel()} values, which share the memory of fewer"
    return None


def check(tensors: Mapping[str, object], name: str) -> None:
    """Raise `TeacherError` where an entry is no plain tensor or has values that are not finite; counters may."""
    for key, tensor in tensors.items():
        if odd := _odd(tensor):
            raise TeacherError(f"{name}: {_shown(key)} is {odd}, not a plain tensor")
    bad = [(key, count) for key, count in _not_finite(tensors)]
    if bad:
        (key, count), more = bad[0], f", and {len(bad) - 1} more tensors have such" if len(bad) > 1 else ""
        values = "value that is" if count == 1 else "values that are"
        raise TeacherError(f"{name}: {_shown(key)} has {count} {values} NaN or infinite{more}; train or save it again")


def _not_finite(tensors: Mapping[str, object]) -> Iterator[tuple[str, int]]:
    """(name, how many values) for every tensor with a NaN or an infinity."""
    for key, tensor in tensors.items():
        if isinstance(tensor, Tensor) and key.rsplit(".", 1)[-1] not in COUNTERS:
            small = tensor.is_floating_point() and tensor.element_size() == 1  # float8 has no isfinite
            if bad := finite.count_bad(tensor.detach().float() if small else tensor.detach()):
                yield key, bad


def fit(net: nn.Module, weights: dict[str, Tensor], name: str) -> None:
    """Load all weights, in the network's precision; `name` is what errors call them.

    Raises:
        TeacherError: with up to ten names of each mismatch, or of the first weight that is not finite.
    """
    own = net.state_dict()
    shared = [key for key in own if key in weights]
    missing = [key for key in own if key not in weights and key.rsplit(".", 1)[-1] not in COUNTERS]
    unexpected = [key for key in weights if key not in own]
    other = [
        f"{key} is {tuple(weights[key].shape)}, not {tuple(own[key].shape)}"
        for key in shared
        if weights[key].shape != own[key].shape
    ]
    kind = [
        f"{key} is {_dtype(weights[key])}, not {_dtype(own[key])}"
        for key in shared
        if key.rsplit(".", 1)[-1] not in COUNTERS and not _alike(weights[key], own[key])
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", other), ("of another type", kind))
    if any(names for _, names in kinds):
        parts = [f"{len(names)} {kind}: {_ten(names)}" for kind, names in kinds if names]
        raise TeacherError(f"{name} does not fit the network. " + ". ".join(parts))
    net.load_state_dict(weights, strict=False)
    check(net.state_dict(), name)


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether values of one type can be taken as the other: another precision is the same number."""
    return (one.is_floating_point(), one.is_complex()) == (other.is_floating_point(), other.is_complex())


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _ten(names: Sequence[str]) -> str:
    return ", ".join(map(_shown, names[:10])) + (", …" if len(names) > 10 else "")


def head(net: nn.Module) -> str | None:
    """The weight of the last linear layer."""
    linear = [name for name, layer in net.named_modules() if isinstance(layer, nn.Linear)]
    return f"{linear[-1]}.weight" if linear else None


def stem(net: nn.Module) -> str | None:
    """The weight of the first convolution, from whose shape the image's channels follow."""
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d):
            return f"{name}.weight" if layer.groups == 1 else None
    return None


def digest(net: nn.Module | Mapping[str, Tensor], mean: Sequence[float] = (), std: Sequence[float] = ()) -> str:
    """sha256 of the weights of a network, or of named tensors, by name, and of the normalisation.

    Raises `TeacherError` where a tensor has no values.
    """
    sha = hashlib.sha256(json.dumps([list(map(float, mean)), list(map(float, std))]).encode())
    tensors = net.state_dict() if isinstance(net, nn.Module) else net
    for name, tensor in sorted(tensors.items()):
        if name.rsplit(".", 1)[-1] not in COUNTERS:
            if is_lazy(tensor) or tensor.is_meta:
                raise TeacherError(f"{_shown(name)} is {_odd(tensor)}: there is nothing trained")
            sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            plain = tensor.detach().cpu().resolve_neg().contiguous()
            sha.update(plain.view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
