"""JSON that is typed at the door: a wrong type is one message with the file, the key and what was expected.

    class Network(TypedDict):
        shape: tuple[int, int, int]
        mean: list[float]

    info = typed.read(folder / "network.json", Network, TeacherError, "train again")

Kinds are what pydantic knows: a `typing_extensions.TypedDict`, which is given back as the plain dictionary that is in
the file (keys it does not name are kept), or a dataclass. Nothing is converted: the text "3" is no number.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json
from typing_extensions import is_typeddict

from ..errors import PhospheneError, RunError, shown
from . import whole

Kind = TypeVar("Kind")
REMEDY = "remove it and run the command again"


def read(path: Path, kind: type[Kind], error: type[PhospheneError] = RunError, remedy: str = REMEDY) -> Kind:
    """The content of a JSON file as `kind`.

    Raises `error`: the file cannot be read, is no JSON, or a value has another type; the message ends in `remedy`.
    """
    try:
        text = path.read_bytes()
    except MemoryError:
        raise
    except OSError as why:
        raise error(f"{path} cannot be read ({why.strerror or why}); {remedy}") from why
    return parse(text, kind, f"{path}", error, remedy)


def parse(text: bytes, kind: type[Kind], where: str, error: type[PhospheneError], remedy: str) -> Kind:
    """JSON text as `kind`; `where` names it in errors."""
    try:
        content: Kind = from_json(text, allow_inf_nan=False)
        valid: Kind = _adapter(kind).validate_json(text, strict=True)
        return content if is_typeddict(kind) else valid
    except ValidationError as why:
        raise error(f"{where}: {explain(why)}; {remedy}") from why
    except (ValueError, RecursionError) as why:
        raise error(f"{where} is damaged: {str(why).splitlines()[0]}; {remedy}") from why


def check(content: object, kind: type[Kind], where: str, error: type[PhospheneError], remedy: str) -> None:
    """Raise `error` where `content`, of Python's own types, is not of `kind`: for files other than JSON."""
    try:
        _adapter(kind).validate_python(content, strict=True)
    except ValidationError as why:
        raise error(f"{where}: {explain(why)}; {remedy}") from why


def lines(path: Path, kind: type[Kind], error: type[PhospheneError] = RunError, remedy: str = REMEDY) -> list[Kind]:
    """One JSON value a line; a last line without its end was torn by a kill and is left out."""
    try:
        text = path.read_bytes()
    except OSError as why:
        raise error(f"{path} cannot be read ({why.strerror or why}); {remedy}") from why
    complete = text[: text.rfind(b"\n") + 1].splitlines()
    return [parse(line, kind, f"{path}, line {n}", error, remedy) for n, line in enumerate(complete, 1) if line.strip()]


def explain(error: ValidationError) -> str:
    """The first thing that is wrong: ``mean.0 should be a valid number (got 'x')``."""
    first = error.errors(include_url=False, include_context=False)[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"{key} is missing"
    message = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
    if not key:
        return f"the content {message[0].lower()}{message[1:]}"
    return f"{key} {message[0].lower()}{message[1:]} (got {shown(first['input'])})"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of any keys; raises `RunError` where it is damaged."""
    return read(path, dict[str, Any])


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object, whole or not at all."""
    whole.write(path, json.dumps(defined(content), indent=1) + "\n")


def defined(content: Any) -> Any:
    """The same values; None for numbers that JSON does not have, and escapes for bytes that are no text.

    A path may hold any bytes; as half of a surrogate pair they could be written, but not read again.
    """
    if isinstance(content, str):
        return content if content.isascii() else content.encode(errors="backslashreplace").decode()
    if isinstance(content, dict):
        return {defined(key): defined(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [defined(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


_adapters: dict[Any, TypeAdapter[Any]] = {}


def _adapter(kind: Any) -> TypeAdapter[Any]:
    """The validator of a kind, built once."""
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]
