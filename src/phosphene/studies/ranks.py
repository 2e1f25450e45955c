"""How far two rankings of the same items agree, and how sure that is.

Every function takes plain sequences of numbers, one for each item. Where a figure does not exist (fewer than two items,
a column without differences, a NaN among the numbers) it is NaN, and never an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

Column = Sequence[float] | np.ndarray
Statistic = Callable[..., float]
ROUNDING = 1e-12
LARGE = 1500
"""items, above which a matrix of all pairs costs more than sorting does"""


def ranks(values: Column) -> np.ndarray:
    """The place of each number among them, from 1; equal ones share the mean of their places."""
    _, which, equal = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    less = np.cumsum(equal) - equal
    places: np.ndarray = (less + (equal + 1) / 2)[which]
    return places


def pearson(a: Column, b: Column) -> float:
    """The linear correlation of two columns, in [-1, 1]."""
    x, y = _pair(a, b)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1, 1))


def spearman(a: Column, b: Column) -> float:
    """Spearman's ρ: the linear correlation of the places."""
    x, y = _pair(a, b)
    return float("nan") if np.isnan(x).any() or np.isnan(y).any() else pearson(ranks(x), ranks(y))


def kendall(a: Column, b: Column) -> float:
    """Kendall's τ-b: (pairs in the same order − pairs in the other) / √(pairs untied in a · pairs untied in b)."""
    x, y = _pair(a, b)
    if np.isnan(x).any() or np.isnan(y).any():
        return float("nan")
    if len(x) > LARGE:
        from scipy.stats import kendalltau

        return float(kendalltau(x, y).statistic)
    p, q = (np.sign(column[:, None] - column[None]) for column in (x, y))
    size = float(np.sqrt(np.abs(p).sum() * np.abs(q).sum()))
    return float((p * q).sum() / size) if size > 0 else float("nan")


def partial(a: Column, b: Column, given: Column) -> float:
    """Spearman's ρ of two columns with the third one's share taken out: (ρ_ab − ρ_ag ρ_bg) / √((1 − ρ_ag²)(1 − ρ_bg²)).

    NaN where one of them is the third one's ranking.
    """
    ab, ag, bg = spearman(a, b), spearman(a, given), spearman(b, given)
    left = (1 - ag**2) * (1 - bg**2)
    return float(np.clip((ab - ag * bg) / math.sqrt(left), -1, 1)) if left > ROUNDING else float("nan")


def advantage(a: Column, truth: Column, *others: Column) -> float:
    """By how much Spearman's ρ of `a` with the truth exceeds the largest one of those of the others that exist."""
    known = [rho for rho in (spearman(other, truth) for other in others) if not math.isnan(rho)]
    return spearman(a, truth) - max(known) if known else float("nan")


def regret(scores: Column, reached: Column, top: int) -> float:
    """What is lost by looking at the `top` highest scores only: the best of all reached, less the best of theirs.

    Where equal scores compete for the last places it is the mean over all ways to draw from them; a column without
    differences gives that of as many random items. At `top` beyond their number it is 0.
    """
    x, y = _pair(scores, reached)
    if not len(x) or np.isnan(x).any() or np.isnan(y).any():
        return float("nan")
    top = min(top, len(x))
    last = np.sort(x)[-top]
    sure, tied = y[x > last], np.sort(y[x == last])[::-1]
    places = top - len(sure)
    best = np.maximum(tied, sure.max(initial=-np.inf))
    return float(y.max() - np.dot(_chances(len(tied), places), best))


def _chances(count: int, drawn: int) -> np.ndarray:
    """Drawing m of n items, the chance that the k-th best of all is the best one drawn: C(n-1-k, m-1) / C(n, m)."""
    found = [drawn / count]
    for k in range(count - 1):
        found.append(found[-1] * max(0, count - k - drawn) / (count - 1 - k))
    return np.array(found)


def split_half(a: Column, b: Column) -> float:
    """The reliability of a ranking of which `a` and `b` are two halves: Spearman–Brown, 2ρ / (1 + |ρ|).

    ρ is Spearman's. The formula says what two halves together are worth when each alone agrees with the other by ρ;
    below zero, where it has no meaning, |ρ| keeps it within [-1, 1].
    """
    rho = spearman(a, b)
    return 2 * rho / (1 + abs(rho))


def interval(
    statistic: Statistic, *columns: Column, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval of ``statistic(*columns)`` over the items.

    Items are drawn with replacement, the same ones from every column. Draws whose statistic is NaN are left out; the
    interval is (NaN, NaN) where they are more than half, and where there are fewer than three items.

    Args:
        level: the share of draws inside.
        resamples: how many draws.
        seed: of the draws.
    """
    table = [np.asarray(column, dtype=np.float64) for column in columns]
    count = len(table[0])
    nothing = (float("nan"), float("nan"))
    if count < 3:
        return nothing
    draws = np.random.default_rng(seed).integers(0, count, (resamples, count))
    known: dict[Statistic, Callable[..., np.ndarray]]
    known = {kendall: _kendalls, spearman: _spearmans, partial: _partials, advantage: _advantages}
    at_once = known.get(statistic)
    if at_once is not None and count <= LARGE and not any(np.isnan(column).any() for column in table):
        found = at_once(np.stack([np.bincount(draw, minlength=count) for draw in draws]).astype(np.float64), *table)
    else:
        found = np.array([statistic(*(column[draw] for column in table)) for draw in draws])
    found = found[~np.isnan(found)]
    if len(found) <= resamples / 2:
        return nothing
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


# -- statistics of many draws at once; `times` (draws, items) says how often a draw has an item --


def _kendalls(times: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """With c_i = how often a draw has item i, its sums over pairs are Σ_ij c_i c_j s_ij."""
    p, q = (np.sign(column[:, None] - column[None]) for column in (x, y))
    both, untied_p, untied_q = (((times @ signs) * times).sum(1) for signs in (p * q, np.abs(p), np.abs(q)))
    return _ratio(both, np.sqrt(untied_p * untied_q))


def _places(times: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The place of each item in each draw, less the mean place: below it are Σ_j c_j [x_j < x_i]."""
    order = x[:, None] - x[None]  # (j, i)
    below = (order < 0) + (order == 0) / 2
    places: np.ndarray = times @ below - times.sum(1, keepdims=True) / 2
    return places


def _spearmans(times: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    a, b = _places(times, x), _places(times, y)
    return _ratio((times * a * b).sum(1), np.sqrt((times * a * a).sum(1) * (times * b * b).sum(1)))


def _partials(times: np.ndarray, x: np.ndarray, y: np.ndarray, given: np.ndarray) -> np.ndarray:
    ab, ag, bg = (_spearmans(times, *pair) for pair in ((x, y), (x, given), (y, given)))
    left = (1 - ag**2) * (1 - bg**2)
    return _ratio(ab - ag * bg, np.sqrt(np.where(left > ROUNDING, left, 0)))


def _advantages(times: np.ndarray, x: np.ndarray, truth: np.ndarray, *others: np.ndarray) -> np.ndarray:
    known = [_spearmans(times, other, truth) for other in others]
    most = np.max([np.where(np.isnan(rho), -np.inf, rho) for rho in known], axis=0)
    return _spearmans(times, x, truth) - np.where(np.isinf(most), np.nan, most)


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    """NaN where there is nothing to divide by."""
    nothing = np.full(len(over), np.nan)
    found: np.ndarray = np.clip(np.divide(over, under, out=nothing, where=under > 0), -1, 1)
    return found


def _pair(a: Column, b: Column) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"two columns of one length are needed, not {x.shape} and {y.shape}")
    return x, y
