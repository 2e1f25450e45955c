"""One process to a folder: a second command in the same folder is refused, and told by whom.

The lock is the operating system's (filelock: flock, on Windows msvcrt), so that it ends with its process, however that
ends. NFS carries it to other hosts; where a file system has none, a marker file with host and process stands for it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from typing_extensions import TypedDict

from ..errors import PhospheneError, RunError
from . import typed, whole

LOCK, HOLDER = ".lock", ".holder.json"
WAIT = 1.0  # seconds: the other one may just be ending


class Holder(TypedDict):
    """Who is at work: `.holder.json`."""

    process: int
    host: str
    since: str
    command: str


_held: dict[Path, tuple[FileLock, int]] = {}  # folder -> its lock, and how often this process has taken it
_guard = threading.Lock()


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Inside, no other process is in the folder; raises `RunError` where one is."""
    take(folder)
    try:
        yield
    finally:
        give_back(folder)


def take(folder: Path) -> None:
    """Take the folder for this process until `give_back`, or until it ends; again and again if it likes.

    Raises:
        RunError: another process is at work there; the message says which, where and since when.
        StorageError: the folder cannot be made.
    """
    with whole.storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    where = folder.resolve()
    with _guard:
        lock, times = _held.get(where) or (FileLock(where / LOCK, timeout=WAIT, thread_local=False), 0)
        if not times:
            _acquire(lock, where, folder)
        _held[where] = (lock, times + 1)


def give_back(folder: Path) -> None:
    """Let go of the folder once; as often as it was taken."""
    where = folder.resolve()
    with _guard:
        lock, times = _held.pop(where, (None, 0))
        if lock is None:
            return
        if times > 1:
            _held[where] = (lock, times - 1)
            return
        for name in (HOLDER, LOCK):  # the lock itself last: who opens it before it is gone sees that it is
            with contextlib.suppress(OSError):
                (where / name).unlink()
        lock.release()


def clear(folder: Path) -> None:
    """Remove what a killed process left in the folder, unless another one is at work or nothing can be written."""
    if any(is_trace(file) for file in folder.iterdir()):
        with contextlib.suppress(PhospheneError):
            take(folder)
            give_back(folder)


def is_trace(path: Path) -> bool:
    """Whether a file is one of the lock's, or one that a killed process was writing."""
    return path.name in (LOCK, HOLDER) or whole.unfinished(path)


def _acquire(lock: FileLock, where: Path, folder: Path) -> None:
    with whole.storing(where / LOCK):
        try:
            lock.acquire()
        except Timeout:
            remedy = "wait until it is done or stop it, or name another --out"
            raise RunError(f"another process is at work in {folder}{_who(where)}; {remedy}") from None
    for file in filter(whole.unfinished, where.iterdir()):  # of a process that was killed: nobody else is here
        with contextlib.suppress(OSError):
            file.unlink()
    command = " ".join(sys.argv)
    holder = {"process": os.getpid(), "host": socket.gethostname(), "command": command[:200]}
    with contextlib.suppress(PhospheneError):  # a courtesy: the lock holds without it
        typed.write_json(where / HOLDER, {**holder, "since": time.strftime("%Y-%m-%d %H:%M:%S")})


def _who(where: Path) -> str:
    """`` (process 12 on host, since …: phosphene train …)``; nothing where it has not said so yet."""
    try:
        there = typed.read(where / HOLDER, Holder)
    except RunError:
        return ""
    return f" (process {there['process']} on {there['host']}, since {there['since']}: {there['command']})"


def _forget() -> None:
    """In a forked child, the locks are its parent's."""
    _held.clear()


@atexit.register
def _leave() -> None:
    """At the end of the process, no trace of its locks stays."""
    for folder in list(_held):
        _held[folder] = (_held[folder][0], 1)
        give_back(folder)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
