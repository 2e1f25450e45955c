"""The collapse study: what it reads from searches, what it counts, and that it goes on where it was stopped."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from phosphene.data.dataset import ImageDataset
from phosphene.drawing import figure_style as figures
from phosphene.errors import Estimate, RunError, SettingsError, Stopped
from phosphene.runtime.run import Run
from phosphene.searches import outcome as found
from phosphene.spaces.darts.genotype import PUBLISHED, parse
from phosphene.studies import collapse as study
from phosphene.studies import datasets

SMALL = {"epochs": 2, "warm_up": 1, "batch": 5, "channels": 4, "cells": 3, "nodes": 2}
SMALL |= {"device": "cpu", "precision": "fp32"}


@pytest.fixture(autouse=True)
def without_pictures_of_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than the searches here, and is tested elsewhere."""
    monkeypatch.setattr(found, "draw_cells", lambda *_: None)
    monkeypatch.setattr(found, "plot", lambda *_: None)


def genotype(skips: int) -> str:
    """Four nodes; so many skips in the normal cell, none in the other."""
    sources = [0, 1, 0, 1, 0, 1, 0, 1]
    normal = [("skip_connect" if k < skips else "sep_conv_3x3", source) for k, source in enumerate(sources)]
    reduce = [("max_pool_3x3", source) for source in sources]
    return f"Genotype(normal={normal}, normal_concat=range(2, 6), reduce={reduce}, reduce_concat=range(2, 6))"


