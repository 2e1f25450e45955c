"""Attempts at breaking the package, in process: small runs to damage, and the command line as a function."""

from __future__ import annotations

import contextlib
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from attempts import stock
from phosphene import cli
from phosphene.errors import Estimate, PhospheneError
from phosphene.runtime import identity

SMALL = ("noise-stored", "noise-asked", "import-npz", "import-chexpert", "made", "student", "spos", "random", "rtn")
"""the runs that the tests damage; each takes a fraction of a second"""


class Opened(Exception):
    """The run would begin now: its flags and inputs were taken."""


class End(NamedTuple):
    """How a command ended: its exit status (None: a run was opened), its output, and an error that nobody caught."""

    status: int | None
    output: str
    error: BaseException | None


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `stock`: files from elsewhere, and small runs."""
    folder = tmp_path_factory.mktemp("hostile")
    stock.make_files(folder / "stock" / "files")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in SMALL:
            end = run(words := stock.words(name, f"stock/{name}/out"))
            assert end.status == 0, f"{shlex.join(words)}: {end}"
    return folder


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


@pytest.fixture
def never_begun(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs raise `Opened` instead of beginning, so that a legal value takes no time."""

    def stop(*given: Any, **more: Any) -> Any:
        raise Opened

    monkeypatch.setattr(identity, "configuration", stop)
    return stop
