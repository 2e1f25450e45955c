"""What architectures of a space cost, exactly and without building each: the tables behind a budget.

The question a budget asks is about partial choices: can some completion still keep the bounds? An additive space
answers it exactly from a table; any other space by building completions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .core import Choices, Decision, SearchSpace

Pair = tuple[float, float]
"""(parameters, MACs)"""
Count = Callable[[nn.Module, Sequence[int]], tuple[int, int]]
"""(network, input shape) -> (parameters, MACs)"""
Rows = NDArray[np.int64]


@runtime_checkable
class Additive(Protocol):
    """A space that knows what each option adds to the network, so that costs can be tabulated once."""

    groups: tuple[tuple[str, ...], ...]
    """Decisions by what `forced` ties together; groups do not bear on one another."""

    def parts(self, decision: str, option: int) -> Sequence[Hashable]:
        """Keys of the modules that this option adds."""
        ...

    def part(self, key: Any) -> tuple[nn.Module, tuple[int, ...]]:
        """The module of a key, and the shape (C, H, W) of its input."""
        ...


class Prices(Protocol):
    """What architectures of a space cost, as integer pairs (parameters, MACs)."""

    def of(self, choices: Choices) -> tuple[int, int]:
        """The exact costs of complete choices."""
        ...

    def allow(self, made: Choices, low: Pair, high: Pair) -> bool:
        """Whether some completion of `made` costs between `low` and `high`, both included."""
        ...

    def range(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The smallest and the largest of each cost."""
        ...


def prices(space: SearchSpace, count: Count) -> Prices:
    """The costs of a space: a table where it is additive, else counted on built networks."""
    return Table(space, count) if isinstance(space, Additive) else Built(space, count)


def completions(space: SearchSpace, names: Iterable[str], made: Choices) -> Iterator[Choices]:
    """Every way to settle all of `names` after `made`, each once; what is forced is settled by force."""
    wanted = {decision.name: decision for decision in space.decisions}
    yield from _extend(space, {name: wanted[name] for name in names}, made, frozenset())


def _extend(space: SearchSpace, wanted: dict[str, Decision], made: Choices, left: frozenset[str]) -> Iterator[Choices]:
    """The completions in which the decisions in `left` are only ever settled by force."""
    made = made | {name: option for name, option in space.forced(made).items() if name in wanted}
    still = [name for name in wanted if name not in made]
    if not still:
        yield made
    for name in still:
        if name not in left:
            for option in wanted[name].free:
                yield from _extend(space, wanted, made | {name: option}, left)
            left |= {name}
        if not wanted[name].only_forced:
            return  # it can only be settled by choosing


