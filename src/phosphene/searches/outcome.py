"""What the commands `phosphene search …` share: open the run, search within the budget, write the architecture.

Files in the run's folder: `arch.json` (the final network: its space and choices), `genotype.txt` (as its space writes
it), `cells.png` (where it has a genotype) or `architecture.png`, `result.json`; of a supernet, too: `alphas.npy`,
`alphas.png`, `supernet.safetensors`, `supernet.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from typing_extensions import TypedDict

from .. import plugins
from ..core import Architecture, Objective, SearchSpace
from ..costs import budget as costs
from ..costs.budget import Budget
from ..costs.tables import input_shape
from ..data.dataset import Augmentation, ImageDataset
from ..drawing.figure_style import save_picture
from ..errors import RunError
from ..losses import OBJECTIVES
from ..runtime.machine import Machine
from ..runtime.machine import machine as decide_machine
from ..runtime.progress import say
from ..runtime.run import Run
from ..settings import Changes
from ..spaces.darts.drawing import draw_cells
from ..storage import arrays, typed, whole
from . import notation, operations
from .settings import (
    MixedSettings,
    SearchRun,
    Setup,
    augmentation,
    check_teacher,
    matching,
    open_data,
    setup_of,
)
from .sizes import pair, settled
from .supernet.data import Parts
from .supernet.evaluator import SCORES
from .supernet.facts import read as read_facts
from .supernet.steps import SKIP


@dataclass(frozen=True)
class SearchResult(Architecture):
    """The architecture of a search (of the final network), its run folder, and what `result.json` holds."""

    path: Path
    result: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """The result and where its files are."""
        return {**self.result, "out": str(self.path)}


def search_images(
    algorithm: str,
    search: Callable[..., Architecture],
    images: ImageDataset,
    augment: Augmentation,
    settings: SearchRun,
    identity: dict[str, Any],
    sizes: tuple[SearchSpace, SearchSpace],
    machine: Machine,
    *,
    objective: Objective | None = None,
) -> SearchResult:
    """Search on images, and write the result; a finished run is read.

    Args:
        algorithm: its name.
        search: a `core.Search` with its settings bound, of (space, data, objective, score, budget, run).
        augment: the view of the images, part of the run's identity.
        settings: bounds, and where the run goes.
        identity: all settings that decide the result, flat.
        sizes: the spaces of the supernet and of the final network.
        objective: None: that of the data's task.
    """
    task, (searched, _) = images.card.task, sizes
    loss = OBJECTIVES[task] if objective is None else objective

    def within(budget: Budget, run: Run) -> Architecture:
        return search(searched, images, loss, SCORES[task], budget, run)

    identity = identity | {"augment": vars(augment)}
    return run_search(algorithm, within, settings, identity, [images.fingerprint], sizes, machine)


def run_search(
    algorithm: str,
    search: Callable[[Budget, Run], Architecture],
    settings: SearchRun,
    identity: dict[str, Any],
    inputs: Sequence[str],
    sizes: tuple[SearchSpace, SearchSpace],
    machine: Machine,
) -> SearchResult:
    """Open the run, search within the budget, and write the result; a finished run is read.

    Args:
        inputs: fingerprints of what goes in.
        Others as in `search_images`.
    """
    searched, final = sizes
    budget = settings.budget(final, machine)
    identity = identity | ({"times": budget.times} if budget.timed else {})
    identity |= {"algorithm": algorithm, "searched": searched.spec, "final": final.spec}
    if own := plugins.code(searched.spec["name"], algorithm):
        identity |= {"code": own}
    run = Run.open("search", identity, inputs, settings.out, machine, seed=settings.seed, estimate=settings.estimate)
    if run.finished is not None:
        say(f"{run.path} is finished")
        there = Architecture.load(run.path / "arch.json")
        return SearchResult(there.space, there.choices, run.path, run.finished)
    architecture = Architecture(final.spec, search(budget, run).choices)
    if machine.rank == 0:
        _write(run.path, searched, final, architecture)
    machine.barrier()
    result = _result(algorithm, final, architecture, run.path)
    result |= {"latency": round(budget.costs(architecture.choices)["latency"], 6)} if budget.timed else {}
    return SearchResult(architecture.space, architecture.choices, run.path, run.finish(result))


# -- a search through a mixed supernet ---------------------------------------------------------------------------------

Searched = TypeVar("Searched", bound=MixedSettings)
Recipe = TypeVar("Recipe", bound=Setup)


@dataclass(frozen=True)
class Prepared(Generic[Searched, Recipe]):
    """A search that is ready to run: all settings have their values, and fit the images and each other."""

    images: ImageDataset
    settings: Searched
    setup: Recipe
    parts: Parts
    augment: Augmentation
    sizes: tuple[SearchSpace, SearchSpace]
    objective: Objective | None

    def identity(self, *without: str) -> dict[str, Any]:
        """All settings that decide the result, flat; `without`: fields that do not."""
        teacher = self.parts.teacher
        online = {} if teacher is None else {"teacher": teacher.fingerprint}
        return self.settings.identity(*without) | self.setup.identity(*without) | online

    def search(self, algorithm: str, search: Callable[..., Architecture], *without: str) -> SearchResult:
        """`search_images` of what is prepared here."""
        machine = decide_machine(self.settings.device, self.settings.precision)
        identity = self.identity(*without)
        about = self.images, self.augment, self.settings, identity, self.sizes, machine
        return search_images(algorithm, search, *about, objective=self.objective)


def prepare(
    data: ImageDataset | str | Path | None,
    settings: Searched,
    changes: Changes[Recipe],
    setups: Mapping[str, Recipe],
) -> Prepared[Searched, Recipe]:
    """Open the data and the teacher, and settle what follows from them.

    Raises:
        SettingsError: a setting that does not fit the data, the space or another setting.
        DatasetError, TeacherError: the data set or the teacher cannot be loaded.
        ArchitectureError: the space cannot be built with these sizes.
    """
    images, teacher, settings = open_data(data), settings.loaded(), settled(settings)
    name = setup_of(settings.setup, images, teacher)
    setup = changes.over(setups[name])
    augment = augmentation(images, settings.crop, setup, unreal=name == "unreal")
    if teacher is not None:
        check_teacher(teacher, images, augment)
    parts = Parts(setup.validation, setup.fraction, augment, settings.settled_temperature, teacher)
    parts.check(len(images), settings.batch)
    objective = None if teacher is None else matching(images, parts.temperature)
    return Prepared(images, settings, setup, parts, augment, pair(settings, images, augment), objective)


# -- the files of a result --------------------------------------------------------------------------------------------


def _result(algorithm: str, final: SearchSpace, architecture: Architecture, path: Path) -> dict[str, Any]:
    with torch.device("meta"):
        net = final.build(architecture.choices)
    counts = operations(final, architecture.choices)
    result: dict[str, Any] = {
        "algorithm": algorithm,
        "params": costs.params(net),
        "macs": costs.macs(net, input_shape(final)),
        "genotype": notation(final, architecture.choices),
        "skips": {kind: of.get(SKIP, 0) for kind, of in counts.items()},
        "operations": counts,
    }
    if (path / "supernet.json").exists():
        facts = read_facts(path)
        kept = {"steps": "steps", "score": "validation", "stopped": "stopped"}
        result |= {name: facts[key] for key, name in kept.items() if key in facts}
    if (path / "evolution.json").exists():
        archive = typed.read(path / "evolution.json", list[Candidate])
        result |= {"score": max(entry["score"] for entry in archive), "scored": len(archive)}
    return result


class Candidate(TypedDict):
    """One of the list in `evolution.json`."""

    options: list[int]
    score: float


def _write(path: Path, searched: SearchSpace, final: SearchSpace, architecture: Architecture) -> None:
    architecture.save(path / "arch.json")
    whole.write(path / "genotype.txt", notation(final, architecture.choices) + "\n")
    if hasattr(final, "genotype"):
        draw_cells(architecture, path / "cells.png")
    elif hasattr(final, "draw"):
        final.draw(architecture.choices, path / "architecture.png")
    if (path / "alphas.npy").exists():
        plot(np.asarray(arrays.mapped(path / "alphas.npy", RunError, "search again")), searched, path / "alphas.png")


def plot(history: np.ndarray, space: SearchSpace, path: Path) -> None:
    """The softmax of α over the epochs, one panel for each decision, all on one scale."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns = min(7, len(space.decisions))
    rows = -(-len(space.decisions) // columns)
    figure = Figure(figsize=(1.9 * columns, 1.5 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    lines: dict[str, Any] = {}
    options = dict.fromkeys(option for decision in space.decisions for option in decision.options)
    colours = {option: f"C{k}" for k, option in enumerate(options)}  # the same in all panels
    for axis in axes.flat[len(space.decisions) :]:
        axis.remove()
    for row, (decision, axis) in enumerate(zip(space.decisions, axes.flat, strict=False)):
        alphas = history[:, row, : len(decision.options)]
        weights = np.exp(alphas - alphas.max(1, keepdims=True))
        drawn = axis.plot(weights / weights.sum(1, keepdims=True), linewidth=1)
        for option, line in zip(decision.options, drawn, strict=True):
            line.set_color(colours[option])
        lines |= {option: line for option, line in zip(decision.options, drawn, strict=True) if option not in lines}
        axis.set_title(decision.name, fontsize=8)
        axis.tick_params(labelsize=6)
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    figure.supxlabel("epoch", fontsize=8)
    figure.supylabel("softmax of α", fontsize=8)
    figure.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=4, fontsize=7)
    FigureCanvasAgg(figure)
    save_picture(figure, path, dpi=100)
