"""Data sets that were damaged: while they were written, in their arrays, and in their cards."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_dataset import CARD, files, labelled, pixels, scores, write

from phosphene import evaluate, train
from phosphene.data import stored, targets
from phosphene.data.dataset import ImageDataset
from phosphene.data.writer import Writer
from phosphene.errors import DatasetError
from phosphene.searches.supernet.data import Halves, hold_out
from phosphene.storage import checksums
from phosphene.synthesis.unreal import random_labels

ARRAYS = ("images", "logits", "seeds")


@pytest.fixture
def no_memory_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process: no file was compared yet."""
    monkeypatch.setattr(checksums, "_verified", set())
    monkeypatch.setattr(stored, "_finite", set())


# -- while it is written -----------------------------------------------------------------------------------------------


def delete(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 5] ^= 1
    path.write_bytes(content)


def garble(path: Path) -> None:
    path.write_bytes(b"no header" * 20)


@pytest.mark.parametrize("harm", [delete, empty, cut, flip, garble])
@pytest.mark.parametrize("name", ARRAYS)
def test_what_was_damaged_half_way_is_made_again(
    tmp_path: Path, harm: Callable[[Path], None], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Writer.create(tmp_path / "whole", CARD, 30, seeds=3)
    write(whole, [0, 1, 2, 3, 4])
    whole.close()
    write(Writer.create(tmp_path / "d", CARD, 30, seeds=3), [0, 1, 2, 3])
    harm(tmp_path / "d" / f"{name}.npy")
    again = Writer.create(tmp_path / "d", CARD, 30, seeds=3)
    lost = {0, 1, 2, 3} - again.done
    assert len(lost) == 1 if harm is flip else lost
    assert f"{6 * len(lost)} images that were written are damaged or lost" in capsys.readouterr().err
    write(again, again.missing(range(5)))
    again.close()
    assert files(tmp_path / "d") == files(tmp_path / "whole")


LINES = [
    b"{",
    b"[]",
    b"3",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"chain": 9, "slots": [[0, 6]], "facts": {}, "of": "x"}',
    b'{"chain": "9", "slots": [[0, 6]], "facts": {}, "of": "x", "sha256": {}}',
    b'{"chain": 9, "slots": [[0, 1e30]], "facts": {}, "of": "x", "sha256": {}}',
    b'{"chain": 9, "slots": [[5, 3]], "facts": {}, "of": "x", "sha256": {}}',
    b'{"chain": 9, "slots": [], "facts": {}, "of": "x", "sha256": {}}',
    b'{"chain": 9, "slots": [[0, 99999999999999999999]], "facts": 1, "of": "x", "sha256": {}}',
]


@pytest.mark.parametrize("line", LINES)
def test_a_line_that_is_no_line_is_left_out(tmp_path: Path, line: bytes) -> None:
    write(Writer.create(tmp_path / "d", CARD, 30, seeds=3), [0, 1])
    with (tmp_path / "d" / "journal-0.jsonl").open("ab") as journal:
        journal.write(line + b"\n")
    again = Writer.create(tmp_path / "d", CARD, 30, seeds=3)
    assert again.done == {0, 1}
    write(again, [2, 3, 4])
    again.close()
    assert len(ImageDataset.open(tmp_path / "d")) == 30


def test_an_array_that_goes_while_it_is_written(tmp_path: Path) -> None:
    writer = Writer.create(tmp_path / "d", CARD, 30, seeds=3)
    write(writer, [0, 1, 2, 3, 4])
    (tmp_path / "d" / "logits.npy").unlink()
    with pytest.raises(DatasetError, match=r"logits\.npy was removed in the meantime; run the same command again"):
        writer.close()
    again = Writer.create(tmp_path / "d", CARD, 30, seeds=3)
    write(again, again.missing(range(5)))
    again.close()
    assert np.abs(ImageDataset.open(tmp_path / "d").logits(range(30))).max() > 0


def test_a_folder_with_an_array_of_somebody_elses(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    np.save(tmp_path / "d" / "images.npy", pixels(3))
    with pytest.raises(DatasetError, match=r"images\.npy is there, but no data set around it; name another --out"):
        labelled().save(tmp_path / "d")
    assert np.array_equal(np.load(tmp_path / "d" / "images.npy"), pixels(3))


FULL = """
    import resource, signal, sys
    from phosphene import cli
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a full disk, as far as writing knows
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    sys.argv = ["phosphene", *sys.argv[1:]]
    cli.main()
"""


@pytest.mark.parametrize(
    "words",
    [
        ["unreal", "noise", "--images", "500", "--store", "--out", "d"],
        ["noise", "digits", "--images", "20000", "--out", "d", "--device", "cpu"],
        ["dataset", "import", "a.npz", "--out", "d"],
    ],
)
def test_no_room_is_said_before_a_map_is_killed(tmp_path: Path, words: list[str]) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2000, 1, 32, 32), np.uint8), labels=np.arange(2000) % 3)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL), *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2, (done.returncode, done.stderr[-500:])
    assert "images.npy cannot be written" in done.stderr and "MiB needed" in done.stderr


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_only_finite_values_are_written(tmp_path: Path, value: float) -> None:
    floats = (pixels() / 255).astype(np.float32)
    logits = scores()
    floats[17, 1, 2, 3], logits[5, 2] = value, value
    with pytest.raises(DatasetError, match=r"1 values of images are NaN or infinite, from image 17 on"):
        ImageDataset.from_arrays(floats, labels=np.zeros(60, int))
    with pytest.raises(DatasetError, match=r"logits have 1 values that are NaN or infinite, from image 5 on"):
        ImageDataset.from_arrays(pixels(), logits=logits)
    writer = Writer.create(tmp_path / "d", CARD, 30)
    with pytest.raises(DatasetError, match=r"d: 1 values of logits are NaN or infinite, from image 11 on"):
        writer.write(range(6, 12), pixels(6), logits=logits[:6])
    assert not writer.done


