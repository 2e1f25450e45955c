"""The types of a recipe and of recorded results: what may stand at each key, checked before anything else is.

Which keys there are, and which names they may have, is checked in `toml`, with the nearest name there is.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

NAME = re.compile(r"[\w][\w.-]*", re.ASCII)
SEEDS = 1 << 63


def _name(text: str) -> str:
    """A stage, a case, a result or a picture becomes the name of a file: it is a name, and no path."""
    if not NAME.fullmatch(text) or text.endswith((".json", ".")) or len(text) > 100:
        raise ValueError("should be a name of letters, digits, _, - and ., which no path is")
    return text


def _value(value: object) -> object:
    """A setting: what a flag can be, or a list of these."""
    for one in value if isinstance(value, list) else [value]:
        if not isinstance(one, str | int | float):
            raise ValueError("should be text, a number, true or false, or a list of these")
        if isinstance(one, float) and not math.isfinite(one):
            raise ValueError("should be a finite number")
    return value


def _cases(cases: object) -> object:
    """A list of names, or for each name the settings that are its own."""
    if not isinstance(cases, list | dict):
        raise ValueError("should be a list of names, or a table of settings for each name")
    for name in cases:
        if not isinstance(name, str):
            raise ValueError("should have names alone")
        _name(name)
    for settings in cases.values() if isinstance(cases, dict) else ():
        if not isinstance(settings, dict):
            raise ValueError("should be a list of names, or a table of settings for each name")
        for value in settings.values():
            _value(value)
    return cases


Name = Annotated[str, AfterValidator(_name)]
Value = Annotated[Any, AfterValidator(_value)]
Values = dict[str, Value]
Number = Annotated[float, Field(allow_inf_nan=False)]
Entry = Annotated[Any, AfterValidator(lambda value: value if isinstance(value, dict) else _value(value))]


class Figure(TypedDict, total=False):
    """``[[figure]]``"""

    label: str
    stage: str
    key: str
    each: str
    case: str
    seed: int
    unit: str
    times: Number
    plus: list[str]
    digits: Annotated[int, Field(ge=0, le=15)]
    published: str | Number
    source: str
    group: str
    scales: list[str]
    interval: Annotated[list[str], Field(min_length=2, max_length=2)]


class Picture(TypedDict, total=False):
    """``[[picture]]``"""

    name: Name
    x: str
    y: str
    y_from: Number
    scales: list[str]


Stage = TypedDict(  # `with` is a word of Python's
    "Stage",
    {
        "name": Name,
        "call": str,
        "with": Values,
        "seeds": Any,  # may be a name in braces: checked when it is filled in
        "cases": Annotated[Any, AfterValidator(_cases)],
        "scales": list[str],
        "priority": int,
    },
    total=False,
)
"""``[[stage]]``"""


class Table(TypedDict, total=False):
    """A whole recipe."""

    title: str
    paper: str
    result: Name
    notes: list[str]
    scales: dict[str, Values]
    defaults: dict[str, Values]
    lists: dict[str, dict[str, Entry]]
    stage: list[Stage]
    figure: list[dict[str, Any]]
    picture: list[Picture]


# -- what a recipe has measured ----------------------------------------------------------------------------------------


class State(TypedDict):
    """``JOB.json``: a finished job of a recipe."""

    digest: str
    minutes: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    result: dict[str, Any]


class Timing(TypedDict):
    """``timing.json`` of a run: how long it took, with the time before an interruption."""

    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Measured(TypedDict):
    """A figure over its seeds."""

    label: str
    mean: float | None
    sd: float | None
    values: dict[str, float | None]
    unit: NotRequired[str]
    digits: NotRequired[Annotated[int, Field(ge=0, le=15)]]
    published: NotRequired[str | float | None]
    source: NotRequired[str]
    group: NotRequired[str]
    interval: NotRequired[list[float]]


class Drawn(TypedDict):
    """A picture of a recorded result."""

    name: Name
    x: str
    y: str
    y_from: NotRequired[float]


class Record(TypedDict, total=False):
    """``docs/results/NAME.json``: a recorded result."""

    result: Name
    scale: Name
    title: str
    paper: str
    command: str
    seeds: list[int]
    machine: dict[str, Any]
    minutes: float
    figures: list[Measured]
    pictures: list[Drawn]
    missing: list[str]
    notes: list[str]
