"""Independent calls side by side: joblib's processes on one machine, or the same calls on a Ray cluster.

    results = side_by_side([(train, (probe, folder), {}), …], jobs=4, backend="joblib", title="difficulty")

A call that fails does not disturb the others. Ctrl-C and SIGTERM reach the calls that are running as SIGTERM does: a
`Run` in them saves its state and stops, so that the same command goes on from there.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from .. import errors
from ..errors import Fault, PhospheneError, RunError, SettingsError, Stopped
from ..settings import OUTSIDE, Ge, Settings
from .machine import PREFERENCES, Preferences
from .progress import among_others, interrupted, say, span

Call = tuple[Callable[..., Any], Sequence[Any], dict[str, Any]]
Backend = Literal["joblib", "ray"]


class Processes(Settings, heading="Side by side"):
    jobs: Annotated[int, OUTSIDE, Ge(1), "independent calls at a time, each in a process of its own"] = 1


class Jobs(Processes):
    backend: Annotated[Backend, OUTSIDE, "where the jobs run: on this machine (joblib) or on a Ray cluster"] = "joblib"


EACH = 4  # calls of each worker where work is shared out: a kill loses those that run
_LINE_EVERY = 15.0  # seconds between lines about what is left
_WATCH_EVERY = 0.2  # seconds between a worker's looks at the stop file and at its parent


@dataclass(frozen=True)
class Outcome:
    """What became of call `index`: a value, an error as (class, message, traceback), or neither where it stopped."""

    index: int
    value: Any = None
    error: tuple[str, str, str] | None = None
    stopped: bool = False


class Elsewhere(Exception):
    """A traceback from another process, as text."""

    def __str__(self) -> str:
        return "\n" + str(self.args[0])


def shared_out(count: int, jobs: int) -> list[slice]:
    """`count` things in equal parts, one for each call: all in one with one job, else `EACH` for a worker."""
    parts = 1 if jobs == 1 else min(count, EACH * jobs)
    bounds = [count * k // max(1, parts) for k in range(parts + 1)]
    return list(itertools.starmap(slice, itertools.pairwise(bounds)))


def side_by_side(calls: Sequence[Call], *, jobs: int = 1, backend: Backend = "joblib", title: str) -> list[Any]:
    """Do all calls, `jobs` at a time, and return their results in order.

    With one job and joblib they run here, one after the other. Else each worker takes `--threads`, or its share of the
    cores; results are the same bits for every `jobs` and `backend` where the threads are equal (rounding depends on
    them).

    Args:
        calls: (function, args, kwargs); functions of modules, arguments and results that can be pickled.
        jobs: how many at a time; on a cluster, how many workers to ask for.
        backend: "joblib", or "ray" for the cluster of ``RAY_ADDRESS`` (a local one where there is none).

    Raises:
        Stopped: after Ctrl-C or SIGTERM; what was finished is finished.
        PhospheneError: the first error of a call, of its own class, after all the others are done.
        SettingsError: `jobs` is less than 1, or `backend` is unknown or not installed.
    """
    if jobs < 1:
        raise SettingsError(f"--jobs {jobs} is less than 1")
    if backend not in ("joblib", "ray"):
        raise SettingsError(f"--backend {backend} is neither joblib nor ray")
    left = Remaining(title, len(calls))
    ends: dict[int, Outcome] = {}
    for outcome in _here(calls) if jobs == 1 and backend == "joblib" else _spread(calls, jobs, backend, left):
        ends[outcome.index] = outcome
        left.show(len(ends))
    if len(ends) < len(calls) or any(end.stopped for end in ends.values()):
        done = sum(not end.stopped and end.error is None for end in ends.values())
        raise Stopped(f"stopped: {title} has {done} of {len(calls)} finished; run the same command to go on")
    _raise_first(ends, title)
    return [ends[index].value for index in range(len(calls))]


@dataclass
class Remaining:
    """A line now and then: how many are done and how long the others will take."""

    title: str
    total: int
    began: float = field(default_factory=time.monotonic)
    shown: float = field(default_factory=time.monotonic)

    def show(self, done: int) -> None:
        """Say it, unless it was said a moment ago."""
        now = time.monotonic()
        if 0 < done < self.total and now - self.shown >= _LINE_EVERY:
            self.shown = now
            say(f"{self.title}: {done} of {self.total}, {span((now - self.began) / done * (self.total - done))} left")


def _raise_first(ends: dict[int, Outcome], title: str) -> None:
    """The first error as one of ours; a fault of the program brings its traceback along as its cause."""
    failed = [ends[index] for index in sorted(ends) if ends[index].error is not None]
    if not failed:
        return
    kind, message, trace = failed[0].error or ("", "", "")
    known = getattr(errors, kind, None)
    count = "" if len(failed) == 1 and len(ends) == 1 else f" ({title}: {len(failed)} of {len(ends)} failed)"
    if isinstance(known, type) and issubclass(known, PhospheneError):
        error = known.__new__(known, message + count)  # some take other arguments than their message
        error.args = (message + count,)
        raise error
    if kind == MemoryError.__name__:
        raise MemoryError(message + count)
    kept = "the others are finished and kept; run the same command again"
    raise Fault(f"{title}: {kind}: {message}{count}; {kept}") from Elsewhere(trace)


# -- here, one after the other ---------------------------------------------------------------------------------------


def _here(calls: Sequence[Call]) -> Iterator[Outcome]:
    for index, call in enumerate(calls):
        try:
            yield _outcome(index, call)
        except Stopped:
            yield Outcome(index, stopped=True)
            return


def _outcome(index: int, call: Call) -> Outcome:
    function, args, kwargs = call
    try:
        return Outcome(index, function(*args, **kwargs))
    except (Stopped, errors.Estimate):
        raise
    except (Exception, SystemExit) as error:  # what a user's code raises, too
        kind = MemoryError if errors.is_memory(error) else type(error)
        return Outcome(index, error=(kind.__name__, str(error), traceback.format_exc()))


# -- in other processes ----------------------------------------------------------------------------------------------


def _spread(calls: Sequence[Call], jobs: int, backend: Backend, left: Remaining) -> Iterator[Outcome]:
    """Outcomes as they come; after a signal those that run are stopped, and those that wait end at once."""
    import joblib

    threads = PREFERENCES.threads or max(1, joblib.cpu_count() // jobs)
    took = replace(PREFERENCES, threads=threads)
    name, options = ("loky", {"inner_max_num_threads": threads}) if backend == "joblib" else ("ray", {})
    with _cluster(backend), tempfile.TemporaryDirectory(prefix="phosphene-") as folder, stop_file(Path(folder)) as stop:
        work = [joblib.delayed(_work)(index, call, took, stop, os.getpid()) for index, call in enumerate(calls)]
        with joblib.parallel_config(backend=name, n_jobs=jobs, **options):
            order = "generator_unordered" if backend == "joblib" else "list"  # Ray's backend has no generator
            pool = joblib.Parallel(return_as=order, batch_size=1, max_nbytes=None)
            if order == "list":
                pool.print_progress = lambda: left.show(pool.n_completed_tasks)
            try:
                yield from pool(work)
            except BrokenExecutor as error:
                if not stop.exists():
                    why = f"{left.title}: a worker was killed ({error}); lower --jobs if memory is short"
                    raise RunError(f"{why}, and run the same command again") from error


@contextlib.contextmanager
def _cluster(backend: Backend) -> Iterator[None]:
    """Ray's joblib backend, registered; nothing for joblib's own."""
    if backend == "joblib":
        yield
        return
    try:
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise SettingsError("--backend ray: ray is not installed; run: pip install 'phosphene[ray]'") from error
    register_ray()
    yield


@contextlib.contextmanager
def stop_file(folder: Path) -> Iterator[Path]:
    """Inside, the first Ctrl-C or SIGTERM makes the file that is yielded; the second interrupts at once."""
    stop = folder / "stop"
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame: object) -> None:
        if stop.exists():
            raise KeyboardInterrupt
        stop.touch()
        say("stopping; what is running saves its state (once more to stop at once)", logging.WARNING)

    with interrupted(note):
        yield stop


def _work(index: int, call: Call, preferences: Preferences, stop: Path, parent: int) -> Outcome:
    """One call in a worker; ended by one SIGTERM when the stop file appears or the parent is gone."""
    if os.getpid() == parent:  # joblib runs a single call here
        return Outcome(index, stopped=True) if stop.exists() else _outcome(index, call)
    PREFERENCES.threads, PREFERENCES.compile = preferences.threads, preferences.compile
    with among_others(), stoppable(stop):
        try:
            return Outcome(index, stopped=True) if stop.exists() else _outcome(index, call)
        except (Stopped, KeyboardInterrupt):
            return Outcome(index, stopped=True)


@contextlib.contextmanager
def stoppable(stop: Path) -> Iterator[None]:
    """Inside, this process sends itself one SIGTERM when it shall stop; outside of a Run's loop that is `Stopped`.

    The worker has a process group of its own, so that a terminal's Ctrl-C, which goes to the whole group, reaches it
    once and by this way only.
    """

    def note(number: int, frame: object) -> None:
        if not over.is_set():
            raise Stopped("stopped")

    def watch() -> None:
        while not over.wait(_WATCH_EVERY):
            if stop.exists() or os.getppid() != born_of:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if os.getpgrp() != os.getpid():
        with contextlib.suppress(OSError):  # the leader of a session has its own group already
            os.setpgid(0, 0)
    over, born_of = threading.Event(), os.getppid()
    old = signal.signal(signal.SIGTERM, note)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        signal.signal(signal.SIGTERM, old)
