"""Mutators of arrays, archives, weights, pickles and pictures."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import warnings
import zipfile
from random import Random
from typing import Any

from .mutate_bytes import cut, empty, flip

UNDEFINED = (float("nan"), float("inf"), float("-inf"))


def npy_header(content: bytes, random: Random) -> bytes:
    """A header of .npy that says something else."""
    header = random.choice(
        (
            "{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999, 3), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3), }",
            "{'descr': '<f8', 'fortran_order': True, 'shape': (), }",
            "{'descr': '<U4', 'fortran_order': False, 'shape': (2,), }",
            "{'descr': '<q9', 'shape': 3}",
            "__import__('os').getcwd()",
            "(" * 5000,
            "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }",
        )
    )
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header.encode() + b"\n" + content[128:]


def npy_values(content: bytes, random: Random) -> bytes:
    """The same array with a NaN in it, or of another kind or shape."""
    import numpy as np

    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception:
        return flip(content, random)
    changed = array.copy()
    kind = random.choice(("nan", "type", "shape", "fewer", "none", "flat"))
    if kind == "nan" and changed.size and changed.dtype.kind == "f":
        changed.flat[random.randrange(changed.size)] = random.choice(UNDEFINED)
    elif kind == "type":
        changed = changed.astype(random.choice(("<f8", "<c8", "<i8", "?", "<U5", ">f4")))
    elif kind == "shape":
        changed = changed[None]
    elif kind == "fewer":
        changed = changed[:-1] if changed.ndim else changed
    elif kind == "none":
        changed = changed[:0] if changed.ndim else changed
    else:
        changed = changed.reshape(-1)
    written = io.BytesIO()
    np.save(written, changed)
    return written.getvalue()


def tensor_values(content: bytes, random: Random) -> bytes:
    """A .safetensors file with a NaN, a missing, a renamed or a reshaped tensor, or an odd header."""
    import numpy as np

    try:
        size = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + size])
    except (struct.error, ValueError):
        return flip(content, random)
    body = bytearray(content[8 + size :])
    names = [name for name in header if name != "__metadata__"]
    name = random.choice(names)
    kind = random.choice(("nan", "lose", "rename", "shape", "type", "overlap", "meta", "size", "deep"))
    if kind == "nan":
        floats = [n for n in names if header[n]["dtype"] == "F32"]
        at = header[random.choice(floats or names)]["data_offsets"][0]
        body[at : at + 4] = np.float32(random.choice(UNDEFINED)).tobytes()
    elif kind == "lose":
        del header[name]
    elif kind == "rename":
        header[random.choice(("x", "é", "", "../x"))] = header.pop(name)
    elif kind == "shape":
        header[name]["shape"] = random.choice(([-1], [2**63], [0], [], [[]], "x", [1] + header[name]["shape"]))
    elif kind == "type":
        header[name]["dtype"] = random.choice(("F64", "I8", "BF16", "X", 3, "F8_E5M2"))
    elif kind == "overlap":
        header[name]["data_offsets"] = random.choice(([0, 4], [2**63, 2**64], [-4, 0], [4, 0], ["a", "b"], []))
    elif kind == "meta":
        header["__metadata__"] = random.choice(({"a": 1}, [], {"a": "b"}, None, {"space": "[red]"}))
    text = b"[" * 100_000 if kind == "deep" else json.dumps(header).encode()
    length = 2**62 if kind == "size" else len(text)
    return struct.pack("<Q", length) + text + bytes(body)


def zip_member(content: bytes, random: Random) -> bytes:
    """A zip archive (.npz, .pt) one member of which is damaged inside, lost, doubled or renamed."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(one.filename, archive.read(one), one.compress_type) for one in archive.infolist()]
    except (zipfile.BadZipFile, OSError):
        return flip(content, random)
    at = random.randrange(len(members))
    name, inside, packed = members[at]
    kind = random.choice(("flip", "cut", "empty", "lose", "double", "rename", "npy"))
    if kind == "lose":
        del members[at]
    elif kind == "double":
        members.append(members[at])
    elif kind == "rename":
        members[at] = (random.choice(("../x.npy", "x", "é.npy", "a/b/c")), inside, packed)
    else:
        change = {"flip": flip, "cut": cut, "empty": empty, "npy": npy_values}[kind]
        members[at] = (name, change(inside, random), packed)
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that is there twice
        for name, inside, packed in members:
            archive.writestr(name, inside, packed)
    return written.getvalue()


def hostile_pickle(content: bytes, random: Random) -> bytes:
    """A pickle that would call something, of odd types, with labels out of range, or that holds itself."""
    itself: dict[Any, Any] = {b"data": [], b"labels": []}
    itself[b"self"] = itself
    things = (
        b"cos\nsystem\n(S'touch ESCAPED'\ntR.",
        pickle.dumps({b"data": b"x", b"labels": [2**70]}, protocol=2),
        pickle.dumps({b"data": [[1, 2], [3]], b"labels": ["a", None]}, protocol=2),
        pickle.dumps({"data": {}, "labels": float("nan")}, protocol=2),
        pickle.dumps([1, 2, 3]),
        pickle.dumps(None),
        pickle.dumps(itself, protocol=2),
        b"(" * 100_000 + b".",
        b"\x80\x02" + b"]" * 1000 + b".",
    )
    return random.choice(things)


class Calls:
    """Unpickled, it would run a command."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch ESCAPED",)


def hostile_checkpoint(content: bytes, random: Random) -> bytes:
    """A file of torch.save of odd things: one that holds itself, no tensors, NaN, objects, deep."""
    import torch

    itself: dict[str, Any] = {"a": torch.zeros(2)}
    itself["state_dict"] = itself
    inside: list[Any] = []
    inside.append(inside)
    nested: Any = torch.zeros(1)
    for _ in range(300):
        nested = {"state_dict": nested}
    things = (
        itself,
        inside,
        nested,
        {"state_dict": itself},
        {},
        None,
        torch.zeros(3),
        {"fc.weight": torch.full((10, 64), float("nan"))},
        {1: 2, None: torch.zeros(1)},
        {"state_dict": {"x": "y"}},
        {"model": [torch.zeros(2)]},
        {"w": torch.zeros(2, dtype=torch.complex64)},
        {"w": torch.zeros(3).to_sparse()},
        {"w": Calls()},
        Calls(),
    )
    written = io.BytesIO()
    torch.save(random.choice(things), written)
    return written.getvalue()


def picture(content: bytes, random: Random) -> bytes:
    """A picture of another size, mode or kind, or one that says it is huge."""
    from PIL import Image

    kind = random.choice(("tiny", "wide", "cmyk", "float", "palette", "bomb", "animated"))
    written = io.BytesIO()
    if kind == "bomb":
        header = struct.pack(">II5B", 100_000, 100_000, 8, 0, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + header + content[33:]
    size = {"tiny": (1, 1), "wide": (3000, 1)}.get(kind, (8, 8))
    mode = {"cmyk": "CMYK", "float": "F", "palette": "P"}.get(kind, "L")
    image = Image.new(mode, size)
    if kind == "animated":
        image.save(written, "GIF", save_all=True, append_images=[image, image])
    else:
        image.save(written, "JPEG" if mode == "CMYK" else "TIFF")
    return written.getvalue()
