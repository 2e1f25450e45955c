"""How to synthesize: one settled recipe, and a plain table of the published and the measured ones."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from fractions import Fraction
from typing import Any

from ..errors import SettingsError

PRESET_NAMES = ("fast", "paper-cifar", "paper-imagenet", "smoke")
LABEL_VIEWS = ("last-crop", "centre", "mean-crops", "full")
Sides = tuple[int, int]


@dataclass(frozen=True)
class Recipe:
    """Everything that shapes an image, settled. Sides are ``H x W`` text, or a ratio to the crop for the canvas."""

    parametrization: str = "pixels"  # or fourier
    rounds: int = 1  # of recursive label calibration, eqs. 6-7
    iterations: int = 2000  # a round, at full resolution
    half_iterations: int = 0  # a round, at half resolution, before them
    batch: int = 250
    canvas: str = "1"  # regional update where it is larger than the crop, eq. 8
    crop: str = ""  # "" = the teacher's input
    half_crop: str = ""  # "" = half of the crop
    crop_per: str = "batch"  # or image
    flip: str = "batch"  # or image, none
    roll: int = 0  # pixels, each way
    momentum_outside: bool = False
    clip: bool = True
    start_spectrum: float = 0.0  # amplitudes of the start noise fall as 1 / f^this
    lr: float = 0.1
    final_lr: float = 0.0  # fraction of lr at the end of the cosine
    warmup: int = 0  # iterations, again in each resolution
    beta1: float = 0.5
    beta2: float = 0.9
    ce_weight: float = 1.0  # eq. 3
    bn_weight: float = 1.0  # eq. 5
    first_bn_multiplier: float = 1.0
    bn_layer_weights: str = ""  # one number a layer; "" = ones
    tv_weight: float = 0.0  # eq. 4
    tv_maps: int = 2
    l2_weight: float = 0.0
    statistics_weight: float = 0.0
    competition_weight: float = 0.0
    temperature: float = 1.0  # of the rows that the next round aims at
    warm_start: bool = False
    keep: str = "all"  # rounds whose images are stored; or last
    best: bool = False  # the iterate of least loss instead of the last
    label_view: str = "last-crop"

    @property
    def per_round(self) -> int:
        """Iterations of one round, over all resolutions."""
        return self.half_iterations + self.iterations

    @property
    def kept(self) -> int:
        """How many rounds' images are stored."""
        return self.rounds if self.keep == "all" else 1


PRESETS: dict[str, Recipe] = {
    # No paper's: found without looking at test data, as docs/decisions/0005-synthesis.md tells.
    "fast": Recipe(
        parametrization="fourier",
        iterations=40,
        canvas="5/4",
        start_spectrum=1.0,
        lr=0.3,
        final_lr=0.02,
        tv_weight=1.0,
        statistics_weight=5.0,
    ),
    # DFNAS appendix B.1: batch 250, 40x40 canvas for 32x32 inputs, 2000 iterations x 10 rounds, Adam .1. The loss
    # weights of its CIFAR runs are not published: these are DeepInversion's for CIFAR; betas and schedule are those of
    # DFNAS's ImageNet release.
    "paper-cifar": Recipe(
        rounds=10,
        canvas="5/4",
        lr=0.1,
        warmup=100,
        bn_weight=10.0,
        tv_weight=2.5e-5,
        tv_maps=4,
    ),
    # DFNAS's ImageNet release: 2000 iterations at 128 px (crop 112), then 3000 at 256 px (crop 224), x 10 rounds.
    "paper-imagenet": Recipe(
        rounds=10,
        iterations=3000,
        half_iterations=2000,
        batch=50,
        canvas="8/7",
        lr=0.25,
        warmup=100,
        bn_weight=0.01,
        first_bn_multiplier=10.0,
        tv_weight=1e-4,
        tv_maps=4,
        l2_weight=1e-5,
    ),
    # Every mechanism once, in seconds; the images are worth nothing.
    "smoke": Recipe(
        parametrization="fourier",
        rounds=2,
        iterations=3,
        batch=20,
        start_spectrum=1.0,
        lr=0.3,
        final_lr=0.02,
        tv_weight=1.0,
        statistics_weight=5.0,
    ),
}


