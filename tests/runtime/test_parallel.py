"""Calls side by side: the same results whatever runs them, nothing lost by a failure, a signal that reaches them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from phosphene import errors
from phosphene.errors import Fault, MissingExtra, SettingsError, Stopped
from phosphene.runtime.machine import PREFERENCES, machine
from phosphene.runtime.parallel import side_by_side
from phosphene.runtime.run import Run


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setattr(PREFERENCES, "threads", 1)


def product(seed, size=40):
    """Rounding and all: two processes must compute the same bits."""
    machine("cpu", "fp32")
    a, b = torch.randn(2, size, size, generator=torch.Generator().manual_seed(seed))
    return (a @ b).sum().item()


def picky(number, folder):
    (folder / f"{number}").touch()
    if number == 1:
        raise MissingExtra("a package", "an-extra")
    if number == 2:
        raise ZeroDivisionError("of its own")
    return number


def counted(folder, name, steps, pause=0.02):
    """A run that takes its time, and counts every step that any process ever does."""
    run = Run.open("count", {"steps": steps}, [name], folder / name, machine("cpu", "fp32"))
    if run.finished is not None:
        return run.finished
    drawn = torch.zeros((), dtype=torch.float64)
    for step in run.steps("count", steps, drawn=drawn):
        time.sleep(pause)
        drawn += torch.rand((), dtype=torch.float64)
        with open(folder / f"{name}.log", "a") as log:
            log.write(f"{step}\n")
    return run.finish({"drawn": drawn.item()})


def threads():
    machine("cpu", "fp32")
    return torch.get_num_threads()


CALLS = [(product, (seed,), {"size": 30 + seed}) for seed in range(5)]


def test_the_same_bits_in_order_for_any_number_of_jobs():
    one = side_by_side(CALLS, jobs=1, title="t")
    assert one == side_by_side(CALLS, jobs=2, title="t") == [product(s, 30 + s) for s in range(5)]
    assert side_by_side([], jobs=2, title="t") == []


def test_the_same_bits_on_ray(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    ray = pytest.importorskip("ray", reason="ray IS NOT INSTALLED: pip install 'phosphene[ray]'")
    try:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    except Exception as error:  # a machine that lets no local cluster start is no fault of ours
        pytest.skip(f"RAY CANNOT START HERE, ITS BACKEND IS UNTESTED: {error}")
    try:
        assert side_by_side(CALLS, jobs=2, backend="ray", title="t") == side_by_side(CALLS, title="t")
    finally:
        ray.shutdown()


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.util.joblib", None)
    with pytest.raises(SettingsError, match=r"phosphene\[ray\]"):
        side_by_side(CALLS, jobs=2, backend="ray", title="t")


def test_settings_are_checked():
    with pytest.raises(SettingsError, match="--jobs 0"):
        side_by_side(CALLS, jobs=0, title="t")
    with pytest.raises(SettingsError, match="--backend dask"):
        side_by_side(CALLS, backend="dask", title="t")


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failure_loses_nothing_and_is_ours(jobs, tmp_path, capfd):
    with pytest.raises(MissingExtra, match=r"a package.*2 of 5 failed"):
        side_by_side([(picky, (n, tmp_path), {}) for n in range(5)], jobs=jobs, title="t")
    assert sorted(p.name for p in tmp_path.iterdir()) == list("01234")
    with pytest.raises(Fault, match=r"ZeroDivisionError: of its own.*run the same command") as fault:
        side_by_side([(picky, (n, tmp_path), {}) for n in (2, 3)], jobs=jobs, title="t")
    assert "Traceback" in str(fault.value.__cause__) and "Traceback" not in capfd.readouterr().err


def test_every_error_of_ours_can_be_shown_from_a_worker():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    for kind in kinds:
        if issubclass(kind, errors.PhospheneError) and kind is not Stopped:
            rebuilt = kind.__new__(kind, "said")
            assert str(rebuilt) == "said"


def test_workers_share_the_cores(monkeypatch):
    import joblib

    assert side_by_side([(threads, (), {})] * 2, jobs=2, title="t") == [1, 1]
    monkeypatch.setattr(PREFERENCES, "threads", None)
    monkeypatch.setattr(joblib, "cpu_count", lambda: 6)
    assert side_by_side([(threads, (), {})] * 2, jobs=2, title="t") == [3, 3]


STEPS = {"c0": 3, "c1": 60, "c2": 60, "c3": 5}
SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from phosphene.runtime.machine import PREFERENCES
from test_parallel import all_of_them
PREFERENCES.threads = 1
all_of_them(Path({folder!r}), {jobs})
"""


def all_of_them(folder, jobs, pause=0.02):
    return side_by_side([(counted, (folder, *c), {"pause": pause}) for c in STEPS.items()], jobs=jobs, title="t")


@pytest.mark.parametrize(("jobs", "number"), [(2, signal.SIGTERM), (2, signal.SIGINT), (1, signal.SIGTERM)])
def test_stopped_and_run_again(jobs, number, tmp_path):
    """The finished are not done again, the others go on where they were, and the end is the same."""
    script = SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path), jobs=jobs)
    first = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    wait_for(tmp_path / "c0" / "result.json", 1)
    wait_for(tmp_path / "c1.log", 6)
    os.kill(first.pid, number)
    said = first.communicate(timeout=30)[1]
    assert first.returncode != 0 and "Stopped: stopped: t has 1 of 4 finished; run the same command" in said
    assert (tmp_path / "c0" / "result.json").exists() and not (tmp_path / "c1" / "result.json").exists()
    (tmp_path / "undisturbed").mkdir()
    assert all_of_them(tmp_path, 1, 0) == all_of_them(tmp_path / "undisturbed", 1, 0)
    for name, steps in STEPS.items():
        done = [int(line) for line in (tmp_path / f"{name}.log").read_text().split()]
        assert done == list(range(steps)), f"{name}: {done}"


def test_workers_stop_when_their_parent_is_killed(tmp_path):
    script = SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path), jobs=2)
    first = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    wait_for(tmp_path / "c1.log", 6)
    first.kill()
    first.wait(30)
    time.sleep(0.6)
    before = (tmp_path / "c1.log").read_text()
    time.sleep(0.3)
    assert (tmp_path / "c1.log").read_text() == before and len(before.split()) < 60


def wait_for(path, lines):
    deadline = time.monotonic() + 30
    while not path.exists() or len(path.read_text().split()) < lines:
        assert time.monotonic() < deadline, f"{path} does not come"
        time.sleep(0.02)
