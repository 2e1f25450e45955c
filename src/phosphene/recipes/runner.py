"""A recipe: stages in TOML, each a call of the same functions as the commands; resumable as a whole."""

from __future__ import annotations

import heapq
import json
import multiprocessing
import os
import re
import tempfile
import threading
import time
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from ..commands import function
from ..drawing.console_table import is_number
from ..errors import RecipeError, RunError, Stopped, shown
from ..runtime.machine import PREFERENCES
from ..runtime.parallel import Processes, stop_file, stoppable
from ..runtime.progress import say
from ..settings import OUTSIDE, Estimate, Hardware, Output, command, settings
from ..storage import typed
from ..storage.lock import alone_in
from . import results, shape
from .results import JobStates
from .toml import REFERENCE, Job, Recipe, environment, nearest, read

_BUSY = threading.Lock()  # held by a worker's task


class RecipeSettings(Processes, Output, Hardware, Estimate, heading="The recipe"):
    scale: Annotated[Literal["smoke", "cpu", "gpu", "paper"], "size of the experiment, from minutes to weeks"] = "smoke"
    only: Annotated[list[str] | None, "stage to run, with the stages it needs; repeatable; default: all"] = None
    set: Annotated[list[str] | None, "NAME=VALUE, another value of the scale, as images=500; repeatable"] = None
    record: Annotated[bool, OUTSIDE, "write the figures to the folder of recorded results"] = False
    results_dir: Annotated[Path, OUTSIDE, "folder of recorded results"] = Path("docs/results")


@command
def run(
    recipe: Annotated[str, "a TOML file, or the name of one in recipes/"], settings: RecipeSettings
) -> dict[str, Any]:
    """Run a recipe: every stage that is not finished, in order.

    All keys are checked before anything runs. Run it again after Ctrl-C, a crash or a change of `only`: finished
    stages are not repeated. docs/recipes.md describes the file.

    Example:
        phosphene run digits --scale smoke

    Raises:
        RecipeError: an unknown key, stage, scale or setting, or a finished stage that the recipe no longer describes.
    """
    plan = read(recipe, settings.scale, settings.set or [])
    states = JobStates(plan, Path(settings.out or Path("runs") / f"{plan.path.stem}-{settings.scale}"))
    order = in_order(plan, settings.only)
    todo = [job for job in order if states.current(job) is None]
    cost = {"recipe": str(plan.path), "scale": plan.scale, "core_minutes": plan.core_minutes, "jobs": len(order)}
    if settings.estimate:
        finished = len(order) - len(todo)
        return {**cost, "finished": finished, "minutes_left": round(states.minutes_left(order), 1)}
    say(f"{plan.title}: scale {plan.scale}, {len(order)} jobs, {plan.core_minutes:g} core-minutes; {len(todo)} left")
    _run_all(states, order, settings)
    measured, missing = results.figures(states)
    if settings.record:
        results.record(states, order, settings.set or [], settings.results_dir)
    minutes = round(states.minutes(order), 2)
    return {**cost, "folder": str(states.folder), "minutes": minutes, "figures": measured, "missing": missing}


def _run_all(states: JobStates, order: list[Job], settings: RecipeSettings) -> None:
    """Every job that is not finished, `--jobs` at a time."""
    hardware = {"device": settings.device, "precision": settings.precision}
    chosen = {name: value for name, value in hardware.items() if value != "auto"}  # a command's own default stays
    places = [f"stage {number} of {len(order)}" for number in range(1, len(order) + 1)]
    tasks = [Task(states, job, chosen, place) for job, place in zip(order, places, strict=True)]
    with alone_in(states.folder):
        if settings.jobs == 1:
            for task in tasks:
                task(order)
        else:
            _side_by_side(tasks, settings.jobs)


# -- the order ---------------------------------------------------------------------------------------------------------


def in_order(recipe: Recipe, only: list[str] | None) -> list[Job]:
    """Jobs after what they need; among those that could come next, the lowest seed, then priority, then place."""
    wanted = _closure(recipe, only)
    place = {job.name: index for index, job in enumerate(recipe.jobs)}
    waiting = {job.name: {other.name for other in recipe.needs(job)} for job in wanted}
    ready: list[tuple[int, int, int]] = []

    def release() -> None:
        for job in wanted:
            if job.name in waiting and not waiting[job.name]:
                del waiting[job.name]
                heapq.heappush(ready, (job.axes.get("seed", 0), job.priority, place[job.name]))

    done: list[Job] = []
    release()
    while ready:
        job = recipe.jobs[heapq.heappop(ready)[2]]
        done.append(job)
        for others in waiting.values():
            others.discard(job.name)
        release()
    return done


def _closure(recipe: Recipe, only: list[str] | None) -> list[Job]:
    """The jobs of these stages and all that they need, in the recipe's order; all jobs where `only` is empty."""
    if not only:
        return list(recipe.jobs)
    stages = list(dict.fromkeys(job.stage for job in recipe.jobs))
    for name in only:
        if name not in stages:
            raise RecipeError(f"--only {name}: no such stage at scale {recipe.scale}{nearest(name, stages)}")
    wanted, todo = {}, [job for job in recipe.jobs if job.stage in only]
    while todo:
        job = todo.pop()
        if job.name not in wanted:
            wanted[job.name] = job
            todo += recipe.needs(job)
    return [job for job in recipe.jobs if job.name in wanted]


