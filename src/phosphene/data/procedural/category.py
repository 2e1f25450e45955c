"""FractalDB's categories: random iterated function systems that fill enough of an image (Kataoka et al. 2020, §3.1)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from ...errors import DatasetError, SettingsError
from ...storage import typed
from .counter import key
from .orbit import MAPS, Backend, Words, render, thresholds

CANDIDATE, TRIAL = 11, 12  # streams of random numbers: a candidate's parameters, the orbit that measures it
SIZE, POINTS = 512, 100_000  # of the image on which a candidate's filling is measured
BLOCK = 64  # candidates measured together; no result depends on it
PATIENCE = 2000  # candidates without a category before the search gives up (about 1 in 50 passes at .2)
FORMAT: Literal["phosphene fractal categories, version 1"] = "phosphene fractal categories, version 1"


@dataclass(frozen=True, eq=False)
class Category:
    """An iterated function system. maps ``(N, 6)`` float64, N in 2..7: rows a..f, (x, y) -> (ax + by + e, cx + dy + f).

    place: the number it had among its seed's candidates; filling: share of pixels it was measured to hit.

    Raises:
        DatasetError: these are no maps.
    """

    maps: NDArray[np.float64]
    place: int = 0
    filling: float = 0.0

    def __post_init__(self) -> None:
        shape = self.maps.shape
        if self.maps.dtype != np.float64 or len(shape) != 2 or not 2 <= shape[0] <= MAPS or shape[1] != 6:
            raise DatasetError(f"a fractal category of shape {shape}: need 2 to {MAPS} maps of 6 float64 parameters")
        if not np.isfinite(self.maps).all() or not 0 < self._determinants.sum() < np.inf:  # p needs Σ |ad − bc| > 0
            raise DatasetError(f"category {self.place}: its maps are not finite, or all of them are flat (ad = bc)")

    @property
    def _determinants(self) -> NDArray[np.float64]:
        a, b, c, d = self.maps.T[:4]  # the linear part; e, f shift
        areas: NDArray[np.float64] = np.abs(a * d - b * c)  # |ad − bc|
        return areas

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """How often each map is taken ``(N,)``: p ∝ |ad − bc|, the area that it maps the unit square to."""
        shares: NDArray[np.float64] = self._determinants / self._determinants.sum()  # p_i of the chaos game
        return shares

    @cached_property
    def padded(self) -> NDArray[np.float64]:
        """The maps, followed by rows of zeros ``(MAPS, 6)``."""
        return np.concatenate([self.maps, np.zeros((MAPS - len(self.maps), 6))])

    @cached_property
    def edges(self) -> Words:
        """The probabilities as `orbit.render` takes them."""
        return thresholds(self.probabilities)


def candidate(seed: int, place: int) -> NDArray[np.float64]:
    """The maps of one candidate: N of 2..7, parameters uniform in [-1, 1)."""
    words = key(seed, CANDIDATE, place, np.arange(1 + 6 * MAPS))  # 64 random bits each
    count = 2 + int(words[0] % np.uint64(MAPS - 1))  # N, uniform over 2..7
    parameters = (words[1 : 1 + 6 * count] >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1
    return parameters.reshape(count, 6)  # a..f of each map


def find_categories(
    count: int,
    seed: int,
    *,
    filling: float = 0.2,
    size: int = SIZE,
    points: int = POINTS,
    progress: Callable[[int, int], None] | None = None,
    backend: Backend = "auto",
) -> list[Category]:
    """The first `count` candidates of `seed` whose `points` hit a share of at least `filling` of size² pixels.

    A category is a function of (seed, its place among the candidates): a longer list begins with the shorter one.
    `progress(found, tried)` is called every few candidates.

    Raises:
        SettingsError: a setting is out of range, or no candidate fills so much.
    """
    _check(count, filling, size, points)
    found: dict[bytes, Category] = {}
    tried = 0
    while len(found) < count:
        if tried >= PATIENCE * (len(found) + 1):
            raise SettingsError(f"--filling {filling}: {len(found)} of {tried} candidates fill so much; lower it")
        places = np.arange(tried, tried + BLOCK)  # numbers of candidates
        for fresh in _measured(seed, places, size, points, backend):
            if fresh.filling >= filling:  # .2 as published
                found.setdefault(fresh.maps.tobytes(), fresh)
        tried += BLOCK
        if progress:
            progress(min(len(found), count), tried)
    return list(found.values())[:count]


def _check(count: int, filling: float, size: int, points: int) -> None:
    if count < 1 or size < 8 or points < 1:
        raise SettingsError(f"{count} categories, {points} points on {size}x{size}: need at least 1, 1 and 8x8")
    check_filling(filling, "filling", size, points)


def check_filling(filling: float, what: str, size: int = SIZE, points: int = POINTS) -> None:
    """Raise `SettingsError`, with `what` as the setting's name, where no candidate can fill so much, or all do."""
    if not 0 < filling < points / size**2:
        most = points / size**2  # every point on a pixel of its own
        raise SettingsError(f"{what} {filling} is not between 0 and {most:.2f}, what {points:,} points can hit")


def _measured(seed: int, places: NDArray[np.int64], size: int, points: int, backend: Backend) -> list[Category]:
    """Candidates with their filling."""
    plain = [Category(candidate(seed, int(place)), int(place)) for place in places]
    maps, edges = np.stack([c.padded for c in plain]), np.stack([c.edges for c in plain])
    _, hits = render(maps, edges, key(seed, TRIAL, places), points=points, size=size, backend=backend)
    return [Category(c.maps, c.place, int(hit) / size**2) for c, hit in zip(plain, hits, strict=True)]


class Entry(TypedDict):
    """A category in the file."""

    place: int
    filling: float
    maps: list[tuple[float, float, float, float, float, float]]


class CategoriesFile(TypedDict):
    """The file of categories."""

    format: Literal["phosphene fractal categories, version 1"]
    sha256: str
    categories: list[Entry]


def save(categories: Sequence[Category], path: Path) -> None:
    """Write a JSON file that `load` reads back bit by bit."""
    entries = [{"place": c.place, "filling": c.filling, "maps": c.maps.tolist()} for c in categories]
    typed.write_json(path, {"format": FORMAT, "sha256": _checksum(entries), "categories": entries})


def load(path: Path) -> list[Category]:
    """Read what `save` wrote.

    Raises:
        DatasetError: the file is missing, is something else, has been changed or holds a category twice.
    """
    remedy = "make it again with `phosphene unreal fractal`"
    content = typed.read(path, CategoriesFile, DatasetError, remedy)
    entries = content["categories"]
    try:
        if content["sha256"] != _checksum(entries):
            raise ValueError("its checksum does not fit its content")
        categories = [Category(np.array(e["maps"], np.float64), e["place"], e["filling"]) for e in entries]
    except (ValueError, DatasetError) as error:
        raise DatasetError(f"{path} is not a sound file of fractal categories ({error}); {remedy}") from error
    if not categories or len({c.maps.tobytes() for c in categories}) < len(categories):
        raise DatasetError(f"{path} holds no category, or one of them twice; {remedy}")
    return categories


def _checksum(entries: Sequence[Mapping[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