# -- when it is read ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["images", "logits", "seeds", "regions"])
def test_a_bit_that_was_flipped_is_noticed(tmp_path: Path, name: str, no_memory_of_files: None) -> None:
    grid = {"height": 4, "width": 4, "tops": [0, 4], "lefts": [0], "pad": 0, "mirror": False}
    regions = np.random.default_rng(0).normal(size=(60, 2, 5)).astype(np.float16)
    arrays = {"logits": scores(), "seeds": np.zeros((60, 3), np.int32), "regions": regions}
    ImageDataset.from_arrays(pixels(), **arrays, grid=grid).save(tmp_path / "d")
    checksums._verified.clear()
    ImageDataset.open(tmp_path / "d")
    flip(tmp_path / "d" / f"{name}.npy")
    with pytest.raises(DatasetError, match=rf"{name}\.npy was changed since it was written.*checksums\.json"):
        ImageDataset.open(tmp_path / "d")
    (tmp_path / "d" / "checksums.json").unlink()
    assert len(ImageDataset.open(tmp_path / "d")) == 60


def test_an_array_that_is_gone_is_noticed(tmp_path: Path) -> None:
    labelled().save(tmp_path / "d")
    (tmp_path / "d" / "labels.npy").unlink()
    with pytest.raises(DatasetError, match=r"labels\.npy is missing"):
        ImageDataset.open(tmp_path / "d")


def test_files_are_compared_once_a_process_and_not_in_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_memory_of_files: None
) -> None:
    data = labelled().save(tmp_path / "d")
    checksums._verified.clear()
    read: list[Path] = []
    digest = checksums.digest
    monkeypatch.setattr(checksums, "digest", lambda path: read.append(path) or digest(path))
    sent = pickle.dumps(data)
    pickle.loads(sent)
    assert not read
    for _ in range(3):
        ImageDataset.open(tmp_path / "d")
    assert sorted(path.name for path in read) == ["card.json", "images.npy", "labels.npy"]


def test_older_sets_are_read_for_finite_values_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_memory_of_files: None
) -> None:
    ImageDataset.from_arrays(pixels(), logits=scores()).save(tmp_path / "d")
    (tmp_path / "d" / "checksums.json").unlink()
    ImageDataset.open(tmp_path / "d")
    logits = np.load(tmp_path / "d" / "logits.npy")
    logits[7:9] = np.nan
    np.save(tmp_path / "d" / "logits.npy", logits)
    with pytest.raises(DatasetError, match=r"logits\.npy: 10 values of logits are NaN or infinite, from image 7 on"):
        ImageDataset.open(tmp_path / "d")


# -- cards -------------------------------------------------------------------------------------------------------------

