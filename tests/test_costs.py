"""Costs are exact and disturb nothing; a budget knows exactly which partial choices can still keep it."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from phosphene import costs, hardware, prices, spaces
from phosphene.core import Decision
from phosphene.costs import Budget
from phosphene.errors import BudgetError, SettingsError
from phosphene.spaces.darts import DartsSpace
from phosphene.spaces.moves import sample

SMALL = {"channels": 4, "cells": 3, "shape": (1, 8, 8)}


class Net(nn.Module):
    """A strided, a dilated depthwise and a grouped convolution, a normalisation, a linear layer; two modes."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.b = nn.Conv2d(8, 8, 5, padding=4, dilation=2, groups=8, bias=False)
        self.c = nn.Conv2d(8, 16, 1, groups=2, bias=False)
        self.norm, self.drop = nn.BatchNorm2d(16), nn.Dropout(0.5)
        self.last = nn.Linear(16, 10)

    def forward(self, x):
        return self.last(self.drop(self.norm(self.c(self.b(self.a(x))))).mean((2, 3)))


def test_parameters_and_macs_by_hand():
    net = Net()
    assert costs.params(net) == (27 * 8 + 8) + 25 * 8 + 4 * 16 + 2 * 16 + (160 + 10)
    assert costs.macs(net, (3, 9, 7)) == 5 * 4 * (27 * 8 + 25 * 8 + 4 * 16) + 160


def test_counting_leaves_no_trace():
    net = Net()
    net.norm.eval()
    before = torch.get_rng_state(), {k: v.clone() for k, v in net.state_dict().items()}, net.a.weight
    costs.macs(net, (3, 8, 8))
    space = DartsSpace(**SMALL)
    costs.measure(space, sample(space, torch.Generator().manual_seed(0)))
    Budget.parse("<=1M").of(space)
    assert torch.equal(torch.get_rng_state(), before[0]) and net.a.weight is before[2]
    assert all(torch.equal(v, before[1][k]) for k, v in net.state_dict().items())
    assert net.training and net.drop.training and not net.norm.training


def test_latency_is_a_time_and_leaves_the_mode():
    net = Net()
    machine = hardware.machine("cpu", "fp32")
    little = costs.latency(net, (3, 8, 8), machine, repeats=5)
    much = costs.latency(net, (3, 256, 256), machine, batch=8, repeats=5)
    assert 0 < little < much and net.training


@pytest.mark.parametrize(
    ("text", "bounds"),
    [
        ("3.5M", (0, 3.5e6)),
        ("<=3.5M", (0, 3.5e6)),
        (">= 2m", (2e6, math.inf)),
        ("3M..4M", (3e6, 4e6)),
        ("300k .. 1.5G", (3e5, 1.5e9)),
        ("3500000", (0, 3.5e6)),
        ("3.5e6", (0, 3.5e6)),
        (4_000_000, (0, 4e6)),
        ((1, 2), (1, 2)),
        (None, None),
    ],
)
def test_windows_are_read(text, bounds):
    assert costs.window(text, "--params") == bounds


@pytest.mark.parametrize("text", ["", "M", "3X", "-3M", "3M..", "4M..3M", "<3M", "3M-4M", "nan"])
def test_what_is_no_window_is_named(text):
    with pytest.raises(SettingsError, match="--macs"):
        costs.window(text, "--macs")


@pytest.mark.parametrize("stem", ["tiny", "cifar", "imagenet"])
def test_the_table_equals_built_networks(stem):
    shape = (3, 40, 33) if stem == "imagenet" else (2, 17, 12)
    space = DartsSpace(channels=6, cells=5, nodes=3, stem=stem, shape=shape, auxiliary=True)
    table, generator = prices.prices(space, costs.count), torch.Generator().manual_seed(1)
    assert isinstance(table, prices.Table)
    for _ in range(6):
        choices = sample(space, generator)
        assert table.of(choices) == costs.measure(space, choices)


TINY = DartsSpace(nodes=2, **SMALL)
TABLE = prices.prices(TINY, costs.count)
NORMAL = [d.name for d in TINY.decisions if d.name.startswith("normal")]
REDUCE = [d.name for d in TINY.decisions if d.name.startswith("reduce")]


def totals(names, made):
    """Costs of every way to complete some decisions, by plain enumeration of all their options."""
    found = set()
    for options in itertools.product(range(8), repeat=len(names)):
        choices = dict(zip(names, options, strict=True))
        agrees = all(choices[name] == made[name] for name in names if name in made)
        nodes = [[choices[n] for n in names if f"/{k}<-" in n] for k in (2, 3)]
        if agrees and all(sum(option != 0 for option in node) == 2 for node in nodes):
            found.add(tuple(sum(TABLE.costs[n][o] for n, o in choices.items())))
    return found


