"""CIFAR-10's and CIFAR-100's own files: python and binary batches, from their folder or their archive.

Pickled batches pass an unpickler that can make numpy arrays and nothing else.
"""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DatasetError
from ...storage.damage import reading
from . import RawImages, ReadSettings, digest_of, from_arrays, resized

BATCHES: dict[str, tuple[str, ...]] = {
    "train": ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "train")
}
BATCHES["test"] = ("test_batch", "test")
MOST = 100  # classes
LARGEST = 1 << 30  # bytes of a batch; CIFAR-100's whole training set has 155 million
META = ("batches.meta", "meta", "batches.meta.txt", "fine_label_names.txt")


def is_batch(name: str) -> bool:
    """Whether a file of this name holds images of CIFAR."""
    return name.removesuffix(".bin") in (*BATCHES["train"], *BATCHES["test"])


def read(source: str, settings: ReadSettings) -> RawImages:
    """All batches of one split, one after the other; of CIFAR-100 with its fine labels."""
    files = _files(Path(source))
    if settings.split not in BATCHES:
        raise DatasetError(f"{source}: CIFAR has the parts train and test; say which with --split train|test")
    there = [name for stem in BATCHES[settings.split] for name in (stem, stem + ".bin") if name in files]
    if not there:
        raise DatasetError(f"{source} has no CIFAR batches of --split {settings.split}; it has {sorted(files)[:8]}")
    parts = [
        _binary(files, name) if name.endswith(".bin") else _python(files[name], f"{source}/{name}") for name in there
    ]
    images = np.concatenate([images for images, _ in parts]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([labels for _, labels in parts]).astype(np.int64)
    names = _names(files, source)
    classes = len(names) if names else 100 if labels.max(initial=0) > 9 else 10
    digest = digest_of(images.tobytes(), labels.tobytes())
    return from_arrays(resized(images, settings), labels, classes, names, digest)


def _files(path: Path) -> dict[str, bytes]:
    """Batches and names by file name, from a folder or from an archive, which is never unpacked to disk."""
    if path.is_dir():
        there = [p for p in sorted(path.iterdir()) if p.is_file()]
        return {p.name: p.read_bytes() for p in there if is_batch(p.name) or p.name in META}
    with reading(f"{path} is a damaged archive", "fetch it again"), tarfile.open(path) as archive:
        return {name: _content(archive, member) for name, member in _members(archive)}


def _members(archive: tarfile.TarFile) -> list[tuple[str, tarfile.TarInfo]]:
    """The batches and names of an archive; links are left out."""
    files = [(Path(member.name).name, member) for member in archive if member.isfile()]
    return [(name, member) for name, member in files if is_batch(name) or name in META]


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The bytes of a member; memory is not taken for what its header only claims to be there."""
    if member.size > LARGEST:
        raise ValueError(f"{member.name} has {member.size:,} bytes, more than any batch of CIFAR")
    file = archive.extractfile(member)
    return b"" if file is None else file.read()


def _binary(files: dict[str, bytes], name: str) -> tuple[np.ndarray, np.ndarray]:
    """One label byte (CIFAR-100: coarse, then fine) before each image of 3,072 bytes."""
    head = 2 if name in ("train.bin", "test.bin") else 1
    content = np.frombuffer(files[name], np.uint8)
    if not len(content) or len(content) % (3072 + head):
        raise DatasetError(f"{name} has {len(content)} bytes, not a multiple of {3072 + head}; fetch it again")
    table = content.reshape(-1, 3072 + head)
    return table[:, head:], table[:, head - 1]


def _python(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    batch = _unpickle(content, where)
    images, labels = batch.get(b"data"), batch.get(b"labels", batch.get(b"fine_labels"))
    whole = isinstance(labels, list) and all(type(x) is int and 0 <= x < MOST for x in labels)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (3072,):
        raise DatasetError(f"{where} is no CIFAR batch: its data are not bytes (N, 3072)")
    if not isinstance(labels, list) or not whole or len(labels) != len(images):
        raise DatasetError(f"{where} is no CIFAR batch: its labels are not {len(images)} integers from 0 to {MOST - 1}")
    return images, np.array(labels, np.int64)


def _names(files: dict[str, bytes], source: str) -> list[str] | None:
    for name in META:
        if name in files:
            with reading(f"{source}/{name} has no readable class names", "fetch it again"):
                return _decoded(files[name], name, f"{source}/{name}")
    return None


def _decoded(content: bytes, name: str, where: str) -> list[str] | None:
    if name.endswith(".txt"):
        return content.decode().split() or None
    meta = _unpickle(content, where)
    names = meta.get(b"label_names", meta.get(b"fine_label_names")) or []
    return [n.decode() if isinstance(n, bytes) else str(n) for n in names] or None


class _ArraysOnly(pickle.Unpickler):
    """Makes numpy arrays beside Python's own containers; any other name in the file is refused, not imported."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
            ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): _latin,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return allowed[module, name]


def _latin(text: str, encoding: str) -> bytes:
    """How Python 3 pickles bytes for Python 2: the one use of `_codecs.encode` that is admitted."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it refers to the codec {encoding!r}")
    return text.encode("latin-1")


def _unpickle(content: bytes, where: str) -> dict[bytes, Any]:
    with reading(f"{where} is refused", "only CIFAR's arrays and lists are read"):
        loaded = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    if not isinstance(loaded, dict):
        raise DatasetError(f"{where} is no CIFAR batch: it holds a {type(loaded).__name__}")
    return {k.encode(errors="replace") if isinstance(k, str) else k: v for k, v in loaded.items()}