# -- one job -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A job of a recipe, the device and precision to run it with, and its place in the order in words."""

    states: JobStates
    job: Job
    hardware: dict[str, str]
    place: str

    def __call__(self, order: list[Job]) -> None:
        """Do the job unless it is finished; `order` is all of the run's, for the time left."""
        states, job, out = self.states, self.job, self.states.folder / self.job.name
        if states.current(job) is not None:
            say(f"{self.place}: {job.name} is finished")
            return
        say(f"{self.place}: {job.name}, about {states.minutes_left(order):.0f} min of work left")
        began = time.monotonic()
        result = _plain(function(job.call)(**self.keywords()))
        if (out / "result.json").exists():  # says more than a data set's summary does
            result = {**typed.read_json(out / "result.json"), **result}
        minutes = (time.monotonic() - began) / 60
        if (out / "timing.json").exists():  # includes the time before an interruption
            minutes = max(minutes, typed.read(out / "timing.json", shape.Timing)["seconds"] / 60)
        states.save(job, minutes, result)

    def keywords(self) -> dict[str, Any]:
        """The job's settings with references resolved, and its folder, seed and machine where the command has them."""
        job = self.job
        resolved = {key: self.resolved(value) for key, value in job.values.items()}
        declared = {setting.name: setting for setting in settings(function(job.call))}
        own = {"out": self.states.folder / job.name, "seed": job.axes.get("seed", 0), **self.hardware}
        values = {**{key: value for key, value in own.items() if key in declared}, **resolved}
        return {key: declared[key].check(value) for key, value in values.items()}

    def resolved(self, value: Any) -> Any:
        """The value of a setting with its references resolved; of a list all that match."""
        if isinstance(value, list):
            return [one for item in value for one in self._resolved_one(item)]
        return self._resolved_one(value)[0]

    def _resolved_one(self, value: Any) -> list[Any]:
        """One value; of a reference the folders, files or figures of every job that it means."""
        if not isinstance(value, str):
            return [value]
        reference = REFERENCE.fullmatch(value)
        if reference is None:
            return [environment(value, self.job.name)]
        jobs = self.states.recipe.matching(self.job, reference)
        if reference["key"]:
            return [_window(self.states, job, reference) for job in jobs]
        return [str(self.states.folder / job.name / (reference["file"] or "")) for job in jobs]


def _window(states: JobStates, job: Job, reference: re.Match[str]) -> Any:
    """A figure of the job's result, or ``LO..HI``: the range about it that the reference says, in percent."""
    value, span = states.value(job, reference["key"]), reference["span"]
    if span is None:
        return value
    if not is_number(value):
        raise RecipeError(f"@{reference['stage']}:{reference['key']}~{span}%: no number, but {shown(value)}")
    return f"{value * (1 - int(span) / 100):.0f}..{value * (1 + int(span) / 100):.0f}"


def _plain(result: Any) -> dict[str, Any]:
    """A command's result as JSON: the dict it returned, or its summary."""
    content = result if isinstance(result, dict) else result.summary()
    return json.loads(json.dumps(content, default=str))  # type: ignore[no-any-return]


# -- several at a time -------------------------------------------------------------------------------------------------


def _side_by_side(todo: list[Task], workers: int) -> None:
    """As many tasks at a time as there are workers; each begins when all it needs is done, the first in order first."""
    order = [task.job for task in todo]
    names = {job.name for job in order}
    waiting = {task.job.name: {job.name for job in task.states.recipe.needs(task.job)} & names for task in todo}
    threads = max(1, results.cores() // workers)
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, spawn, initializer=_begin, initargs=(threads, os.getpid()))
    with pool, tempfile.TemporaryDirectory(prefix="phosphene-") as place, stop_file(Path(place)) as stop:
        running: dict[Future[None], str] = {}
        try:
            while waiting or running:
                ready = [task for task in todo if waiting.get(task.job.name) == set() and not stop.exists()]
                for task in ready[: workers - len(running)]:
                    del waiting[task.job.name]
                    running[pool.submit(_work, task, order, stop)] = task.job.name
                if not running:
                    raise Stopped("stopped; run the same command to go on")
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    finished = running.pop(future)
                    future.result()
                    for others in waiting.values():
                        others.discard(finished)
        except BrokenExecutor as error:
            why = f"a worker was killed ({error}); lower --jobs if memory is short, and run the same command again"
            raise (Stopped("stopped; run the same command to go on") if stop.exists() else RunError(why)) from error
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _work(task: Task, order: list[Job], stop: Path) -> None:
    """A task in a worker: it saves its state and stops when the stop file appears or the parent is gone."""
    with _BUSY, stoppable(stop):
        task(order)


def _begin(threads: int, parent: int) -> None:
    """Start of a worker: its share of the cores, and a watch on the parent, without whom nobody would end it."""
    PREFERENCES.threads = threads

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        with _BUSY:
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
