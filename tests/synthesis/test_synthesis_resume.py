"""Synthesis can be killed anywhere and shared out to processes: the same bytes of every file."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from phosphene.runtime.run import Run
from phosphene.synthesis.inversion.command import synthesize
from phosphene.synthesis.noise import noise

SRC = Path(__file__).resolve().parents[2] / "src"
TEACHER = {"mean": "0.4,0.4,0.4", "std": "0.25,0.25,0.25", "size": "8", "precision": "fp32", "device": "cpu"}


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        net = nn.Sequential(*layers, nn.Linear(6, 4))
        net(torch.randn(32, 3, 8, 8))
    return net.eval()


def job(out, **options):
    """Three chains of three rounds of five iterations."""
    settings = {"images": 27, "preset": "smoke", "rounds": 3, "iterations": 5, "batch": 4, "canvas": 10}
    return synthesize(network(), out=out, **TEACHER, **(settings | {"crop_per": "image"} | options))


def noise_job(out):
    """Three chunks of noise."""
    return noise(network(), images=1200, out=out, **TEACHER)


JOBS = {"synthesis": job, "noise": noise_job}


VARIANTS = {
    "fourier": {},
    "pixels": {"parametrization": "pixels", "flip": "image", "roll": 1, "warm_start": True},
    "stages": {"half_iterations": 3, "best": True, "keep": "last", "images": 9, "parametrization": "pixels"},
}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the clock's; of the configuration all but the checkout's revision."""
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "timing.json"}
    config = json.loads(found["config.json"])
    return found | {"config.json": json.dumps({k: v for k, v in config.items() if k != "git"}).encode()}


class Fault(Exception):
    """Thrown into a run."""


@pytest.fixture
def fail(monkeypatch):
    """fail(n): the n-th step from now throws; None: no longer."""

    def at(number):
        left = [number]

        def hook(phase, step):
            left[0] -= 1
            if left[0] == 0:
                raise Fault

        monkeypatch.setattr(Run, "after_step", staticmethod(hook) if number is not None else None)

    return at


@pytest.fixture
def undisturbed(tmp_path_factory):
    made = {}

    def of(variant):
        if variant not in made:
            out = tmp_path_factory.mktemp("whole") / "set"
            job(out, **VARIANTS[variant])
            made[variant] = contents(out)
        return made[variant]

    return of


