"""A teacher's rows for images that are there: the rows of what it sees, the images untouched, the same after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import phosphene
from phosphene.data.dataset import ImageDataset
from phosphene.errors import DatasetError, Estimate, SettingsError
from phosphene.models import build
from phosphene.runtime.run import Run
from phosphene.searches import outcome as found
from phosphene.synthesis.unreal import fractal, noise, random_labels
from phosphene.teachers import label as labelling
from phosphene.teachers.label import label
from phosphene.teachers.teacher import Teacher, load

CHANNELS, SIDE, COUNT = 1, 8, 30


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    torch.manual_seed(0)
    return load(build("cifar-resnet8", 3, CHANNELS), mean=0.4, std=0.2, size=SIDE, channels=CHANNELS)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelling, "MOST", 8)


def real(side: int = SIDE, **fields: Any) -> ImageDataset:
    pixels = np.random.default_rng(3).integers(0, 256, (COUNT, CHANNELS, side, side), dtype=np.uint8)
    return ImageDataset.from_arrays(pixels, **{"classes": 3, "name": "real", "origin": "real", **fields})


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("images.npy", "logits.npy", "card.json", "result.json")}


def origins(folder: Path) -> dict[str, ImageDataset]:
    """A small set of every origin."""
    labels = np.arange(COUNT) % 3
    size: dict[str, Any] = {"size": SIDE, "channels": CHANNELS, "images": COUNT, "classes": 3}
    fractals = fractal(**size, categories=3, instances=10, points=70, filling=0.05, out=folder / "fractals")
    real(labels=labels).save(folder / "real")
    return {
        "real": real(labels=labels),
        "nobody's": real(),
        "noise": noise(**size, out=folder / "noise"),
        "fractals": fractals,
        "random labels": random_labels(folder / "real", images=COUNT, classes=3, out=folder / "random"),
        "a part": real(labels=labels).subset(range(5, 25)),
        "rows": real(logits=np.eye(3)[labels]),
        "other classes": real(labels=labels, classes=7),
    }


def test_images_of_every_origin_get_the_rows_of_what_is_stored(teacher: Teacher, tmp_path: Path) -> None:
    for name, data in origins(tmp_path).items():
        made = label(data, teacher=teacher, out=tmp_path / f"labelled {name}", device="cpu")
        everything = range(len(data))
        assert torch.equal(made.pixels(everything), data.pixels(everything)) and made.dtype == data.dtype, name
        torch.testing.assert_close(torch.stack(made.normalisation), torch.stack(data.normalisation), rtol=0, atol=1e-6)
        wanted = teacher.logits(data.pixels(everything))
        assert made.soft
        torch.testing.assert_close(made.targets(everything), wanted.softmax(1), rtol=0, atol=2e-3)
        assert not made.card.random_labels and made.card.source is None and made.card.classes == 3
        assert made.card.teacher is not None and made.card.teacher["fingerprint"] == teacher.fingerprint
        alike = data.labelled and data.card.classes == 3
        same = (wanted.argmax(1).numpy() == data.labels).mean() if alike else None
        assert made.card.statistics.get("agreement") == (None if same is None else round(float(same), 4)), name
        assert made.summary().get("agreement") == made.card.statistics.get("agreement")


def test_larger_images_get_the_rows_of_their_middle_and_are_searched_in_regions(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = real(side=12)
    made = label(data, teacher=teacher, out=tmp_path / "made", device="cpu")
    wanted = teacher.logits(data.pixels(range(COUNT))[:, :, 2:10, 2:10])
    torch.testing.assert_close(made.targets(range(COUNT)), wanted.softmax(1), rtol=0, atol=2e-3)
    assert made.card.shape == (1, 12, 12) and made.region == 8 and made.card.label_view == "centre"
    monkeypatch.setattr(found, "plot", lambda *_: None)
    own: dict[str, Any] = {"width": 0.07, "final_width": 0.07, "depths": "1,1", "device": "cpu", "precision": "fp32"}
    search = phosphene.search_darts(made, space="macro", batch=8, steps=1, out=tmp_path / "found", **own)
    assert search.space["shape"] == [1, 8, 8]


def test_findings_stay_findings_unless_asked(teacher: Teacher, tmp_path: Path) -> None:
    findings = np.random.default_rng(0).integers(0, 2, (COUNT, 3)).astype(np.float32)
    data = real(labels=findings, task="multi")
    made = label(data, teacher=teacher, out=tmp_path / "multi", device="cpu")
    wanted = teacher.logits(data.pixels(range(COUNT)))
    assert made.card.task == "multi" and "agreement" not in made.card.statistics
    torch.testing.assert_close(made.targets(range(COUNT)), wanted.sigmoid(), rtol=0, atol=2e-3)
    one = label(data, teacher=teacher, task="single", out=tmp_path / "single", device="cpu")
    torch.testing.assert_close(one.targets(range(COUNT)), wanted.softmax(1), rtol=0, atol=2e-3)


class InjectedError(Exception):
    pass


@pytest.mark.parametrize("step", [0, 2, 3])
def test_a_fault_anywhere_ends_in_the_same_bytes(
    step: int, teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = real(labels=np.arange(COUNT) % 3)
    label(data, teacher=teacher, out=tmp_path / "wanted/set", device="cpu")

    def fail(phase: str, now: int) -> None:
        if now == step:
            raise InjectedError

    monkeypatch.setattr(Run, "after_step", staticmethod(fail))
    with pytest.raises(InjectedError):
        label(data, teacher=teacher, out=tmp_path / "again/set", device="cpu")
    with pytest.raises(DatasetError, match="unfinished"):
        ImageDataset.open(tmp_path / "again/set")
    asked: list[int] = []
    logits = Teacher.logits
    monkeypatch.setattr(Run, "after_step", None)
    monkeypatch.setattr(Teacher, "logits", lambda *given: asked.append(len(given[1])) or logits(*given))
    label(data, teacher=teacher, out=tmp_path / "again/set", device="cpu")
    assert files(tmp_path / "again/set") == files(tmp_path / "wanted/set")
    assert len(asked) == 3 - step  # chunks of 8 that were not on disk yet
    label(data, teacher=teacher, out=tmp_path / "again/set", device="cpu")
    assert len(asked) == 3 - step


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"side": 6}, "has images of 1x6x6, but .* takes 1x8x8; give it those, or larger ones of 1 channels"),
        ({"side": 0}, "holds no images"),
        ({"channels": 3}, "has images of 3x8x8"),
    ],
)
def test_images_that_do_not_fit_are_refused(
    fields: dict[str, int], says: str, teacher: Teacher, tmp_path: Path
) -> None:
    side, channels = fields.get("side", SIDE), fields.get("channels", CHANNELS)
    count, side = (COUNT, side) if side else (0, SIDE)
    with pytest.raises(DatasetError, match=says):
        data = ImageDataset.from_arrays(np.zeros((count, channels, side, side), np.uint8), classes=3)
        label(data, teacher=teacher, out=tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_teacher_is_needed_and_an_estimate_leaves_nothing(teacher: Teacher, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--teacher is missing"):
        label(real(), out=tmp_path / "made")
    with pytest.raises(Estimate) as caught:
        label(real(), teacher=teacher, estimate=True, out=tmp_path / "made", device="cpu")
    assert caught.value.needs["disk_mib"] >= 0 and not (tmp_path / "made").exists()


def test_the_old_labels_are_not_touched(teacher: Teacher, tmp_path: Path) -> None:
    data = real(labels=np.arange(COUNT) % 3).save(tmp_path / "old")
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    label(data, teacher=teacher, out=tmp_path / "new", device="cpu")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    assert not (tmp_path / "new/labels.npy").exists()
