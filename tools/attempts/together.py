"""The same command twice at once in one folder; and two ranks of one run, of which one is lost."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

from . import forks, judge, kills, stock
from .attempt import Attempt
from .forks import Ended

RANKED = ("darts", "trained", "sgas", "gumbel", "proxyless", "spos")
GRACE = 5.0  # seconds between the loss of a rank and the end of the others, by whom started them


def pairs(made: Attempt) -> str:
    """Both end well, or one says who holds the folder; then the bytes are those of one."""
    name = kills.choose(made.random)
    made.command = stock.command(name)
    delay = made.times[name] * made.random.choice((0.0, 0.0, made.random.random()))
    made.what = f"{name}: twice, {delay:.2f} s apart"
    jobs = [made.job(stock.words(name)) for _ in range(2)]
    children = []
    for job in jobs:
        if children:
            time.sleep(delay)
        children.append(forks.start(job))
    ends = [forks.wait(job, child, 60.0) for job, child in zip(jobs, children, strict=True)]
    for step, ended in zip(made.steps[-2:], ends, strict=True):
        step |= {"status": ended.status}
    told = next(filter(None, map(judge.problem, ends)), "")
    if not told and all(ended.status for ended in ends):
        told = f"neither went on: {judge.tail(ends[0].errors)}"
    return told or made.sound(name)


def ranks(made: Attempt) -> str:
    """One of two ranks is killed; whoever started them ends the other; both again until they end."""
    name = made.random.choice(RANKED)
    made.command = stock.command(name)
    reference = made.stock / f"ranks-{name}"
    if not (reference / "done").exists() and (told := _reference(made, name, reference)):
        return told
    at = made.random.random() * 2.5 * made.times[name]
    rank, number = made.random.randrange(2), made.random.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
    made.what = f"{name}: rank {rank} gets {signal.Signals(number).name} at {at:.2f} s"
    environment = {"PHOSPHENE_CHECKPOINT_SECONDS": made.random.choice(("0", "0", None))}
    ends = _both(made, name, environment, (rank, at, number))
    made.kills += any(ended.status for ended in ends)
    asked = (number,) if number != signal.SIGKILL else ()  # the other one stops with it
    for ended in ends:
        if told := judge.problem(replace(ended, sent=ended.sent + asked)):
            return told
    ends = _both(made, name, {})
    for ended in ends:
        if told := judge.problem(ended) or (f"cannot go on: {judge.tail(ended.errors)}" if ended.status else ""):
            return told
    return judge.difference(made.folder / "out", reference / "out")


def _reference(made: Attempt, name: str, reference: Path) -> str:
    ends = _both(made, name, {})
    told = next((f"{ended.status}: {judge.tail(ended.errors)}" for ended in ends if ended.status), "")
    if not told and not reference.exists():
        ready = reference.with_name(f"{reference.name}.{os.getpid()}")
        ready.mkdir()
        (made.folder / "out").rename(ready / "out")
        (ready / "done").touch()
        if reference.exists():
            shutil.rmtree(ready)
        else:
            ready.rename(reference)
    shutil.rmtree(made.folder / "out", ignore_errors=True)
    return f"two ranks: {told}" if told else ""


def _both(
    made: Attempt, name: str, environment: dict[str, str | None], kill: tuple[int, float, int] | None = None
) -> list[Ended]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**environment, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    jobs = [made.job(stock.words(name), environment={**shared, "RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(2)]
    children = [forks.start(job) for job in jobs]
    if kill is None:
        ends = [forks.wait(job, child, 90.0) for job, child in zip(jobs, children, strict=True)]
    else:
        rank, at, number = kill
        first = forks.wait(jobs[rank], children[rank], 60.0, [(at, number)])
        after = [(GRACE, signal.SIGTERM), (2 * GRACE, signal.SIGKILL)] if first.status else [(60.0, signal.SIGKILL)]
        other = forks.wait(jobs[1 - rank], children[1 - rank], 61.0, after)
        ends = [first, other] if rank == 0 else [other, first]
    for step, ended in zip(made.steps[-2:], ends, strict=True):
        step |= {"status": ended.status}
    return ends