def resolve(preset: str, given: dict[str, Any]) -> Recipe:
    """The preset with what was given in its place; `given` may hold None for "the preset's".

    `parametrization` given alone also changes the start noise to what suits it: 1 / f for fourier, white for pixels.

    Raises:
        SettingsError: an unknown preset, or a value out of its range.
    """
    if preset not in PRESETS:
        raise SettingsError(f"--preset {preset} is not one of {', '.join(PRESET_NAMES)}")
    chosen = {name: value for name, value in given.items() if value is not None}
    chosen |= {name: str(chosen[name]) for name in ("canvas", "crop", "half_crop") if name in chosen}
    base = PRESETS[preset]
    if chosen.get("parametrization", base.parametrization) != base.parametrization:
        chosen.setdefault("start_spectrum", 1.0 if chosen["parametrization"] == "fourier" else 0.0)
    recipe = replace(base, **chosen)
    _check(recipe)
    return recipe


def _check(recipe: Recipe) -> None:
    options = {
        "parametrization": ("pixels", "fourier"),
        "crop_per": ("batch", "image"),
        "flip": ("batch", "image", "none"),
        "keep": ("all", "last"),
        "label_view": LABEL_VIEWS,
        "tv_maps": (2, 4),
    }
    for name, allowed in options.items():
        if getattr(recipe, name) not in allowed:
            _refuse(recipe, name, f"is not one of {', '.join(map(str, allowed))}")
    for name in ("rounds", "batch"):
        if getattr(recipe, name) < 1:
            _refuse(recipe, name, "is below 1")
    for name in ("lr", "temperature"):
        if not getattr(recipe, name) > 0:
            _refuse(recipe, name, "is not above 0")
    for name in (f.name for f in fields(recipe) if f.name.endswith("_weight") or f.name.endswith("iterations")):
        if getattr(recipe, name) < 0:
            _refuse(recipe, name, "is below 0")
    for name in ("roll", "warmup", "final_lr", "start_spectrum", "first_bn_multiplier"):
        if getattr(recipe, name) < 0:
            _refuse(recipe, name, "is below 0")
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(recipe, name) < 1:
            _refuse(recipe, name, "is not in [0, 1)")
    if recipe.per_round < 1:
        _refuse(recipe, "iterations", "and no --half-iterations leave nothing to do")


def _refuse(recipe: Recipe, name: str, why: str) -> None:
    raise SettingsError(f"--{name.replace('_', '-')} {getattr(recipe, name)} {why}")


@dataclass(frozen=True)
class Stage:
    """A stretch of a round at one resolution. Sides are of the FULL canvas; `scale` 2 = averaged over 2 x 2 pixels."""

    iterations: int
    scale: int
    crop: Sides


@dataclass(frozen=True)
class Geometry:
    """Sides of the canvas and of the teacher's view, and the stages of a round."""

    canvas: Sides
    crop: Sides
    stages: tuple[Stage, ...]

    @classmethod
    def of(cls, recipe: Recipe, shape: tuple[int, int, int]) -> Geometry:
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
        """Whether the canvas is larger than what the teacher sees of it."""
        return self.canvas != self.crop


def _half_crop(recipe: Recipe, canvas: Sides, crop: Sides) -> Sides:
    half = sides("--half-crop", recipe.half_crop, (crop[0] // 2, crop[1] // 2))
    odd = any(side % 2 for side in canvas)
    if odd or 2 * half[0] > canvas[0] or 2 * half[1] > canvas[1] or min(half) < 1:
        raise SettingsError(
            f"--half-iterations {recipe.half_iterations}: a canvas of {_text(canvas)} has no half resolution with a "
            f"crop of {_text(half)}; choose even sides with --canvas, a smaller --half-crop, or --half-iterations 0"
        )
    return 2 * half[0], 2 * half[1]


def sides(flag: str, text: str, of: Sides) -> Sides:
    """``"40"``, ``"40x48"``, a ratio ``"5/4"`` or ``"1"`` to `of`, or ``""`` for `of` itself."""
    try:
        if not text:
            return of
        if "/" in text or text == "1":
            return round(of[0] * Fraction(text)), round(of[1] * Fraction(text))
        height, _, width = text.lower().partition("x")
        found = int(height), int(width or height)
    except (ValueError, ZeroDivisionError) as error:
        raise SettingsError(f"{flag} {text} is not a side; write 40, 40x48 or a ratio like 5/4") from error
    if min(found) < 1:
        raise SettingsError(f"{flag} {text} is not a side; write 40, 40x48 or a ratio like 5/4")
    return found


def _text(side: Sides) -> str:
    return f"{side[0]}x{side[1]}"


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON values, for cards and run folders."""
    return asdict(recipe)
