"""A run folder, and the one loop that every long job uses: it restores, checkpoints, logs and can be killed.

    run = Run.open("search", settings, inputs, out, machine)
    for step in run.steps("supernet", total, net=net, opt=opt, alphas=alphas):
        ...
        run.log(loss=loss.item())
    run.finish({"params": ...})

Files: `config.json`, `metrics.jsonl`, `checkpoint`, `result.json`, `timing.json`. Only `timing.json` holds times, so
that the others are the same bytes however often the run was interrupted.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import Estimate, RunError, Stopped
from ..settings import RunSettings
from ..storage import lock
from ..storage.typed import defined, read_json, write_json
from . import checkpoint, environment, identity
from .finite_states import FiniteStates
from .machine import Machine
from .metrics import Metrics
from .progress import Progress, interrupted, say

_ESTIMATED_STEPS = 4


class Run:
    """One run folder, open. Use `Run.open` or `Run.scratch`."""

    after_step: Callable[[str, int], None] | None = None  # tests inject faults here

    def __init__(self, path: Path, stage: str, seed: int, machine: Machine, *, durable: bool, estimate: bool) -> None:
        self.path, self.stage, self.seed, self.machine = path, stage, seed, machine
        self.durable, self.estimating = durable, estimate
        self._needs: dict[str, Any] = {"minutes": 0.0, "disk_mib": 0.0, "phases": {}}
        self._figures: dict[str, Any] = {}
        self._phase, self._step = "", 0
        self._metrics: Metrics | None = None
        self._began, self._seconds = time.monotonic(), 0.0
        self._signal: int | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._release: Callable[[], object] | None = None  # lets go of the folder

    @classmethod
    def open(
        cls,
        stage: str,
        settings: dict[str, Any],
        inputs: Sequence[str],
        out: Path | str | None,
        machine: Machine,
        *,
        seed: int = 0,
        estimate: bool = False,
    ) -> Run:
        """Create the run's folder, or open it again to go on.

        Args:
            settings: the effective settings, JSON values; with `inputs` and `seed` they are the run's identity.
            inputs: fingerprints of the data sets and networks that go in.
            out: the folder; by default ``runs/<stage>-<hash>``.

        Raises:
            RunError: the folder holds another run, or something that is not a run, or another process is at work in it.
            StorageError: the folder cannot be made.
        """
        if estimate:
            return cls.scratch(machine, seed, stage=stage, estimate=True)
        config = identity.configuration(stage, settings, inputs, seed, machine.precision)
        path = Path(out) if out is not None else Path("runs") / f"{stage}-{config['identity'][:8]}"
        machine.first(lambda: identity.claim(path, config))
        run = cls(path, stage, seed, machine, durable=True, estimate=False)
        if run.finished is not None:
            run._sweep()
        if machine.rank == 0:
            run._release = weakref.finalize(run, lock.give_back, path)
        return run

    @classmethod
    def start(
        cls, stage: str, settings: RunSettings, identity: dict[str, Any], inputs: Sequence[str], machine: Machine
    ) -> Run:
        """`open` with the folder, the seed and --estimate of a command's settings."""
        return cls.open(stage, identity, inputs, settings.out, machine, seed=settings.seed, estimate=settings.estimate)

    @classmethod
    def scratch(cls, machine: Machine, seed: int = 0, *, stage: str = "scratch", estimate: bool = False) -> Run:
        """A run in a temporary folder that keeps no checkpoints and vanishes with the object."""
        temporary = tempfile.TemporaryDirectory(prefix="phosphene-")
        run = cls(Path(temporary.name), stage, seed, machine, durable=False, estimate=estimate)
        run._temporary = temporary
        return run

    @property
    def finished(self) -> dict[str, Any] | None:
        """The contents of `result.json` if the run is done."""
        return read_json(self.path / "result.json") if (self.path / "result.json").exists() else None

    @contextlib.contextmanager
    def seeded(self, purpose: str) -> Iterator[None]:
        """Global random generators seeded from (seed, purpose) inside, and put back after: for initial weights."""
        outside = checkpoint.capture_randomness()
        checkpoint.seed_randomness(self.seed, purpose)
        try:
            yield
        finally:
            checkpoint.restore_randomness(outside)

    def steps(
        self,
        phase: str,
        total: int,
        *,
        alone: bool = False,
        keep: bool = True,
        alike: int = 1,
        title: str | None = None,
        **states: Any,
    ) -> Iterator[int]:
        """Yield the steps of a phase that are not done yet, 0 to ``total - 1``.

        The `states` (modules, optimizers, tensors, generators, dicts and lists of these) and the global random
        generators are restored first and checkpointed as the loop goes on. Where the phase was completed before, its
        final states are restored and nothing is yielded.

        Args:
            alone: ranks run phases of their own here, so nothing may wait for another rank.
            keep: remember the final states; False where the caller journals finished phases itself.
            alike: how many phases like this one the run has (for `--estimate`, which then runs only the first).

        Raises:
            Stopped: after Ctrl-C or SIGTERM, once the state is saved.
            NotFinite: a module or tensor among the states has values that are NaN or infinite; it is not saved.
            RunError: the checkpoint was written by another number of ranks.
        """
        if self.estimating:
            yield from self._estimate(phase, total, alike)
            return
        outside = checkpoint.capture_randomness()
        first = self._resume(phase, total, states, alone)
        bar = Progress(title or f"{self.stage} {phase}", total, first, quiet=self.machine.rank > 0 or not self.durable)
        watch = FiniteStates(states, self.stage if phase == self.stage else f"{self.stage}, {phase}", first)
        try:
            with self._signals():
                yield from self._loop(phase, first, total, states, alone, bar, watch)
            if first < total:
                watch.check(total)
            if self.durable and first <= total:
                self._save(phase, total, states, self._file(f"phase-{phase}" if keep else "checkpoint"))
        finally:
            bar.close()
            checkpoint.restore_randomness(outside)

    def log(self, **figures: Any) -> None:
        """Append one line to `metrics.jsonl` (rank 0) and show it beside the progress; never log times."""
        self._figures = {name: _plain(value) for name, value in figures.items()}
        if self.machine.rank == 0 and not self.estimating:
            self._logged().append({"phase": self._phase, "step": self._step, **self._figures})

    def disk(self, size: int) -> None:
        """Say how many bytes this run will write (for `--estimate`)."""
        self._needs["disk_mib"] += size / 2**20

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Write `result.json`, remove the checkpoints, and return the result: JSON values, None for what is NaN."""
        if self.estimating:
            raise self._estimated()
        self.machine.barrier()
        if self.machine.rank == 0:
            self._logged().close()
            write_json(self.path / "timing.json", {"seconds": round(self._elapsed(), 1)})
            write_json(self.path / "result.json", result)
        self.machine.barrier()
        self._sweep()
        if self._release is not None:
            self._release()
        return json.loads(json.dumps(defined(result)))  # type: ignore[no-any-return]

    # -- inside ----------------------------------------------------------------------------------------------------

    def _loop(
        self,
        phase: str,
        first: int,
        total: int,
        states: dict[str, Any],
        alone: bool,
        bar: Progress,
        watch: FiniteStates,
    ) -> Iterator[int]:
        saved, every = time.monotonic(), environment.seconds_between_checkpoints()
        for step in range(first, total):
            self._phase, self._step = phase, step
            yield step
            watch.look(step + 1)
            due = time.monotonic() - saved >= every
            if self._agreed(due or self._signal is not None, step, every, alone):
                watch.check(step + 1)
                self._save(phase, step + 1, states, self._file("checkpoint"))
                saved = time.monotonic()
                if self._agreed(self._signal is not None, step, every, alone):
                    raise Stopped(self._how_to_go_on(phase, step + 1, total))
            bar.update(step + 1, self._figures)
            if Run.after_step is not None:
                Run.after_step(phase, step)

    def _agreed(self, flag: bool, step: int, every: float, alone: bool) -> bool:
        """Whether any rank wants it; ranks ask each other every tenth step only, since asking costs a round trip."""
        if alone or self.machine.world == 1:
            return flag and self.durable
        return self.durable and (step % 10 == 9 or every == 0) and self.machine.any(flag)

    def _save(self, phase: str, step: int, states: dict[str, Any], path: Path) -> None:
        if self.machine.rank == 0:
            self._logged().flush()
        payload = {
            "phase": phase,
            "step": step,
            "world": self.machine.world,
            "metrics": self._logged().text if self.machine.rank == 0 else "",
            "seconds": self._elapsed(),
            "states": {name: checkpoint.capture(thing) for name, thing in states.items()},
            "randomness": checkpoint.capture_randomness(),
        }
        checkpoint.write(path, payload)

    def _resume(self, phase: str, total: int, states: dict[str, Any], alone: bool) -> int:
        """The first step to run: states and random generators are as they were before it."""
        saved = self._saved(phase, alone)
        first = self.machine.rank == 0
        if saved is None:
            checkpoint.seed_randomness(self.seed, phase, 0 if alone else self.machine.rank)
            if first and self.durable:
                self._logged().forget(phase)  # its state was damaged, or another process was lost before it had one
            return 0
        if not alone and saved["world"] != self.machine.world:
            raise RunError(
                f"{self.path} was begun by {saved['world']} processes and cannot go on with {self.machine.world}; "
                f"start {saved['world']} again, or choose another --out"
            )
        for name, thing in states.items():
            checkpoint.restore(thing, saved["states"][name])
        checkpoint.restore_randomness(saved["randomness"])
        self._seconds = max(self._seconds, float(saved["seconds"]))
        if saved["step"] >= total:
            if first:
                self._logged().remember(saved["metrics"])
            return total + 1  # done before: nothing to run and nothing to save
        if first:
            self._logged().restore(saved["metrics"])
        return int(saved["step"])

    def _saved(self, phase: str, alone: bool) -> dict[str, Any] | None:
        """The newest sound state of this phase that every rank has."""
        if not self.durable:
            return None
        done = self._file(f"phase-{phase}")
        states = [self._read(path) for path in (done, self._file("checkpoint"), checkpoint.before(done))]
        states.append(self._read(checkpoint.before(self._file("checkpoint"))))
        mine = {s["step"]: s for s in states if s is not None and s["phase"] == phase}
        if alone or self.machine.world == 1:
            return mine[max(mine)] if mine else None
        everyone = self.machine.gathered(sorted(mine))
        common = set(everyone[0]).intersection(*everyone[1:])
        return mine[max(common)] if common else None

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            return checkpoint.read(path)
        except FileNotFoundError:
            return None
        except checkpoint.DamagedError:
            say(f"{path} is damaged; going on from the state before it", logging.WARNING)
            return None

    def _logged(self) -> Metrics:
        """`metrics.jsonl`, with what was logged up to the newest sound state."""
        if self._metrics is None:
            self._metrics = Metrics(self.path / "metrics.jsonl", self._newest())
        return self._metrics

    def _newest(self) -> str | int:
        """What `metrics.jsonl` had, or how long it was, at the newest sound state of any phase."""
        if not self.durable:
            return ""
        latest = self._file("checkpoint")
        paths = [latest, checkpoint.before(latest), *self.path.glob("phase-*")]
        metrics = [state["metrics"] for state in map(self._read, paths) if state is not None]
        return max(metrics, key=lambda one: one if isinstance(one, int) else len(one), default="")

    def _sweep(self) -> None:
        """Remove the checkpoints of a finished run; a kill may have left some."""
        for leftover in [*self.path.glob("checkpoint*"), *self.path.glob("phase-*")]:
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self.path / (f"{name}.{self.machine.rank}" if self.machine.rank else name)

    def _elapsed(self) -> float:
        return self._seconds + time.monotonic() - self._began

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM finish the step, save, and stop; a second Ctrl-C stops at once."""
        if not self.durable or threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: object) -> None:
            if self._signal is not None:
                raise KeyboardInterrupt
            self._signal = number

        with interrupted(note):
            yield

    def _how_to_go_on(self, phase: str, step: int, total: int) -> str:
        return f"stopped after step {step} of {total} ({phase}); saved in {self.path}; run the same command to go on"

    def _estimate(self, phase: str, total: int, alike: int) -> Iterator[int]:
        count = min(total, _ESTIMATED_STEPS)
        times = [time.monotonic()]
        for step in range(count):
            self._phase, self._step = phase, step
            yield step
            self.machine.synchronize()
            times.append(time.monotonic())
        laps = sorted(b - a for a, b in itertools.pairwise(times[1:])) or [times[-1] - times[0]]
        minutes = laps[len(laps) // 2] * total * alike / 60
        self._needs["phases"][phase] = {"steps": total * alike, "minutes": round(minutes, 2)}
        self._needs["minutes"] += minutes
        if alike > 1:
            raise self._estimated()

    def _estimated(self) -> Estimate:
        needs = dict(self._needs, minutes=round(self._needs["minutes"], 2), disk_mib=round(self._needs["disk_mib"], 1))
        return Estimate({"stage": self.stage, **needs, "memory_mib": _peak_memory(self.machine)})


def _peak_memory(machine: Machine) -> float:
    """MiB: of the device where it is a GPU, else of the process."""
    if machine.device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(machine.device) / 2**20, 1)
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) else value
