"""A tmpfs of a few KiB, which is soon full; mounting takes root."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Iterator
from pathlib import Path

REMOUNT, DETACH = 32, 2


@functools.cache
def can_mount() -> bool:
    """Whether this process may mount one."""
    place = Path(f"/tmp/phosphene-campaign-{os.getpid()}")
    try:
        with mounted(place, 4096):
            return True
    except OSError:
        return False
    finally:
        place.rmdir()


@contextlib.contextmanager
def mounted(place: Path, size: int) -> Iterator[Path]:
    """A folder of so many bytes while inside."""
    place.mkdir(exist_ok=True)
    _mount(place, size, 0)
    try:
        yield place
    finally:
        unmount(place)


def resize(place: Path, size: int) -> None:
    """Make room."""
    _mount(place, size, REMOUNT)


def unmount(place: Path) -> None:
    """Take it away, if it is there."""
    ctypes.CDLL(None).umount2(str(place).encode(), DETACH)


def _mount(place: Path, size: int, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", str(place).encode(), b"tmpfs", flags, f"size={size}".encode()):
        raise OSError(ctypes.get_errno(), "mount", str(place))
