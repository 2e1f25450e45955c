"""Environment variables, read like flags: a value that cannot be used is one line that names the variable.

RANK, LOCAL_RANK, WORLD_SIZE, MASTER_PORT     as torchrun sets them
OMP_NUM_THREADS                               threads of the CPU's arithmetic
PHOSPHENE_CHECKPOINT_SECONDS                  between two checkpoints of a run
PHOSPHENE_CHECKSUMS=off                       artifacts are read without comparing checksums (`--no-checksums`)
PHOSPHENE_FOLLOW=1                            a data set's card may lead outside of its folder (`--follow`)
"""

from __future__ import annotations

import math
import os
import re

from ..errors import SettingsError, shown

CHECKPOINT_SECONDS, CHECKSUMS, FOLLOW = "PHOSPHENE_CHECKPOINT_SECONDS", "PHOSPHENE_CHECKSUMS", "PHOSPHENE_FOLLOW"
RANKS = 1 << 20
DAY = 86_400.0
ON, OFF = ("1", "on", "yes", "true"), ("0", "off", "no", "false")


def check() -> None:
    """Raise `SettingsError` for the first variable that cannot be used: before anything reads it."""
    rank, world = ranks()
    local_rank()
    if rank >= world:
        raise SettingsError(f"RANK={rank} is no process of WORLD_SIZE={world}: they count from 0")
    whole("MASTER_PORT", 0, 0, 65_535)
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads and not re.fullmatch(r" *0*[1-9]\d{0,3}( *, *0*[1-9]\d{0,3})* *", threads):
        raise SettingsError(f"OMP_NUM_THREADS={shown(threads, str)} should be a number of threads from 1 to 9999")
    seconds_between_checkpoints()
    switch(CHECKSUMS, True)
    switch(FOLLOW, False)


def ranks() -> tuple[int, int]:
    """(number of this process, number of processes) that share a run."""
    return whole("RANK", 0, 0, RANKS), whole("WORLD_SIZE", 1, 1, RANKS)


def local_rank() -> int:
    """The number of this process on its machine."""
    return whole("LOCAL_RANK", 0, 0, RANKS)


def seconds_between_checkpoints() -> float:
    """Seconds between two checkpoints of a run: a minute, unless the variable says otherwise."""
    text = os.environ.get(CHECKPOINT_SECONDS) or "60"
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= DAY:
        raise SettingsError(f"{CHECKPOINT_SECONDS}={shown(text, str)} should be seconds, from 0 to {DAY:.0f}")
    return seconds


def switch(name: str, default: bool) -> bool:
    """Whether a variable says on or off."""
    text = os.environ.get(name, "").strip().lower()
    if text and text not in ON + OFF:
        raise SettingsError(f"{name}={shown(text, str)} should be on or off")
    return text in ON if text else default


def whole(name: str, default: int, least: int, most: int) -> int:
    """A whole number within its range."""
    text = os.environ.get(name) or str(default)
    number = int(text) if re.fullmatch(r" *[+-]?\d{1,15} *", text) else None
    if number is None or not least <= number <= most:
        raise SettingsError(f"{name}={shown(text, str)} should be a whole number from {least} to {most}")
    return number
