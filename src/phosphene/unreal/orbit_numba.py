"""The chaos game of orbit.py, compiled: the same arithmetic in the same order, hence the same images."""

from __future__ import annotations

import numba
import numpy as np

from .counter import GOLDEN
from .orbit import BURN_IN, MAPS, NARROWEST, WIDEST

HALF, ONES = np.uint64(32), np.uint64(0xFFFFFFFF)
FIRST, SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
A, B, C = np.uint64(30), np.uint64(27), np.uint64(31)


@numba.njit(nogil=True, inline="always")
def mix(z):  # type: ignore[no-untyped-def]
    """As in counter.py."""
    z = (z ^ (z >> A)) * FIRST
    z = (z ^ (z >> B)) * SECOND
    return z ^ (z >> C)


@numba.njit(nogil=True, cache=True)
def render_all(maps, edges, keys, points, lanes, size, pad, canvas):  # type: ignore[no-untyped-def]
    """All images, one after the other, into canvas; -> pixels hit."""
    hits = np.zeros(len(maps), np.int64)
    steps = -(-points // lanes)
    xs, ys, taken = np.empty(steps * lanes), np.empty(steps * lanes), np.empty(steps * lanes, np.uint8)
    for image in range(len(maps)):
        walk(maps[image], edges[image], keys[image], steps, lanes, xs, ys, taken)
        hits[image] = mark(xs[:points], ys[:points], taken[:points], size, pad, canvas[image])
    return hits


@numba.njit(nogil=True)
def walk(maps, edges, key, steps, lanes, xs, ys, taken):  # type: ignore[no-untyped-def]
    """One image's orbits, step by step and lane by lane."""
    for lane in range(lanes):
        x, y, word = 0.0, 0.0, np.uint64(0)
        for step in range(BURN_IN + steps):
            if step % 2 == 0:
                counter = np.uint64((step // 2) * lanes + lane + 1)
                word = mix(key + counter * GOLDEN)
                draw = word & ONES
            else:
                draw = word >> HALF
            k = 0
            for j in range(MAPS - 1):
                k += draw >= edges[j]
            m = maps[k]
            x, y = x * m[0] + y * m[1] + m[4], x * m[2] + y * m[3] + m[5]
            if step >= BURN_IN:
                place = (step - BURN_IN) * lanes + lane
                xs[place], ys[place], taken[place] = x, y, k


@numba.njit(nogil=True)
def mark(xs, ys, taken, size, pad, canvas):  # type: ignore[no-untyped-def]
    """Points into pixels; -> pixels hit."""
    left, right = extent(xs)
    low, high = extent(ys)
    if not (NARROWEST < right - left < WIDEST and NARROWEST < high - low < WIDEST):
        return 0
    inner = size - 2 * pad
    across, up = inner / (right - left), inner / (high - low)
    hits = 0
    for i in range(len(xs)):
        column = min(int((xs[i] - left) * across), inner - 1) + pad
        row = size - 1 - pad - min(int((ys[i] - low) * up), inner - 1)
        before = canvas[row, column]
        hits += before == 0
        canvas[row, column] = max(before, taken[i] + 1)
    return hits


@numba.njit(nogil=True)
def extent(values):  # type: ignore[no-untyped-def]
    """Minimum and maximum; NaN is neither."""
    least, most = np.inf, -np.inf
    for value in values:
        if value < least:
            least = value
        if value > most:
            most = value
    return least, most