class Built:
    """Costs of any space, counted on networks built on `meta`, each once.

    Of partial choices the first `limit` completions are tried; where none fits and there are more, the answer is yes:
    whoever completes the choices hears the truth about complete ones.
    """

    def __init__(self, space: SearchSpace, count: Count, limit: int = 512) -> None:
        self.space, self.count, self.limit = space, count, limit
        self.names = [decision.name for decision in space.decisions]
        self._seen: dict[tuple[int, ...], tuple[int, int]] = {}

    def of(self, choices: Choices) -> tuple[int, int]:
        """The exact costs of complete choices."""
        key = tuple(choices[name] for name in self.names)
        if key not in self._seen:
            with torch.device("meta"):
                net = self.space.build(choices)
            self._seen[key] = self.count(net, self.space.spec["shape"])
        return self._seen[key]

    def allow(self, made: Choices, low: Pair, high: Pair) -> bool:
        """Whether a completion of `made` costs between `low` and `high`, as far as the limit lets one know."""
        tried = 0
        for tried, found in enumerate(completions(self.space, self.names, made), 1):
            if _between(low, self.of(found), high):
                return True
            if tried == self.limit:
                break
        return tried == self.limit

    def range(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The smallest and the largest of each cost, among the first completions."""
        costs = [self.of(found) for found in itertools.islice(completions(self.space, self.names, {}), self.limit)]
        ps, ms = zip(*costs, strict=True)
        return (min(ps), min(ms)), (max(ps), max(ms))


def _between(low: Pair, value: Pair, high: Pair) -> bool:
    return all(a <= v <= b for a, v, b in zip(low, value, high, strict=True))


class Table:
    """Exact costs of an additive space: one built network, plus the differences that options make.

    Which costs the completions of partial choices can reach is worked out exactly, group by group: few different sums
    exist, because alike edges cost alike.
    """

    def __init__(self, space: SearchSpace, count: Count) -> None:
        assert isinstance(space, Additive)
        self.space, self.groups = space, space.groups
        self._seen: dict[Hashable, Rows] = {}
        measured = _measured(space, [d for decision in space.decisions for d in _options(space, decision)], count)
        self.costs = {
            decision.name: np.array([_total(keys, measured) for keys in _options(space, decision)], np.int64)
            for decision in space.decisions
        }
        built = Built(space, count)
        first = next(completions(space, built.names, {}))
        self.base = np.array(built.of(first), np.int64) - self._sum(first)

    def _sum(self, choices: Choices) -> Rows:
        rows = [self.costs[name][option] for name, option in choices.items()]
        return np.sum(rows, axis=0, dtype=np.int64) if rows else np.zeros(2, np.int64)

    def of(self, choices: Choices) -> tuple[int, int]:
        """The exact costs of complete choices."""
        total = self.base + self._sum(choices)
        return int(total[0]), int(total[1])

    def allow(self, made: Choices, low: Pair, high: Pair) -> bool:
        """Whether some completion costs between `low` and `high`: bounds first, then all reachable sums."""
        if len(made) == len(self.costs):
            return _between(low, self.of(made), high)
        sums = [self._reachable(group, made) for group in self.groups]
        if any(not len(rows) for rows in sums):
            return False
        least = self.base + sum(rows.min(0) for rows in sums)
        most = self.base + sum(rows.max(0) for rows in sums)
        if (least > high).any() or (most < low).any():
            return False
        if (least >= low).all() and (most <= high).all():
            return True
        return self._meet(sums, np.array(low), np.array(high))

    def _meet(self, sums: list[Rows], low: NDArray[Any], high: NDArray[Any]) -> bool:
        """Whether a sum of one row from each list lies in the box: both halves of the lists merged, then matched."""
        bounded = (low > self.base) | np.isfinite(high)
        half = len(sums) // 2
        one, two = self._merged(sums[:half], bounded), self._merged(sums[half:], bounded)
        low, high = (low - self.base)[bounded], (high - self.base)[bounded]
        start = np.searchsorted(two[:, 0], low[0] - one[:, 0], "left")
        stop = np.searchsorted(two[:, 0], high[0] - one[:, 0], "right")
        if one.shape[1] == 1:
            return bool((start < stop).any())
        for row, a, b in zip(one[:, 1], start, stop, strict=True):
            if ((two[a:b, 1] >= low[1] - row) & (two[a:b, 1] <= high[1] - row)).any():
                return True
        return False

    def _merged(self, sums: list[Rows], bounded: NDArray[np.bool_]) -> Rows:
        """All sums of one row from each list, sorted, each once; the costs that no bound touches are left out."""
        total = np.zeros((1, int(bounded.sum())), np.int64)
        for rows in sums:
            total = np.unique((total[:, None] + rows[None][..., bounded]).reshape(-1, total.shape[1]), axis=0)
        return total

    def _reachable(self, group: tuple[str, ...], made: Choices) -> Rows:
        """The costs that one group can come to, each once."""
        own = {name: made[name] for name in group if name in made}
        key = (group, tuple(own.items()))
        if key not in self._seen:
            rows = {tuple(self._sum(found)) for found in completions(self.space, group, own)}
            self._seen[key] = np.array(sorted(rows), np.int64).reshape(-1, 2)
        return self._seen[key]

    def range(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The smallest and the largest of each cost."""
        sums = [self._reachable(group, {}) for group in self.groups]
        least, most = (self.base + sum(pick(rows, 0) for rows in sums) for pick in (np.min, np.max))
        return (int(least[0]), int(least[1])), (int(most[0]), int(most[1]))


def _options(space: Additive, decision: Decision) -> list[Sequence[Hashable]]:
    """The keys of the modules that each option of a decision adds."""
    return [space.parts(decision.name, option) for option in range(len(decision.options))]


def _measured(space: Additive, lists: list[Sequence[Hashable]], count: Count) -> dict[Hashable, tuple[int, int]]:
    """The costs of every kind of module, each counted once."""
    costs = {}
    with torch.device("meta"):
        for key in dict.fromkeys(itertools.chain.from_iterable(lists)):
            costs[key] = count(*space.part(key))
    return costs


def _total(keys: Sequence[Hashable], costs: dict[Hashable, tuple[int, int]]) -> tuple[int, int]:
    return sum(costs[key][0] for key in keys), sum(costs[key][1] for key in keys)
