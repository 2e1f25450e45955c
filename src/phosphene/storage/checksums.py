"""Checksums of a folder's files, `checksums.json`: what was changed since it was written is not read in silence.

The sha256 of each file stands there from when it was written. A reader compares a file once a process. Folders and
files without an entry, from before there were checksums, are read as they are. They protect from damage, not from an
attacker, who would write the checksum, too (SECURITY.md).
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated

from annotated_types import Predicate

from ..errors import PhospheneError, RunError
from . import typed

FILE = "checksums.json"
SWITCH = "PHOSPHENE_CHECKSUMS"
"""The environment variable: ``off`` reads without comparing, as ``phosphene --no-checksums`` does."""
OFF = ("0", "off", "no", "false")

Digest = Annotated[str, Predicate(lambda text: len(text) == 64)]
State = tuple[str, int, int, int]
"""path, inode, bytes and nanoseconds of the change of a file: another state, and it is read again"""
_verified: set[State] = set()  # files that were sound


def record(folder: Path, *names: str) -> None:
    """Keep the checksums of these files beside those of others."""
    known = _read(folder, RunError, typed.REMEDY) if (folder / FILE).exists() else {}
    known |= {name: digest(folder / name) for name in names}
    typed.write_json(folder / FILE, dict(sorted(known.items())))
    _verified.update(state_of(folder / name) for name in names)


def forget(folder: Path, *names: str) -> None:
    """Drop the checksums of these files, which are written anew."""
    known = _read(folder, RunError, typed.REMEDY) if (folder / FILE).exists() else {}
    if known.keys() & {*names}:
        typed.write_json(folder / FILE, {name: sha for name, sha in known.items() if name not in names})


def verify(folder: Path, *names: str, error: type[PhospheneError] = RunError, remedy: str = "make it again") -> None:
    """Raise `error` where one of these files is not what was written; each is read once a process."""
    if is_off() or not (folder / FILE).exists():
        return
    known = _read(folder, error, remedy)
    for name in names:
        path = folder / name
        if name in known and path.exists() and (state := state_of(path)) not in _verified:
            if digest(path) != known[name]:
                raise error(
                    f"{path} was changed since it was written, by damage or by hand (its sha256 is not the one in "
                    f"{FILE}); {remedy}, or remove {folder / FILE} if the change is meant"
                )
            _verified.add(state)


def names(folder: Path, error: type[PhospheneError] = RunError, remedy: str = "make it again") -> set[str]:
    """The files of the folder that have a checksum; none where there is no `checksums.json`, or none is compared."""
    return set() if is_off() or not (folder / FILE).exists() else {*_read(folder, error, remedy)}


def is_off() -> bool:
    """Whether the user reads without comparing."""
    return os.environ.get(SWITCH, "").strip().lower() in OFF


def digest(path: Path) -> str:
    """sha256 of a file, streamed."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(folder: Path, error: type[PhospheneError], remedy: str) -> dict[str, str]:
    return typed.read(folder / FILE, dict[str, Digest], error, f"{remedy}, or remove this file")


def state_of(path: Path) -> State:
    """What changes when the file does."""
    stat = path.stat()
    return str(path.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns
