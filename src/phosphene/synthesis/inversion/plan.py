"""What is synthesized where: sides and resolutions of a canvas, the classes of each chain, and their images' places."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from ...errors import SettingsError, shown
from ...limits import SIDE
from ...teachers.teacher import Teacher
from .presets import Inversion

Sides = tuple[int, int]


@dataclass(frozen=True)
class Stage:
    """A stretch of a round at one resolution. Sides are of the FULL canvas; `scale` 2 = averaged over 2 x 2 pixels."""

    iterations: int
    scale: int
    crop: Sides


@dataclass(frozen=True)
class Geometry:
    """Sides of the canvas and of the teacher's view in pixels, and the stages of a round."""

    canvas: Sides
    crop: Sides
    stages: tuple[Stage, ...]

    @classmethod
    def of(cls, recipe: Inversion, shape: tuple[int, int, int]) -> Geometry:
        """For a teacher with inputs of this shape; raises `SettingsError` where sides do not fit each other."""
        crop = sides("--crop", recipe.crop, (shape[1], shape[2]))
        canvas = sides("--canvas", recipe.canvas, crop)
        if canvas[0] < crop[0] or canvas[1] < crop[1]:
            raise SettingsError(f"--canvas {_text(canvas)} is smaller than the crop {_text(crop)}; enlarge it")
        stages = []
        if recipe.half_iterations:
            stages.append(Stage(recipe.half_iterations, 2, _half_crop(recipe, canvas, crop)))
        if recipe.iterations:
            stages.append(Stage(recipe.iterations, 1, crop))
        return cls(canvas, crop, tuple(stages))

    @property
    def regional(self) -> bool:
        """Whether the canvas is larger than the teacher's view of it (eq. 8)."""
        return self.canvas != self.crop


def _half_crop(recipe: Inversion, canvas: Sides, crop: Sides) -> Sides:
    half = sides("--half-crop", recipe.half_crop, (crop[0] // 2, crop[1] // 2))
    odd = any(side % 2 for side in canvas)
    if odd or 2 * half[0] > canvas[0] or 2 * half[1] > canvas[1] or min(half) < 1:
        raise SettingsError(
            f"--half-iterations {recipe.half_iterations}: a canvas of {_text(canvas)} has no half resolution with a "
            f"crop of {_text(half)}; choose even sides with --canvas, a smaller --half-crop, or --half-iterations 0"
        )
    return 2 * half[0], 2 * half[1]


def sides(flag: str, text: str | int, of: Sides) -> Sides:
    """``"40"``, ``"40x48"``, a ratio ``"5/4"`` or ``"1"`` to `of`, or ``""`` for `of` itself."""
    text = str(text)
    try:
        if not text:
            return of
        if "/" in text or text == "1":
            pair = round(of[0] * Fraction(text)), round(of[1] * Fraction(text))
        else:
            height, _, width = text.lower().partition("x")
            pair = int(height), int(width or height)
    except (ValueError, ZeroDivisionError) as error:
        raise SettingsError(f"{flag} {shown(text, str)} is not a side; write 40, 40x48 or a ratio like 5/4") from error
    if min(pair) < 1 or max(pair) > SIDE:
        raise SettingsError(f"{flag} {shown(text, str)} is not a side of 1 to {SIDE} pixels; write 40, 40x48 or 5/4")
    return pair


def _text(side: Sides) -> str:
    return f"{side[0]}x{side[1]}"


@dataclass(frozen=True)
class Plan:
    """The classes of each chain, and the slots of the data set that its images go to."""

    images: int
    recipe: Inversion
    chains: tuple[tuple[int, ...], ...]  # the class of each slot of each chain

    @classmethod
    def of(cls, images: int, recipe: Inversion, shares: list[float]) -> Plan:
        """Slots in as few chains as fit `batch`, of nearly equal size and the same mixture of classes.

        Raises:
            SettingsError: fewer images than rounds are kept.
        """
        if images < recipe.kept:
            raise SettingsError(f"--images {images} cannot hold {recipe.kept} rounds; raise it, or choose --keep last")
        slots = -(-images // recipe.kept)
        count = -(-slots // recipe.batch)
        order = apportion(slots, shares)
        return cls(images, recipe, tuple(tuple(order[c::count]) for c in range(count)))

    def slots(self, chain: int, t: int) -> np.ndarray:
        """Positions in the data set of the images of round `t`; a chain's rounds lie one after the other.

        Where the total is no multiple of the kept rounds, the last chain's first rounds each lack their last image.
        """
        size, kept = len(self.chains[chain]), self.recipe.kept
        first = sum(len(classes) for classes in self.chains[:chain]) * kept
        t = t - (self.recipe.rounds - kept)
        over = sum(len(classes) for classes in self.chains) * kept - self.images
        short = over if chain == len(self.chains) - 1 else 0
        start = first + t * size - min(t, short)
        return np.arange(start, start + size - (t < short))

    def number(self, chain: int, t: int) -> int:
        """The journal's name for one round of one chain."""
        return chain * self.recipe.rounds + t


def apportion(slots: int, shares: list[float]) -> list[int]:
    """`slots` classes, sorted, their counts as near to `shares` as whole numbers can be (largest remainders)."""
    exact = [slots * share / math.fsum(shares) for share in shares]
    counts = [int(x) for x in exact]
    by_remainder = sorted(range(len(shares)), key=lambda k: (counts[k] - exact[k], k))
    for k in by_remainder[: slots - sum(counts)]:
        counts[k] += 1
    return [k for k, count in enumerate(counts) for _ in range(count)]


def class_shares(text: str | None, teacher: Teacher) -> list[float]:
    """``"1,2,1"``, one number a class, or ``"cat=3,dog=1"``, others 0; None = equal shares.

    Raises:
        SettingsError: it is neither, names an unknown class, or is nowhere above 0.
    """
    if text is None:
        return [1.0] * teacher.classes
    parts = [part.strip() for part in text.split(",")]
    try:
        shares = _named(parts, teacher) if "=" in text else [float(part) for part in parts]
    except ValueError as error:
        raise SettingsError(f"--classes-distribution {text}: {error}; write 1,2,1 or name=2,other=1") from error
    if len(shares) != teacher.classes:
        raise SettingsError(f"--classes-distribution {text} has {len(shares)} numbers for {teacher.classes} classes")
    if min(shares) < 0 or not 0 < sum(shares) < math.inf:
        raise SettingsError(f"--classes-distribution {text}: every number must be 0 or above, and one above")
    return shares


def _named(parts: list[str], teacher: Teacher) -> list[float]:
    names = list(teacher.class_names or map(str, range(teacher.classes)))
    shares = [0.0] * teacher.classes
    for part in parts:
        name, _, share = part.partition("=")
        if name.strip() not in names:
            raise ValueError(f"no class is called {name.strip()!r}")
        shares[names.index(name.strip())] = float(share)
    return shares
