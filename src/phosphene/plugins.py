"""Registration of user-defined spaces and searches, used by name like those of the package.

    @phosphene.register_space("tiny")                     # in mine.py
    class TinySpace: ...

    PHOSPHENE_CODE=mine.py phosphene search spos --space tiny …

The files that the environment variable PHOSPHENE_CODE names are executed once per process, when a space or a search is
first looked up by name. A run folder stores only that name: reading a file never executes code.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from .errors import Estimate, PhospheneError, SettingsError, is_memory, shown

CODE = "PHOSPHENE_CODE"
"""The environment variable: FILE.py or the name of a module; several with ``os.pathsep`` between, a colon."""

SPACES: dict[str, Callable[..., Any]] = {}
NOTATIONS: dict[str, re.Pattern[str]] = {}
SEARCHES: dict[str, Callable[..., Any]] = {}

Thing = TypeVar("Thing", bound=Callable[..., Any])
_NAME = re.compile(r"[a-z][a-z0-9-]*")
_executed: set[str] = set()
_files: set[str] = set()  # of code of the user's, as tracebacks name them


def register_space(name: str, notation: str | None = None) -> Callable[[Thing], Thing]:
    """Decorate a class: register it as the space `name`, for `--space` and for files that name it.

    Args:
        name: lower-case letters, digits and hyphens; not the name of a space of the package.
        notation: regular expression that matches every text form of an architecture of this space.

    Raises:
        SettingsError: the name or the notation cannot be used.
    """
    _check(name)
    try:
        pattern = None if notation is None else re.compile(notation)
    except re.error as error:
        raise SettingsError(f"the notation of space {name!r} is no regular expression: {error}") from error

    def keep(space: Thing) -> Thing:
        _check_callable("space", name, space)
        SPACES[name] = space
        NOTATIONS.pop(name, None)
        if pattern is not None:
            NOTATIONS[name] = pattern
        return space

    return keep


def register_search(name: str) -> Callable[[Thing], Thing]:
    """Decorate a function of type `core.Search`: register it as the command ``phosphene search NAME``.

    Its annotated keyword arguments become flags, its docstring the help.

    Raises:
        SettingsError: the name cannot be used.
    """
    _check(name)

    def keep(search: Thing) -> Thing:
        _check_callable("search", name, search)
        SEARCHES[name] = search
        return search

    return keep


@contextlib.contextmanager
def foreign(
    where: str, kind: type[PhospheneError] = SettingsError, failure: str = "fails when executed"
) -> Iterator[None]:
    """Around code of the user's: whatever it raises, an exit too, is one of our errors with the place in that code.

    Errors begin with `where` and `failure`. Our own errors pass, as do interruptions and the want of memory.
    """
    try:
        yield
    except (PhospheneError, Estimate, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        if is_memory(error):
            raise
        at = place(error)
        said = shown(error, str)
        what = f"{type(error).__name__}: {said}" if said else type(error).__name__
        raise kind(f"{where} {failure}: {what}" + (f" (at {at})" if at else "")) from error


def place(error: BaseException) -> str | None:
    """``FILE.py:LINE``: the innermost place in code of the user's that the error came from; None without one."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in _files]
    if isinstance(error, SyntaxError) and error.filename in _files:
        return f"{error.filename}:{error.lineno}"
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None


def load() -> None:
    """Execute the files and modules in PHOSPHENE_CODE, each once per process.

    Raises:
        SettingsError: there is no such file or module, or it fails.
    """
    for name in filter(None, os.environ.get(CODE, "").split(os.pathsep)):
        if name in _executed:
            continue
        _executed.add(name)  # before it is executed, since it may look up a space by name
        try:
            _import(name)
        except BaseException:
            _executed.discard(name)
            raise


def execute(path: Path, prefix: str = "phosphene_code") -> ModuleType:
    """Execute a Python file and return it as a module.

    Raises:
        SettingsError: there is no such file, or it fails.
    """
    if not path.is_file():
        raise SettingsError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"{prefix}_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise SettingsError(f"{path} is no Python file; its name should end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    _files.add(str(module.__file__))
    try:
        with foreign(str(path)):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


def code(space: str, search: str) -> dict[str, str]:
    """Digests of the files that define this space and this search; {} for those of the package."""
    registered = {f"space {space}": SPACES.get(space), f"search {search}": SEARCHES.get(search)}
    return {name: _digest(thing) for name, thing in registered.items() if thing is not None}


def _import(name: str) -> None:
    if name.endswith(".py"):
        try:
            execute(Path(name))
        except SettingsError as error:
            raise SettingsError(f"{CODE}={name}: {error}") from error
        return
    try:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}")
    except (ImportError, ValueError, AttributeError, TypeError) as error:
        raise SettingsError(f"{CODE}={shown(name, str)}: no such module ({error}); a file ends in .py") from error
    with foreign(f"{CODE}={name}"):
        _files.add(str(importlib.import_module(name).__file__))


def _check_callable(kind: str, name: str, thing: Any) -> None:
    if not callable(thing):
        raise SettingsError(f"register_{kind}({name!r}) decorates {shown(thing)}, which cannot be called")


def _digest(thing: Callable[..., Any]) -> str:
    """SHA-256 of the file that defines it; "" for definitions typed into an interpreter."""
    try:
        file = inspect.getsourcefile(thing)
    except TypeError:
        file = None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and Path(file).is_file() else ""


def _check(name: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SettingsError(f"{shown(name)} names no space and no search; take small letters, digits and hyphens")
