"""SGAS (Li et al. 2020): search as DARTS does, but decide one edge after the other on the way.

    until everything is decided and the steps are done:                           (Algorithm 1)
        α ← α − Adam(∇_α L_val(w, α)),  w ← w − SGD(∇_w L_train(w, α))
        after some epochs, in each kind of cell: the open edge of the highest score takes its heaviest operation

        importance  S_EI = Σ_{o ≠ none} p_o
        certainty   S_SC = 1 − H(q) / log K,   q_o = p_o / S_EI
        stability   S_SS = mean over the last epochs' q' of Σ_o min(q_o, q'_o)
        criterion 1 = norm(S_EI) · norm(S_SC),  criterion 2 = criterion 1 · norm(S_SS)

p is the softmax of an edge's α, K the number of its operations other than none, norm min-max over the open edges of the
kind. What is decided is an int in the gates, so that it is no longer computed but for its one operation, its α rests,
and the batch grows. What a choice forces (a node's third edge is none) is the space's to say.
"""

from __future__ import annotations

import bisect
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor

from ..core import Architecture, Choices, Decision, Objective, Score, SearchSpace
from ..costs.budget import Budget
from ..data.dataset import ImageDataset
from ..errors import SettingsError
from ..runtime.machine import Machine
from ..runtime.progress import say
from ..runtime.run import Run
from ..settings import Ge, Le, command
from ..spaces.moves import Fits, commit
from ..storage import whole
from . import kind, notation
from .outcome import SearchResult, prepare
from .settings import REAL, SETUPS, BilevelSettings, Data, Rate, Setup, SetupChanges
from .supernet.data import HALF, Halves, Parts, check_batch
from .supernet.policy import Pull
from .supernet.steps import (
    Softmax,
    alpha_gradient,
    alpha_step,
    begin,
    check_learning,
    check_skips,
    cosine,
    finish,
    skip_weight,
    weight_step,
)

EQUAL = 1e-9  # of values in [0, 1]: less is rounding, which min-max would make as large as anything
PUBLISHED = (9, 44, 50)  # the first and the last decision of a cell kind fall after these epochs (from 0), of so many
Shares = Mapping[str, Tensor]
"""A softmax ``(options,)`` for each decision."""


class Sgas(BilevelSettings, Rate, heading="SGAS"):
    criterion: Annotated[int, Ge(1), Le(2), "1: importance and certainty of an edge; 2: its stability, too"] = 2
    history: Annotated[int, Ge(1), "epochs that criterion 2 looks back"] = 4
    decide_from: Annotated[int | None, Ge(0), "epoch (from 0) before the first decisions; default 9 of 50"] = None
    decide_every: Annotated[int | None, Ge(1), "epochs between decisions; default 5 of 50"] = None
    batch_increase: Annotated[int, Ge(0), "additional images of a step after each round of decisions"] = 8


