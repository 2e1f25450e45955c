"""Every command that writes, killed at random moments, and run again until it ends: the same bytes as undisturbed."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from random import Random

from . import judge, mutations, stock
from .attempt import Attempt

OFTEN = ("darts", "sgas", "proxyless", "gumbel", "evolution")
READS_ONLY = ("teacher", "agreement")
START_UP = 0.06  # share of kills while the program is still importing, in a process of its own
DONE = ("result.json", "rows.csv")  # a finished run is not made again
SOONEST, LATEST = 0.02, 1.3  # of a run's usual seconds


def attempt(made: Attempt) -> str:
    """One to three kills, then the same command to its end."""
    random = made.random
    name = choose(random)
    made.command = stock.command(name)
    environment = {"PHOSPHENE_CHECKPOINT_SECONDS": random.choice(("0", "0", "0", "0.1", None))}
    real = random.random() < START_UP
    told = []
    for _ in range(random.choice((1, 1, 2, 3))):
        signals = _signals(
            random, random.uniform(0.1, 6.0) if real else made.times[name] * random.uniform(SOONEST, LATEST)
        )
        told.append(" ".join(f"{signal.Signals(number).name} at {at:.2f} s" for at, number in signals))
        made.what = f"{name}: {', '.join(told)}{' from the start-up on' if real else ''}"
        ended = made.run(stock.words(name), 60.0, signals, real, environment)
        if problem := judge.problem(ended):
            return problem
        if ended.status == 2:
            return f"cannot go on: {judge.tail(ended.errors)}"
    return made.sound(name)


def resumed(made: Attempt) -> str:
    """Killed, then a file of the unfinished run is damaged, lost or left over; the same command notices, or mends it.

    Refused is as good as mended: the message says what to remove, and without the folder the run ends as ever.
    """
    random = made.random
    name = choose(random)
    made.command = stock.command(name)
    at = made.times[name] * random.uniform(0.2, 1.0)
    environment = {"PHOSPHENE_CHECKPOINT_SECONDS": "0"}
    made.what = f"{name}: SIGKILL at {at:.2f} s"
    if problem := judge.problem(made.run(stock.words(name), 60.0, [(at, signal.SIGKILL)], environment=environment)):
        return problem
    out = made.folder / "out"
    files = [file for file in sorted(out.rglob("*")) if file.is_file() and _matters(file)]
    told_nothing: tuple[str, ...] = stock.TIMED.get(name, ())
    if files and not any((out / done).exists() for done in DONE):
        file = random.choice(files)
        made.what += f", then {file.relative_to(out)}: {_damage(file, random)}"
        if file.name == "config.json":
            told_nothing += (str(file.relative_to(out)),)  # its versions are kept and not compared
    ended = made.run(stock.words(name), 120.0)
    if told := judge.problem(ended):
        return told
    if ended.status == 0:
        for left in {*out.rglob(".unfinished-*"), *out.rglob("*.new")}:
            left.unlink()  # ours
        there = made.stock / name / "out"
        return judge.difference(out, there, told_nothing) if there.is_dir() else ""
    shutil.rmtree(out)
    return made.sound(name)


def _matters(file: Path) -> bool:
    """Whether a run that goes on may need this file: pictures, and the log of a part that is finished, it does not."""
    logged = file.name in ("metrics.jsonl", "config.json", "timing.json") and (file.parent / "result.json").exists()
    return file.suffix not in judge.SHOWN and not logged


def _damage(file: Path, random: Random) -> str:
    if random.random() < 0.1:
        left = file.with_name(random.choice((f".unfinished-99999999-{file.name}", "config.json.new", "checkpoint.new")))
        left.write_bytes(file.read_bytes()[:20])
        return f"{left.name} left over beside it"
    return mutations.damage(file, random)


def choose(random: Random) -> str:
    """A run: long ones less often, but for the searches that are to be killed often."""
    names = [name for name in stock.RUNS if name not in READS_ONLY]
    return random.choices(names, [3.0 if n in OFTEN else 1 / (0.5 + stock.usual(n)) for n in names])[0]


def _signals(random: Random, at: float) -> list[tuple[float, int]]:
    kind = random.random()
    if kind < 0.7:
        return [(at, signal.SIGKILL)]
    if kind < 0.8:
        return [(at, signal.SIGTERM)]
    if kind < 0.9:
        return [(at, signal.SIGINT)]
    if kind < 0.95:
        return [(at, signal.SIGINT), (at + random.uniform(0, 0.2), signal.SIGINT)]
    return [(at, signal.SIGTERM), (at + random.uniform(0, 0.3), signal.SIGKILL)]
