"""Costs are exact and disturb nothing; a budget knows exactly which partial choices can still keep it."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from phosphene import spaces
from phosphene.core import Decision
from phosphene.costs import budget as costs
from phosphene.costs import tables as prices
from phosphene.costs.budget import Budget
from phosphene.errors import BudgetError, SettingsError
from phosphene.runtime import machine as hardware
from phosphene.spaces.darts.space import DartsSpace
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


@pytest.mark.parametrize("text", ["", "M", "3X", "-3M", "3M..", "4M..3M", "<3M", "3M-4M", "nan", "0", "0..0"])
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


# -- what is drawn costs on average ----------------------------------------------------------------------------------


def some_shares(space, seed=0):
    """For each decision random probabilities of the options that may be chosen."""
    draws = np.random.default_rng(seed)
    found = {}
    for decision in space.decisions:
        row = np.zeros(len(decision.options))
        row[list(decision.free)] = draws.dirichlet(np.ones(len(decision.free)))
        found[decision.name] = torch.tensor(row)
    return found


def mean_by_hand(space, table, shares, made=None):
    """Σ over every order and option of probability x cost, by plain recursion over the whole space."""
    made = {**(made or {}), **space.forced(made or {})}
    still = [d for d in space.decisions if d.name not in made]
    if not still:
        return np.array(table.of(made), float)
    total = np.zeros(2)
    for decision in still:
        for option in decision.free:
            p = float(shares[decision.name][option]) / len(still)
            total += p * mean_by_hand(space, table, shares, made | {decision.name: option})
    return total


class Forcing(Widths):
    """Two of three decisions are chosen, the last is forced to be nothing; every option adds by itself."""

    spec: dict = {"name": "forcing", "shape": (1, 2, 2)}  # noqa: RUF012
    decisions = tuple(Decision(name, ("none", "2", "3"), frozenset({"none"})) for name in "abc")
    groups = (("a", "b", "c"),)

    def forced(self, made):
        chosen = [name for name in made if made[name]]
        return {name: 0 for name in "abc" if name not in made} if len(chosen) == 2 else {}

    def parts(self, decision, option):
        return [("abc".index(decision), option)]

    def part(self, key):
        place, option = key
        return nn.Linear(option * (place + 1), 4, bias=place == 1), (option * (place + 1),)

    def build(self, choices):
        class Sum(nn.Module):
            def __init__(self, parts):
                super().__init__()
                self.parts = nn.ModuleList(parts)

            def forward(self, x):
                return sum(part(x.flatten(1)[:, :1].expand(-1, part.in_features)) for part in self.parts)

        return Sum([self.part(key)[0] for name, k in choices.items() if k for key in self.parts(name, k)])


@pytest.mark.parametrize("space", [Forcing(), spaces.space({"name": "macro", "depths": [1, 1], "shape": [1, 8, 8]})])
def test_the_expected_cost_is_the_mean_over_all_draws(space):
    table, shares = prices.prices(space, costs.count), some_shares(space)
    assert isinstance(table, prices.Table)
    expected = table.expected(shares)
    assert expected.dtype == torch.float64
    assert np.allclose(expected.numpy(), mean_by_hand(space, table, shares))


def test_the_expected_cost_of_a_cell_is_that_of_many_draws():
    """A whole space of cells, whose edges are left out by force: the mean of drawn architectures."""
    generator, shares = torch.Generator().manual_seed(0), {}
    for decision in TINY.decisions:  # equal chances, as `drawn` takes
        shares[decision.name] = torch.tensor([0.0] + [1 / 7] * 7, dtype=torch.float64)
    seen = np.array([TABLE.of(prices.random_choices(TINY, generator)) for _ in range(3000)])
    error = np.abs(seen.mean(0) - TABLE.expected(shares).numpy()) / (seen.std(0) / math.sqrt(len(seen)))
    assert (error < 4).all(), error


def test_the_expected_cost_has_the_gradient_of_its_finite_differences():
    shares = {name: row.requires_grad_() for name, row in some_shares(TINY).items()}
    budget = Budget(soft=(("macs", 1e6),), prices=TABLE)
    budget.expected(shares)["macs"].backward()
    for name, option in [("normal/3<-1", 4), ("reduce/2<-0", 1)]:
        sides = []
        for sign in (1, -1):
            moved = {n: row.detach().clone() for n, row in shares.items()}
            moved[name][option] += sign * 1e-3
            sides.append(float(budget.expected(moved)["macs"]))
        assert math.isclose((sides[0] - sides[1]) / 2e-3, float(shares[name].grad[option]), rel_tol=1e-6)


def test_the_expected_cost_of_other_spaces_is_exact_where_all_is_certain_about_one_change():
    space, built = Widths(), prices.Built(Widths(), costs.count)
    certain = {name: torch.tensor([1.0, 0, 0]) for name in "abc"}
    for name, option in [("a", 0), ("b", 2), ("c", 1)]:
        row = torch.eye(3)[option]
        expected = built.expected(certain | {name: row})
        assert expected.tolist() == list(built.of({"a": 0, "b": 0, "c": 0} | {name: option}))

    class Tied(Widths):
        decisions = tuple(Decision(name, ("1", "2", "4"), frozenset({"1"})) for name in "abc")

    with pytest.raises(SettingsError, match="soft target"):
        prices.Built(Tied(), costs.count).expected(certain)
    assert space.forced({}) == {}


# -- soft targets and latency ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "bounds", "soft"),
    [("~3M", None, 3e6), ("3.5M,~3M", (0, 3.5e6), 3e6), ("~ 3M , 2M..4M", (2e6, 4e6), 3e6), ("4M", (0, 4e6), None)],
)
def test_soft_targets_are_read(text, bounds, soft):
    assert costs.limits(text, "--macs") == (bounds, soft)


@pytest.mark.parametrize("text", ["~", "~0", "~>=3M", "~1M..2M", "~1M,~2M", "1M,2M", "~x"])
def test_what_is_no_soft_target_is_named(text):
    with pytest.raises(SettingsError, match="--macs"):
        costs.limits(text, "--macs")


def test_aims_are_the_soft_targets_else_what_bounds_allow():
    assert Budget.parse("~3M", "1G", 20).aims == {"params": 3e6}
    assert Budget.parse(">=3M", "1G", "5..20").aims == {"macs": 1e9, "latency": 20}
    assert Budget.parse().aims == {} and Budget.parse(">=3M").aims == {}
    assert Budget.parse(latency="~5").timed and not Budget.parse("3M").timed


class Watch:
    """Nanoseconds that are known: 100 and the number of parameters for a part, 5,000 more for a network."""

    def part(self, space, key):
        return 100 + costs.params(space.part(key)[0])

    def network(self, space, choices):
        keys = [key for name, k in choices.items() for key in space.parts(name, k)]
        return 5000 + sum(self.part(space, key) for key in keys)


MACRO = spaces.space({"name": "macro", "channels": 4, "last": 16, "shape": [1, 8, 8]})


def test_latency_is_a_cost_beside_the_others():
    budget = Budget.parse(latency="~1").of(MACRO, Watch())
    choices = MACRO.choices("01201201")
    found = budget.costs(choices)
    assert (found["params"], found["macs"]) == costs.measure(MACRO, choices)
    assert found["latency"] == Watch().network(MACRO, choices) / 1e6
    assert set(budget.expected(some_shares(MACRO))) == {"params", "macs", "latency"}
    assert budget.times == Budget.parse(latency="3").of(MACRO, Watch()).times != ""
    assert Budget.parse("1M").of(MACRO).times == ""
    with pytest.raises(ValueError, match="clock"):
        Budget.parse(latency="1").of(MACRO)


def test_fits_of_three_costs_is_what_enumeration_says():
    budget = Budget.parse(latency="1").of(MACRO, Watch())
    codes = ["".join(digits) for digits in itertools.product("012", repeat=8)]
    every = {code: budget.prices.of(MACRO.choices(code)) for code in codes}
    draws = np.random.default_rng(3)
    verdicts = []
    for _ in range(40):
        centre = np.array(every[draws.choice(codes)])
        size = draws.choice([0.0, 0.002, 0.02, 0.2], 3) * centre
        low, high = centre - size * draws.random(3) - 1, centre + size * draws.random(3) - draws.choice([0, 2])
        made = "".join(str(k) for k in draws.integers(0, 3, draws.integers(0, 8)))
        choices = {layer.name: int(k) for layer, k in zip(MACRO.layers, made, strict=False)}
        truth = any(
            code.startswith(made) and all(a <= v <= b for a, v, b in zip(low, row, high, strict=True))
            for code, row in every.items()
        )
        assert budget.prices.allow(choices, low, high) == truth
        verdicts.append(truth)
    assert len(set(verdicts)) == 2


def test_impossible_latencies_are_refused_with_what_is_possible():
    with pytest.raises(
        BudgetError, match=r"--latency 0\.001 excludes every .*smallest 0\.\d+, largest 0\.\d+.; raise it"
    ):
        Budget.parse(latency="0.001").of(MACRO, Watch())
    with pytest.raises(BudgetError, match=r"--latency >=2 excludes.*lower it"):
        Budget.parse(latency=">=2").of(MACRO, Watch())


def test_where_sums_are_too_many_the_answer_is_yes_until_few_are_left(monkeypatch):
    monkeypatch.setattr(prices, "LIMIT", 4)
    table = prices.prices(MACRO, costs.count)
    least, most = table.range()
    between = (least[1] + 1, least[1] + 1)
    assert table.allow({}, (0, between[0]), (math.inf, between[1])), "more sums than the limit"
    made = {layer.name: 0 for layer in MACRO.layers[:-1]}
    assert not table.allow(made, (0, between[0]), (math.inf, between[1])), "one decision is left"
    assert not table.allow({}, (0, most[1] + 1), (math.inf, math.inf)), "bounds are seen at once"


def test_options_that_are_only_forced_take_no_time():
    class Counted(Watch):
        def network(self, space, choices):
            return 10_000

    table = prices.prices(Forcing(), costs.count, Counted())
    assert all(rows[0][2] == 0 and rows[1][2] > 100 for rows in table.costs.values())
