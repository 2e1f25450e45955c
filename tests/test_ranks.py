"""Rank statistics against scipy's and against examples worked by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from phosphene.studies.ranks import interval, kendall, pearson, ranks, spearman, split_half


def columns(seed, ties=False, count=17):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, count))
    b = b + 0.7 * a
    return (np.round(a), np.round(b)) if ties else (a, b)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_as_scipy_has_them(seed, ties):
    a, b = columns(seed, ties)
    assert kendall(a, b) == pytest.approx(stats.kendalltau(a, b).statistic, abs=1e-12)
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert pearson(a, b) == pytest.approx(stats.pearsonr(a, b).statistic, abs=1e-12)
    assert ranks(a) == pytest.approx(stats.rankdata(a))


def test_by_hand():
    # pairs of (1, 2, 3, 4) against (1, 3, 2, 4): five in the same order, one in the other: (5 - 1) / 6
    assert kendall([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(4 / 6)
    # rho = 1 - 6 * (0 + 1 + 1 + 0) / (4 * 15) = .8, and Spearman-Brown makes 1.6 / 1.8 of it
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    assert split_half([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(1.6 / 1.8)
    # one tie in a: tau-b = (2 - 0) / sqrt(2 * 3)
    assert kendall([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / math.sqrt(6))


def test_ends_of_the_scale():
    a = [3.0, 1.0, 2.0, 5.0]
    for statistic in (kendall, spearman, split_half, pearson):
        assert statistic(a, a) == pytest.approx(1) and statistic(a, [-x for x in a]) == pytest.approx(-1)


@pytest.mark.parametrize("statistic", [kendall, spearman, split_half, pearson])
def test_what_does_not_exist_is_nan(statistic):
    for a, b in (([1, 2, 3], [0.1, 0.1, 0.1]), ([1, 2, 3], [1, math.nan, 2]), ([1], [2]), ([], [])):
        assert math.isnan(statistic(a, b)), (a, b)
    with pytest.raises(ValueError, match="one length"):
        statistic([1, 2], [1, 2, 3])


def test_the_interval_covers_and_narrows():
    """Of 60 samples with a known tau, about 95 % of the intervals cover it; four times the items halve the width."""
    rng, truth, hits = np.random.default_rng(0), 2 / math.pi * math.asin(0.7), 0
    for k in range(60):
        a, noise = rng.normal(size=(2, 40))
        b = 0.7 * a + math.sqrt(1 - 0.49) * noise
        low, high = interval(kendall, a, b, resamples=300, seed=k)
        hits += low <= truth <= high
    assert 52 <= hits <= 60
    widths = [np.diff(interval(kendall, *columns(3, count=n), resamples=500))[0] for n in (25, 100)]
    assert 0.35 < widths[1] / widths[0] < 0.75


def test_the_interval_is_a_function_of_its_seed_and_knows_its_limits():
    a, b = columns(1)
    assert interval(kendall, a, b, seed=1) == interval(kendall, a, b, seed=1) != interval(kendall, a, b, seed=2)
    wide, narrow = interval(spearman, a, b, level=0.99), interval(spearman, a, b, level=0.5)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    for few in (([1, 2], [2, 3]), ([1, 2, 3, 4], [1, 1, 1, 1])):
        assert all(map(math.isnan, interval(kendall, *few)))


def test_an_interval_of_a_difference_takes_any_number_of_columns():
    a, b = columns(2)
    low, high = interval(lambda x, y, z: spearman(x, y) - spearman(x, z), a, a, b)
    assert 0 < low < high
