"""Attempts at breaking the package, in process: what the campaign (`tools/campaign.py`) does, for two minutes."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from in_process import SMALL, Opened, run

from attempts import stock
from phosphene.runtime import identity


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


@pytest.fixture
def never_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs raise `Opened` instead of beginning, so that a legal value takes no time."""

    def stop(*given: Any, **more: Any) -> Any:
        raise Opened

    monkeypatch.setattr(identity, "configuration", stop)
