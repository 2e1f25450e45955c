"""Damaged files: each mutator takes the sound bytes and a random generator, and returns the damaged bytes.

`damage` chooses one that fits the file's kind and does it to the file on disk; the tests and the campaign share it.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

Mutator = Callable[[bytes, Random], bytes]
TEXTS = (".json", ".jsonl", ".toml", ".txt", ".csv", ".py")
ODD = ("", "\x00", "é–字🦆", "[red]x[/red]", "a\nb", "nan", "../../ESCAPED", "/", "x" * 70_000, "\ud800")
NUMBERS = (-1, 0, 2**31, 2**63, 2**64, 10**30, -(2**63) - 1, 1e308, 0.5, -0.0)
UNDEFINED = (float("nan"), float("inf"), float("-inf"))
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234567\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>Not Found</body></html>\n"


# -- any bytes ---------------------------------------------------------------------------------------------------------


def flip(content: bytes, random: Random) -> bytes:
    """One bit, anywhere."""
    if not content:
        return b"\x01"
    changed = bytearray(content)
    changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def flip_start(content: bytes, random: Random) -> bytes:
    """One bit among the first 200 bytes, where headers are."""
    return flip(content[:200], random) + content[200:]


def flip_many(content: bytes, random: Random) -> bytes:
    """Twenty bits."""
    for _ in range(20):
        content = flip(content, random)
    return content


def cut(content: bytes, random: Random) -> bytes:
    """The file ends early."""
    return content[: random.randrange(len(content))] if content else b"x"


def empty(content: bytes, random: Random) -> bytes:
    """Nothing."""
    return b"" if content else b"\n"


def garbage(content: bytes, random: Random) -> bytes:
    """As many random bytes."""
    return random.randbytes(max(1, len(content)))


def zeros(content: bytes, random: Random) -> bytes:
    """As many NUL bytes, as after a crash of the machine."""
    return bytes(max(1, len(content)))


def longer(content: bytes, random: Random) -> bytes:
    """Random bytes after the end."""
    return content + random.randbytes(random.choice((1, 8, 1000)))


def hole(content: bytes, random: Random) -> bytes:
    """A page of NUL bytes in the midst."""
    at = random.randrange(len(content) + 1)
    return content[:at] + bytes(min(4096, len(content) - at)) + content[at + 4096 :]


def pointer(content: bytes, random: Random) -> bytes:
    """A pointer of git-LFS, or a page that says 404."""
    return random.choice((POINTER, PAGE, b"hello\n", "Grüße, 世界\n".encode(), "text".encode("utf-16")))


# -- text and JSON -----------------------------------------------------------------------------------------------------


def deep(content: bytes, random: Random) -> bytes:
    """100,000 brackets in each other."""
    opening, closing = random.choice((("[", "]"), ('{"a":', "}")))
    middle = "1" if opening != "[" else ""
    return (opening * 100_000 + middle + closing * 100_000).encode()


def wrong_top(content: bytes, random: Random) -> bytes:
    """JSON of another kind."""
    return random.choice(
        (b"null", b"[]", b"{}", b"1", b'"x"', b"[[1, 2], 3]", b"NaN", b"true", b"9" * 5000, b'{"a": 1}', b"1e999")
    )


def bad_text(content: bytes, random: Random) -> bytes:
    """What is no UTF-8, in the midst."""
    at = random.randrange(len(content) + 1)
    return content[:at] + b"\xff\xfe\xc3\x28" + content[at:]


def lines_mixed(content: bytes, random: Random) -> bytes:
    """Lines doubled, lost or exchanged."""
    lines = content.splitlines(keepends=True) or [b"\n"]
    at = random.randrange(len(lines))
    one = random.choice(("double", "lose", "shuffle", "half"))
    if one == "double":
        lines.insert(at, lines[at])
    elif one == "lose":
        del lines[at]
    elif one == "shuffle":
        random.shuffle(lines)
    else:
        lines[at] = lines[at][: len(lines[at]) // 2]
    return b"".join(lines)


def wrong_value(content: bytes, random: Random) -> bytes:
    """One value of the JSON, at any depth, of another type, out of any range, or gone."""
    if content.count(b"\n{") and not content.startswith(b"{\n"):
        lines = content.splitlines()
        at = random.randrange(len(lines))
        lines[at] = _changed(lines[at], random)
        return b"\n".join(lines) + b"\n"
    return _changed(content, random)


def _changed(content: bytes, random: Random) -> bytes:
    try:
        loaded = json.loads(content)
    except ValueError:
        return flip(content, random)
    places = list(_places(loaded))
    if not places:
        return wrong_top(content, random)
    holder, key = random.choice(places)
    if random.random() < 0.15:
        del holder[key]
    else:
        holder[key] = _other(holder[key], random)
    return json.dumps(loaded, indent=1).encode()


def _places(value: Any) -> Any:
    """(container, key) of everything inside."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inside in pairs:
        yield value, key
        yield from _places(inside)


