"""Commands in children of a process that has imported everything once: what takes seconds then takes milliseconds.

A child gets its folder, environment, limits and words, runs the command line as the installed program would, and leaves
what it printed in files. The parent watches it: it may send signals, and it ends what takes too long.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import os
import pkgutil
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 10.0  # seconds that a command has to end itself after an interrupt
OTHERS = (
    *("joblib", "matplotlib.pyplot", "PIL.Image", "scipy.stats", "sklearn.metrics", "sklearn.cluster", "yaml"),
    *("torchvision", "timm", "onnx", "onnxruntime", "onnxscript", "torch_pruning", "numba", "torch._dynamo"),
    *("torch.onnx", "torch.export", "pymoo.algorithms.moo.nsga2", "safetensors.torch", "torchao", "rich.progress"),
)


@dataclass(frozen=True)
class Ended:
    """How a command ended: `status` is its exit status, negative the signal that ended it."""

    status: int
    output: str
    errors: str
    seconds: float
    sent: tuple[int, ...] = ()  # signals that we sent
    late: bool = False  # it ran past its time and was interrupted
    stuck: bool = False  # it did not end even then, and was killed


@dataclass
class Job:
    """One command to run in a folder."""

    words: Sequence[str]
    folder: Path
    environment: Mapping[str, str | None] = field(default_factory=dict)
    limits: Mapping[int, int] = field(default_factory=dict)
    call: Callable[[], Any] | None = None  # instead of the command line
    name: str = "command"  # of the files with what it prints
    inside: Path | None = None  # where it runs, if not in the folder

    def printed(self, kind: str) -> str:
        """What it has printed to `out` or `err`; nothing where it was killed before it could."""
        file = self.folder / f"{self.name}.{kind}"
        return file.read_text(errors="replace") if file.exists() else ""


_at_exit: list[Callable[[], Any]] = []  # what the package does at the end of a process


def preload() -> None:
    """Import the package and what it imports late, so that children need not; nothing is computed, no thread begins."""
    import torch

    import phosphene

    torch.set_num_threads(1)
    for module in pkgutil.walk_packages(phosphene.__path__, "phosphene."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    _at_exit.append(importlib.import_module("phosphene.storage.lock")._leave)
    for name in OTHERS:
        with contextlib.suppress(Exception):  # an extra that is missing, or does not fit the others
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


def start(job: Job) -> int:
    """Begin the command in a child, which is the first of a group of its own; returns its number."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            _become(job)
            status = _call(job)
        finally:
            with contextlib.suppress(BaseException):
                atexit._run_exitfuncs()
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status & 0xFF)
    return child


def start_real(job: Job) -> int:
    """The same in a process of its own, which has all imports before it."""
    environment = {**os.environ, "TMPDIR": str(job.folder)}
    for name, value in job.environment.items():
        environment.pop(name, None) if value is None else environment.update({name: value})
    with open(job.folder / f"{job.name}.out", "wb") as out, open(job.folder / f"{job.name}.err", "wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "phosphene", *job.words],
            cwd=job.inside or job.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    process.returncode = 0  # we wait for it ourselves
    return process.pid


def _become(job: Job) -> None:
    atexit._clear()  # of all that was imported: it takes longer than many a command
    for leave in _at_exit:
        atexit.register(leave)
    os.setsid()
    os.chdir(job.inside or job.folder)
    tempfile.tempdir = None
    for name, value in {"TMPDIR": str(job.folder), **job.environment}.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    for descriptor, kind, flags in ((0, None, os.O_RDONLY), (1, "out", os.O_WRONLY), (2, "err", os.O_WRONLY)):
        path = "/dev/null" if kind is None else str(job.folder / f"{job.name}.{kind}")
        opened = os.open(path, flags | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    for kind_of_limit, most in job.limits.items():
        resource.setrlimit(kind_of_limit, (most, most))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.argv = ["phosphene", *job.words]
    sys.orig_argv = [sys.executable, *sys.argv]


def _call(job: Job) -> int:
    """The exit status that Python would end with."""
    from phosphene import cli
    from phosphene.runtime import start

    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # workers ignore it, and so did this child until now
        if job.call is None:
            start.begin()
        (job.call or cli.main)()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def wait(job: Job, child: int, seconds: float, signals: Sequence[tuple[float, int]] = ()) -> Ended:
    """Wait for the child's end; `signals` are sent after so many seconds since now, while it lives."""
    began, sent, late, stuck = time.monotonic(), [], False, False
    watched = os.pidfd_open(child)
    poll = select.poll()
    poll.register(watched, select.POLLIN)
    plan = sorted(signals) or [(seconds, signal.SIGINT), (seconds + PATIENCE, signal.SIGKILL)]
    if signals:
        plan += [(seconds, signal.SIGKILL)]
    for at, number in plan:
        if poll.poll(max(0.0, began + at - time.monotonic()) * 1000):
            break
        late = late or not signals
        stuck = number == signal.SIGKILL and (bool(not signals) or at == seconds)
        sent.append(int(number))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)
    poll.poll()
    os.close(watched)
    _, code = os.waitpid(child, 0)
    took = time.monotonic() - began
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)  # what it may have left behind
    return Ended(
        os.waitstatus_to_exitcode(code), job.printed("out"), job.printed("err"), took, tuple(sent), late, stuck
    )


def run(job: Job, seconds: float = 60.0, signals: Sequence[tuple[float, int]] = (), real: bool = False) -> Ended:
    """The command's end."""
    job.folder.mkdir(parents=True, exist_ok=True)
    return wait(job, (start_real if real else start)(job), seconds, signals)
