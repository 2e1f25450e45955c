"""Evolution over scored candidates: the population search of SPOS, and regularized evolution (Real et al. 2019).

    population (SPOS, Algorithm 1):                         regularized (Real et al., Algorithm 1):
        score P; keep the top k of all so far                   score P random architectures
        the next P = n mutants and m crossovers of the top      repeat: the best of S sampled from the alive is parent
        the rest random; repeat for T generations               of a mutant, which is scored; the oldest alive dies
No network is proposed twice, and all candidates keep the budget (`proposals`). Where no new network remains, the search
ends, however early.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from ..core import Architecture, Choices, Objective, Score, SearchSpace
from ..costs.bounds import SoftBounds
from ..costs.budget import Budget
from ..data.dataset import ImageDataset
from ..drawing.figure_style import save_picture
from ..errors import RunError, SettingsError
from ..models import weights
from ..runtime.machine import machine as decide_machine
from ..runtime.run import Run
from ..settings import OUTSIDE, Ge, Le, Settings, command
from ..storage import whole
from .outcome import SearchResult, search_images
from .proposals import Archive, Proposals, best, choices_of
from .settings import Data, SearchSettings, augmentation, open_data
from .sizes import of_run
from .supernet import facts
from .supernet.data import number
from .supernet.early_stopping import EarlyRejection, check_give_up
from .supernet.evaluator import EvaluatorSetup
from .supernet.score_cache import Evaluate, Ranking, ScoreCache

Method = Literal["population", "regularized"]
Evolve = Callable[[SearchSpace, Evaluate, Budget, Run], Archive]

MEASURED = 4  # candidates of each generation that an estimate scores


class PopulationSize(Settings, heading="Evolution"):
    population: Annotated[int | None, Ge(1), "candidates of a generation (default 50); regularized: alive (100)"] = None


class Generations(PopulationSize):
    generations: Annotated[int, Ge(1), "generations of the population method; 1 is random search"] = 20


class Population(Generations):
    top: Annotated[int, Ge(1), "best candidates so far that are parents of a generation"] = 10
    mutants: Annotated[int, Ge(0), "mutants in a generation"] = 25
    crossings: Annotated[int, Ge(0), "crossovers of two parents in a generation"] = 25
    probability: Annotated[float, Ge(0), Le(1), "probability of each choice to mutate"] = 0.1


class Candidates(Settings, heading="Evolution"):
    candidates: Annotated[int, Ge(1), "architectures scored in all by random and regularized search"] = 1000


class Regularized(PopulationSize, Candidates):
    drawn: Annotated[int, Ge(1), "regularized: candidates sampled from the alive, the best of which is the parent"] = 25
    children: Annotated[int, Ge(1), "regularized: mutants at a time, to be scored side by side; 1 in the paper"] = 1


class Evolution(Population, Regularized):
    method: Annotated[Method, "evolution: regularized (Real et al.) or population (SPOS)"] = "regularized"

    @property
    def evolve(self) -> Evolve:
        """The method with its settings."""
        if self.method == "regularized":
            return partial(regularized, settings=self)
        return partial(population, settings=self)

    def identity(self, *without: str) -> dict[str, Any]:
        """The fields that decide the result."""
        size = (100 if self.method == "regularized" else 50) if self.population is None else self.population
        return {**super().identity(*without), "population": size}


class OnSupernet(Ranking, SoftBounds, SearchSettings):
    supernet: Annotated[Path | str | None, OUTSIDE, "run folder of a finished search with a supernet"] = None


class EvolutionSettings(Evolution, OnSupernet):
    """Evolution."""


def search(
    space: SearchSpace,
    data: ImageDataset,
    objective: Objective,
    score: Score,
    budget: Budget,
    run: Run,
    *,
    steps: int = 0,
    setup: EvaluatorSetup,
    ranking: Ranking,
    evolve: Evolve,
    soft_weight: float = 0.1,
) -> Architecture:
    """Search the best path of a trained supernet.

    Writes `scores.jsonl` (every score), `evolution.json` (every candidate, in order) and `evolution.png`.

    Args:
        space: of the supernet.
        data, objective, score, steps: unused; `setup` has the images, and nothing is trained.
        budget: kept by every candidate.
        run: its folder, seed and machine.
        setup: the supernet and its images.
        ranking: the figure that ranks candidates, early rejection, jobs. With early rejection no parent of a population
            has a predicted score while `give_up` is `top` or more, and the result never has.
        evolve: `population` or `regularized` with its settings.
        soft_weight: penalty where a soft bound is missed by a factor of e.

    Raises:
        BudgetError: nothing keeps the budget.
    """
    setup = replace(setup, device=str(run.machine.device), precision=run.machine.precision)
    by, penalty = ranking.by, partial(cost_penalty, budget, soft_weight)
    rejection = None if ranking.give_up is None else EarlyRejection(ranking.give_up, by, penalty)  # not in the paper
    scores = ScoreCache(space, setup, run.path / "scores.jsonl", run.machine, ranking, rejection=rejection)
    archive = evolve(space, penalized(scores.by(by), budget, soft_weight), budget, run)  # Algorithm 1
    scores([choices_of(space, entry) for entry in archive])  # again, where a damaged journal has lost some
    scores.close()
    for entry in archive:
        entry |= {"stopped_early": True} if scores.stopped_early(choices_of(space, entry)) else {}
    write(run, archive, by)
    return Architecture(space.spec, choices_of(space, best(archive, 1)[0]))


def population(space: SearchSpace, evaluate: Evaluate, budget: Budget, run: Run, settings: Population) -> Archive:
    """SPOS's search (Algorithm 1): generations of candidates, from the `top` of all that was scored."""
    archive: Archive = []
    size = settings.population or 50  # P; T = 20, k = 10, n = m = 25, mutation probability .1: the defaults
    alike = -(-size // MEASURED) if run.estimating else 1
    for generation in run.steps("evolution", settings.generations, alike=alike, archive=archive):
        if exhausted(archive, generation):
            continue
        proposals = Proposals(space, budget.fits, archive, number(run.seed, "generation", generation))
        if parents := [choices_of(space, entry) for entry in best(archive, settings.top)]:  # Topk of all so far
            proposals.mutants(settings.mutants, parents, settings.probability)  # n mutants, each choice with p = .1
            proposals.crossovers(settings.crossings, parents)  # m crossovers
        proposals.fill_up(size)  # the first generation, and where offspring are too few: random
        _score(run, space, evaluate, proposals.new, archive, generation)  # score_val of the new ones
    return archive


def regularized(space: SearchSpace, evaluate: Evaluate, budget: Budget, run: Run, settings: Regularized) -> Archive:
    """Regularized evolution (Algorithm 1 of Real et al.): the oldest of the alive dies for each new candidate.

    `settings`: `population` alive (P; 100), `candidates` in all (C), `drawn` of the alive, with repetition, of which
    the best is the parent (S; 25 of 100).
    """
    archive: Archive = []  # "history"; its end is "population"
    size = settings.population or 100  # P
    cycles = -(-max(0, settings.candidates - size) // settings.children)  # C − P, `children` at a time
    for cycle in run.steps("evolution", 1 + cycles, archive=archive):
        if exhausted(archive, cycle):
            continue
        proposals = Proposals(space, budget.fits, archive, number(run.seed, "cycle", cycle))
        alive = archive[-size:]  # the oldest die, whatever their scores: the regularization
        if cycle and alive:
            wanted = min(settings.children, settings.candidates - len(archive))
            proposals.children(wanted, alive, settings.drawn)  # the best of S sampled, mutated in one choice
            proposals.fill_up(wanted)
        elif not cycle:
            proposals.fill_up(min(size, settings.candidates))  # P random architectures
        _score(run, space, evaluate, proposals.new, archive, cycle)  # appended: the youngest
    return archive


def penalized(evaluate: Evaluate, budget: Budget, weight: float) -> Evaluate:
    """The score less the penalty of missed soft bounds."""
    if not budget.soft:
        return evaluate

    def score(candidates: Sequence[Choices]) -> list[float]:
        penalties = [cost_penalty(budget, weight, choices) for choices in candidates]
        return [value - penalty for value, penalty in zip(evaluate(candidates), penalties, strict=True)]

    return score


def cost_penalty(budget: Budget, weight: float, choices: Choices) -> float:
    """weight · Σ |log(cost / aim)|, over the soft bounds of the budget."""
    if not budget.soft:
        return 0.0
    costs = budget.costs(choices)
    return weight * sum(abs(math.log(costs[name] / aim)) for name, aim in budget.soft)


def exhausted(archive: Archive, step: int) -> bool:
    """Whether the step before this one found nothing new; a resumed run finds the same in the archive."""
    return bool(archive) and archive[-1]["step"] < step - 1


def _score(run: Run, space: SearchSpace, evaluate: Evaluate, new: list[Choices], archive: Archive, step: int) -> None:
    """Score new candidates and add them to the archive; an estimate scores a few."""
    new = new[:MEASURED] if run.estimating else new
    for choices, value in zip(new, evaluate(new) if new else [], strict=True):
        options = [choices[decision.name] for decision in space.decisions]
        archive.append({"options": options, "score": value, "step": step})
    if new:
        run.log(best=best(archive, 1)[0]["score"], scored=len(archive), new=len(new))


def write(run: Run, archive: Archive, by: str) -> None:
    """`evolution.json` and `evolution.png`: every candidate and the best so far."""
    if run.machine.rank:
        return
    lines = ",\n".join(json.dumps(entry) for entry in archive)
    whole.write(run.path / "evolution.json", f"[\n{lines}\n]\n")
    if run.durable:
        plot(archive, by, run.path / "evolution.png")


def plot(archive: Archive, by: str, path: Path) -> None:
    """The candidates' scores in the order of their proposal, and the best so far."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    values = [entry["score"] for entry in archive]
    rejected = [k for k, entry in enumerate(archive, 1) if entry.get("stopped_early")]
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axis = figure.subplots()
    axis.scatter(range(1, len(values) + 1), values, s=7, color="#7a9cc6", linewidths=0, label="candidate")
    if rejected:
        hollow: dict[str, Any] = {"s": 12, "facecolors": "white", "edgecolors": "#7a9cc6", "linewidths": 0.7}
        axis.scatter(rejected, [values[k - 1] for k in rejected], **hollow, label="rejected early, predicted")
    axis.step(range(1, len(values) + 1), list(itertools.accumulate(values, max)), color="#b3402a", label="best so far")
    axis.set_xlabel("architectures scored")
    axis.set_ylabel({"kl": "−KL on held-out images", "accuracy": "accuracy on held-out images"}.get(by, by))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(frameon=False, loc="lower right")
    FigureCanvasAgg(figure)
    save_picture(figure, path, dpi=110)


@command
def evolution(data: Data = None, *, settings: EvolutionSettings) -> SearchResult:
    """Evolve architectures on the scores of a supernet that another search has trained (Real et al. 2019).

    The final network is of the size that the supernet's search had. The same command again resumes the run.

    Example:
        phosphene search evolution --data d --supernet found --macs 60M --out evolved
        phosphene search evolution --data d --supernet found --method population --generations 20

    Raises:
        SettingsError: a setting that cannot be used.
        DatasetError: the data set cannot be read, or does not fit the supernet.
        BudgetError: no architecture keeps the bounds.
        RunError: --supernet names no search with a supernet.
    """
    if settings.supernet is None:
        raise SettingsError("--supernet is missing: the run folder of a finished search, such as `search spos`")
    check_give_up(settings.give_up, settings.top if settings.method == "population" else 1)
    return search_on_supernet("evolution", data, settings, settings.supernet, settings.evolve)


def search_on_supernet(
    algorithm: str, data: ImageDataset | str | Path | None, settings: OnSupernet, folder: Path | str, evolve: Evolve
) -> SearchResult:
    """A search on the supernet in the run folder of another one; `settings` are the run's identity.

    Raises:
        RunError: the folder has no supernet.
        DatasetError: the images do not fit it.
    """
    images, folder = open_data(data), Path(folder)
    searched, final = of_run(folder)
    machine = decide_machine(settings.device, settings.precision)
    setup = settings.setup(folder, facts.read(folder), images, machine, seed=settings.seed)
    setup.check(searched)
    if not (folder / "supernet.safetensors").is_file():
        raise RunError(f"--supernet {folder} has no supernet.safetensors; finish that search")
    digest = weights.digest(weights.read(folder / "supernet.safetensors", "--supernet"))
    identity = settings.identity(*(("give_up",) if settings.give_up is None else ())) | {"supernet": digest}
    bound = partial(search, setup=setup, ranking=settings, evolve=evolve, soft_weight=settings.soft_weight)
    augment = augmentation(images, setup.crop)
    return search_images(algorithm, bound, images, augment, settings, identity, (searched, final), machine)
