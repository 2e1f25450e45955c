"""The run folder: resumes bit for bit, survives damage, refuses foreign folders, stops cleanly."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from phosphene.errors import Estimate, NotFinite, RunError, SettingsError, Stopped
from phosphene.runtime import checkpoint, finite_states
from phosphene.runtime.machine import machine
from phosphene.runtime.run import Run

MACHINE = machine("cpu", "fp32")


class Fault(Exception):
    """Injected."""


def job(out: Path, *, total: int = 12, lr: float = 0.1, stage: str = "job") -> Run:
    """A small training with noise, momentum, a baseline kept in a dict, and two phases."""
    run = Run.open(stage, {"lr": lr, "total": total}, [], out, machine("cpu", "fp32"), seed=3)
    with run.seeded("weights"):
        net = nn.Linear(4, 2)
    opt = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    memory, gen = {"baseline": 0.0}, torch.Generator().manual_seed(7)
    for phase in ("first", "second"):
        for _ in run.steps(phase, total, net=net, opt=opt, memory=memory, gen=gen):
            x = torch.randn(8, 4) + torch.rand((), generator=gen)
            opt.zero_grad()
            loss = net(x).square().mean()
            loss.backward()
            opt.step()
            memory["baseline"] += 0.1 * (loss.item() - memory["baseline"])
            run.log(loss=loss, baseline=memory["baseline"])
    run.finish({"weights": net.weight.tolist(), "baseline": memory["baseline"]})
    return run


def files(path: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in path.iterdir() if f.name != "timing.json"}


@pytest.fixture(autouse=True)
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHOSPHENE_CHECKPOINT_SECONDS", "0")


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch):
    def at(where: tuple[str, int]) -> None:
        def after_step(phase: str, step: int) -> None:
            if (phase, step) == where:
                raise Fault

        monkeypatch.setattr(Run, "after_step", staticmethod(after_step))

    yield at
    monkeypatch.setattr(Run, "after_step", None)


@pytest.mark.parametrize("where", [("first", 0), ("first", 11), ("second", 0), ("second", 7)])
@pytest.mark.parametrize("seconds", ["0", "1000"])
def test_resumed_equals_undisturbed(tmp_path, fault, monkeypatch, where, seconds):
    monkeypatch.setenv("PHOSPHENE_CHECKPOINT_SECONDS", seconds)
    job(tmp_path / "a")
    fault(where)
    with pytest.raises(Fault):
        job(tmp_path / "b")
    monkeypatch.setattr(Run, "after_step", None)
    job(tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_global_generators_are_put_back(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    job(tmp_path / "a")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "gone"])
def test_damaged_checkpoint_falls_back(tmp_path, fault, monkeypatch, capfd, harm):
    job(tmp_path / "a")
    fault(("second", 6))
    with pytest.raises(Fault):
        job(tmp_path / "b")
    monkeypatch.setattr(Run, "after_step", None)
    target = tmp_path / "b" / "checkpoint"
    content = target.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
    target.write_bytes({"cut": content[:middle], "flip": flipped, "empty": b"", "gone": b""}[harm])
    if harm == "gone":
        target.unlink()
    job(tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert ("damaged" in capfd.readouterr().err) == (harm != "gone")


def test_finished_run_says_so(tmp_path):
    run = job(tmp_path / "a")
    again = Run.open("job", {"lr": 0.1, "total": 12}, [], tmp_path / "a", run.machine, seed=3)
    assert again.finished == json.loads((tmp_path / "a" / "result.json").read_text())
    assert not list((tmp_path / "a").glob("checkpoint*"))


def test_what_is_undefined_is_null_in_every_file(tmp_path):
    run = Run.open("job", {}, [], tmp_path / "a", machine("cpu", "fp32"))
    for _ in run.steps("train", 1):
        run.log(loss=float("nan"))
    result = run.finish({"tau": float("nan"), "each": [float("inf"), 1.5]})
    assert result == {"tau": None, "each": [None, 1.5]}
    for name in ("result.json", "metrics.jsonl"):
        text = (tmp_path / "a" / name).read_text()
        assert "null" in text and "NaN" not in text and "Infinity" not in text


def test_a_difference_is_a_short_line(tmp_path):
    here, long = machine("cpu", "fp32"), "genotype " * 50
    Run.open("job", {"arch": long}, [], tmp_path / "a", here)
    with pytest.raises(RunError, match=r"arch: genotype.*… → x") as found:
        Run.open("job", {"arch": "x"}, [], tmp_path / "a", here)
    assert len(str(found.value)) < 200 + len(str(tmp_path))


def test_other_settings_are_refused(tmp_path):
    job(tmp_path / "a")
    with pytest.raises(RunError, match=r"lr: 0\.1 → 0\.2"):
        job(tmp_path / "a", lr=0.2)


def test_foreign_folder_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="not a run folder"):
        job(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_interruption_saves_and_says_how_to_go_on(tmp_path, monkeypatch):
    job(tmp_path / "a")

    def after_step(phase: str, step: int) -> None:
        if (phase, step) == ("first", 3):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Run, "after_step", staticmethod(after_step))
    monkeypatch.setenv("PHOSPHENE_CHECKPOINT_SECONDS", "1000")
    with pytest.raises(Stopped, match="run the same command to go on"):
        job(tmp_path / "b")
    monkeypatch.setattr(Run, "after_step", None)
    job(tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_killed_for_real(tmp_path):
    job(tmp_path / "a", total=40)
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import time; from pathlib import Path\n"
    code += (
        "from phosphene.runtime.run import Run; Run.after_step = staticmethod(lambda phase, step: time.sleep(0.05))\n"
    )
    code += f"import test_run; test_run.job(Path({str(tmp_path / 'b')!r}), total=40)"
    process = subprocess.Popen([sys.executable, "-c", code], env=dict(os.environ))
    metrics = tmp_path / "b" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text().count("\n") > 5):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    job(tmp_path / "b", total=40)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_estimate_runs_a_few_steps_and_leaves_nothing(tmp_path):
    run = Run.open("job", {}, [], tmp_path / "a", machine("cpu", "fp32"), estimate=True)
    steps = list(run.steps("first", 1000))
    assert len(steps) < 10
    run.disk(3 << 20)
    with pytest.raises(Estimate) as caught:
        run.finish({})
    assert caught.value.needs["disk_mib"] == 3.0
    assert caught.value.needs["phases"]["first"]["steps"] == 1000
    assert not (tmp_path / "a").exists()


# -- nothing silent ----------------------------------------------------------------------------------------------------


def test_a_run_that_loses_its_finite_numbers_stops_and_keeps_the_state_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHOSPHENE_CHECKPOINT_SECONDS", "0")
    weights = torch.zeros(3)
    run = Run.open("train", {}, [], tmp_path / "r", MACHINE)
    with pytest.raises(
        NotFinite, match=r"train, work: after step 3 w has 1 of 3 values .*finite after step 2.*another --out"
    ):
        for step in run.steps("work", 5, w=weights):
            weights[1] = float("nan") if step == 2 else step
    state = checkpoint.read(tmp_path / "r" / "checkpoint")
    assert state["step"] == 2 and state["states"]["w"].isfinite().all()


def test_what_a_loop_begins_with_unset_is_no_loss() -> None:
    curve = torch.full((4,), float("nan"))
    for step in Run.scratch(MACHINE).steps("work", 3, curve=curve):
        curve[step] = 1.0


def test_what_is_lost_in_the_last_step_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite_states.FiniteStates, "look", lambda self, done: None)
    net = torch.nn.Linear(2, 2)
    run = Run.scratch(MACHINE)
    with pytest.raises(NotFinite, match=r"net\.weight has 4 of 4"), torch.no_grad():
        for step in run.steps("work", 3, net=net):
            net.weight.fill_(float("inf") if step == 2 else 1.0)


@pytest.mark.parametrize("damage", ["removed", "emptied", "garbage"])
def test_metrics_that_were_lost_are_written_again(tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHOSPHENE_CHECKPOINT_SECONDS", "0")

    def work(folder: Path, until: int) -> Run:
        run = Run.open("train", {}, [], folder, MACHINE)
        for step in run.steps("work", 6):
            run.log(loss=float(step))
            if step == until:
                return run
        run.finish({})
        return run

    work(tmp_path / "whole", 9)
    run = work(tmp_path / "r", 3)
    file = tmp_path / "r" / "metrics.jsonl"
    {
        "removed": file.unlink,
        "emptied": lambda: file.write_text(""),
        "garbage": lambda: file.write_bytes(b"\0\xff" * 9),
    }[damage]()
    del run
    work(tmp_path / "r", 9)
    assert file.read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()


def test_metrics_removed_while_the_run_goes_on_are_written_at_its_end(tmp_path: Path) -> None:
    run = Run.open("train", {}, [], tmp_path / "r", MACHINE)
    for step in run.steps("work", 4):
        run.log(loss=float(step))
        if step == 2:
            (tmp_path / "r" / "metrics.jsonl").unlink()
    run.finish({})
    assert len((tmp_path / "r" / "metrics.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("leftover", ["config.json.new", ".unfinished-12-config.json", ".lock", ".holder.json"])
def test_what_a_kill_leaves_at_the_start_is_no_hindrance(tmp_path: Path, leftover: str) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / leftover).write_text("{")
    Run.open("train", {}, [], tmp_path / "r", MACHINE).finish({})
    assert sorted(os.listdir(tmp_path / "r")) == ["config.json", "metrics.jsonl", "result.json", "timing.json"]


def test_checkpoints_that_a_kill_left_in_a_finished_run_go(tmp_path: Path) -> None:
    Run.open("train", {}, [], tmp_path / "r", MACHINE).finish({})
    before = sorted(os.listdir(tmp_path / "r"))
    for leftover in ("phase-work", "checkpoint.before", ".lock", ".holder.json"):
        (tmp_path / "r" / leftover).write_bytes(b"")
    assert Run.open("train", {}, [], tmp_path / "r", MACHINE).finished == {}
    assert sorted(os.listdir(tmp_path / "r")) == before


def test_a_second_process_in_a_run_folder_is_refused(tmp_path: Path) -> None:
    code = (
        "import sys, time; from phosphene.runtime.run import Run; from phosphene.runtime.machine import machine\n"
        "run = Run.open('train', {}, [], sys.argv[1], machine('cpu', 'fp32')); print('in', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, tmp_path / "r"], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "in\n"
        with pytest.raises(RunError, match=f"process {other.pid}"):
            Run.open("train", {}, [], tmp_path / "r", MACHINE)
    finally:
        other.kill()
        other.wait()
    Run.open("train", {}, [], tmp_path / "r", MACHINE).finish({})


def test_seconds_between_checkpoints_are_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("x", "nan", "-1", "inf"):
        monkeypatch.setenv("PHOSPHENE_CHECKPOINT_SECONDS", text)
        with pytest.raises(SettingsError, match=f"PHOSPHENE_CHECKPOINT_SECONDS={text} should be seconds"):
            list(Run.scratch(MACHINE).steps("work", 1))


def test_a_process_whose_neighbour_is_lost_says_so() -> None:
    code = (
        "import torch; from phosphene.runtime.machine import machine\n"
        "here = machine('cpu', 'fp32'); here.barrier(); print('in', flush=True)\n"
        "while True: here.average([torch.zeros(3)])"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    ranks = [
        subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **common, "RANK": str(rank)}, **pipes)
        for rank in range(2)
    ]
    try:
        assert [rank.stdout.readline() for rank in ranks] == ["in\n"] * 2
        ranks[1].kill()
        assert "RunError: another process of this run was lost" in ranks[0].communicate(timeout=60)[1]
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


@pytest.mark.parametrize("stop", [("first", 1), ("second", 2)])
def test_a_phase_that_one_rank_has_no_state_of_is_begun_and_logged_anew(tmp_path, fault, monkeypatch, stop):
    """The other rank was killed before its first state, as this one's lines tell."""
    two = replace(MACHINE, world=2)
    asked: list[int] = []
    for name, stands_for in (("barrier", lambda self: None), ("any", lambda self, flag: flag)):
        monkeypatch.setattr(type(two), name, stands_for)
    monkeypatch.setattr(type(two), "first", lambda self, work: work())

    def gathered(self, value):
        asked.append(len(value))
        return [value, [] if len(asked) == 1 + (stop[0] == "second") else value]

    monkeypatch.setattr(sys.modules[__name__], "machine", lambda *names: two)
    monkeypatch.setattr(type(two), "gathered", lambda self, value: [value, value])
    job(tmp_path / "whole")
    fault(stop)
    with pytest.raises(Fault):
        job(tmp_path / "lost")
    monkeypatch.setattr(Run, "after_step", None)
    monkeypatch.setattr(type(two), "gathered", gathered)
    job(tmp_path / "lost")
    assert files(tmp_path / "lost") == files(tmp_path / "whole")


@pytest.mark.parametrize("stop", [("second", 0), ("second", 5), ("second", 11)])
def test_a_phase_whose_state_is_damaged_is_logged_once(tmp_path, fault, monkeypatch, stop):
    job(tmp_path / "whole")
    fault(stop)
    with pytest.raises(Fault):
        job(tmp_path / "damaged")
    monkeypatch.setattr(Run, "after_step", None)
    (tmp_path / "damaged" / "phase-first").write_bytes(b"x")
    job(tmp_path / "damaged")
    assert files(tmp_path / "damaged") == files(tmp_path / "whole")


def test_half_files_of_a_killed_process_go_from_a_finished_run(tmp_path: Path) -> None:
    Run.open("train", {}, [], tmp_path / "r", MACHINE).finish({})
    (tmp_path / "r" / ".unfinished-12-.holder.json").write_text("{")
    assert Run.open("train", {}, [], tmp_path / "r", MACHINE).finished == {}
    assert not any(name.startswith(".") for name in os.listdir(tmp_path / "r"))
