"""Random numbers as a function of (seed, stream, index): no state is carried from one image to the next.

So any image can be had without those before it, in any order and on any machine. A `stream` keeps the numbers of one
purpose apart from those of another with the same seed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / the golden ratio, odd: its multiples visit every 64-bit number
_MASK = (1 << 64) - 1


def generators(seed: int, stream: int, index: np.ndarray) -> Iterator[np.random.Generator]:
    """For each of `index` (n,) a generator at the start of its own numbers; use it before taking the next one.

    Philox (Salmon et al. 2011): the key is (seed, stream), and the second word of the 256-bit counter is the index, so
    that every image has 2^66 words before the next one begins.
    """
    source = np.random.Philox(key=np.array([seed & _MASK, stream], np.uint64))
    generator, state = np.random.Generator(source), source.state
    for i in index.tolist():
        state["state"]["counter"] = np.array([0, i, 0, 0], np.uint64)
        source.state = state  # this also empties the buffer of what the image before left over
        yield generator


def bits(seed: int, stream: int, index: np.ndarray) -> np.ndarray:
    """64 random bits for each of `index` (n,), uint64: SplitMix64 (Steele et al. 2014), a bijection of the counter."""
    start = _mix(_mix(np.array([seed & _MASK], np.uint64)) + np.uint64(stream))
    return _mix(start + (index.astype(np.uint64) + np.uint64(1)) * _GOLDEN)


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (variant 13): each input bit flips each output bit in half of all cases."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
