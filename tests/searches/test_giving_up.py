"""Early rejection after a partial evaluation: by the rule as written, never of the best, the same ones in any run."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_scoring import images, made_of, make

from phosphene import spaces
from phosphene.errors import SettingsError
from phosphene.runtime.machine import machine as decide_machine
from phosphene.runtime.parallel import Jobs
from phosphene.runtime.run import Run
from phosphene.searches.evolution import evolution
from phosphene.searches.pareto import pareto
from phosphene.searches.score import score
from phosphene.searches.supernet import early_stopping, score_cache
from phosphene.searches.supernet.early_stopping import EarlyRejection, Reference
from phosphene.searches.supernet.evaluator import EvaluatorSetup, Figures
from phosphene.searches.supernet.score_cache import ScoreCache
from stopping import InjectedError, Steps, contents

HERE = {"device": "cpu", "precision": "fp32"}
FEW = {"held_out": 15, "calibration": 4, "score_batch": 8}
CODES = ["".join(map(str, code)) for code in itertools.product(range(3), repeat=3)]


@pytest.fixture(autouse=True)
def small_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """27 candidates are several rounds, and half a deviation is enough: a supernet of noise tells little apart."""
    monkeypatch.setattr(score_cache, "ROUND", 8)
    monkeypatch.setattr(early_stopping, "MIN_REFERENCES", 4)
    monkeypatch.setattr(early_stopping, "DEVIATIONS", 0.5)


def data() -> Any:
    return images(96, soft=False)


def references(figures: Sequence[tuple[float, float]]) -> list[Reference]:
    return [Reference({"a": k}, Figures(first, 0.0), Figures(full, 0.0)) for k, (first, full) in enumerate(figures)]


# -- the rule ----------------------------------------------------------------------------------------------------------


def test_the_rule_is_the_one_that_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_stopping, "DEVIATIONS", 3.0)
    known = references([(-1.0, -1.1), (-0.9, -1.2), (-1.4, -1.4), (-1.3, -1.5)])
    changes = [-0.1, -0.3, 0.0, -0.2]
    doubt = 3 * np.std(changes, ddof=1) * (1 + 1 / 4) ** 0.5
    for best, bar in ((1, -1.1), (2, -1.2), (4, -1.5)):
        (threshold,) = EarlyRejection(best, "kl").thresholds([{"a": 9}], known)
        assert threshold == pytest.approx(bar - (-0.15) - doubt)
    assert EarlyRejection(5, "kl").thresholds([{"a": 9}], known) == [-np.inf]  # there are no five
    assert EarlyRejection(1, "kl").thresholds([{"a": 9}], known[:3]) == [-np.inf]  # too few to know the changes by
    found = EarlyRejection(1, "kl").predicted(Figures(-1.0, 0.5), known)
    assert found.kl == pytest.approx(-1.15) and found.accuracy == 0.5
    assert EarlyRejection(1, "kl").predicted(
        Figures(-1.0, 0.5), [Reference({}, Figures(-1, 0), Figures(0.5, 0.9))]
    ) == (0.0, 1.0)


def test_a_soft_target_and_a_fronts_costs_move_the_bar() -> None:
    known = references([(-1.0, -1.0), (-2.0, -2.0), (-3.0, -3.0), (-4.0, -4.0)])
    loss = EarlyRejection(1, "kl", penalty=lambda made: [5.0, 0.0, 0.0, 0.0, 0.25][made["a"]])
    assert loss.thresholds([{"a": 4}], known) == [-1.75]  # the first one loses 5, the candidate .25
    front = EarlyRejection(1, "kl", costs=lambda made: [made["a"], 1.0])
    assert front.thresholds([{"a": 0}, {"a": 2}, {"a": 3}], known) == [-1.0, -1.0, -1.0]
    dear = EarlyRejection(1, "kl", costs=lambda made: [-made["a"], 1.0])
    assert dear.thresholds([{"a": 0}, {"a": 2}, {"a": 7}], known) == [-1.0, -3.0, -np.inf]


# -- scores ------------------------------------------------------------------------------------------------------------


def cache_of(folder: Path, name: str, jobs: int = 1, **settings: Any) -> ScoreCache:
    space = spaces.space(json.loads((folder / "supernet.json").read_text())["space"])
    setup = EvaluatorSetup(folder, images(40), images(96), batch=10, calibration=3)
    return ScoreCache(space, setup, folder / name, decide_machine("cpu", "fp32"), Jobs(jobs=jobs), **settings)


def test_the_best_are_exact_and_the_others_foreseen(tmp_path: Path) -> None:
    space = make("macro", tmp_path)
    candidates = [made_of(space, tuple(map(int, code))) for code in CODES]
    exact = cache_of(tmp_path, "exact")(candidates)
    racing = cache_of(tmp_path, "raced", rejection=EarlyRejection(3, "kl"))
    found = racing(candidates)
    stopped = [racing.stopped_early(choices) for choices in candidates]
    assert 3 <= sum(stopped) == racing.stopped <= 24
    assert all(a == b for a, b, early in zip(exact, found, stopped, strict=True) if not early)
    assert all(a != b for a, b, early in zip(exact, found, stopped, strict=True) if early)
    order = sorted(range(27), key=lambda k: -found[k].kl)
    assert not any(stopped[k] for k in order[:3])
    lines = [json.loads(line) for line in (tmp_path / "raced").read_text().splitlines()]
    assert sum(line.get("stopped_early", False) for line in lines) == racing.stopped
    assert all({"kl", "accuracy"} == set(line["first"]) for line in lines)
    again = cache_of(tmp_path, "raced", rejection=EarlyRejection(3, "kl"))
    assert again(candidates) == found and again.stopped == racing.stopped


def test_jobs_kills_and_the_order_change_nothing(tmp_path: Path) -> None:
    """A journal cut anywhere goes on to the same lines, as do two processes, and candidates in another order."""
    space = make("macro", tmp_path)
    candidates = [made_of(space, tuple(map(int, code))) for code in CODES]
    first, second = candidates[::2], candidates[1::2]

    def lines(name: str, turn: int = 1, **settings: Any) -> bytes:
        scores = cache_of(tmp_path, name, rejection=EarlyRejection(3, "kl"), **settings)
        for part in (first, second):
            scores(part[::turn])
        scores.close()
        return (tmp_path / name).read_bytes()

    wanted = lines("whole")
    assert wanted.count(b"stopped_early") >= 3
    assert lines("turned", -1) == wanted == lines("two", jobs=2)
    scores = cache_of(tmp_path, "unsorted", rejection=EarlyRejection(3, "kl"))
    for part in (first, second):
        scores(part)
    came = (tmp_path / "unsorted").read_bytes().splitlines(keepends=True)
    for kept in (3, 11, 20):
        (tmp_path / "cut").write_bytes(b"".join(came[:kept]) + came[kept][:9])
        assert lines("cut") == wanted


# -- commands ----------------------------------------------------------------------------------------------------------


def test_score_marks_its_rows_and_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("macro", tmp_path)
    given: dict[str, Any] = {"data": data(), "give_up": 2, **FEW, **HERE}
    done = score(tmp_path, CODES, out=tmp_path / "a", **given)
    plain = {row["architecture"]: row for row in score(tmp_path, CODES, data=data(), **FEW, **HERE)["scores"]}
    marked = [row for row in done["scores"] if row["stopped_early"]]
    assert marked and not any(row["stopped_early"] for row in done["scores"][:2])
    for row in done["scores"]:
        assert row["stopped_early"] or row == {**plain[row["architecture"]], "stopped_early": False}
    with open(tmp_path / "a/table.csv", newline="") as file:
        assert [row["stopped_early"] for row in csv.DictReader(file)].count("True") == len(marked)

    def fail(phase: str, step: int) -> None:
        if step == 1:
            raise InjectedError

    monkeypatch.setenv("PHOSPHENE_CHECKPOINT_SECONDS", "0")
    monkeypatch.setattr(Run, "after_step", staticmethod(fail))
    with pytest.raises(InjectedError):
        score(tmp_path, CODES, out=tmp_path / "b", **given)
    monkeypatch.setattr(Run, "after_step", None)
    score(tmp_path, CODES, out=tmp_path / "b", **given)
    for name in ("result.json", "table.csv", "scores.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def finished(folder: Path) -> Any:
    """A run folder with a supernet, as a search leaves it."""
    space: Any = make("macro", folder)
    (folder / "arch.json").write_text(json.dumps({"space": space.spec, "choices": space.choices("012")}))
    return space


def test_no_parent_and_no_result_of_evolution_is_foreseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phosphene.spaces.blocks.chain.ChainSpace.draw", lambda *_, **__: None)
    finished(tmp_path)
    own = {"method": "population", "generations": 4, "population": 6, "top": 2, "mutants": 2, "crossings": 2}
    own |= {"held_out": 15, "calibration": 2, "supernet": tmp_path, "give_up": 2, "macs": "~20K", **HERE}
    found = evolution(data(), out=tmp_path / "e", **own)  # type: ignore[arg-type]
    archive = json.loads((tmp_path / "e/evolution.json").read_text())
    assert any(entry.get("stopped_early") for entry in archive)
    for step in range(4):
        best = sorted((e for e in archive if e["step"] <= step), key=lambda entry: -entry["score"])
        assert not any(entry.get("stopped_early") for entry in best[:2])
    assert found.result["score"] == max(entry["score"] for entry in archive)
    picture = (tmp_path / "e/evolution.png").read_bytes()
    assert picture[:4] == b"\x89PNG"


def test_scores_that_a_damaged_journal_has_lost_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(tmp_path)
    own = {"candidates": 6, "population": 3, "drawn": 2, "supernet": tmp_path, **FEW, **HERE}
    evolution(data(), out=tmp_path / "whole", **own)  # type: ignore[arg-type]
    steps = Steps(monkeypatch)
    steps.stop = 3
    with pytest.raises(InjectedError):
        evolution(data(), out=tmp_path / "damaged", **own)  # type: ignore[arg-type]
    journal = tmp_path / "damaged" / "scores.jsonl"
    journal.write_bytes(bytes(journal.stat().st_size))
    evolution(data(), out=tmp_path / "damaged", **own)  # type: ignore[arg-type]
    assert contents(tmp_path / "damaged") == contents(tmp_path / "whole")


def test_nothing_on_a_front_is_foreseen(tmp_path: Path) -> None:
    pytest.importorskip("pymoo", reason="needs the extra pareto")
    finished(tmp_path)
    own: dict[str, Any] = {"steps": 4, "population": 8, "give_up": 1, "costs": "macs", **FEW, **HERE}
    found = pareto(tmp_path, data=data(), out=tmp_path / "p", **own)
    assert found.result["stopped_early"] > 0
    lines = [json.loads(line) for line in (tmp_path / "p/scores.jsonl").read_text().splitlines()]
    stopped = {tuple(line["options"]) for line in lines if line.get("stopped_early")}
    front = json.loads((tmp_path / "p/front.json").read_text())["front"]
    assert len(stopped) == found.result["stopped_early"]
    assert not any(tuple(int(digit) for digit in row["architecture"]) in stopped for row in front)


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    finished(tmp_path)
    with pytest.raises(SettingsError, match="--give-up must be at least 1"):
        score(tmp_path, CODES, data=data(), give_up=0, **FEW, **HERE)
    with pytest.raises(SettingsError, match="--give-up needs one figure"):
        score(tmp_path, CODES, data=data(), give_up=3, by="both", **FEW, **HERE)
    with pytest.raises(SettingsError, match="--give-up 5 is less than --top 10"):
        evolution(data(), supernet=tmp_path, method="population", give_up=5)
    with pytest.raises(SettingsError, match="--give-up must be at least 1"):
        evolution(data(), supernet=tmp_path, give_up=0)


def test_without_it_journals_are_as_they_were(tmp_path: Path) -> None:
    space = make("macro", tmp_path)
    cache_of(tmp_path, "plain")([made_of(space, (0, 1, 2))])
    assert set(json.loads((tmp_path / "plain").read_text())) == {"options", "kl", "accuracy"}
