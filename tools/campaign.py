"""A campaign against the package: it runs for as long as it is told, counts every attempt, and keeps what failed.

    python tools/campaign.py --minutes 30 --jobs 2 --out /tmp/campaign

Kinds of attempts are in `tools/attempts/`: kills, readers, flags, disk, memory, pairs, ranks, code. Killed and run
again with the same --out it goes on. A failed attempt leaves a folder: python tools/campaign.py --replay FOLDER.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCE = str(ROOT / "src")
sys.path[:0] = [SOURCE, str(ROOT / "tools")]

from attempts import code, flags, forks, kills, limits, machine, readers, record, sound, together  # noqa: E402
from attempts.attempt import Attempt  # noqa: E402

KINDS: dict[str, tuple[float, Callable[[Attempt], str]]] = {  # kind -> its share of the time, its attempt
    "kills": (42.0, kills.attempt),
    "resumed": (8.0, kills.resumed),
    "readers": (14.0, readers.attempt),
    "flags": (10.0, flags.attempt),
    "python": (3.0, machine.python),
    "recipes": (3.0, machine.recipe),
    "environment": (2.0, machine.environment),
    "code": (3.0, code.attempt),
    "disk": (5.0, limits.disk),
    "memory": (4.0, limits.memory),
    "pairs": (3.0, together.pairs),
    "ranks": (3.0, together.ranks),
}


def main() -> int:
    """Run the campaign; exit status 1 where an attempt failed."""
    given = arguments()
    os.environ.update(PYTHONPATH=SOURCE, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", MPLBACKEND="Agg")
    forks.preload()
    if given.replay:
        return replay(given.replay.resolve())
    place = given.out.resolve()
    times = sound.make(place)
    lines = Journal(place / "journal.jsonl")
    attack(given, place, times, lines)
    summarize(lines.lines)
    if given.record:
        keep(given, lines.lines)
    return any(line["problem"] and not record.left(line) for line in lines.lines)


def arguments() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="how long to go on")
    parser.add_argument("--jobs", type=int, default=1, help="attempts at a time")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other attempts")
    parser.add_argument("--only", default=",".join(KINDS), help="kinds, with commas between")
    parser.add_argument("--out", type=Path, default=Path("runs/campaign"), help="folder of stock, journal and failures")
    parser.add_argument("--record", type=Path, help="file to write the summary to")
    parser.add_argument("--replay", type=Path, metavar="FOLDER", help="run a failed attempt again")
    return parser.parse_args()


class Journal:
    """One line an attempt; what is there is not attempted again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_text() if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole)  # killed while it wrote
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines()]

    def add(self, line: dict[str, Any]) -> None:
        """Append one."""
        self.lines.append(line)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def plan(given: argparse.Namespace, lines: list[dict[str, Any]]) -> Iterator[tuple[str, int]]:
    """(kind, index) without end: the kind that has had the least of its share comes next."""
    done = {(line["kind"], line["index"]) for line in lines if line["seed"] == given.seed}
    spent, following = Counter[str](), Counter[str]()
    for line in lines:
        spent[line["kind"]] += line["seconds"]
    while True:
        kind = min(given.only.split(","), key=lambda one: spent[one] / KINDS[one][0])
        while (kind, following[kind]) in done:
            following[kind] += 1
        done.add((kind, following[kind]))
        known = [line["seconds"] for line in lines[-1000:] if line["kind"] == kind]
        spent[kind] += sum(known) / len(known) if known else 1.0
        yield kind, following[kind]


def attack(given: argparse.Namespace, place: Path, times: dict[str, float], journal: Journal) -> None:
    """Attempts until the time is over; each worker is a fork of this process and forks its commands."""
    began, shown = time.monotonic(), 0.0
    works = plan(given, journal.lines)
    forked = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(given.jobs, forked, _ignore_interrupts) as pool:
        running: list[Future[dict[str, Any]]] = []
        while running or time.monotonic() - began < given.minutes * 60:
            while len(running) < given.jobs and time.monotonic() - began < given.minutes * 60:
                running.append(pool.submit(one, *next(works), given.seed, place, times))
            for ready in wait(running, 30.0, FIRST_COMPLETED).done:
                running.remove(ready)
                journal.add(ready.result())
            if time.monotonic() - shown > 30:
                shown = time.monotonic()
                left = given.minutes - (shown - began) / 60
                failed = sum(bool(line["problem"]) for line in journal.lines)
                print(
                    f"{len(journal.lines)} attempts, {failed} failed, {left:.0f} minutes left",
                    file=sys.stderr,
                    flush=True,
                )


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us; commands take it again


def one(kind: str, index: int, seed: int, place: Path, times: dict[str, float]) -> dict[str, Any]:
    """One attempt, from its folder to the line of the journal."""
    began = time.monotonic()
    made = Attempt(kind, index, seed, place, times)
    made.prepare()
    try:
        problem = KINDS[kind][1](made)
    except Exception as error:  # a fault of the campaign's: it must not end it, nor pass for a success
        problem = (
            f"the campaign itself: {type(error).__name__}: {error} ({traceback.format_exc().splitlines()[-3].strip()})"
        )
    return made.done(problem, began)


def keep(given: argparse.Namespace, lines: list[dict[str, Any]]) -> None:
    """Write the record, and the page of all results where it lies among these."""
    from phosphene.recipes import results

    minutes = sum(line["seconds"] for line in lines) / 60 / given.jobs
    made = record.record(lines, given.seed, round(minutes, 1), given.jobs, results.this_machine())
    given.record.parent.mkdir(parents=True, exist_ok=True)
    given.record.write_text(json.dumps(made, indent=1) + "\n")
    if given.record.resolve().parent == ROOT / "docs" / "results":
        results.results(given.record.parent)


def replay(folder: Path) -> int:
    """The attempt of a folder once more: its seed chooses the same, but no kill comes at quite the same moment."""
    told = json.loads((folder / "attempt.json").read_text())
    place = folder.parents[1]
    line = one(told["kind"], told["index"], told["seed"], place, sound.make(place))
    where = place / "failed" / folder.name if line["problem"] else None
    for step in json.loads((where / "attempt.json").read_text())["steps"] if where else ():
        print(f"phosphene {' '.join(step['words'])}\n  ends with {step.get('status')}")
    print(f"then: {told['what']}: {told['problem']}\nnow:  {line['what']}: {line['problem'] or 'nothing'}")
    return bool(line["problem"])


def summarize(lines: list[dict[str, Any]]) -> None:
    """The attempts by kind, and each fault with its first folder."""
    for kind in dict.fromkeys(line["kind"] for line in lines):
        of = [line for line in lines if line["kind"] == kind]
        failed, seconds = sum(bool(line["problem"]) for line in of), sum(line["seconds"] for line in of)
        print(f"{kind}: {len(of)} attempts, {failed} failed, {seconds:.0f} s")
    faults: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        if line["problem"]:
            faults.setdefault(line["fault"], []).append(line)
    for of in sorted(faults.values(), key=len, reverse=True):
        first = of[0]
        print(f"{len(of):5d}  {first['kind']}-{first['index']}  {first['command']} | {first['what'][:100]}")
        print(f"       {first['problem'][:260]}")


if __name__ == "__main__":
    sys.exit(main())
