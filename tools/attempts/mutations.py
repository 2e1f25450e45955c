"""Damaged files: each mutator takes the sound bytes and a random generator, and returns the damaged bytes.

`damage` chooses one that fits the file's kind and does it to the file on disk; the tests and the campaign share it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

from . import mutate_binary as binary
from . import mutate_bytes as any_file
from . import mutate_text as text

Mutator = Callable[[bytes, Random], bytes]
ANY: tuple[Mutator, ...] = (
    any_file.flip,
    any_file.flip,
    any_file.flip_start,
    any_file.flip_many,
    any_file.cut,
    any_file.cut,
    any_file.empty,
    any_file.garbage,
    any_file.zeros,
    any_file.longer,
    any_file.hole,
    any_file.pointer,
)
JSON: tuple[Mutator, ...] = (
    *[text.wrong_value] * 14,
    *[text.wrong_top] * 3,
    text.deep,
    text.bad_text,
    text.lines_mixed,
)
BY_SUFFIX: dict[str, tuple[Mutator, ...]] = {
    ".json": JSON,
    ".jsonl": (*JSON, *[text.lines_mixed] * 4),
    ".toml": (*[text.wrong_toml] * 10, text.bad_text, text.lines_mixed),
    ".txt": (text.deep, text.bad_text, text.lines_mixed, text.wrong_top),
    ".csv": (text.bad_text, text.lines_mixed, text.lines_mixed, text.wrong_top),
    ".py": (text.bad_text, text.lines_mixed),
    ".npy": (*[binary.npy_header] * 3, *[binary.npy_values] * 6),
    ".npz": (*[binary.zip_member] * 8,),
    ".safetensors": (*[binary.tensor_values] * 8,),
    ".pt": (*[binary.hostile_checkpoint] * 6, *[binary.zip_member] * 3),
    ".pth": (*[binary.hostile_checkpoint] * 6, *[binary.zip_member] * 3),
    "": (*[binary.hostile_pickle] * 6,),
    **dict.fromkeys((".png", ".jpg", ".bmp", ".gif"), (*[binary.picture] * 4,)),
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
