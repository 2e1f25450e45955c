"""What the command line does first: an interruption is one line and exit status 130, however early it comes.

    begin     nothing is begun, nothing can be lost: Ctrl-C and SIGTERM end the process at once
    work      they raise `KeyboardInterrupt`, so that files are put away; libraries may turn it into any other error,
              so that it is noted as well
    end       the result is out: again at once

Loops take the signals over while they run, and save their state (`runtime.run`). In another program's process, as after
`import phosphene`, nothing of this happens.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

INTERRUPTED = 130
NUMBERS = (signal.SIGINT, signal.SIGTERM)
MESSAGE = "interrupted; run the same command to go on"

HANDLED: list[int] = []
"""the signals that the command line takes: none in a program that imports it, nor those that `nohup` wants ignored"""
noted: list[int] = []
"""the signals that came during the work"""


def is_command_line() -> bool:
    """Whether this process is `phosphene …` or `python -m phosphene …`, as opposed to a program that imports it."""
    words = sys.orig_argv
    if sys.argv[:1] == ["-m"]:  # Python still looks for the module
        return "-m" in words and words[words.index("-m") + 1 :][:1] == ["phosphene"]
    program = sys.argv[0] if sys.argv else ""
    return os.path.splitext(os.path.basename(program))[0] == "phosphene" and program in words


def begin() -> None:
    """Until `work`, an interruption ends the process at once."""
    HANDLED.extend(number for number in NUMBERS if signal.getsignal(number) is not signal.SIG_IGN)
    _handle(_leave)


def work() -> None:
    """From here an interruption is a `KeyboardInterrupt`, and noted."""
    _handle(_raise)


def end() -> None:
    """From here an interruption ends the process at once."""
    _handle(_leave)


class Waiting:
    """Inside, a library waits where Python cannot answer: an interruption ends the process as the system does."""

    def __enter__(self) -> None:
        self.before = [(number, signal.getsignal(number)) for number in HANDLED]
        for number in HANDLED:
            signal.signal(number, signal.SIG_DFL)

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before:
            signal.signal(number, handler)


def _handle(handler: Callable[[int, object], None]) -> None:
    for number in HANDLED:
        signal.signal(number, handler)


def _leave(number: int, frame: object) -> None:
    try:
        os.write(2, f"phosphene: {MESSAGE}\n".encode())
    finally:
        os._exit(INTERRUPTED)


def _raise(number: int, frame: object) -> None:
    noted.append(number)
    raise KeyboardInterrupt
