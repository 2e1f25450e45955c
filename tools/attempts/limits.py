"""A full disk, too little memory: one line each, and the same command goes on once there is room."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from . import judge, kills, small_disk, stock
from .attempt import Attempt

MEMORY = 200 << 20  # bytes more than the process has at its start, at most


def disk(made: Attempt) -> str:
    """The disk is full at a random byte; then it is not."""
    random = made.random
    name = kills.choose(random)
    made.command = stock.command(name)
    size = _size(made.stock / name)
    if not small_disk.can_mount() or random.random() < 0.25:
        largest = random.randrange(max(1, int(1.1 * _largest(made.stock / name))))
        made.what = f"{name}: no file above {largest} bytes"
        told = judge.problem(made.run(stock.words(name), limits={resource.RLIMIT_FSIZE: largest}))
        return told or made.sound(name)
    pages = random.randrange(2, 3 + int(1.4 * size / 4096))
    made.what = f"{name}: a disk of {4 * pages} KiB"
    with small_disk.mounted(made.folder / "disk", 4096 * pages) as place:
        (place / "stock").symlink_to(made.stock)
        told = judge.problem(made.run(stock.words(name), inside=place))
        if told:
            return told
        small_disk.resize(place, 1 << 30)
        return made.sound(name, place / "out")


def memory(made: Attempt) -> str:
    """No more address space than so much; then as much as there is."""
    name = kills.choose(made.random)
    made.command = stock.command(name)
    more = int(MEMORY * made.random.random() ** 2)
    made.what = f"{name}: {more >> 10} KiB of memory"
    now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    told = judge.problem(made.run(stock.words(name), limits={resource.RLIMIT_AS: now + more}))
    return told or made.sound(name)


def _size(folder: Path) -> int:
    return sum(-(-file.stat().st_size // 4096) * 4096 for file in folder.rglob("*") if file.is_file())


def _largest(folder: Path) -> int:
    return max((file.stat().st_size for file in folder.rglob("*") if file.is_file()), default=1)
