"""A data set's card, `card.json`: content, origin, how to make it again; and the sizes and names that flags give."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Required

from annotated_types import Ge, Gt, Le, Len
from typing_extensions import TypedDict

from .. import limits
from ..errors import DatasetError, SettingsError
from ..storage import typed, whole

MOST_CLASSES, MOST_IMAGES = limits.CLASSES, 10**10  # beyond, heads and labels fit into no memory
YOUNGER = ("random_labels", "source", "grid")  # fields that the first cards did not have
REMEDY = "remove the folder, and make or import the data set again"

Side = Annotated[int, Ge(1), Le(limits.SIDE)]
Shape = tuple[Annotated[int, Ge(1), Le(limits.CHANNELS)], Side, Side]
Mean = Annotated[float, Ge(-1e30), Le(1e30)]
Measured = Annotated[float, Ge(0), Le(1e30)]
Divisor = Annotated[float, Gt(0), Le(1e30)]


class Statistics(TypedDict, total=False):
    """Measured figures; a constant channel has a deviation of 0. Commands add figures of their own."""

    mean: list[Mean]
    std: list[Measured]


class KnownTeacher(TypedDict, total=False):
    """What is read of the network that gave the soft labels."""

    name: str
    fingerprint: str
    shape: Shape | None


class Extra(TypedDict, total=False):
    """What is read of a synthesis: the names of the columns of seeds.npy."""

    seeds: list[str]


class GridFields(TypedDict):
    """`augment.Grid`."""

    height: Side
    width: Side
    tops: Annotated[list[Annotated[int, Ge(0)]], Len(1)]
    lefts: Annotated[list[Annotated[int, Ge(0)]], Len(1)]
    pad: Annotated[int, Ge(0), Le(limits.SIDE)]
    mirror: bool


class CardFile(TypedDict, total=False):
    """The types of `card.json`; a key that is not there has its default."""

    name: str
    origin: str
    task: Literal["single", "multi"]
    shape: Required[Shape]
    classes: Annotated[int, Ge(1), Le(MOST_CLASSES)]
    class_names: list[str] | None
    mean: list[Mean] | None
    std: list[Divisor] | None
    label_view: str
    count: Annotated[int, Ge(1), Le(MOST_IMAGES)]
    teacher: KnownTeacher | None
    recipe: dict[str, Any]
    statistics: Statistics
    extra: Extra
    random_labels: bool
    source: dict[str, Any] | None
    grid: GridFields | None


@dataclass
class Card:
    """What a data set is and how it came to be; `card.json` holds these fields.

    `shape` is (C, H, W). `mean`/`std` are the declared normalisation on the pixel scale 0..1, or None where none is
    declared; `statistics` holds the measured ones. `label_view`: the view of the image that the label describes.
    `random_labels`: the labels are independent of the images. `source`: how images and labels are computed that are not
    stored, ``{"kind": "noise" | "fractal" | "dataset", ...}``; None where they are stored. `grid`: of which regions of
    each image there are soft labels (`augment.Grid`); None where there are only those of `label_view`.
    """

    name: str = "unnamed"
    origin: str = "memory"
    task: Literal["single", "multi"] = "single"
    shape: tuple[int, int, int] = (3, 32, 32)
    classes: int = 10
    class_names: list[str] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    label_view: str = "full"
    count: int = 0
    teacher: dict[str, Any] | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    statistics: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    random_labels: bool = False
    source: dict[str, Any] | None = None
    grid: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        c, h, w = self.shape
        self.shape = (int(c), int(h), int(w))
        self.class_names = None if self.class_names is None else [str(name) for name in self.class_names]
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise DatasetError(f"{len(self.class_names)} class names for {self.classes} classes; give one for each")
        for key in ("mean", "std"):
            values = getattr(self, key)
            if values is not None:
                setattr(self, key, [float(x) for x in values])
                self._check_length(key, values)
            self._check_length(f"statistics.{key}", self.statistics.get(key, [0.0]))
        if (self.mean is None) != (self.std is None):
            raise DatasetError("a card declares mean and std together, or neither")
        self._check_ranges()

    def _check_length(self, key: str, values: Sequence[float]) -> None:
        if len(values) not in (1, self.shape[0]):
            raise DatasetError(f"{key} has {len(values)} values for {self.shape[0]} channels; give one for each")

    def _check_ranges(self) -> None:
        """Raise `DatasetError` for what cannot be computed with; the types of a file are checked when it is read."""
        if self.source is not None and not isinstance(self.source, dict):
            raise DatasetError(f"source {self.source!r} is not a table of settings; make the data set again")
        if self.task not in ("single", "multi"):
            raise DatasetError(f"task {self.task!r} is neither 'single' nor 'multi'")
        if min(self.shape) < 1 or max(self.shape[1:]) > limits.SIDE or self.shape[0] > limits.CHANNELS:
            most = f"1 to {limits.CHANNELS:,} channels and sides of 1 to {limits.SIDE:,} pixels"
            raise DatasetError(f"images are of shape {self.shape}; a data set has {most}")
        if not 1 <= self.classes <= MOST_CLASSES:
            raise DatasetError(f"{self.classes} classes; a data set has 1 to {MOST_CLASSES:,}")
        if not all(abs(x) <= 1e30 for x in self.mean or ()) or not all(0 < x <= 1e30 for x in self.std or ()):
            raise DatasetError(f"mean {self.mean} and std {self.std} are no normalisation; std is above 0, both finite")

    def dumps(self) -> str:
        """The card as JSON text, keys in a fixed order, so that equal cards are equal bytes.

        Fields of `YOUNGER` are left out where they are unset, so that older data sets keep their fingerprints.
        """
        fields = dataclasses.asdict(self)
        kept = {key: value for key, value in fields.items() if key not in YOUNGER or value}
        return json.dumps(typed.defined(kept), indent=1, sort_keys=True) + "\n"

    def save(self, folder: Path) -> None:
        """Write `card.json` into `folder`, whole or not at all."""
        whole.write(folder / "card.json", self.dumps())

    @classmethod
    def load(cls, folder: Path) -> Card:
        """Read `card.json` of `folder`; raises `DatasetError` when it is missing or damaged."""
        path = folder / "card.json"
        if not path.is_file():
            raise DatasetError(_why_no_card(folder))
        fields: dict[str, Any] = {**typed.read(path, CardFile, DatasetError, REMEDY)}
        unknown = fields.keys() - {each.name for each in dataclasses.fields(cls)}
        if unknown:
            raise DatasetError(f"{path} has the key {min(unknown)!r}, which this version does not know; {REMEDY}")
        try:
            return cls(**fields)
        except DatasetError as error:
            raise DatasetError(f"{path}: {error}") from error


def _why_no_card(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is not a folder; name a data set of `phosphene synthesize` or `phosphene dataset import`"
    if any(folder.glob("journal-*.jsonl")):
        return f"{folder} is unfinished; run the command that was making it again and it goes on"
    return f"{folder} has no card.json, so it is no data set; `phosphene dataset import {folder} --out D` reads images"


def read_size(size: str | int | Sequence[int]) -> tuple[int, int]:
    """``32``, ``"32"``, ``"224x160"`` or ``(224, 160)`` -> (H, W); raises `SettingsError`."""
    try:
        sides = [int(side) for side in (str(size).lower().split("x") if isinstance(size, str | int) else size)]
    except ValueError as error:
        raise SettingsError(f"--size {size} is not a side in pixels like 32, nor HEIGHTxWIDTH like 224x160") from error
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise SettingsError(f"--size {size} is not a side in pixels like 32, nor HEIGHTxWIDTH like 224x160")
    if max(sides) > limits.SIDE:
        raise SettingsError(f"--size {size}: a side may have {limits.SIDE:,} pixels at most")
    return sides[0], sides[-1]


def read_names(names: str | Path | Sequence[str] | None, classes: int) -> tuple[str, ...] | None:
    """Names with commas between, a file of one a line, or a sequence; raises `SettingsError` if they are too few."""
    if names is None:
        return None
    if isinstance(names, str | Path):
        names = [name.strip() for name in _written(str(names)) if name.strip()]
    if len(names) != classes:
        raise SettingsError(f"--class-names has {len(names)} names for {classes} classes")
    return tuple(names)


def _written(names: str) -> list[str]:
    """The lines of a file, else what stands between commas: a long list is no file's name."""
    with contextlib.suppress(OSError):
        if Path(names).is_file():
            try:
                return Path(names).read_text(encoding="utf-8").splitlines()
            except UnicodeDecodeError as error:
                raise SettingsError(f"--class-names {names} is not a text file in UTF-8 ({error})") from error
    return names.split(",")
