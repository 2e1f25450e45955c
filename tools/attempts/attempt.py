"""One attempt: its folder, its random generator, the commands that it ran, and what came of it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from . import forks, judge, small_disk, stock
from .forks import Ended, Job


@dataclass
class Attempt:
    """The same seed, kind and index give the same attempt."""

    kind: str
    index: int
    seed: int
    place: Path  # of the whole campaign
    times: Mapping[str, float]  # run -> the seconds that it took here, undisturbed
    command: str = ""
    what: str = ""
    kills: int = 0
    steps: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = Random(f"{self.seed} {self.kind} {self.index}")
        self.folder = self.place / "attempts" / f"{self.kind}-{self.seed}-{self.index}"
        self.stock = self.place / "stock"

    def prepare(self) -> None:
        """Make the folder, empty but for the link to the stock."""
        if self.folder.exists():  # of a campaign that was killed
            small_disk.unmount(self.folder / "disk")
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        (self.folder / "stock").symlink_to(self.stock)

    def job(self, words: Sequence[str], **more: Any) -> Job:
        """A command in this folder, noted for the replay."""
        job = Job(list(words), more.pop("folder", self.folder), name=f"step{len(self.steps)}", **more)
        note = {
            "words": job.words,
            "environment": dict(job.environment),
            "limits": {str(k): v for k, v in job.limits.items()},
        }
        self.steps.append(note)
        return job

    def run(
        self,
        words: Sequence[str],
        seconds: float = 60.0,
        signals: Sequence[tuple[float, int]] = (),
        real: bool = False,
        environment: Mapping[str, str | None] | None = None,
        limits: Mapping[int, int] | None = None,
        call: Callable[[], Any] | None = None,
        inside: Path | None = None,
    ) -> Ended:
        """Run a command and note how it ended."""
        job = self.job(words, environment=environment or {}, limits=limits or {}, call=call, inside=inside)
        ended = forks.run(job, seconds, signals, real)
        self.steps[-1] |= {"signals": list(signals), "seconds": seconds, "real": real, "status": ended.status}
        self.kills += bool(ended.sent) and not ended.late and ended.status != 0
        return ended

    def sound(self, name: str, out: Path | None = None) -> str:
        """Run the command until it ends by itself: what is wrong with its end, or with the bytes it left."""
        inside = None if out is None else out.parent
        ended = self.run(stock.words(name), 120.0, inside=inside)
        here = out or self.folder / "out"
        if told := judge.problem(ended):
            return told
        if ended.status:
            return f"cannot go on: {judge.tail(ended.errors)}"
        there = self.stock / name / "out"
        return judge.difference(here, there, stock.TIMED.get(name, ())) if there.is_dir() else ""

    def done(self, problem: str, began: float) -> dict[str, Any]:
        """The line of the journal; the folder stays where the attempt failed."""
        line: dict[str, Any] = {
            name: getattr(self, name) for name in ("kind", "index", "seed", "command", "what", "kills")
        }
        line |= {"ends": [step.get("status") for step in self.steps], "problem": problem}
        line |= {"seconds": round(time.monotonic() - began, 3)}
        if problem:
            line["fault"] = judge.fault(problem)
            (self.folder / "attempt.json").write_text(json.dumps({**line, "steps": self.steps}, indent=1))
            kept = self.place / "failed" / self.folder.name
            shutil.rmtree(kept, ignore_errors=True)
            kept.parent.mkdir(exist_ok=True)
            shutil.move(self.folder, kept)
        shutil.rmtree(self.folder, ignore_errors=True)
        return line
