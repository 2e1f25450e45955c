"""Files that appear whole or not at all: a kill, a full disk or an error leaves what was there before."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..errors import StorageError

UNFINISHED = ".unfinished-"  # begins the name of a file that is being written


def write(path: Path, content: str | bytes) -> None:
    """Write a file; raises `StorageError` where it cannot be written."""
    body = content.encode() if isinstance(content, str) else content
    with replacing(path, len(body)) as temporary:
        temporary.write_bytes(body)


@contextlib.contextmanager
def replacing(path: Path, size: int | None = None) -> Iterator[Path]:
    """Inside, write to the path that is yielded (of the same suffix); after it that file takes the place of `path`.

    `size`: bytes that will be written, where they are known, for the error. Raises `StorageError` where it cannot be
    written. What was at `path` stays until then, and for good where the block fails.
    """
    temporary = path.with_name(f"{UNFINISHED}{os.getpid()}-{path.name}")
    try:
        with storing(path, size):
            yield temporary
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def storing(path: Path, size: int | None = None) -> Iterator[None]:
    """Inside, an error of the file system is a `StorageError` about `path`: a full disk, a missing permission."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise
        raise StorageError(_why(path, size, error)) from error


def reserve(file: IO[Any], path: Path, size: int) -> None:
    """Make an open file `size` bytes long, with room on the disk for each: a map of it is not killed by a full disk.

    Raises `StorageError` where there is no room. Where the system cannot reserve, the room left is compared.
    """
    file.flush()
    with storing(path, size):
        present = os.fstat(file.fileno()).st_size
        if hasattr(os, "posix_fallocate") and size:
            os.posix_fallocate(file.fileno(), 0, size)
        elif shutil.disk_usage(path.parent).free < size - present:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.ftruncate(file.fileno(), size)


def unfinished(path: Path) -> bool:
    """Whether a file is what a killed process left of writing: it may be removed."""
    old = path.name in ("config.json.new", "checkpoint.new", "card.json.part")  # as versions before 0.3 called them
    return old or path.name.startswith(UNFINISHED)


def _why(path: Path, size: int | None, error: OSError) -> str:
    """What could not be written, and what to do: ``d/images.npy cannot be written: No space left on device (…)``."""
    text = f"{path} cannot be written: {error.strerror or error}"
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{text}; name another --out, or see to its permissions"
    with contextlib.suppress(OSError):
        free = f"{_mib(shutil.disk_usage(path.parent).free)} free"
        text += f" ({free})" if size is None else f" ({_mib(size)} needed, {free})"
    return f"{text}; make room and run the same command again"


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
