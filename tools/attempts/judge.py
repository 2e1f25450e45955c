"""What is a failure: a traceback, a signal that nobody sent, a stuck process, a NaN without a word, differing bytes."""

from __future__ import annotations

import json
import math
import re
import signal
import struct
from pathlib import Path
from typing import Any

from .forks import Ended

TRACEBACK = "Traceback (most recent call last)"
WARNING = r"(\S+:\d+: )?\w*Warning: |  \S"  # Python's own, of code of the user's
LONGEST = 5000  # letters of a message that is still one line to read
SHOWN = (".png", ".svg", ".html")
TIMES = ("timing.json", "latency.json", "checks.json", "checksums.json")


def problem(ended: Ended) -> str:
    """What is wrong with this end; "" where nothing is."""
    if ended.stuck:
        return "stuck: it did not end itself after an interrupt" if ended.late else "stuck: it did not end in time"
    if ended.status < 0 and -ended.status not in ended.sent:
        return f"signal {signal.Signals(-ended.status).name} that nobody sent"
    if TRACEBACK in ended.errors or TRACEBACK in ended.output:
        return "traceback: " + where(ended.errors if TRACEBACK in ended.errors else ended.output)
    if ended.status <= 0:
        return undefined_in(ended.output)
    if ended.status == 130 and ended.sent:
        return bad_message(ended.errors)
    if ended.status == 1 and "not enough memory" in ended.errors:
        return ""
    if ended.status != 2:
        return f"exit {ended.status}: {kept_traceback(ended.errors) or tail(ended.errors)}"
    return bad_message(ended.errors)


def where(text: str) -> str:
    """The error and the innermost line of ours: what tells faults apart."""
    frames = re.findall(r'File "[^"]*src/phosphene/([^"]+)", line (\d+)', text)
    lines = [line for line in text.strip().splitlines() if line and not line.startswith((" ", "["))]
    inside = ":".join(frames[-1]) if frames else "?"
    return f"{lines[-1][:200] if lines else '?'} ({inside})"


def kept_traceback(errors: str) -> str:
    """The place of a fault whose traceback the program has written to a file."""
    told = re.search(r"the traceback is in (\S+\.txt)", errors)
    return where(Path(told[1]).read_text()) if told and Path(told[1]).exists() else ""


def bad_message(errors: str) -> str:
    """An error is one line: ours, or click's below its usage."""
    lines = [line for line in errors.splitlines() if line.strip() and not re.match(WARNING, line)]
    if not lines or not lines[-1].startswith(("phosphene: ", "Error: ", "Aborted")):
        return f"no message of one line: {tail(errors)}"
    if len(lines[-1]) > LONGEST:
        return f"a message of {len(lines[-1])} letters: {lines[-1][:200]}"
    return ""


def tail(text: str) -> str:
    """The last line."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "(nothing)"


def fault(problem: str) -> str:
    """What problems of the same cause have in common: numbers and names are left out."""
    return re.sub(r"0x[0-9a-f]+|\d{3,}|'[^']*'|\S*/\S*(?=\s)", "…", problem)[:160]


# -- NaN ---------------------------------------------------------------------------------------------------------------


def undefined_in(output: str) -> str:
    """A number that is none, in the JSON that was printed."""
    line = tail(output) if output.strip() else ""
    return f"not finite in the output: {line[:200]}" if re.search(r"\b(NaN|-?Infinity)\b", line) else ""


def undefined(folder: Path) -> str:
    """The first file below the folder that holds a NaN or an infinity."""
    for file in sorted(folder.rglob("*")) if folder.is_dir() else []:
        if file.is_file() and not file.is_symlink() and (found := _undefined(file)):
            return f"not finite: {file.relative_to(folder)} {found}"
    return ""


def _undefined(file: Path) -> str:
    if file.suffix in (".json", ".jsonl"):
        match = re.search(rb"\b(NaN|-?Infinity)\b", file.read_bytes())
        return match.group().decode() if match else ""
    if file.suffix == ".npy":
        return _undefined_array(file)
    return _undefined_tensors(file) if file.suffix == ".safetensors" else ""


def _undefined_array(file: Path) -> str:
    import numpy as np

    try:
        array = np.load(file, allow_pickle=False)
    except Exception:
        return ""  # damaged: readers are tried elsewhere
    return "" if array.dtype.kind != "f" or bool(np.isfinite(array).all()) else "has NaN or infinities"


def _undefined_tensors(file: Path) -> str:
    import numpy as np

    content = file.read_bytes()
    try:
        size = struct.unpack("<Q", content[:8])[0]
        header: dict[str, Any] = json.loads(content[8 : 8 + size])
        for name, one in header.items():
            if name != "__metadata__" and one["dtype"] in ("F32", "F64", "F16"):
                begin, end = one["data_offsets"]
                values = np.frombuffer(
                    content[8 + size + begin : 8 + size + end], {"F32": "<f4", "F64": "<f8", "F16": "<f2"}[one["dtype"]]
                )
                if not np.isfinite(values).all():
                    return f"{name} has NaN or infinities"
    except Exception:
        return ""
    return ""


# -- bytes -------------------------------------------------------------------------------------------------------------


def contents(folder: Path, place: Path) -> dict[str, bytes]:
    """All files of a run made in `place`, but for times, and pictures and pages, which are only shown."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in SHOWN]
    kept = [file for file in files if file.name not in TIMES]
    return {str(f.relative_to(folder)): _timeless(f, place) for f in kept}


def _timeless(file: Path, place: Path) -> bytes:
    content = file.read_bytes().replace(str(place).encode(), b"HERE")
    if file.suffix not in (".json", ".jsonl", ".csv"):
        return content
    content = re.sub(rb'"(git|seconds|minutes|\w*_ms)": [^,}\n]*', b"", content)
    return re.sub(rb'"path": "[./]*(stock/)?', b'"path": "', content)  # of the stock, seen from here


def difference(here: Path, there: Path, timed: tuple[str, ...] = ()) -> str:
    """How a folder differs from the sound one, but for files that are `timed`: what they say was measured."""
    mine, theirs = contents(here, here.parent), contents(there, there.parent)
    names = sorted({*mine, *theirs} - {*timed})
    told = [f"{n} {_how(mine.get(n), theirs.get(n))}" for n in names if mine.get(n) != theirs.get(n)]
    return f"differs: {'; '.join(told[:4])}" if told else ""


def _how(mine: bytes | None, theirs: bytes | None) -> str:
    if mine is None or theirs is None:
        return "is missing" if mine is None else "is left over"
    at = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(len(mine), len(theirs)))
    return f"differs at byte {at} of {len(theirs)}"


def finite(value: float) -> bool:
    """Whether this is a number."""
    return math.isfinite(value)
