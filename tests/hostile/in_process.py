"""The command line as a function, in a folder from which small sound runs can be seen."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from click.testing import CliRunner

from phosphene import cli
from phosphene.errors import Estimate, PhospheneError

SMALL = ("noise-stored", "noise-asked", "import-npz", "import-chexpert", "made", "student", "spos", "random", "rtn")
"""the runs that the tests damage; each takes a fraction of a second"""


class Opened(Exception):
    """The run would begin now: its flags and inputs were taken."""


class End(NamedTuple):
    """How a command ended: its exit status (None: a run was opened), its output, and an error that nobody caught."""

    status: int | None
    output: str
    error: BaseException | None


@contextlib.contextmanager
def fresh(place: Path) -> Iterator[Path]:
    """A new folder to work in, from which `stock` can be seen."""
    with tempfile.TemporaryDirectory(dir=place, ignore_cleanup_errors=True) as name, contextlib.chdir(name):
        Path("stock").symlink_to(place / "stock")
        yield Path(name)


def run(words: list[str]) -> End:
    """The command line, in process."""
    done = CliRunner().invoke(cli._group(), words)
    error = done.exception
    if isinstance(error, Opened):
        return End(None, done.output, None)
    if isinstance(error, PhospheneError | Estimate | OSError):
        return End(2, f"{done.output}\n{error}", None)
    if error is None or isinstance(error, SystemExit):
        return End(done.exit_code, done.output, None)
    return End(70, done.output, error)
