"""`supernet.json`: what a search's run folder says of its supernet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NotRequired

from annotated_types import Ge, Gt, Len
from typing_extensions import TypedDict

from ...errors import RunError
from ...storage import checksums, typed

__all__ = ["FILE", "read"]

FILE = "supernet.json"


class Space(TypedDict):
    """The supernet's space; the spec of each space has further keys of its own."""

    name: str
    shape: Annotated[list[int], Len(3, 3)]


class Parts(TypedDict):
    """How the data set was shared out."""

    data: NotRequired[str]
    seed: int
    held_out: NotRequired[Annotated[int, Ge(1)]]
    validation: NotRequired[str]
    fraction: NotRequired[float]


class Facts(TypedDict):
    """`supernet.json`."""

    space: Space
    parts: NotRequired[Parts]
    temperature: NotRequired[Annotated[float, Gt(0)]]


def read(folder: Path) -> dict[str, Any]:
    """The file's content; raises `RunError` where it is damaged."""
    checksums.verify(folder, FILE, error=RunError, remedy="search again")
    return dict(typed.read(folder / FILE, Facts, RunError, "search again"))
