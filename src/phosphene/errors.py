"""What can go wrong, said so that it can be mended: each message names the flag or file, the value and the remedy.

    PhospheneError
    ├── SettingsError        a flag or a recipe key has a value that cannot be used
    ├── TeacherError         a trained network cannot be loaded or does not fit
    ├── DatasetError         a data set is missing, damaged or of another kind
    ├── ArchitectureError    an architecture or genotype cannot be read or built
    ├── BudgetError          no architecture keeps the budget
    ├── RunError             a run folder is of another run, or damaged
    │   └── Fault            a call in another process failed by a fault of the program
    ├── RecipeError          a recipe has unknown stages, keys or scales
    ├── ExportError          a network cannot be written as this kind of file
    ├── StorageError         a file cannot be written: a full disk, a missing permission
    ├── NotFinite            a run has lost its finite numbers
    ├── MissingExtra         an optional package is not installed
    └── Stopped              interrupted, with everything saved

`Estimate` stands outside of the tree: it is an answer, not something to mend.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Sequence
from typing import Any

LONGEST = 200  # letters of a value in a message
_NO_MEMORY = (
    *("can't allocate memory", "cannot allocate memory", "unable to allocate", "not enough memory", "out of memory"),
    *("std::bad_alloc", "bad allocation", "could not create a primitive", "could not create a memory"),
    "could not execute a primitive",
    *("failed to map segment", "can't start new thread", "could not allocate"),
    *("storage size calculation overflowed", "integer multiplication overflow"),  # torch, of sizes beyond any memory
    *("array is too big", "maximum allowed dimension exceeded", "maximum supported dimension"),  # numpy, likewise
)


class PhospheneError(Exception):
    """Anything the user can mend; the command line prints it in one line, without a traceback."""


class SettingsError(PhospheneError):
    """A flag or a recipe key has a value that cannot be used."""


class TeacherError(PhospheneError):
    """A trained network cannot be loaded or does not fit."""


class DatasetError(PhospheneError):
    """A data set is missing, damaged or of another kind."""


class ArchitectureError(PhospheneError):
    """An architecture or a genotype cannot be read or built."""


class BudgetError(PhospheneError):
    """No architecture keeps the budget."""


class RunError(PhospheneError):
    """A run folder belongs to another run, or is damaged."""


class Fault(RunError):
    """A call in another process failed by a fault of the program; the cause has the traceback from there."""


class RecipeError(PhospheneError):
    """A recipe has unknown stages, keys or scales."""


class ExportError(PhospheneError):
    """A network cannot be written as this kind of file."""


class StorageError(PhospheneError):
    """A file cannot be written: the disk is full, or a permission is missing."""


class NotFinite(PhospheneError):
    """A run has lost its finite numbers: weights, images or losses are NaN or infinite."""


class MissingExtra(PhospheneError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; run: pip install 'phosphene[{extra}]'")
        self.package, self.extra = package, extra

    def __reduce__(self) -> tuple[Any, ...]:  # it comes back from worker processes
        return type(self), (self.package, self.extra)


class Stopped(PhospheneError):
    """Interrupted by Ctrl-C or SIGTERM after everything was saved; the message says how to go on."""


class Estimate(Exception):
    """What a run would need: raised instead of running when `--estimate` was given."""

    def __init__(self, needs: dict[str, Any]) -> None:
        super().__init__(json.dumps(needs))
        self.needs = needs

    @classmethod
    def of(cls, stage: str, needs: Sequence[tuple[dict[str, Any], int]], **more: Any) -> Estimate:
        """One part after the other, each (what it needs, how often): minutes and disk add up, memory does not."""
        sums = {key: round(sum(one[key] * times for one, times in needs), 2) for key in ("minutes", "disk_mib")}
        memory = max((one["memory_mib"] for one, _ in needs), default=0.0)
        return cls({"stage": stage, **sums, "memory_mib": memory, **more})


def is_memory(error: BaseException | None) -> bool:
    """Whether memory ran out: torch, its libraries and the system say so in classes and words of their own."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    if not isinstance(error, Exception) or isinstance(error, PhospheneError):
        return False  # ours say what is to be done
    text = shown(error, str, 10_000).lower()
    return any(words in text for words in _NO_MEMORY)


def shown(value: object, form: Callable[[Any], str] = repr, most: int = LONGEST) -> str:
    """A value as a message shows it: one line, not long, whatever it is."""
    try:
        text = form(value)
    except Exception:  # of a class of others, nested without end, or a number of more than 4,300 digits
        number = isinstance(value, int)
        text = "a whole number too long to print" if number else f"a {type(value).__name__} that cannot be printed"
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text[: most + 1])
    return text if len(text) <= most else text[:most] + "…"


def needs_of(work: Callable[[], object]) -> dict[str, Any] | None:
    """The needs that work raises as its `Estimate`; None where nothing is left to do."""
    try:
        work()
    except Estimate as estimate:
        return estimate.needs
    return None
