"""Progress on standard error: a bar with the time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

_LINE_EVERY = 15.0  # seconds between lines where there is no terminal


class Progress:
    """Shows `done` of `total` steps of one phase, the time left and the last logged figures."""

    def __init__(self, title: str, total: int, done: int, *, quiet: bool = False) -> None:
        self.title, self.total, self.first = title, total, done
        self.started = self.shown = time.monotonic()
        self.quiet = quiet
        self.terminal = sys.stderr.isatty()

    def update(self, done: int, figures: dict[str, Any]) -> None:
        """Show the state after `done` steps."""
        now = time.monotonic()
        if self.quiet or now - self.shown < (0.2 if self.terminal else _LINE_EVERY):
            return
        self.shown = now
        left = (now - self.started) / max(1, done - self.first) * (self.total - done)
        figures_text = "  ".join(f"{name} {_short(value)}" for name, value in figures.items())
        text = f"{self.title}  {done}/{self.total}  {100 * done // self.total} %  {span(left)} left  {figures_text}"
        end = "\x1b[K\r" if self.terminal else "\n"
        print(text[:200], end=end, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Clear the bar."""
        if self.terminal and not self.quiet:
            print("\x1b[K", end="", file=sys.stderr, flush=True)


def span(seconds: float) -> str:
    """A duration as people say it: 40 s, 3.2 min, 5.1 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def say(text: str) -> None:
    """One line for the user, on standard error."""
    print(text, file=sys.stderr, flush=True)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