GRID = {"height": 4, "width": 4, "tops": [0], "lefts": [0], "pad": 0, "mirror": False}


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("shape", [3, 8], "shape"),
        ("shape", [3, 8, -1], r"shape\.2 should be greater than or equal to 1 \(got -1\)"),
        ("shape", [3, 8, 10**30], r"shape\.2"),
        ("shape", ["3", 8, 10], r"shape\.0 should be a valid integer \(got '3'\)"),
        ("classes", 5.0, "classes should be a valid integer"),
        ("classes", 0, "classes should be greater"),
        ("classes", 10**12, "classes should be less"),
        ("count", True, "count should be a valid integer"),
        ("count", 0, "count should be greater"),
        ("mean", [None], r"mean\.0 should be a valid number"),
        ("mean", [1e300], r"mean\.0 should be less"),
        ("std", [0.0], r"std\.0 should be greater than 0"),
        ("std", [-1.0], r"std\.0 should be greater than 0"),
        ("class_names", [1, 2, 3, 4, 5], r"class_names\.0 should be a valid string"),
        ("class_names", ["a"], "1 class names for 5 classes"),
        ("task", "third", "task should be 'single' or 'multi'"),
        ("recipe", [], "recipe should be"),
        ("statistics", {"mean": ["x"]}, r"statistics\.mean\.0"),
        ("statistics", {"mean": [0.1, 0.2], "std": [1.0, 1.0]}, r"statistics\.mean has 2 values for 3 channels"),
        ("extra", {"seeds": 3}, r"extra\.seeds should be"),
        ("teacher", {"shape": "all"}, r"teacher\.shape should be"),
        ("grid", {}, r"grid\.height is missing"),
        ("grid", GRID | {"tops": []}, r"grid\.tops"),
        ("grid", GRID | {"tops": [5]}, "crops outside of images"),
        ("source", [], "source should be"),
        ("random_labels", "yes", "random_labels should be a valid boolean"),
        ("nothing", 1, "has the key 'nothing'"),
    ],
)
def test_a_card_of_wrong_types_is_named_with_its_key(tmp_path: Path, key: str, value: object, says: str) -> None:
    ImageDataset.from_arrays(pixels(), logits=scores(), mean=[0.5], std=[0.5]).save(tmp_path / "d")
    card = json.loads((tmp_path / "d" / "card.json").read_text())
    (tmp_path / "d" / "card.json").write_text(json.dumps(card | {key: value}))
    with pytest.raises(DatasetError, match=says) as caught:
        ImageDataset.open(tmp_path / "d")
    assert "card.json" in str(caught.value) or key == "grid"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xff",
        b"[" * 100_000,
        b'{"shape": ' * 100_000,
        b'{"shape": [3, 8, 10], "recipe": {"a": NaN}}',
        b'{"shape": [3, 8, 10], "classes": ' + b"9" * 5000 + b"}",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"null",
        b"{}",
    ],
)
def test_a_card_that_is_none(tmp_path: Path, content: bytes) -> None:
    labelled().save(tmp_path / "d")
    (tmp_path / "d" / "card.json").write_bytes(content)
    with pytest.raises(DatasetError, match=r"card\.json"):
        ImageDataset.open(tmp_path / "d")


# -- where a card leads ------------------------------------------------------------------------------------------------


def test_a_card_leads_outside_only_by_the_users_own_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labelled(40).save(tmp_path / "outside" / "base")
    made = random_labels(tmp_path / "outside" / "base", out=tmp_path / "work" / "sets" / "r")
    assert len(made) == 40, "the user named the folder"
    monkeypatch.setattr("phosphene.data.follow._named", set())
    (tmp_path / "work" / "here").mkdir()
    monkeypatch.chdir(tmp_path / "work" / "here")
    with pytest.raises(DatasetError, match=r"images from .*/outside/base, which is neither .* `phosphene --follow"):
        ImageDataset.open(tmp_path / "work" / "sets" / "r")
    monkeypatch.setenv("PHOSPHENE_FOLLOW", "1")
    assert len(pickle.loads(pickle.dumps(ImageDataset.open(tmp_path / "work" / "sets" / "r")))) == 40
    monkeypatch.delenv("PHOSPHENE_FOLLOW")
    monkeypatch.chdir(tmp_path)
    assert len(ImageDataset.open(tmp_path / "work" / "sets" / "r")) == 40, "below the working folder"


def test_a_link_inside_leads_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labelled(40).save(tmp_path / "outside" / "base")
    sets = tmp_path / "work" / "sets"
    random_labels(tmp_path / "outside" / "base", out=sets / "r")
    card = json.loads((sets / "r" / "card.json").read_text())
    card["source"]["path"] = "../base"
    (sets / "r" / "card.json").write_text(json.dumps(card))
    (sets / "r" / "checksums.json").unlink()
    (sets / "base").symlink_to(tmp_path / "outside" / "base")
    monkeypatch.setattr("phosphene.data.follow._named", set())
    monkeypatch.chdir(sets)
    with pytest.raises(DatasetError, match="phosphene --follow"):
        ImageDataset.open(sets / "r")
    (sets / "base").unlink()
    shutil.copytree(tmp_path / "outside" / "base", sets / "base")
    assert len(ImageDataset.open(sets / "r")) == 40


# -- targets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.full((60, 3), np.nan), "all targets of all images are unlabelled"),
        (np.where(np.eye(60, 3) > 0, -1.0, np.nan), "targets from -1 to -1"),
    ],
)
def test_what_nothing_can_be_learned_from(labels: np.ndarray, says: str) -> None:
    data = ImageDataset.from_arrays(pixels(), labels=labels, task="multi")
    doors: list[Callable[[], Any]] = [
        lambda: targets.check(data),
        lambda: Halves(data, SimpleNamespace(seed=0)),
        lambda: hold_out(data, 1, 0),
        lambda: evaluate("digits", data=data),
        lambda: train("cifar-resnet8", data=data, device="cpu"),
    ]
    for door in doors:
        with pytest.raises(DatasetError, match=says):
            door()
    with pytest.raises(DatasetError, match="values of labels are infinite, from image 0 on"):
        ImageDataset.from_arrays(pixels(), labels=np.full((60, 3), np.inf), task="multi")
