"""What makes a run the same run: the settings, inputs, seed and precision that its folder is for."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from typing_extensions import TypedDict

from ..__version__ import __version__
from ..errors import RunError
from ..storage import lock, typed

_claimed: list[Path] = []  # folders that this process took, while nothing but `config.json` is in them


def configuration(
    stage: str, settings: dict[str, Any], inputs: Sequence[str], seed: int, precision: str
) -> dict[str, Any]:
    """What `config.json` says: `identity` is the hash of what decides the result, so versions are no part of it."""
    identity = {
        "stage": stage,
        "settings": json.loads(json.dumps(settings, default=str)),
        "inputs": list(inputs),
        "seed": seed,
        "precision": precision,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    versions = {"phosphene": __version__, "torch": torch.__version__}
    return {**identity, "identity": digest, "versions": versions, "git": _revision()}


class Config(TypedDict):
    """What `config.json` must have; the rest is only shown."""

    stage: str
    settings: dict[str, Any]
    inputs: list[str]
    seed: int
    precision: str
    identity: str


def read(folder: Path) -> Config:
    """`config.json` of a run; raises `RunError` where it is missing or damaged."""
    return typed.read(folder / "config.json", Config)


def claim(path: Path, config: dict[str, Any]) -> None:
    """Make the folder of this run, or find it there, and take it for this process.

    Raises:
        RunError: the folder holds anything else, or another process is at work in it.
        StorageError: the folder cannot be made or written.
    """
    _check(path, config)
    if (path / "result.json").exists():
        lock.clear(path)
        return  # it is only read from now on, and may lie where nothing can be written
    lock.take(path)
    try:
        _check(path, config)  # once more: whoever held it until now may have begun a run of its own
        if not (path / "config.json").exists():
            typed.write_json(path / "config.json", config)
            _claimed.append(path)
    except BaseException:
        lock.give_back(path)
        raise


def _check(path: Path, config: dict[str, Any]) -> None:
    """Raise `RunError` where the folder holds anything but this run; what a kill left at its start is nothing."""
    if (path / "config.json").exists():
        there = read(path)
        if there["identity"] != config["identity"]:
            raise RunError(f"--out {path} holds another run ({_difference(there, config)}); choose another --out")
    elif path.exists() and (not path.is_dir() or any(not lock.is_trace(file) for file in path.iterdir())):
        raise RunError(f"--out {path} exists and is not a run folder; choose another --out")


def release() -> None:
    """Give back the folders that this process took and wrote nothing into: the settings that failed shall not stay.

    Else the same --out with the flag put right would be refused as another run.
    """
    while _claimed:
        path = _claimed.pop()
        with contextlib.suppress(OSError):  # it may be gone, or be somebody else's by now
            if {one.name for one in path.iterdir() if not lock.is_trace(one)} == {"config.json"}:
                (path / "config.json").unlink()
                lock.give_back(path)
                path.rmdir()


def _difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What tells two configurations apart, as `name: there → here`, three at most."""
    top = ("stage", "inputs", "seed", "precision")
    flat = [{**config.get("settings", {}), **{k: config.get(k) for k in top}} for config in (there, here)]
    names = [n for n in {**flat[0], **flat[1]} if flat[0].get(n) != flat[1].get(n)]
    return "; ".join(f"{n}: {_short(flat[0].get(n))} → {_short(flat[1].get(n))}" for n in names[:3]) or "other settings"


def _short(value: Any) -> str:
    """A setting in a line: a genotype is longer than one."""
    text = str(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _revision() -> str | None:
    """The git revision of this source tree, where it is one."""
    try:
        where = Path(__file__).parent
        out = subprocess.run(["git", "rev-parse", "HEAD"], cwd=where, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip() or None