def searched(folder: Path, skips: list[int], *, warm_up: int = 0, seed: int = 0, stage: str = "search") -> Path:
    """A finished search whose genotype had so many skips after each epoch that followed the warm-up."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"stage": stage, "seed": seed, "identity": folder.name}))
    lines: list[dict[str, Any]] = [{"phase": "supernet", "step": 0, "loss": 1.0}]
    epochs = [8] * warm_up + skips
    lines += [{"phase": "supernet", "epoch": e, "genotype": genotype(n)} for e, n in enumerate(epochs, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "result.json").write_text("{}")
    alphas = np.zeros((len(epochs) + 1, 3, 2), np.float32)
    alphas[warm_up + 1 :] = np.arange(1, len(skips) + 1)[:, None, None]
    np.save(folder / "alphas.npy", alphas)
    return folder


def data_set(name: str, count: int, random: bool = False) -> str:
    pixels = np.random.default_rng(7).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)
    data = ImageDataset.from_arrays(pixels, labels=np.arange(count) % 3, classes=3, name=name, random_labels=random)
    data.save(Path(name))
    return name


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_counts_are_those_of_the_genotype() -> None:
    counted = study.counts(parse(PUBLISHED["darts-v2"]))
    by_name = [dict(zip(study.OPTIONS, cell, strict=True)) for cell in counted]
    assert {k: v for k, v in by_name[0].items() if v} == {"sep_conv_3x3": 5, "skip_connect": 2, "dil_conv_3x3": 1}
    assert {k: v for k, v in by_name[1].items() if v} == {"max_pool_3x3": 5, "skip_connect": 3}


def test_epochs_count_from_the_first_step_of_the_architecture(tmp_path: Path) -> None:
    """In the warm-up the genotype is that of a tie: it must not count as a collapse."""
    counts = study.history(searched(tmp_path / "a", [0, 1, 2], warm_up=5))
    assert counts[:, 0, study.SKIP].tolist() == [0, 1, 2]
    assert counts.shape == (3, 2, 7) and (counts.sum(2) == 8).all()
    assert len(study.history(searched(tmp_path / "b", [3, 3], warm_up=0))) == 2


def test_what_is_no_finished_search_is_named(tmp_path: Path) -> None:
    going = searched(tmp_path / "going", [1])
    (going / "result.json").unlink()
    trained = searched(tmp_path / "trained", [1], stage="train")
    drawn = searched(tmp_path / "drawn", [])
    torn = searched(tmp_path / "torn", [1])
    (torn / "metrics.jsonl").write_text("{\n")
    for folder, said in ((going, "no finished search"), (trained, "no finished search"), (drawn, "no genotypes")):
        with pytest.raises(RunError, match=f"{folder.name}.*{said}"):
            study.collapse(runs=[str(folder)], out=tmp_path / f"of-{folder.name}")
    with pytest.raises(RunError, match=r"metrics.jsonl, line 1"):
        study.collapse(runs=[str(torn)], out=tmp_path / "of-torn")
    with pytest.raises(RunError, match="nowhere is no run folder"):
        study.collapse(runs=["nowhere"])
    with pytest.raises(SettingsError, match="either --data"):
        study.collapse()
    with pytest.raises(SettingsError, match="two searches called a, seed 0"):
        study.collapse(runs=[f"a={torn}", f"a={going}"])


def test_searches_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    names = ["search-real-0", "search-real-1", "search-noise-0"]
    folders = [searched(tmp_path / name, [0], seed=int(name[-1])) for name in names]
    named = study.named_searches([*map(str, folders[:2]), f"grey noise={folders[2]}"])
    assert [(name, seed) for name, seed, _ in named] == [("real", 0), ("real", 1), ("grey noise", 0)]
    alone = study.named_searches([str(folders[0]), str(folders[1])])
    assert [name for name, _, _ in alone] == ["search-real", "search-real"]


def test_figures_of_finished_searches(tmp_path: Path) -> None:
    """Means, deviations and first epochs, against numbers worked out by hand."""
    searched(tmp_path / "real-0", [1, 4, 6])
    searched(tmp_path / "real-1", [1, 2, 4, 8], seed=1)
    searched(tmp_path / "noise-0", [1, 0, 1], warm_up=2)
    given = [str(tmp_path / name) for name in ("real-0", "real-1", "noise-0")]
    told = study.collapse(runs=given, out=tmp_path / "study")["collapse"]
    assert told["real"] == {
        "searches": 2,
        "epochs": 3,  # of the shorter one
        "skips": 5.0,
        "skips_sd": 1.4142,
        "skips_both_cells": 5.0,
        "most": 5.0,
        "each_last": [6, 4],
        "first_4": [2, 3],
        "first_6": [3, None],
    }
    assert told["noise"]["skips_sd"] is None and told["noise"]["first_4"] == [None]
    table = rows(tmp_path / "study" / "table.csv")
    assert len(table) == (3 + 4 + 3) * 2 * 7
    skips = [r for r in table if r["data"] == "real" and r["seed"] == "1" and r["operation"] == "skip_connect"]
    assert [int(r["count"]) for r in skips if r["kind"] == "normal"] == [1, 2, 4, 8]
    assert json.loads((tmp_path / "study" / "result.json").read_text())["collapse"] == told


def test_every_data_set_has_its_line_and_every_operation_its_area(tmp_path: Path) -> None:
    for name, skips in (("real", [0, 3, 6, 6]), ("noise", [1, 1, 0, 1])):
        searched(tmp_path / name, skips)
    study.collapse(runs=[str(tmp_path / "real"), str(tmp_path / "noise")], out=tmp_path / "study")
    lines = pixels(tmp_path / "study" / "skips.png")
    for colour in figures.COLOURS[:2]:
        assert near(lines, colour) > 200
    assert near(lines, figures.COLOURS[2]) == 0
    areas = pixels(tmp_path / "study" / "operations.png")
    pools = near(areas, study.SHADES["max_pool_3x3"])  # the two right of the four panels, all of them
    assert 0.25 < pools / len(areas) < 0.45
    assert near(areas, study.SHADES["dil_conv_3x3"]) < 0.01 * len(areas), "only in the legend"


def pixels(path: Path) -> np.ndarray:
    return np.array(Image.open(path))[..., :3].reshape(-1, 3).astype(int)


def near(flat: np.ndarray, colour: str) -> int:
    wanted = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
    return int((np.abs(flat - wanted).sum(1) < 6).sum())


def test_killed_in_the_middle_it_goes_on_and_ends_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = [data_set("real", 40), data_set("noise", 24, random=True)]
    whole = study.collapse(data=sets, out=Path("whole"), **SMALL)
    assert list(whole["collapse"]) == ["real", "noise"] and whole["images"] == 20

    steps: list[str] = []

    def stop(phase: str, step: int) -> None:
        steps.append(phase)
        if len(steps) == 17:  # in the second search
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Run, "after_step", staticmethod(stop))
    with pytest.raises(Stopped, match="1 of 2 finished; run the same command"):
        study.collapse(data=sets, out=Path("killed"), **SMALL)
    assert not Path("killed/result.json").exists()
    study.collapse(data=sets, out=Path("killed"), **SMALL)
    for name in ("result.json", "table.csv"):
        assert Path("killed", name).read_bytes() == Path("whole", name).read_bytes()

    steps[:] = ["none"] * 100
    study.collapse(data=sets, out=Path("killed"), **SMALL)
    assert len(steps) == 100, "what is finished is not run again"
    more = study.collapse(data=sets[:1], out=Path("killed"), seeds=2, **SMALL)
    assert more["collapse"]["real"]["searches"] == 2 and 100 < len(steps) < 120, "one search more"

    made = [json.loads(Path(f"whole/searches/{name}-0/result.json").read_text())["steps"] for name in sets]
    assert made == [12, 12], "as many images train the weights, so an epoch is as many steps"


def test_another_study_does_not_go_into_its_folder(tmp_path: Path) -> None:
    searched(tmp_path / "a", [1])
    study.collapse(runs=[str(tmp_path / "a")], out=Path("out"))
    with pytest.raises(RunError, match="holds another run"):
        study.collapse(data=[data_set("d", 24)], out=Path("out"), **SMALL)


def test_an_estimate_is_of_all_searches_and_writes_nothing() -> None:
    sets = [data_set("real", 40), data_set("noise", 24, random=True)]
    with pytest.raises(Estimate) as raised:
        study.collapse(data=sets, out=Path("o"), seeds=3, estimate=True, **SMALL)
    assert raised.value.needs["calls"] == 6 and raised.value.needs["minutes"] > 0
    assert not Path("o").exists() and not Path("runs").exists()


def test_data_sets_of_one_name_are_told_apart() -> None:
    assert datasets.apart(["a", "b", "a", "a", "a-2"]) == ["a", "b", "a-3", "a-4", "a-2"]
    for name in ("noise 1", "noise/1"):
        ImageDataset.from_arrays(np.zeros((4, 1, 8, 8), np.uint8), labels=[0, 1, 0, 1], name=name).save(Path(name))
    assert list(datasets.opened(["noise 1", "noise/1"])) == ["noise-1", "noise-1-2"]


def test_settings_that_cannot_be_used_are_named() -> None:
    sets = [data_set("real", 40)]
    for settings, said in (
        ({"seeds": 0}, "--seeds must be at least 1"),
        ({"images": 21}, "--images 21 is more than real has; give at most 20"),
    ):
        with pytest.raises(SettingsError, match=said):
            study.collapse(data=sets, out=Path("o"), **{**SMALL, **settings})