@command
def sgas(data: Data = None, *, changes: SetupChanges, settings: Sgas) -> SearchResult:
    """Search as DARTS does, but decide one edge after the other on the way (SGAS, Li et al. 2020).

    What is decided is no longer computed, so that the search gets faster. Defaults are the paper's: 50 epochs, in each
    kind of cell one decision after epochs 9, 14, …, 44 (counted from 0); of other numbers of epochs, after the same
    shares. The result is within the bounds of --params and --macs. The same command again resumes the run.

    Example:
        phosphene search sgas --data d --criterion 1 --epochs 10 --out found

    Raises:
        SettingsError: a setting that cannot be used, or that does not fit the data.
        DatasetError: the data set cannot be read.
        ArchitectureError: the space cannot be built with these settings.
        BudgetError: no architecture keeps the bounds.
        TeacherError: the teacher cannot be loaded.
    """
    ready = prepare(data, settings, changes, SETUPS)
    settings, setup, parts = ready.settings, ready.setup, ready.parts
    if settings.skip_weight:
        check_skips(ready.sizes[0], "--skip-weight")
    settings.total(setup.warm_up, parts.training(len(ready.images)) // settings.batch)  # raises; `schedule` counts
    return ready.search("sgas", partial(search, settings=settings, setup=setup, parts=parts))


def search(
    space: SearchSpace,
    data: ImageDataset,
    objective: Objective,
    score: Score,
    budget: Budget,
    run: Run,
    settings: Sgas,
    setup: Setup = REAL,
    parts: Parts = HALF,
) -> Architecture:
    """Search by SGAS.

    Writes what DARTS writes, and `decisions.json`: for each decision the epoch after which it fell (from 1), its
    option, its score, and what it forced. Arguments are those of `darts.search`.

    Raises:
        SettingsError: a batch that the ranks cannot share at all times, or no skip connections for --skip-weight; the
            loss is no longer a number.
        BudgetError: nothing keeps the budget.
    """
    machine, warm_up = run.machine, setup.warm_up
    _check(settings, space, run)
    halves = Halves(data, run, parts)  # w learns from one part, α from the other
    plan = schedule(settings, warm_up, len(halves.train), rounds(space))  # epochs, their batches and decisions
    steps = plan.steps if settings.steps is None else settings.steps
    net, alphas = begin(space, run, settings.alpha_init)  # w and α
    make, pull = Softmax(space.decisions, machine), Pull(space, budget, settings.soft_weight)  # DARTS eq. 2; costs
    exact = Softmax(space.decisions, Machine(torch.device("cpu")))  # in float64, which not every device has
    sgd = torch.optim.SGD(net.parameters(), settings.lr, settings.momentum, weight_decay=setup.weight_decay)
    betas = 0.5, setup.alpha_beta2  # a first momentum of .5, as in the authors' code
    adam = torch.optim.Adam([alphas], settings.alpha_lr, betas, weight_decay=setup.alpha_weight_decay)
    history = torch.zeros(1 + len(plan.batches), *alphas.shape)
    history[0] = alphas.detach()  # α before the first epoch
    made: Choices = dict(space.forced({}))  # the decisions that have fallen: decision -> option
    decided: list[dict[str, Any]] = []
    past: list[dict[str, Tensor]] = []  # q of earlier epochs, for S_SS

    states: dict[str, Any] = {"net": net, "alphas": alphas, "sgd": sgd, "adam": adam}
    states |= {"history": history, "made": made, "decided": decided, "past": past}
    for step in run.steps("supernet", steps, **states):
        epoch, position = plan.at(step)
        size = plan.batches[epoch]  # images of a step; 8 more after each round of decisions
        index = epoch * max(1, len(halves.train) // size) + position  # of an epoch that has this size throughout
        sgd.param_groups[0]["lr"] = cosine(settings.lr, setup.lr_min, step, steps)
        gates = partial(make, made=made, skip=skip_weight(settings.skip_weight, step, steps))
        train = halves.draw("train", index, size)
        figures: dict[str, Any] = {}
        if (epoch >= warm_up or run.estimating) and len(made) < len(space.decisions):
            valid = halves.draw("valid", index, size)  # L_val of Algorithm 1, line 1
            # Algorithm 1, line 1: α of the open edges; that of decided ones rests
            gradient = alpha_gradient(settings.order, net, gates, alphas, train, valid, objective, sgd, machine)
            gradient, costs = pull(gradient, alphas, made)
            figures |= {"valid_loss": alpha_step(alphas, gradient, adam, _frozen(space, made, alphas)), **costs}
        # Algorithm 1, line 2
        figures["loss"] = weight_step(net, gates([alphas.detach()]), train, objective, sgd, settings.clip, machine)
        if plan.ends(step) or step == steps - 1:
            check_learning(figures["loss"], epoch + 1)
            history[epoch + 1] = alphas.detach()  # α after this epoch
            shares = exact.weights(alphas.detach().cpu().double())  # p: softmax of α
            due = plan.decisions.count(epoch)  # rounds that fall after this epoch
            # Algorithm 1, lines 3 to 6: the greedy decisions; at the end all that is open
            while due > 0 or (step == steps - 1 and len(made) < len(space.decisions)):
                decided += tell(run, decide(space, shares, past, made, settings.criterion, budget.fits), epoch + 1)
                due -= 1
            past.append({name: operations for name, (_, operations) in split(space.decisions, shares).items()})
            del past[: -settings.history]  # 4 epochs in the authors' code
            run.log(**figures, epoch=epoch + 1, genotype=notation(space, commit(space, shares, made)))
        elif step % 10 == 9:  # reading a figure waits for the device
            run.log(**figures)

    # all is made by now, but in an estimate
    choices = commit(space, exact.weights(alphas.detach().cpu().double()), made, fits=budget.fits)
    if machine.rank == 0:
        whole.write(run.path / "decisions.json", json.dumps(decided, indent=1) + "\n")
    finish(run, space, net, choices, halves, settings.batch, score, history, steps=steps)
    return Architecture(space.spec, choices)


def _check(settings: Sgas, space: SearchSpace, run: Run) -> None:
    check_batch(settings.batch, run)
    if settings.batch_increase % run.machine.world:
        raise SettingsError(
            f"--batch-increase {settings.batch_increase} cannot be shared by {run.machine.world} processes"
        )
    if settings.skip_weight:
        check_skips(space, "--skip-weight")


def decide(
    space: SearchSpace,
    shares: Shares,
    past: Sequence[Shares],
    made: Choices,
    criterion: int,
    fits: Fits | None,
) -> list[dict[str, Any]]:
    """Take one decision in each kind of cell that has an open one, into `made`; says which, and what they forced.

    Args:
        shares: the softmax of every decision, on the CPU.
        past: the shares of the operations (`split`) in the epochs before, for criterion 2.
        made: the choices made so far; the new ones are added.
        fits: whether partial choices can keep the budget.
    """
    decisions = []
    for of in dict.fromkeys(kind(decision.name) for decision in space.decisions):
        open_ = [d for d in space.decisions if kind(d.name) == of and d.name not in made]  # min-max is over these
        if not open_:
            continue
        certain = scores(open_, shares, past, criterion)  # criterion 1 or 2
        every = {d.name: certain.get(d.name, -1.0) for d in space.decisions}  # the other kinds come after this one
        after = commit(space, shares, made, 1, every, fits)
        name, *forced = [name for name in after if name not in made]
        option = next(d for d in space.decisions if d.name == name).options[after[name]]
        decisions.append({"decision": name, "option": option, "score": certain.get(name), "forced": forced})
        made.update(after)  # the greedy decision and what it forces
    return decisions


def scores(open_: Sequence[Decision], shares: Shares, past: Sequence[Shares], criterion: int) -> dict[str, float]:
    """The certainty of the open decisions of one kind of cell, in [0, 1]: criterion 1 or 2."""
    parts = split(open_, shares)
    importance = normalised([float(total) for total, _ in parts.values()])  # norm(S_EI)
    certainty = normalised([1 - entropy(shares) for _, shares in parts.values()])  # norm(S_SC)
    found = [a * b for a, b in zip(importance, certainty, strict=True)]  # criterion 1
    if criterion == 2 and past:
        stability = normalised(  # norm(S_SS)
            [stable(shares, [before[name] for before in past]) for name, (_, shares) in parts.items()]
        )
        found = [a * b for a, b in zip(found, stability, strict=True)]  # criterion 2
    return dict(zip(parts, found, strict=True))


def split(decisions: Sequence[Decision], shares: Shares) -> dict[str, tuple[Tensor, Tensor]]:
    """For each decision (S_EI, q): the weight of its operations other than none, and each one's share of that."""
    weights = {d.name: shares[d.name][list(d.free)] for d in decisions}  # p_o, o ≠ none
    return {name: (weight.sum(), weight / weight.sum()) for name, weight in weights.items()}  # S_EI, q = p / S_EI


def entropy(shares: Tensor) -> float:
    """H(q) / log K in [0, 1]; of a single operation 0: it is certain."""
    if len(shares) == 1:
        return 0.0
    return float(torch.special.entr(shares).sum()) / math.log(len(shares))  # H(q) / log K, K = len(shares)


def stable(shares: Tensor, past: Sequence[Tensor]) -> float:
    """The mean intersection with earlier shares, in [0, 1]."""
    return sum(float(torch.minimum(shares, before).sum()) for before in past) / len(past)  # mean of Σ_o min(q_o, q'_o)


def normalised(values: Sequence[float]) -> list[float]:
    """Min-max; equal values are all 1, so that a quantity which tells nothing apart leaves it to the others."""
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high - low > EQUAL else 1.0 for value in values]


def tell(run: Run, fallen: list[dict[str, Any]], epoch: int) -> list[dict[str, Any]]:
    """Show decisions and log them; gives them with their epoch."""
    fallen = [{"epoch": epoch, **entry} for entry in fallen]
    for entry in fallen:
        run.log(decided=entry)
        if run.machine.rank == 0 and run.durable:
            forced = f"; settles {', '.join(entry['forced'])}" if entry["forced"] else ""
            say(f"epoch {epoch}: {entry['decision']} is {entry['option']} (score {entry['score']:.3f}){forced}")
    return fallen


def _frozen(space: SearchSpace, made: Choices, alphas: Tensor) -> Tensor:
    """(decisions, 1): whose α rests."""
    return torch.tensor([[decision.name in made] for decision in space.decisions], device=alphas.device)


# -- when decisions fall ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """Epochs of growing batches.

    `decisions`: the epochs (from 0) after which one decision of each kind falls, an epoch once for each.
    `batches`: images of a step, for every epoch. `starts`: the first step of every epoch, and the number of steps.
    """

    decisions: tuple[int, ...]
    batches: tuple[int, ...]
    starts: tuple[int, ...]

    @classmethod
    def of(cls, images: int, batch: int, growth: int, epochs: int, decisions: Sequence[int]) -> Schedule:
        """`batch` images a step at first and `growth` more after every round of decisions, over so many epochs."""
        kept = tuple(after for after in decisions if after < epochs)
        batches = tuple(batch + growth * sum(after < epoch for after in kept) for epoch in range(epochs))
        lengths = (max(1, images // size) for size in batches)  # steps of each epoch
        return cls(kept, batches, tuple(itertools.accumulate(lengths, initial=0)))

    @property
    def steps(self) -> int:
        """Steps of all epochs."""
        return self.starts[-1]

    def at(self, step: int) -> tuple[int, int]:
        """(epoch, position in it) of a step."""
        epoch = bisect.bisect_right(self.starts, step) - 1
        return epoch, step - self.starts[epoch]

    def ends(self, step: int) -> bool:
        """Whether a step is the last one of its epoch."""
        return step + 1 in self.starts


def schedule(settings: Sgas, warm_up: int, images: int, rounds: int) -> Schedule:
    """The schedule of `warm_up` epochs and `epochs` more, or of the fewest more that make so many steps."""
    falls = partial(decision_epochs, rounds=rounds, first=settings.decide_from, every=settings.decide_every)
    for more in itertools.count(1) if settings.steps is not None else (settings.epochs,):
        decisions = [warm_up + after for after in falls(more)]
        plan = Schedule.of(images, settings.batch, settings.batch_increase, warm_up + more, decisions)
        if settings.steps is None or plan.steps >= settings.steps:
            return plan
    raise AssertionError("every epoch has a step")


def decision_epochs(epochs: int, rounds: int, first: int | None = None, every: int | None = None) -> list[int]:
    """The epochs (from 0) after which the rounds of decisions fall.

    Without `first` and `every` they are spread as published: 8 rounds in 50 epochs fall after epochs 9, 14, …, 44, and
    so at the same shares of any other number, rounded down (of few epochs, some decide more than once). Where either is
    given the other is the published 9 or 5, and both are taken as they are.
    """
    if first is None and every is None:
        start, end, of = PUBLISHED  # 9, 44, 50
        gaps = max(1, rounds - 1)  # 7 for the published 8 rounds
        return [(start * gaps + (end - start) * k) * epochs // (of * gaps) for k in range(rounds)]
    first, every = 9 if first is None else first, 5 if every is None else every  # authors' code: 9, 14, …, 44
    return [first + every * k for k in range(rounds)]


def rounds(space: SearchSpace) -> int:
    """How many choices the kind of cell takes that takes the most; what is forced is not counted."""
    made, counts = dict(space.forced({})), dict[str, int]()
    for decision in space.decisions:
        if decision.name not in made:
            of = kind(decision.name)
            counts[of] = counts.get(of, 0) + 1
            made[decision.name] = decision.free[0]
            made |= space.forced(made)
    return max(counts.values(), default=0)
