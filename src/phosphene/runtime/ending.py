"""How a command ends that did not succeed: one line on standard error, an exit status, and a file for a fault of ours.

2    something the user can mend: a `PhospheneError`, a usage error, a file that cannot be read or written
1    not enough memory
70   a fault of the program (EX_SOFTWARE); the file that the line names has the traceback
130  interrupted
141  nobody reads the output any more, as after `| head`
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import click

from .. import plugins
from ..__version__ import __version__
from ..errors import Fault, PhospheneError, Stopped, is_memory, shown
from . import start

MENDABLE, NO_MEMORY, FAULT, UNREAD = 2, 1, 70, 141
LETTERS = 2000  # of a message


class End(NamedTuple):
    """How a command failed."""

    message: str
    kind: str
    status: int


def of(error: BaseException) -> End:
    """The message, kind and exit status of any error; a fault writes its traceback to a file."""
    kind = type(error).__name__
    if isinstance(error, Stopped):
        return End(line(str(error)), kind, start.INTERRUPTED)
    if start.noted or isinstance(error, click.Abort | KeyboardInterrupt):
        return End(start.MESSAGE, "Interrupted", start.INTERRUPTED)
    if isinstance(error, click.ClickException):
        return End(_of_usage(error), kind, error.exit_code)
    if isinstance(error, PhospheneError) and not isinstance(error, Fault):
        return End(line(str(error)), kind, MENDABLE)
    if is_memory(error):
        remedy = "take fewer or smaller images, or a smaller --batch"
        return End(f"not enough memory ({_first_line(error)}); {remedy}", "MemoryError", NO_MEMORY)
    if is_unread(error):
        return End("nobody reads the output", kind, UNREAD)
    if isinstance(error, OSError) and error.errno is not None:
        return End(line(f"{error.filename or 'input or output'}: {error.strerror or error}"), "OSError", MENDABLE)
    return _fault(error)


def _of_usage(error: click.ClickException) -> str:
    """The message of a flag or a command that there is not, with the help that lists those there are."""
    context = getattr(error, "ctx", None)
    where = f"; see `{context.command_path} --help`" if context else ""
    return line(error.format_message()).removesuffix(".") + where


def is_unread(error: BaseException) -> bool:
    """Whether the reader of our output is gone."""
    return isinstance(error, OSError) and error.errno == errno.EPIPE


def line(text: str) -> str:
    """The text on one line: a name in it may have line breaks, or codes that a terminal obeys."""
    words = " ".join(part.strip() for part in text.splitlines() if part.strip())
    return shown(words, str, LETTERS)


def _first_line(error: BaseException) -> str:
    return shown(error, str).split("\\n")[0] or type(error).__name__


def _fault(error: BaseException) -> End:
    """A fault of the program, or of code of the user's that it called: a space of their own, say."""
    what = _named(error)
    file = write_traceback(error)
    where = f"the traceback is in {file}" if file else f"at {_place(error)}, and no file could be written"
    if own := plugins.place(error):
        return End(f"{own} fails: {what}; mend this code ({where})", type(error).__name__, MENDABLE)
    return End(f"{what}: a fault of the program; {where}; please report it", type(error).__name__, FAULT)


def _named(error: BaseException) -> str:
    """Its class and what it says, if anything."""
    try:
        said = str(error)
    except Exception:  # of a class whose own method fails
        said = ""
    return line(f"{type(error).__name__}: {said}").removesuffix(":")


def write_traceback(error: BaseException) -> Path | None:
    """Write the traceback, the command and the versions into a new temporary file; None without one."""
    head = [
        f"command: {sys.argv}",
        f"phosphene {__version__}, Python {platform.python_version()}, {platform.platform()}",
        *(f"{name} {sys.modules[name].__version__}" for name in ("torch", "numpy") if name in sys.modules),
    ]
    with contextlib.suppress(Exception):
        text = "\n".join([*head, "", *traceback.format_exception(error)])
        return _new_file(text.encode(errors="backslashreplace"))
    return None


def _new_file(content: bytes) -> Path:
    """A file that was not there before: its name is no secret, so a link of that name is not followed."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for count in range(100):
        path = Path(tempfile.gettempdir()) / f"phosphene-{stamp}-{os.getpid()}{f'-{count}' if count else ''}.txt"
        with contextlib.suppress(FileExistsError):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(handle, "wb") as file:
                file.write(content)
            return path
    raise FileExistsError(path)


def _place(error: BaseException) -> str:
    """File and line where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "an unknown place"


# -- output ------------------------------------------------------------------------------------------------------------


def print_anything() -> None:
    """Let standard output and error take every letter, escaped where the terminal's encoding lacks it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def flush() -> None:
    """Print what is still to be printed now, where an error can be said."""
    if sys.stdout is not None:
        sys.stdout.flush()


def let_go() -> None:
    """Drop what cannot be printed, so that Python's own flush at its end says nothing."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def watch_others() -> None:
    """Errors of threads and of destructors, which no one can catch: a line each, and an interruption in one is kept."""
    threading.excepthook = _of_thread
    sys.unraisablehook = _unraisable


def _of_thread(args: Any) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        name = args.thread.name if args.thread else "a thread"
        print(f"phosphene: in {name}: {of(args.exc_value).message}", file=sys.stderr, flush=True)


def _unraisable(args: Any) -> None:
    if isinstance(args.exc_value, KeyboardInterrupt) and start.noted:
        again = threading.Timer(0.01, os.kill, (os.getpid(), start.noted[-1]))  # outside of whatever swallowed it
        again.daemon = True
        again.start()
    elif args.exc_value is not None and not sys.is_finalizing():
        print(f"phosphene: ignored in {shown(args.object)}: {_named(args.exc_value)}", file=sys.stderr, flush=True)
