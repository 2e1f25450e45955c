"""NSGA-II (Deb et al. 2002): the Pareto front of accuracy and up to two costs.

    P ← random architectures within the budget
    repeat:                                                                                    (main loop, §III-C)
        Q ← children of P: two parents by tournaments of rank, then crowding; crossover; mutation
        P ← of P ∪ Q the first fronts, the last one by crowding distance

Non-dominated sorting, crowding distances and survival are pymoo's. The front is that of all architectures evaluated,
not of the last population alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import TypedDict

from ..core import Architecture, Choices, Objective, Score, SearchSpace
from ..costs.budget import LIMITS, Budget, short
from ..data.dataset import ImageDataset
from ..drawing.figure_style import save_picture
from ..errors import BudgetError, MissingExtra, SettingsError
from ..losses import OBJECTIVES
from ..models import weights
from ..runtime.machine import machine as decide_machine
from ..runtime.progress import say
from ..runtime.run import Run
from ..settings import Ge, Le, command
from ..spaces.moves import mutate, sample
from ..storage import typed
from . import notation
from .evolution import PopulationSize
from .outcome import SearchResult
from .settings import Data, SearchSettings, SupernetRun, open_data
from .sizes import of_run
from .supernet.data import number
from .supernet.early_stopping import EarlyRejection
from .supernet.evaluator import SCORES, Supernet
from .supernet.score_cache import Evaluate, Ranking, ScoreCache, StoredTemperature

Values = NDArray[np.float64]
"""``(architectures, objectives)``; lower is better: −score, then the costs."""

TRIES = 20  # samples for each new child, before there seem to be no new ones
LABELS = {"params": "parameters", "macs": "multiply-accumulates", "latency": "milliseconds"}


class Pareto(PopulationSize, Ranking, StoredTemperature, SearchSettings, heading="NSGA-II"):
    costs: Annotated[str, "one or two of params, macs, latency, with a comma between"] = "params,macs"
    steps: Annotated[int, Ge(1), "generations"] = 20
    population: int = 50
    mutation: Annotated[float, Ge(0), Le(1), "probability of each choice to be sampled anew"] = 0.1

    @property
    def wanted(self) -> tuple[str, ...]:
        """The costs by name."""
        return tuple(self.costs.split(","))


def search(
    space: SearchSpace,
    data: ImageDataset,
    objective: Objective,
    score: Score,
    budget: Budget,
    run: Run,
    *,
    steps: int = 20,
    evaluate: Evaluate,
    costs: Sequence[str] = ("params", "macs"),
    population: int = 50,
    mutation: float = 0.1,
) -> Architecture:
    """Search by NSGA-II; returns the knee of the front.

    Writes `front.json` into the run's folder: `costs`; `front`, its architectures sorted by the first cost: text,
    choices, score and costs; `knee`, its index there; and `seen`, [score, costs…] of all evaluated.

    Args:
        space: of the supernet.
        data, objective, score: unused; `evaluate` has the images.
        budget: kept by every candidate.
        run: its folder and seed.
        steps: generations.
        evaluate: scores candidates, on a trained supernet or without training.
        costs: one or two of params, macs, latency.
        population: architectures kept from one generation to the next, 4 or more.
        mutation: probability of each choice to be sampled anew.

    Raises:
        MissingExtra: pymoo is not installed.
        SettingsError: costs that are not one or two of the three, a latency that the budget does not measure, or a
            population under 4.
        BudgetError: nothing keeps the budget.
    """
    check(costs, population, budget)
    if budget.prices is None:
        budget = replace(budget, soft=tuple((cost, 1.0) for cost in costs)).of(space)
    seen: dict[str, list[float]] = {}  # code -> [score, costs…]
    people: list[list[int]] = []  # P, the options of each architecture
    state: dict[str, Any] = {"seen": seen, "people": people, "ended": {}}
    names = [decision.name for decision in space.decisions]

    def valued(people: Sequence[Sequence[int]]) -> Values:
        new = [list(one) for one in dict.fromkeys(map(tuple, people)) if code(one) not in seen]
        choices = [dict(zip(names, one, strict=True)) for one in new]
        for one, own, value in zip(new, choices, evaluate(choices) if new else [], strict=True):
            price = budget.costs(own)
            seen[code(one)] = [value, *(float(price[cost]) for cost in costs)]
        values: Values = np.array([seen[code(one)] for one in people], np.float64)
        values[:, 0] *= -1  # objectives are minimized: −score
        return values

    for step in run.steps("pareto", steps, **state):
        if state["ended"]:
            continue
        generator = torch.Generator().manual_seed(number(run.seed, "pareto", step))
        rng = np.random.default_rng(number(run.seed, "crowding", step))
        if not people:
            people += distinct(partial(sample, space, generator, budget.fits), names, [], population)  # P_0
        kept, rank, crowding = survivors(valued(people), population, rng)  # §III-A, §III-B
        parents = [dict(zip(names, people[k], strict=True)) for k in kept]  # P
        breed = partial(child, space, parents, rank, crowding, generator, mutation, budget)
        children = distinct(breed, names, [options(key) for key in seen], population)  # Q
        if not children:
            state["ended"]["after"] = step  # nothing new is left within the budget
        both = [people[k] for k in kept] + children  # R = P ∪ Q
        kept, rank, _ = survivors(valued(both), population, rng)  # P of the next generation
        people[:] = [both[k] for k in kept]  # elitist: parents survive too
        run.log(seen=len(seen), front=int((rank == 0).sum()), best=max(one[0] for one in seen.values()))

    everyone = [options(key) for key in seen]
    values = valued(everyone)
    first = sorted(fronts(values)[0], key=lambda k: tuple(values[k][1:]))  # F_1 of all evaluated
    best = knee(values[first])
    choices = [dict(zip(names, everyone[k], strict=True)) for k in first]
    if run.machine.rank == 0:
        front = [
            {"architecture": notation(space, one), "choices": one, "score": -values[k][0]}
            | {cost: float(value) for cost, value in zip(costs, values[k][1:], strict=True)}
            for k, one in zip(first, choices, strict=True)
        ]
        content = {"costs": list(costs), "front": front, "knee": best, "seen": list(seen.values())}
        typed.write_json(run.path / "front.json", content)
    return Architecture(space.spec, choices[best])


class Front(TypedDict):
    """`front.json`: the architectures of the front, and score and costs of all that were evaluated."""

    costs: list[str]
    front: list[dict[str, Any]]
    knee: int
    seen: list[list[float]]


def check(costs: Sequence[str], population: int, budget: Budget) -> None:
    """Raise unless the settings can be used and pymoo is there."""
    try:
        import pymoo  # noqa: F401
    except ImportError as error:
        raise MissingExtra("pymoo", "pareto") from error
    if not 1 <= len(set(costs)) == len(costs) <= 2 or not set(costs) <= set(LIMITS):
        raise SettingsError(f"--costs {','.join(costs)} is not one or two of {', '.join(LIMITS)}")
    if "latency" in costs and not budget.timed:
        raise SettingsError("--costs latency: nothing says on what; give --latency and --on")
    if population < 4:
        raise SettingsError(f"--population must be at least 4 (got {population})")


def code(options: Sequence[int]) -> str:
    """Options as a key of JSON and of checkpoints: "2 0 1"."""
    return " ".join(map(str, options))


def options(key: str) -> list[int]:
    """The options of a `code`."""
    return [int(option) for option in key.split()]


def distinct(
    make: Callable[[], Choices], names: Sequence[str], known: Sequence[Sequence[int]], count: int
) -> list[list[int]]:
    """Up to `count` different architectures that are not known; fewer where `TRIES` samples for each find no more."""
    taken, new = set(map(tuple, known)), list[list[int]]()
    for _ in range(TRIES * count):
        choices = make()
        one = tuple(choices[name] for name in names)
        if one not in taken:
            taken.add(one)
            new.append(list(one))
        if len(new) == count:
            break
    return new


def child(
    space: SearchSpace,
    parents: Sequence[Choices],
    rank: NDArray[Any],
    crowding: NDArray[Any],
    generator: torch.Generator,
    mutation: float,
    budget: Budget,
) -> Choices:
    """Of two parents, each the winner of a tournament: crossed, then mutated."""
    one, other = (parents[tournament(rank, crowding, generator)] for _ in range(2))  # two binary tournaments
    return mutate(space, crossed(space, one, other, generator, budget), generator, mutation, budget.fits)


def crossed(space: SearchSpace, one: Choices, other: Choices, generator: torch.Generator, budget: Budget) -> Choices:
    """Each decision from either parent, in random order, unless settled before; the rest is sampled or forced."""
    child: Choices = dict(space.forced({}))
    for k in torch.randperm(len(space.decisions), generator=generator).tolist():
        decision = space.decisions[k]
        option = (one, other)[int(torch.randint(2, (), generator=generator))][decision.name]
        if decision.name not in child and option in decision.free:
            after = child | {decision.name: option}
            after |= space.forced(after)
            child = after if budget.fits(after) else child
    try:
        return sample(space, generator, budget.fits, child)
    except BudgetError:
        return one


def tournament(rank: NDArray[Any], crowding: NDArray[Any], generator: torch.Generator) -> int:
    """The crowded-comparison operator (§III-B): of two, the one on the better front, else in the less crowded place."""
    a, b = torch.randint(len(rank), (2,), generator=generator).tolist()
    return int(min((a, b), key=lambda k: (rank[k], -crowding[k])))  # lower rank, larger distance


def survivors(values: Values, count: int, rng: np.random.Generator) -> tuple[list[int], NDArray[Any], NDArray[Any]]:
    """(the `count` survivors, the front of each of these from 0, its crowding distance)."""
    from pymoo.core.population import Population
    from pymoo.core.problem import Problem
    from pymoo.operators.survival.rank_and_crowding.classes import RankAndCrowding

    people = Population.new("F", values, "place", np.arange(len(values)))
    problem, count = Problem(n_obj=values.shape[1]), min(count, len(values))
    kept = RankAndCrowding().do(problem, people, n_survive=count, random_state=rng)  # the last front by distance
    return [int(k) for k in kept.get("place")], kept.get("rank").astype(int), kept.get("crowding").astype(float)


def fronts(values: Values) -> list[list[int]]:
    """The fronts of non-dominated architectures, the best first."""
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    return [sorted(int(k) for k in front) for front in NonDominatedSorting().do(values)]


def knee(values: Values) -> int:
    """Of a front, the place of the one nearest to the best of every objective, each scaled to 0..1 on this front."""
    low, span = values.min(0), np.ptp(values, 0)  # ideal point, range of each objective
    scaled = (values - low) / np.where(span > 0, span, 1.0)
    return int(np.square(scaled).sum(1).argmin())  # squared distance from the ideal point


# -- the command -------------------------------------------------------------------------------------------------------


@command
def pareto(
    supernet: SupernetRun,
    *,
    data: Data = None,
    settings: Pareto,
) -> SearchResult:
    """Search a trained supernet for architectures of which none is better in score and in up to two costs (NSGA-II).

    Writes `front.json` and `front.png`; the architecture of the run is the front's knee, the one nearest to the best of
    each on the front's own scale. The same command again resumes the run.

    Example:
        phosphene search pareto found --data d --costs macs --out front
        phosphene search pareto found --data d --costs macs,latency --latency 5 --on cpu --jobs 2

    Raises:
        MissingExtra: pymoo is not installed.
        RunError: the folder has no supernet.
        SettingsError: a setting that cannot be used.
        DatasetError: the data do not fit the supernet.
        BudgetError: no architecture keeps the bounds.
    """
    images, folder, costs = open_data(data), Path(supernet), settings.wanted
    machine = decide_machine(settings.device, settings.precision)
    loaded, (_, final) = Supernet.open(folder), of_run(folder)
    budget = settings.budget(final, machine)
    check(costs, settings.population, budget)
    if budget.prices is None:
        budget = replace(budget, soft=tuple((cost, 1.0) for cost in costs)).of(final)
    seed, temperature = settings.seed, settings.temperature
    setup = settings.setup(folder, loaded.facts, images, machine, temperature=temperature, seed=seed)
    setup.check(loaded.space)
    inputs = [images.fingerprint, weights.digest(loaded.net.state_dict())]
    identity = _identity(settings, budget) | {"final": final.spec}
    run = Run.open("search", identity, inputs, settings.out, machine, seed=seed, estimate=settings.estimate)
    if run.finished is not None:
        say(f"{run.path} is finished")
        there = Architecture.load(run.path / "arch.json")
        return SearchResult(there.space, there.choices, run.path, run.finished)
    rejection = None
    if settings.give_up is not None:
        rejection = EarlyRejection(
            settings.give_up, settings.by, costs=lambda choices: [budget.costs(choices)[cost] for cost in costs]
        )
    scores = ScoreCache(loaded.space, setup, run.path / "scores.jsonl", machine, settings, rejection=rejection)
    task = images.card.task
    best = search(
        *(loaded.space, images, OBJECTIVES[task], SCORES[task], budget, run),
        steps=settings.steps,
        evaluate=scores.by(settings.by),
        costs=costs,
        population=settings.population,
        mutation=settings.mutation,
    )
    scores.close()
    early = {} if rejection is None else {"stopped_early": scores.stopped}
    return _finish(run, Architecture(final.spec, best.choices), budget, settings.by, early)


def _identity(settings: Pareto, budget: Budget) -> dict[str, Any]:
    """The settings that decide the front; times stand for what they were measured on."""
    absent = ("give_up",) if settings.give_up is None else ()
    fields = settings.identity("on", "latency_batch", *absent)
    del fields["precision"]  # of the run, not of its settings
    return fields | {"algorithm": "pareto"} | ({"times": budget.times} if budget.timed else {})


def _finish(run: Run, architecture: Architecture, budget: Budget, by: str, early: dict[str, int]) -> SearchResult:
    """Write the architecture and the figure of the front, and finish the run."""
    content = typed.read(run.path / "front.json", Front)
    if run.machine.rank == 0:
        architecture.save(run.path / "arch.json")
        draw(content, run.path / "front.png", {"kl": "−KL", "accuracy": "accuracy"}[by])
    run.machine.barrier()
    knee = content["front"][content["knee"]]
    result = {"algorithm": "pareto", "genotype": knee["architecture"], "score": knee["score"], "by": by}
    result |= {name: value for name, value in budget.costs(architecture.choices).items() if name in LIMITS}
    result |= {"front": len(content["front"]), "seen": len(content["seen"]), **early}
    return SearchResult(architecture.space, architecture.choices, run.path, run.finish(result))


def draw(content: Front, path: Path, score: str) -> None:
    """Draw `front.json` into a PNG: the score by each cost, all evaluated in grey, the front, its knee.

    With two costs, the colour is the one that is not the axis.

    Args:
        score: label of the score's axis.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    costs, front, knee = content["costs"], content["front"], content["front"][content["knee"]]
    figure = Figure(figsize=(4.9 * len(costs) + 0.4, 3.9), layout="constrained")
    plain = FuncFormatter(lambda value, _: short(value))
    for k, (cost, axis) in enumerate(zip(costs, figure.subplots(1, len(costs), squeeze=False)[0], strict=True)):
        seen = [(values[k + 1], values[0]) for values in content["seen"]]
        axis.scatter(*zip(*seen, strict=True), 8, "0.8", label="seen")
        x, y = [one[cost] for one in front], [one["score"] for one in front]
        if len(costs) == 1:
            axis.plot(x, y, "o-", color="C0", markersize=5, linewidth=1, label="front")
        else:
            other = costs[1 - k]
            marks = axis.scatter(x, y, 26, [one[other] for one in front], cmap="viridis", label="front", zorder=2)
            figure.colorbar(marks, ax=axis, label=LABELS[other], format=plain)
        axis.plot(knee[cost], knee["score"], "*", color="C3", markersize=14, label="knee", zorder=3)
        axis.set_xlabel(LABELS[cost])
        axis.set_ylabel(score)
        axis.xaxis.set_major_formatter(plain)
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.legend(fontsize=8, loc="lower right")
    FigureCanvasAgg(figure)
    save_picture(figure, path, dpi=110)