@pytest.mark.parametrize("every", ["0", "60"], ids=["each-step", "chains-only"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_faults_anywhere_leave_no_trace(tmp_path, monkeypatch, fail, undisturbed, variant, every):
    monkeypatch.setenv("PHOSPHENE_CHECKPOINT_SECONDS", every)
    out = tmp_path / "set"
    for number in (1, 4, 5, 2, 6, 16):  # in a round, at its end, at its start, in later chains
        fail(number)
        with pytest.raises(Fault):
            job(out, **VARIANTS[variant])
    fail(None)
    job(out, **VARIANTS[variant])
    whole = undisturbed(variant)
    assert contents(out).keys() == whole.keys()
    for name, bytes_ in contents(out).items():
        assert bytes_ == whole[name], name


@pytest.mark.parametrize("torn", ["close", "write"])
def test_a_fault_while_writing(tmp_path, monkeypatch, undisturbed, torn):
    from phosphene.data.writer import Writer

    out, real = tmp_path / "set", getattr(Writer, torn)

    def breaks(self, *args, **options):
        real(self, *args, **options)
        raise Fault

    monkeypatch.setattr(Writer, torn, breaks)
    with pytest.raises(Fault):
        job(out)
    monkeypatch.setattr(Writer, torn, real)
    job(out)
    assert contents(out) == undisturbed("fourier")


ARRAYS = ("images.npy", "logits.npy", "seeds.npy", "card.json", "checksums.json", "result.json")


@pytest.mark.parametrize("every", ["0", "60"])
@pytest.mark.parametrize(("variant", "number"), [("fourier", 12), ("pixels", 27), ("stages", 14)])
@pytest.mark.parametrize("array", ["images.npy", "logits.npy"])
def test_an_array_lost_half_way_is_made_again(tmp_path, monkeypatch, fail, undisturbed, every, variant, number, array):
    """Where the run goes on behind what was lost, too."""
    monkeypatch.setenv("PHOSPHENE_CHECKPOINT_SECONDS", every)
    out = tmp_path / "set"
    fail(number)
    with pytest.raises(Fault):
        job(out, **VARIANTS[variant])
    fail(None)
    (out / array).unlink()
    job(out, **VARIANTS[variant])
    made, whole = contents(out), undisturbed(variant)
    assert all(made[name] == whole[name] for name in ARRAYS) and made.keys() == whole.keys()


@pytest.mark.parametrize("number", [1, 2])
def test_noise_lost_half_way_is_made_again(tmp_path, monkeypatch, fail, number):
    monkeypatch.setenv("PHOSPHENE_CHECKPOINT_SECONDS", "0")
    noise_job(tmp_path / "whole" / "set")
    fail(number)
    with pytest.raises(Fault):
        noise_job(tmp_path / "set")
    fail(None)
    images = bytearray((tmp_path / "set" / "images.npy").read_bytes())
    images[5000] ^= 1
    (tmp_path / "set" / "images.npy").write_bytes(images)
    noise_job(tmp_path / "set")
    assert contents(tmp_path / "set") == contents(tmp_path / "whole" / "set")


def start(kind, out, kill=0, launcher=()):
    """This file as a process of its own: runs the job, and kills itself at step `kill`."""
    known = os.environ | {"PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1", "PHOSPHENE_CHECKPOINT_SECONDS": "0"}
    command = [sys.executable, *launcher, __file__, kind, str(out), str(kill)]
    return subprocess.run(command, env=known, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(("kind", "kill"), [("synthesis", 17), ("noise", 1)])
def test_kill_minus_nine_then_the_same_command(tmp_path, kind, kill):
    out, whole = tmp_path / "killed" / "set", tmp_path / "whole" / "set"
    killed = start(kind, out, kill)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (out / "card.json").exists()
    again = start(kind, out)
    assert again.returncode == 0, again.stderr
    JOBS[kind](whole)
    assert contents(out) == contents(whole)


def test_two_ranks_write_the_bytes_of_one_process(tmp_path, undisturbed):
    out = tmp_path / "set"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = start("synthesis", out, launcher=launcher)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = undisturbed("fourier"), contents(out)
    for name in ("images.npy", "logits.npy", "seeds.npy", "card.json", "result.json", "config.json"):
        assert two[name] == one[name], name
    assert two.keys() == one.keys()


def test_another_number_of_ranks_may_finish_what_was_begun(tmp_path, monkeypatch, fail, undisturbed):
    """Two ranks, one of which did only its first chain: one process makes the rest."""
    from dataclasses import replace

    from phosphene.runtime.machine import Machine
    from phosphene.synthesis.inversion import command

    lonely = replace(Machine(torch.device("cpu"), "fp32"), rank=1, world=2)
    for verb in ("barrier", "average", "any", "first"):
        monkeypatch.setattr(Machine, verb, lambda *_: None)
    out = tmp_path / "set"
    out.mkdir()
    monkeypatch.setattr(command, "decide_machine", lambda *_: lonely)
    fail(22)
    with pytest.raises(Fault):
        job(out)
    fail(None)
    monkeypatch.undo()
    whole = undisturbed("fourier")
    assert list(out.glob("journal-1.jsonl")) and not (out / "card.json").exists()
    (out / "config.json").write_bytes(whole["config.json"])  # rank 0 would have written it
    job(out)
    for name in ("images.npy", "logits.npy", "seeds.npy", "card.json", "result.json"):
        assert contents(out)[name] == whole[name], name


if __name__ == "__main__":
    kind, folder, kill = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    left = [kill]

    def perhaps_die(phase, step):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    Run.after_step = staticmethod(perhaps_die)
    JOBS[kind](folder)
