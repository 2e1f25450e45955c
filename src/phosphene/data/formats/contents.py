"""What the files of a source hold, as one digest: it changes with any name and any byte, of whatever size a file is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ...errors import DatasetError, is_memory
from ...runtime.progress import Progress

BLOCK = 1 << 20  # bytes read at a time


def digest_of_files(files: Sequence[tuple[str, Path]], title: str) -> str:
    """16 hexadecimal digits over these names and the contents of their files, in this order."""
    return _digest(((name, _blocks(path)) for name, path in files), len(files), title)


def digest_of_pictures(pictures: Iterable[Any], count: int, title: str) -> str:
    """16 hexadecimal digits over decoded pictures: their modes, sizes and pixels."""
    each = ((f"{picture.mode} {picture.size}", iter([picture.tobytes()])) for picture in pictures)
    return _digest(each, count, title)


def _digest(contents: Iterable[tuple[str, Iterator[bytes]]], count: int, title: str) -> str:
    """Each name and content goes in as a digest of its own, so that no byte can move from one to the next."""
    whole, bar = hashlib.sha256(), Progress(f"hashing {title}", count, 0)
    try:
        for done, (name, blocks) in enumerate(contents, 1):
            whole.update(hashlib.sha256(os.fsencode(name)).digest())
            content = hashlib.sha256()
            for block in blocks:
                content.update(block)
            whole.update(content.digest())
            bar.update(done, {})
    finally:
        bar.close()
    return whole.hexdigest()[:16]


def _blocks(path: Path) -> Iterator[bytes]:
    try:
        with open(path, "rb", buffering=0) as file:
            while block := file.read(BLOCK):
                yield block
    except OSError as error:
        if is_memory(error):
            raise
        raise DatasetError(f"{path} cannot be read ({error.strerror or error}); mend or remove it") from error