def _other(value: Any, random: Random) -> Any:
    kinds = [
        random.choice(ODD),
        random.choice(NUMBERS),
        random.choice(NUMBERS),
        random.choice(UNDEFINED),
        random.choice((None, True, False)),
        random.choice(([], {}, [value] * 3, {"x": value}, [[[]]], [1] * 2000)),
    ]
    if isinstance(value, str):
        kinds += [value + random.choice(ODD[:-1]), value[:-1]]
    if isinstance(value, int | float) and not isinstance(value, bool):
        kinds += [-value, value * 1000, value + 1]
    if isinstance(value, list) and value:
        kinds += [value[:-1], value + value[:1]]
    return random.choice(kinds)


def wrong_toml(content: bytes, random: Random) -> bytes:
    """One value of a TOML file, as text."""
    lines = content.decode(errors="replace").splitlines()
    with_values = [i for i, line in enumerate(lines) if "=" in line]
    if not with_values:
        return flip(content, random)
    at = random.choice(with_values)
    values = (
        "1",
        "-1",
        "nan",
        "inf",
        '""',
        "[]",
        "{}",
        "true",
        '"é[red]"',
        '"../../ESCAPED"',
        "1e400",
        "9" * 30,
        '"@x"',
    )
    lines[at] = f"{lines[at].split('=')[0]}= {random.choice((*values, '[' * 50_000))}"
    return "\n".join(lines).encode()


# -- arrays, archives, weights -----------------------------------------------------------------------------------------


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


ANY: tuple[Mutator, ...] = (flip, flip, flip_start, flip_many, cut, cut, empty, garbage, zeros, longer, hole, pointer)
JSON: tuple[Mutator, ...] = (*[wrong_value] * 14, *[wrong_top] * 3, deep, bad_text, lines_mixed)
BY_SUFFIX: dict[str, tuple[Mutator, ...]] = {
    ".json": JSON,
    ".jsonl": (*JSON, *[lines_mixed] * 4),
    ".toml": (*[wrong_toml] * 10, bad_text, lines_mixed),
    ".txt": (deep, bad_text, lines_mixed, wrong_top),
    ".csv": (bad_text, lines_mixed, lines_mixed, wrong_top),
    ".py": (bad_text, lines_mixed),
    ".npy": (*[npy_header] * 3, *[npy_values] * 6),
    ".npz": (*[zip_member] * 8,),
    ".safetensors": (*[tensor_values] * 8,),
    ".pt": (*[hostile_checkpoint] * 6, *[zip_member] * 3),
    ".pth": (*[hostile_checkpoint] * 6, *[zip_member] * 3),
    "": (*[hostile_pickle] * 6,),
    **dict.fromkeys((".png", ".jpg", ".bmp", ".gif"), (*[picture] * 4,)),
}


def damage(file: Path, random: Random) -> str:
    """Damage a file on disk; returns what was done."""
    what = random.random()
    if what < 0.03:
        file.unlink()
        return "deleted"
    if what < 0.06:
        file.unlink()
        file.mkdir()
        return "a folder"
    if what < 0.07:
        file.unlink()
        file.symlink_to(file.name)
        return "a link to itself"
    own = BY_SUFFIX.get(file.suffix, ())
    mutator = random.choice(own) if own and random.random() < 0.6 else random.choice(ANY)
    file.write_bytes(mutator(file.read_bytes(), random))
    return mutator.__name__