ALL = totals(NORMAL, {}), totals(REDUCE, {})
EVERY = sorted(tuple(int(v) for v in TABLE.base + a + b) for a in ALL[0] for b in ALL[1])


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_fits_is_exact_for_partial_choices(data):
    """Against brute force: windows around and between what exists, choices made in one cell."""
    low = data.draw(st.sampled_from(EVERY))
    wide = data.draw(st.sampled_from([0, 1, 40, 400])), data.draw(st.sampled_from([0, 500, 20000]))
    shift = data.draw(st.integers(-50, 50)), data.draw(st.integers(-2000, 2000))
    windows = [(low[k] + shift[k], low[k] + shift[k] + wide[k]) for k in (0, 1)]
    one = data.draw(st.sampled_from(["both", "params", "macs"]))
    budget = Budget(windows[0] if one != "macs" else None, windows[1] if one != "params" else None, TABLE)
    node = data.draw(st.permutations([n for n in NORMAL if "/3<-" in n]))[: data.draw(st.integers(0, 2))]
    made = {name: data.draw(st.integers(1, 7)) for name in node}
    made |= TINY.forced(made)
    normal = totals(NORMAL, made) if made else ALL[0]
    sums = (TABLE.base + a + b for a in normal for b in ALL[1])
    bounds = [w if one in ("both", n) else (0, math.inf) for n, w in zip(("params", "macs"), windows, strict=True)]
    expected = any(all(lo <= v <= hi for v, (lo, hi) in zip(total, bounds, strict=True)) for total in sums)
    assert budget.fits(made) == expected


def test_complete_choices_fit_if_and_only_if_they_are_within():
    generator = torch.Generator().manual_seed(2)
    middle = EVERY[len(EVERY) // 2][0]
    budget = Budget.parse(f"{middle}").of(TINY)
    drawn = [sample(TINY, generator) for _ in range(15)]
    verdicts = [budget.fits(choices) for choices in drawn]
    assert verdicts == [costs.measure(TINY, choices)[0] <= middle for choices in drawn] and len(set(verdicts)) == 2


def test_without_bounds_everything_fits_and_nothing_is_tabulated():
    budget = Budget.parse().of(TINY)
    assert budget.prices is None and budget.fits({}) and budget.fits({"normal/2<-0": 4})
    with pytest.raises(ValueError, match=r"budget\.of"):
        Budget.parse("1M").fits({})


def test_impossible_budgets_are_refused_with_what_is_possible():
    space = spaces.space({"name": "darts", "channels": 36, "cells": 20})
    with pytest.raises(BudgetError, match=r"--params 1M excludes every .*smallest 1\.37M, largest 5\.144M.*raise it"):
        Budget.parse("1M").of(space)
    with pytest.raises(BudgetError, match=r"--macs >=900M .*smallest 227\.3M, largest 817\.8M.*lower it"):
        Budget.parse(macs=">=900M").of(space)
    with pytest.raises(BudgetError, match=r"--params 2M with --macs >=500M lies between.*widen"):
        Budget.parse("2M", ">=500M").of(space)
    gap = next(a + 1 for (a, _), (b, _) in itertools.pairwise(EVERY) if b - a > 2)
    with pytest.raises(BudgetError, match=r"lies between.*widen"):
        Budget((gap, gap)).of(TINY)


class Widths:
    """Three layers whose widths are chosen: a space that does not know what its options add."""

    spec: dict = {"shape": (1, 2, 2)}  # noqa: RUF012
    decisions = tuple(Decision(name, ("1", "2", "4")) for name in "abc")

    def forced(self, made):
        return {}

    def build(self, choices):
        a, b, c = (2 ** choices[name] for name in "abc")
        flat = nn.Linear(4, a, bias=False), nn.Linear(a, b, bias=False), nn.Linear(b, c, bias=False)
        return nn.Sequential(nn.Flatten(), *flat)


def test_other_spaces_are_counted_by_building():
    space = Widths()
    full = prices.prices(space, costs.count)
    assert isinstance(full, prices.Built) and full.range() == ((6, 6), (48, 48))
    few = prices.Built(space, costs.count, limit=3)
    for made in ({}, {"b": 2}, {"a": 1, "c": 0}):
        rest = [name for name in "abc" if name not in made]
        filled = [made | dict(zip(rest, o, strict=True)) for o in itertools.product(range(3), repeat=len(rest))]
        sums = [4 * 2 ** c["a"] + 2 ** (c["a"] + c["b"]) + 2 ** (c["b"] + c["c"]) for c in filled]
        for low, high in itertools.product(range(5, 50, 3), repeat=2):
            truth = any(low <= total <= high for total in sums)
            assert full.allow(made, (low, 0), (high, math.inf)) == truth
            assert few.allow(made, (low, 0), (high, math.inf)) or not truth, "a limit never refuses what fits"
    assert not few.allow({"a": 0, "b": 0, "c": 0}, (7, 0), (9, 9)), "complete choices hear the truth"
    with pytest.raises(BudgetError, match=r"--macs 5 excludes every architecture .smallest 6, largest 48.; raise it"):
        Budget.parse(macs="5").of(space)


def test_completions_come_each_once_and_all():
    space = DartsSpace(nodes=2, **SMALL)
    found = [tuple(sorted(c.items())) for c in prices.completions(space, NORMAL, {})]
    assert len(found) == len(set(found)) == 49 * 3 * 49
    fixed = spaces.space({"name": "fixed", "model": "cifar-resnet8", "classes": 4, "shape": [1, 16, 16]})
    assert list(prices.completions(fixed, [], {})) == [{}]
    assert Budget.parse("1M").of(fixed).fits({})
    with pytest.raises(BudgetError, match=r"--params 1K excludes"):
        Budget.parse("1k").of(fixed)
