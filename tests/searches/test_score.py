"""The command `phosphene score`: what it takes and remembers, in what order it shows, and that it can be killed."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_scoring import draws, images, made_of, make

from phosphene import spaces
from phosphene.core import Architecture
from phosphene.costs import budget as costs
from phosphene.data.dataset import ImageDataset
from phosphene.errors import Estimate, PhospheneError, RunError, SettingsError
from phosphene.runtime.machine import machine as decide_machine
from phosphene.runtime.parallel import Jobs
from phosphene.runtime.run import Run
from phosphene.searches import notation
from phosphene.searches import score as command
from phosphene.searches.score import ranks, score
from phosphene.searches.supernet import data as halves
from phosphene.searches.supernet import score_cache
from phosphene.searches.supernet.evaluator import EvaluatorSetup, canonical
from phosphene.searches.supernet.score_cache import ScoreCache

HERE = {"device": "cpu", "precision": "fp32"}
FEW = {"held_out": 3, "calibration": 2, "score_batch": 8}


def labelled(count: int = 48) -> Any:
    return images(count, soft=False)


def test_rows_have_scores_and_costs_and_the_best_comes_first(tmp_path: Path) -> None:
    space: Any = make("macro", tmp_path)
    codes = ["012", "211", "000", "222"]
    done = score(tmp_path, codes, data=labelled(), out=tmp_path / "run", **FEW, **HERE)
    rows = done["scores"]
    assert sorted(row["architecture"] for row in rows) == sorted(codes)
    assert [row["kl"] for row in rows] == sorted((row["kl"] for row in rows), reverse=True)
    for row in rows:
        assert (row["params"], row["macs"]) == costs.measure(space, space.choices(row["architecture"]))
        assert 0 <= row["accuracy"] <= 100
    assert done["images"] == 9 and done["by"] == "kl" and done["temperature"] == 1.0
    with open(tmp_path / "run/table.csv", newline="") as file:
        assert [row["architecture"] for row in csv.DictReader(file)] == [row["architecture"] for row in rows]
    assert json.loads((tmp_path / "run/result.json").read_text())["scores"] == rows
    again = score(tmp_path, codes[::-1], data=labelled(), out=tmp_path / "other", by="accuracy", **FEW, **HERE)
    accuracies = [row["accuracy"] for row in again["scores"]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert sorted(again["scores"], key=str) == sorted(rows, key=str)


def test_both_orders_by_the_mean_of_two_ranks(tmp_path: Path) -> None:
    assert ranks([3.0, 1.0, 3.0, 2.0]) == [2.5, 0.0, 2.5, 1.0]
    make("macro", tmp_path)
    codes = [f"{a}{b}1" for a in range(3) for b in range(3)]
    rows = score(tmp_path, codes, data=labelled(), by="both", **FEW, **HERE)["scores"]
    both = np.add(*(ranks([row[key] for row in rows]) for key in ("kl", "accuracy")))
    assert (np.diff(both) <= 0).all()


def test_an_architecture_may_be_a_text_a_file_a_list_or_a_run(tmp_path: Path) -> None:
    space: Any = make("macro", tmp_path)
    choices = space.choices("120")
    Architecture(space.spec, choices).save(tmp_path / "arch.json")
    (tmp_path / "codes.txt").write_text("012\n\n 120 \n")
    asked = ["222", tmp_path / "codes.txt", tmp_path / "arch.json", tmp_path, Architecture(space.spec, choices)]
    done = score(tmp_path, asked, data=labelled(), **FEW, **HERE)  # type: ignore[arg-type]
    names = {row["architecture"]: row["kl"] for row in done["scores"]}
    assert set(names) == {"222", "012", "120", str(tmp_path / "arch.json"), str(tmp_path)}
    assert names["120"] == names[str(tmp_path)] == names[str(tmp_path / "arch.json")]


@pytest.mark.parametrize("space", ["darts", "nasbench201", "shufflenet", "mbconv"])
def test_every_spaces_own_text_is_understood(space: str, tmp_path: Path) -> None:
    made = make(space, tmp_path)
    choices = draws(made, 1)[0]
    done = score(tmp_path, [notation(made, choices)], data=labelled(), **FEW, **HERE)
    setup = EvaluatorSetup(tmp_path, *halves.hold_out(labelled(), 3, 0), batch=8, calibration=2)
    assert done["scores"][0]["kl"] == setup.evaluator()([canonical(made, choices)])[0].kl


@pytest.mark.parametrize(
    ("archs", "settings", "says"),
    [
        (["darts-v2"], {}, "of the darts space is no path of a supernet of macro"),
        (["nonsense"], {}, "nonsense"),
        (["2222"], {}, "2222"),
        ([], {}, "no architecture to score"),
        (["222"], {"held_out": 17}, "--held-out 17 images of each class cannot be had"),
        (["222"], {"calibration": -1}, "--calibration must be at least 0"),
        (["222"], {"data": None}, "--data is missing"),
    ],
)
def test_what_cannot_be_scored_is_refused(archs: list[str], settings: Any, says: str, tmp_path: Path) -> None:
    make("macro", tmp_path)
    with pytest.raises(PhospheneError, match=says):
        score(tmp_path, archs, out=tmp_path / "run", **{"data": labelled(), **FEW, **HERE, **settings})
    assert not (tmp_path / "run").exists()


# -- what is remembered ------------------------------------------------------------------------------------------------


class InjectedError(Exception):
    pass


def test_a_killed_list_goes_on_and_ends_in_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("macro", tmp_path)
    monkeypatch.setattr(command, "CHUNK", 2)
    codes = ["012", "211", "000", "222", "100"]
    score(tmp_path, codes, data=labelled(), out=tmp_path / "a", **FEW, **HERE)

    def fail(phase: str, step: int) -> None:
        if step == 1:
            raise InjectedError

    monkeypatch.setenv("PHOSPHENE_CHECKPOINT_SECONDS", "0")
    monkeypatch.setattr(Run, "after_step", staticmethod(fail))
    with pytest.raises(InjectedError):
        score(tmp_path, codes, data=labelled(), out=tmp_path / "b", **FEW, **HERE)
    monkeypatch.setattr(Run, "after_step", None)
    with open(tmp_path / "b/scores.jsonl", "a") as file:
        file.write('{"options": [1, 0')  # the kill came while it wrote
    score(tmp_path, codes, data=labelled(), out=tmp_path / "b", **FEW, **HERE)
    for name in ("result.json", "table.csv", "scores.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def cache_of(folder: Path, jobs: int = 1, **settings: Any) -> ScoreCache:
    space = spaces.space(json.loads((folder / "supernet.json").read_text())["space"])
    setup = EvaluatorSetup(folder, images(40), images(48), batch=10, calibration=2)
    return ScoreCache(space, setup, folder / "scores.jsonl", decide_machine("cpu", "fp32"), Jobs(jobs=jobs), **settings)


def test_scores_are_never_worked_out_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = make("macro", tmp_path)
    one, two = made_of(space, (1, 2, 0)), made_of(space, (0, 0, 0))
    scores = cache_of(tmp_path)
    first = scores([one, two, one])
    assert first[0] == first[2] != first[1]
    monkeypatch.setattr(score_cache, "score_part", None)
    assert scores([two, one]) == [first[1], first[0]]
    assert cache_of(tmp_path)([two, one]) == [first[1], first[0]]
    assert cache_of(tmp_path).by("accuracy")([two]) == [first[1].accuracy]


def test_networks_alike_have_one_score_unless_paths_are_asked_for(tmp_path: Path) -> None:
    space: Any = spaces.space({"name": "macro", "shape": [1, 8, 8], "classes": 3, "channels": 4, "last": 8})
    alike = [space.choices(code) for code in ("11101201", "11110210")]
    paths = {"macro": {"channels": 4, "last": 8}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("test_scoring.SPECS", paths)
        make("macro", tmp_path)
    one, other = cache_of(tmp_path)(alike)
    assert one == other
    (tmp_path / "scores.jsonl").unlink()
    one, other = cache_of(tmp_path, paths=True)(alike)
    assert one != other


def test_processes_side_by_side_give_the_same_bits(tmp_path: Path) -> None:
    space = make("macro", tmp_path)
    candidates = [made_of(space, (a, b, c)) for a in range(3) for b in range(3) for c in range(2)]
    alone = cache_of(tmp_path)(candidates)
    (tmp_path / "scores.jsonl").unlink()
    assert cache_of(tmp_path, jobs=2)(candidates) == alone


def test_a_journal_of_something_else_is_refused(tmp_path: Path) -> None:
    make("macro", tmp_path)
    (tmp_path / "scores.jsonl").write_text('{"options": [1], "kl": 0.0, "accuracy": 0.0}\n')
    with pytest.raises(RunError, match="another space"):
        cache_of(tmp_path)
    (tmp_path / "scores.jsonl").write_text("hello\n")
    with pytest.raises(RunError, match="line 1 is damaged"):
        cache_of(tmp_path)


def test_estimate_leaves_nothing(tmp_path: Path) -> None:
    make("macro", tmp_path)
    with pytest.raises(Estimate) as caught:
        score(tmp_path, ["222", "111"], data=labelled(), out=tmp_path / "run", estimate=True, **FEW, **HERE)
    assert caught.value.needs["minutes"] >= 0 and not (tmp_path / "run").exists()


# -- the parts of the data -----------------------------------------------------------------------------------------


def test_so_many_images_of_each_class_are_held_out() -> None:
    data = labelled(50)
    train, valid = halves.hold_out(data, 4, 1)
    assert np.bincount(valid.labels).tolist() == [4, 4, 4] and len(train) + len(valid) == 50
    stored = [{x.numpy().tobytes() for x in part.pixels(range(len(part)))} for part in (train, valid)]
    assert not stored[0] & stored[1]
    assert halves.hold_out(data, 4, 1)[1].fingerprint == valid.fingerprint
    assert halves.hold_out(data, 4, 2)[1].fingerprint != valid.fingerprint
    for each in (0, 17):
        with pytest.raises(SettingsError, match=f"--held-out {each}"):
            halves.hold_out(data, each, 0)


def test_rare_classes_give_no_more_than_half_of_their_images() -> None:
    """Of noise, a teacher calls few images by some classes, and of some one image alone."""
    classes = [0] * 40 + [1] * 5 + [2]
    pixels = np.zeros((46, 1, 4, 4), dtype=np.uint8)
    data = ImageDataset.from_arrays(pixels, labels=np.array(classes), classes=4)
    train, valid = halves.hold_out(data, 8, 0)
    assert np.bincount(valid.labels, minlength=4).tolist() == [8, 2, 0, 0]
    assert np.bincount(train.labels, minlength=4).tolist() == [32, 3, 1, 0]


def test_a_supernet_is_scored_on_what_it_was_not_trained_on() -> None:
    data = labelled(60)
    split = {"data": data.fingerprint, "validation": "split", "fraction": 0.5, "seed": 3}
    held = {"data": data.fingerprint, "held_out": 5, "seed": 3}
    assert halves.parts(data, split, None, 0)[1].fingerprint == data.split(0.5, 3)[1].fingerprint
    assert halves.parts(data, held, None, 0)[1].fingerprint == halves.hold_out(data, 5, 3)[1].fingerprint
    assert halves.parts(data, held, 2, 0)[1].fingerprint == halves.hold_out(data, 2, 0)[1].fingerprint
    assert len(halves.parts(labelled(50), held, None, 0)[1]) == 9  # another set: a fifth of each class, on average
