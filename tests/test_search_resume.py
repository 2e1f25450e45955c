"""A search may be interrupted anywhere: the same command again ends in the same files, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from phosphene.dataset import ImageDataset
from phosphene.run import Run
from phosphene.search import SEARCHES, command, found

SETTINGS = {"channels": 4, "cells": 3, "nodes": 2, "batch": 8, "epochs": 3, "final_channels": 6, "final_cells": 3}
SETTINGS |= {"device": "cpu", "precision": "fp32", "alpha_init": 1e-3, "flip": True}
FILES = (
    "arch.json",
    "result.json",
    "metrics.jsonl",
    "supernet.safetensors",
    "supernet.json",
    "alphas.npy",
    "genotype.txt",
)


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than the searches here, and its bytes are nobody's concern."""
    monkeypatch.setattr(found, "draw_cells", lambda *_: None)
    monkeypatch.setattr(found, "plot", lambda *_: None)


def job(out: Path, order: int = 1) -> None:
    pixels = np.random.default_rng(7).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    data = ImageDataset.from_arrays(pixels, labels=np.arange(40) % 3, classes=3)
    command.darts(data, out=out, order=order, **SETTINGS)


def contents(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(found, "plot", lambda *_: None)
        for order in (1, 2):
            job(folder / f"{order}", order)
    return {order: contents(folder / f"{order}") for order in (1, 2)}


class InjectedError(Exception):
    pass


def fail_at(phase: str, step: int) -> staticmethod:
    def after_step(at: str, now: int) -> None:
        if (at, now) == (phase, step):
            raise InjectedError

    return staticmethod(after_step)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    "fault",
    [("supernet", 0), ("supernet", 2), ("supernet", 4), ("validation", 1)],
    ids=lambda fault: f"{fault[0]}-{fault[1]}",
)
def test_a_fault_at_any_step(
    order: int, fault: tuple[str, int], undisturbed: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHOSPHENE_CHECKPOINT_SECONDS", "0")
    monkeypatch.setattr(Run, "after_step", fail_at(*fault))
    with pytest.raises(InjectedError):
        job(tmp_path / "run", order)
    steps: list[tuple[str, int]] = []
    monkeypatch.setattr(Run, "after_step", staticmethod(lambda *at: steps.append(at)))
    job(tmp_path / "run", order)
    assert steps[0] == (fault[0], fault[1] + 1)  # gone on, not begun anew
    assert contents(tmp_path / "run") == undisturbed[order]


def test_a_fault_after_steps_that_were_not_saved(
    undisturbed: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps since the last checkpoint are done again, and their lines are not in the log twice."""
    monkeypatch.setenv("PHOSPHENE_CHECKPOINT_SECONDS", "1000")
    monkeypatch.setattr(Run, "after_step", fail_at("supernet", 4))
    with pytest.raises(InjectedError):
        job(tmp_path / "run")
    monkeypatch.setattr(Run, "after_step", None)
    job(tmp_path / "run")
    assert contents(tmp_path / "run") == undisturbed[1]


def test_a_fault_while_the_result_is_written(
    undisturbed: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise InjectedError

    monkeypatch.setattr(found, "draw_cells", failing)
    with pytest.raises(InjectedError):
        job(tmp_path / "run")
    monkeypatch.setattr(found, "draw_cells", lambda *_: None)
    job(tmp_path / "run")
    assert contents(tmp_path / "run") == undisturbed[1]


def test_killed_for_real(undisturbed: dict, tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    code += (
        "import time, torch; from pathlib import Path; torch.set_num_threads(1); import test_search_resume as test\n"
    )
    code += "test.Run.after_step = staticmethod(lambda phase, step: time.sleep(0.2))\n"
    code += f"test.job(Path({str(tmp_path / 'run')!r}))"
    environment = dict(os.environ, PHOSPHENE_CHECKPOINT_SECONDS="0")
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 60
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text().count("\n") > 1):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # it was still running
    assert (tmp_path / "run" / "checkpoint").exists()
    job(tmp_path / "run")
    assert contents(tmp_path / "run") == undisturbed[1]


def test_random_has_nothing_to_lose(tmp_path: Path) -> None:
    assert set(SEARCHES) == {"darts", "sgas", "random"}  # a search added here needs its faults above
    data = ImageDataset.from_arrays(np.zeros((6, 1, 8, 8), np.uint8), labels=np.arange(6) % 3, classes=3)
    first = command.random(data, out=tmp_path / "a", final_cells=3)
    (tmp_path / "a/result.json").unlink()
    assert command.random(data, out=tmp_path / "a", final_cells=3) == first
