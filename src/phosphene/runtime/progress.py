"""Messages and progress: log records of `phosphene`, printed on standard error where no program takes them.

`say` writes records of the logger ``phosphene``, the progress of a loop those of ``phosphene.progress``. Where these
loggers have handlers, as after ``logging.basicConfig``, the handlers alone get them. Else each message is a line on
standard error, and progress a bar with the time left where that is a terminal (docs/embedding.md).
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import shown

if TYPE_CHECKING:
    from rich import progress as rich_progress

MESSAGES, PROGRESS = logging.getLogger("phosphene"), logging.getLogger("phosphene.progress")
BAR_EVERY = 0.2  # seconds between two states of the bar
LINE_EVERY = 15.0  # seconds between lines where there is no terminal
LINE_AMONG_OTHERS = 60.0  # and where several processes write to one
LONGEST = 200  # letters of a line
LETTERS = 10_000  # of a line of a message
BAR = 16  # letters of the bar


class Printer(logging.Handler):
    """Each record as a line on standard error, above the bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message."""
        print(_printable(self.format(record)), file=sys.stderr, flush=True)


def print_messages() -> None:
    """Print messages and progress on standard error, whatever handlers the root logger has: for a command line."""
    MESSAGES.handlers[:] = [Printer()]
    MESSAGES.setLevel(logging.INFO)
    MESSAGES.propagate = False


def say(text: str, level: int = logging.INFO) -> None:
    """A message for the user: a record of the logger ``phosphene``, or a line on standard error."""
    _send(MESSAGES, level, text)


def _printable(text: str) -> str:
    """The text with what a terminal would obey spelt out: a name in it may be anybody's."""
    return "\n".join(shown(line, str, LETTERS) for line in text.splitlines()) if not text.isprintable() else text


def _send(logger: logging.Logger, level: int, text: str) -> None:
    if logger.hasHandlers():
        logger.log(level, "%s", text, stacklevel=3)
    else:
        print(_printable(text), file=sys.stderr, flush=True)


def _is_printed() -> bool:
    """Whether messages end on standard error, and not in the handlers of a program."""
    return not MESSAGES.hasHandlers() or any(isinstance(handler, Printer) for handler in MESSAGES.handlers)


class Progress:
    """Shows `done` of `total` steps of one phase, the time left and the last logged figures."""

    alone = True  # whether this process has the terminal for itself

    def __init__(self, title: str, total: int, done: int, *, quiet: bool = False) -> None:
        self.title, self.total, self.first = shown(title, str), total, done
        self.started = self.shown = time.monotonic()
        self.quiet = quiet
        self.terminal = sys.stderr.isatty() and self.alone and _is_printed()
        self.every = BAR_EVERY if self.terminal else LINE_EVERY if self.alone else LINE_AMONG_OTHERS
        self.line: Line | None = None

    def update(self, done: int, figures: dict[str, Any]) -> None:
        """Show the state after `done` steps."""
        now = time.monotonic()
        if self.quiet or now - self.shown < self.every:
            return
        self.shown = now
        left = (now - self.started) / max(1, done - self.first) * (self.total - done)
        if self.terminal:
            self.line = self.line or Line(self.title, self.total)
            self.line.show(done, f"{span(left)} left", figures)
        else:
            text = f"{self.title}  {done}/{self.total}  {100 * done // self.total} %  {span(left)} left"
            _send(PROGRESS, logging.INFO, "  ".join([text, *_fitting(figures, LONGEST - len(text))]))

    def close(self) -> None:
        """Clear the bar."""
        if self.line is not None:
            self.line.close()


class Line:
    """One line of the terminal's bars: a loop within another one has a line of its own."""

    bars: rich_progress.Progress | None = None  # of this process: there is one terminal

    def __init__(self, title: str, total: int) -> None:
        if Line.bars is None:
            Line.bars = _bars()
            Line.bars.start()
        self.title, self.total = title, total
        self.task = Line.bars.add_task(title, total=total, left="", figures="")

    def show(self, done: int, left: str, figures: dict[str, Any]) -> None:
        """Draw the line, with as many of the figures as fit."""
        if Line.bars is None:
            return
        used = len(f"{self.title} {done}/{self.total} 100 % {left} ") + BAR + 1
        text = "  ".join(_fitting(figures, Line.bars.console.width - used))
        Line.bars.update(self.task, completed=done, left=left, figures=text)
        Line.bars.refresh()

    def close(self) -> None:
        """Remove the line; the last one clears the terminal."""
        if Line.bars is None:
            return
        Line.bars.remove_task(self.task)
        if not Line.bars.tasks:
            Line.bars.stop()
            Line.bars = None


def _bars() -> rich_progress.Progress:
    """Bars on standard error that are redrawn by `refresh` alone, with no thread of their own."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    texts = ("{task.description}", "{task.completed}/{task.total}", "{task.percentage:.0f} %")
    title, count, share = (TextColumn(text, markup=False) for text in texts)
    left, figures = TextColumn("{task.fields[left]}", markup=False), TextColumn("{task.fields[figures]}", markup=False)
    columns = (title, BarColumn(BAR), count, share, left, figures)
    return Bars(*columns, console=Console(stderr=True), auto_refresh=False, transient=True, redirect_stdout=False)


def _fitting(figures: dict[str, Any], room: int) -> list[str]:
    """``name value`` of the first figures, as many as have room with two blanks before each."""
    texts = [f"{name} {_short(value)}" for name, value in figures.items()]
    while sum(len(text) + 2 for text in texts) > max(0, room):
        texts.pop()
    return texts


@contextlib.contextmanager
def among_others() -> Iterator[None]:
    """Inside, this process is one of several that write to one terminal: a line now and then, nothing overwritten."""
    before, Progress.alone = Progress.alone, False
    try:
        yield
    finally:
        Progress.alone = before


@contextlib.contextmanager
def interrupted(note: Callable[[int, object], None]) -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM call `note`; for the main thread alone."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    old = [signal.signal(number, note) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, old, strict=True):
            signal.signal(number, handler)


def span(seconds: float) -> str:
    """A duration as people say it: 40 s, 3.2 min, 5.1 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
