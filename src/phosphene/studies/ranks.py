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
    # the best of `places` drawn from the tied ones is their k-th with chance C(n-1-k, places-1) / C(n, places)
    best = np.maximum(tied, sure.max(initial=-np.inf))
    chances = [math.comb(len(tied) - 1 - k, places - 1) / math.comb(len(tied), places) for k in range(len(tied))]
    return float(y.max() - np.dot(chances, best))


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
    if statistic is kendall and count <= LARGE:
        found = _kendall_of_draws(table, draws)
    else:
        found = np.array([statistic(*(column[draw] for column in table)) for draw in draws])
    found = found[~np.isnan(found)]
    if len(found) <= resamples / 2:
        return nothing
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _kendall_of_draws(table: list[np.ndarray], draws: np.ndarray) -> np.ndarray:
    """`kendall` of every draw at once: with c_i how often it has item i, its sums over pairs are Σ_ij c_i c_j s_ij."""
    x, y = _pair(*table)
    times = np.stack([np.bincount(draw, minlength=len(x)) for draw in draws]).astype(np.float64)
    p, q = (np.sign(column[:, None] - column[None]) for column in (x, y))
    both, untied_p, untied_q = (((times @ signs) * times).sum(1) for signs in (p * q, np.abs(p), np.abs(q)))
    size = np.sqrt(untied_p * untied_q)
    found: np.ndarray = np.divide(both, size, out=np.full(len(draws), np.nan), where=size > 0)
    return found


def _pair(a: Column, b: Column) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"two columns of one length are needed, not {x.shape} and {y.shape}")
    return x, y
