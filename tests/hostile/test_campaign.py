"""The campaign itself: it must tell a failure from an end that is allowed, and go on where it was killed."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from random import Random

import numpy as np
import pytest

import campaign
from attempts import judge, mutations, record, stock
from attempts.forks import Ended
from phosphene import commands
from phosphene.recipes import results

NOT_ATTACKED = {
    "demo": "the chain of others, minutes long",
    "quantize dfc": "its images take half a minute; the fine-tuning is that of `quantize best`",
    **dict.fromkeys(("quantize", "distill", "prune"), "a choice among its methods"),
}


def test_every_command_is_attacked() -> None:
    """A new command needs a line in `tools/attempts/stock.py`."""
    assert {stock.command(name) for name in stock.RUNS} == {*commands.COMMANDS} - {*NOT_ATTACKED}


def ended(status: int = 0, errors: str = "", output: str = "", **more: object) -> Ended:
    return Ended(status, output, errors, 1.0, **more)  # type: ignore[arg-type]


TRACEBACK = 'Traceback (most recent call last):\n  File "/x/src/phosphene/data/card.py", line 7, in a\nKeyError: 3\n'


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (ended(), ""),
        (ended(output='{"top1": 9.5}\n'), ""),
        (ended(output='{"top1": NaN}\n'), "not finite"),
        (ended(2, "a note\nphosphene: --lr must be above 0 (got -1)\n"), ""),
        (ended(2, "phosphene: a name\nwith a line break\n"), "no message"),
        (ended(2), "no message"),
        (ended(1, TRACEBACK), "traceback: KeyError: 3 (data/card.py:7)"),
        (ended(0, TRACEBACK), "traceback"),
        (ended(70, "phosphene: KeyError: 3: a fault of the program; please report it\n"), "exit 70"),
        (ended(1, "phosphene: not enough memory (x); take fewer images\n"), ""),
        (ended(-signal.SIGKILL, sent=(signal.SIGKILL,)), ""),
        (ended(-signal.SIGBUS), "signal SIGBUS"),
        (ended(-signal.SIGSEGV, sent=(signal.SIGTERM,)), "signal SIGSEGV"),
        (ended(130, "phosphene: interrupted; run it again\n", sent=(signal.SIGINT,)), ""),
        (ended(130, "phosphene: interrupted; run it again\n"), "exit 130"),
        (ended(-signal.SIGKILL, sent=(signal.SIGINT, signal.SIGKILL), late=True, stuck=True), "stuck"),
    ],
)
def test_what_is_a_failure(end: Ended, told: str) -> None:
    problem = judge.problem(end)
    assert problem.startswith(told) and bool(problem) == bool(told)


def test_a_nan_on_disk_is_found(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones(3, np.float32))
    assert not judge.undefined(tmp_path)
    np.save(tmp_path / "a.npy", np.array([1, np.inf], np.float32))
    assert "a.npy" in judge.undefined(tmp_path)


def test_a_byte_makes_a_difference_and_times_do_not(tmp_path: Path) -> None:
    for name, seconds, loss in (("a", 1, 0.5), ("b", 2, 0.5), ("c", 1, 0.25)):
        (tmp_path / name / "out").mkdir(parents=True)
        (tmp_path / name / "out" / "result.json").write_text(json.dumps({"seconds": seconds, "loss": loss}))
    a, b, c = (tmp_path / name / "out" for name in "abc")
    assert not judge.difference(a, b) and "result.json differs" in judge.difference(a, c)
    (b / "checkpoint").touch()
    assert "checkpoint is left over" in judge.difference(b, a) and "checkpoint is missing" in judge.difference(a, b)


def test_the_same_seed_damages_alike(tmp_path: Path) -> None:
    sound = json.dumps({"classes": 10, "shape": [1, 8, 8], "name": "x"}).encode()
    made = []
    for seed in (1, 1, 2, 3, 4):
        (tmp_path / "card.json").write_bytes(sound)
        mutations.damage(tmp_path / "card.json", Random(seed))
        file = tmp_path / "card.json"
        made.append(file.read_bytes() if file.is_file() else None)
        if file.is_dir() or file.is_symlink():
            file.rmdir() if file.is_dir() else file.unlink()
    assert made[0] == made[1] and len({*made, sound}) > 3


def test_a_line_that_was_torn_is_attempted_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"kind": "kills", "index": 0}\n{"kind": "kil')
    journal = campaign.Journal(path)
    journal.add({"kind": "kills", "index": 1})
    assert [line["index"] for line in campaign.Journal(path).lines] == [0, 1]


def test_the_record_is_a_result_of_the_page(tmp_path: Path) -> None:
    lines = [
        {"kind": "kills", "command": "search darts", "kills": 2, "problem": "", "seconds": 3.0},
        {"kind": "flags", "command": "train", "kills": 0, "problem": "traceback: KeyError", "seconds": 1.0},
    ]
    content = record.record(lines, 0, 1.0, 2, {"cpu": "x", "cores": 2, "memory_gb": 8.0})
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "campaign-cpu.json").write_text(json.dumps(content))
    results.results(tmp_path / "results")
    page = (tmp_path / "results.md").read_text()
    assert "| search darts | 2 |" in page and "| tracebacks, or faults of the program (exit 70) | 1 |" in page
