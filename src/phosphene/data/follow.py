"""Which folders a data set may take its images from: a card comes from elsewhere, and shall not lead anywhere it likes.

Those beside it and below, those below the working folder, those that the user named in this process; all others with
`phosphene --follow` alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from ..errors import DatasetError
from ..runtime import environment

_named: set[Path] = set()
_checked: ContextVar[bool] = ContextVar("checked", default=False)


def note(folder: Path) -> None:
    """The user named this folder."""
    _named.add(folder.resolve())


def check(holder: Path, path: Path) -> None:
    """Raise `DatasetError` where the data set in folder `holder` leads outside by `path`; links are followed first."""
    target = path.resolve()
    inside = [holder.resolve().parent, Path.cwd().resolve()]
    if is_checked() or target in _named or any(target.is_relative_to(folder) for folder in inside):
        return
    if not environment.switch(environment.FOLLOW, False):
        where = f"{holder} takes its images from {target}, which is neither beside it nor below the working folder"
        raise DatasetError(f"{where}; if you trust it, say `phosphene --follow COMMAND` ({environment.FOLLOW}=1)")


def is_checked() -> bool:
    """Whether another process has opened and checked what is opened here."""
    return _checked.get()


@contextlib.contextmanager
def checked() -> Iterator[None]:
    """Inside, data sets are opened that came from another process, which has checked them."""
    token = _checked.set(True)
    try:
        yield
    finally:
        _checked.reset(token)
