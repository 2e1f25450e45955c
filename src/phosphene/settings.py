"""A function's signature is its flags and its recipe keys: read once here, used by the command line and by recipes.

A parameter is ``name: Annotated[type, "help"] = default``. Unions that contain `str` take in-memory objects from Python
and text from a command line. A function among the notes of a type says which options there are now, as `Literal` says
them once and for all.
"""

from __future__ import annotations

import builtins
import inspect
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from .errors import SettingsError

REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Setting:
    """One parameter: `kind` is bool, int, float, str or Path; `many` a repeatable list; `options` a closed set."""

    name: str
    kind: type
    default: Any
    help: str = ""
    many: bool = False
    options: tuple[str, ...] = ()

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is REQUIRED

    @property
    def flag(self) -> str:
        """How the command line spells it."""
        return "--" + self.name.replace("_", "-")

    def check(self, value: Any) -> Any:
        """The value in its type; raises `SettingsError` naming the flag."""
        if value is None:
            if self.default is None:
                return None
            raise SettingsError(f"{self.flag} needs a value")
        if self.many:
            return [self._one(item) for item in (value if isinstance(value, list) else [value])]
        return self._one(value)

    def _one(self, value: Any) -> Any:
        if self.options and value not in self.options:
            raise SettingsError(f"{self.flag} {value} is not one of {', '.join(self.options)}")
        allowed = {float: (int, float), Path: (str, Path), str: (str, int, float)}.get(self.kind, (self.kind,))
        if not isinstance(value, allowed) or (isinstance(value, bool) and self.kind is not bool):
            raise SettingsError(f"{self.flag} {value!r} is not a {self.kind.__name__}")
        if isinstance(value, float) and self.kind is float and not math.isfinite(value):
            raise SettingsError(f"{self.flag} {value!r} is not a finite number")
        if self.name == "seed" and self.kind is int and not 0 <= value < 1 << 63:
            raise SettingsError(f"{self.flag} {value} is not between 0 and 2^63")
        return self.kind(value)


def settings(function: Callable[..., Any]) -> tuple[Setting, ...]:
    """The settings of a command function, in the order of its signature."""
    types_of = hints(function)
    parameters = inspect.signature(function).parameters.values()
    takes = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return tuple(_setting(p.name, types_of.get(p.name, str), p.default) for p in takes if not p.name.startswith("_"))


def hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function, with their notes."""
    names = _Names(getattr(inspect.unwrap(function), "__globals__", {}))
    return typing.get_type_hints(function, localns=names, include_extras=True)


class _Names(dict[str, Any]):
    """A module's names; a type that is imported for type checkers only stands for an object in memory."""

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            return getattr(builtins, name)
        return type(name, (), {})


def summary(function: Callable[..., Any]) -> str:
    """The first paragraph of the docstring, on one line."""
    text = inspect.getdoc(function) or ""
    return " ".join(text.split("\n\n")[0].split())


def examples(function: Callable[..., Any]) -> list[str]:
    """The lines of the docstring's `Example:` block."""
    lines = (inspect.getdoc(function) or "").splitlines()
    start = next((i for i, line in enumerate(lines) if line.strip() in ("Example:", "Examples:")), len(lines))
    block: list[str] = []
    for line in lines[start + 1 :]:
        if not line.strip() or not line.startswith(" "):
            break
        block.append(line.strip())
    return block


def _setting(name: str, hint: Any, default: Any) -> Setting:
    text = ""
    if get_origin(hint) is typing.Annotated:
        text = next((note for note in get_args(hint)[1:] if isinstance(note, str)), "")
    kind, many, options = _kind(hint)
    return Setting(name, kind, default, text, many, options)


def _kind(hint: Any) -> tuple[type, bool, tuple[str, ...]]:
    origin = get_origin(hint)
    if origin is typing.Annotated:
        hint, *notes = get_args(hint)
        kind, many, options = _kind(hint)
        tables = [note for note in notes if callable(note)]
        return kind, many, tuple(tables[0]()) if tables else options
    if origin is Literal:
        return str, False, tuple(get_args(hint))
    if origin in (list, tuple) or str(origin).endswith("Sequence'>"):
        return _kind(get_args(hint)[0])[0], True, ()
    if origin in (typing.Union, types.UnionType):
        return _kind_of_union([part for part in get_args(hint) if part is not type(None)])
    return hint if hint in (bool, int, float, str, Path) else str, False, ()


def _kind_of_union(parts: list[Any]) -> tuple[type, bool, tuple[str, ...]]:
    if len(parts) == 1:
        return _kind(parts[0])
    many = next((part for part in parts if get_origin(part) in (list, tuple)), None)
    if many is not None:
        return _kind(many)
    return (str if str in parts else Path if Path in parts else str), False, ()
