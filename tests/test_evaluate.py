"""Evaluation: every figure against an independent reference, and refusals of what would mean nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from phosphene import evaluate, models, train
from phosphene import teacher as teachers
from phosphene.dataset import ImageDataset
from phosphene.errors import DatasetError, Estimate, SettingsError, TeacherError

MODULE = sys.modules["phosphene.evaluate"]
CPU = {"device": "cpu", "precision": "fp32"}
NORM = {"mean": (0.5,) * 3, "std": (0.25,) * 3}


def images(count: int = 60, **fields) -> ImageDataset:
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
    return ImageDataset.from_arrays(pixels, labels=np.arange(count) % 7, **{"name": "test", "classes": 7, **fields})


def network(classes: int = 7) -> teachers.Teacher:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = models.build("cifar-resnet8", classes)
    return teachers.load(net, size=8, **NORM)


# -- figures ---------------------------------------------------------------------------------------------------------


def reference(rows: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The same figures, image by image and bin by bin."""
    order = np.argsort(-rows, axis=1, kind="stable")
    conf, right = rows.max(1), order[:, 0] == labels
    ece = 0.0
    for low in range(15):
        inside = (conf > low / 15) & (conf <= (low + 1) / 15)
        if inside.any():
            ece += inside.mean() * abs(right[inside].mean() - conf[inside].mean())
    top5 = np.mean([label in row[:5] for row, label in zip(order, labels, strict=True)])
    nll = -np.mean([np.log(row[label]) for row, label in zip(rows, labels, strict=True)])
    return {"top1": 100 * right.mean(), "top5": 100 * top5, "ece": 100 * ece, "nll": nll}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 200), classes=st.integers(6, 12), scale=st.floats(0.1, 6))
def test_measures_against_a_reference(seed, count, classes, scale):
    rng = np.random.default_rng(seed)
    logits, labels = torch.from_numpy(rng.normal(size=(count, classes)) * scale), rng.integers(0, classes, count)
    names = [f"class {k}" for k in range(classes)]
    found = MODULE.measures(logits, torch.from_numpy(labels), names)
    rows = logits.float().softmax(1).numpy()
    for name, value in reference(rows.astype(np.float64), labels).items():
        assert found[name] == pytest.approx(value, abs=2e-4), name
    table = np.zeros((classes, classes), int)
    for label, guess in zip(labels, rows.argmax(1), strict=True):
        table[label, guess] += 1
    assert found["confusion"] == table.tolist()
    for k in set(labels.tolist()):
        assert found["per_class"][f"class {k}"] == pytest.approx(100 * table[k, k] / table[k].sum(), abs=1e-4)
    assert found["images"] == count and json.loads(json.dumps(found)) == found


def test_calibration_error_by_hand():
    """Two bins hold images: (0.6, 0.667] with accuracy 1/2 at .65, (0.867, 0.933] with accuracy 1 at .9."""
    rows = torch.tensor([[0.65, 0.35], [0.65, 0.35], [0.9, 0.1], [0.1, 0.9]])
    labels = torch.tensor([0, 1, 0, 1])
    assert MODULE.calibration_error(rows, labels) == pytest.approx(100 * (0.5 * 0.15 + 0.5 * 0.1), abs=1e-4)
    sure = torch.eye(3)
    assert MODULE.calibration_error(sure, torch.arange(3)) == 0.0


def test_few_classes_have_no_top_five():
    found = MODULE.measures(torch.randn(9, 3), torch.zeros(9, dtype=torch.long), ["a", "b", "c"])
    assert found["top5"] is None and list(found["per_class"]) == ["a"]  # the other classes do not occur


def test_a_large_confusion_matrix_is_an_array(tmp_path):
    data = ImageDataset.from_arrays(images().pixels(range(60)), labels=np.arange(60), classes=101)
    found = evaluate(network(101), data=data, out=tmp_path / "a", **CPU)
    table = np.load(tmp_path / "a" / "confusion.npy")
    assert found["confusion"] is None and table.shape == (101, 101) and table.sum() == 60
    assert 100 * np.trace(table) / 60 == pytest.approx(found["top1"], abs=1e-3)


# -- the command -----------------------------------------------------------------------------------------------------


def test_every_kind_of_network_gives_the_same_figures(tmp_path):
    data = images(class_names=[f"c{k}" for k in range(7)], mean=[0.5] * 3, std=[0.25] * 3)
    found = train("cifar-resnet8", data=data, steps=4, batch=20, pad=1, out=tmp_path / "net", **CPU)
    test = images()
    results = [
        evaluate(found, data=test, out=tmp_path / "1", **CPU),
        evaluate(tmp_path / "net", data=test, out=tmp_path / "2", **CPU),
        evaluate(str(tmp_path / "net"), data=test.save(tmp_path / "test"), out=tmp_path / "3", batch=7, **CPU),
        evaluate(teachers.load(str(tmp_path / "net")), data=test, out=tmp_path / "4", **CPU),
        evaluate(found.net, data=test, mean="0.5", std="0.25", out=tmp_path / "5", **CPU),
    ]
    for other in results[1:]:
        for figure in ("top1", "top5", "confusion", "images", "params", "fingerprint"):
            assert other[figure] == results[0][figure], figure
        assert other["ece"] == pytest.approx(results[0]["ece"], abs=1e-3)
    assert results[0]["fingerprint"] == found.result["fingerprint"] and results[1]["network"] == "net"
    assert set(results[1]["per_class"]) == {f"c{k}" for k in range(7)}


def test_the_figures_are_those_of_the_network(tmp_path):
    asked, data = network(), images()
    found = evaluate(asked, data=data, batch=7, out=tmp_path / "a", **CPU)
    with torch.no_grad():
        rows = asked.net((data.pixels(range(60)) / 255 - 0.5) / 0.25).softmax(1).numpy()
    for name, value in reference(rows.astype(np.float64), data.labels).items():
        assert found[name] == pytest.approx(value, abs=1e-3), name
    assert json.loads((tmp_path / "a" / "result.json").read_text()) == found
    assert evaluate(asked, data=data, batch=7, out=tmp_path / "a", **CPU) == found  # says so at once


def test_an_npz_of_test_images(tmp_path):
    data = images()
    pixels = data.pixels(range(60)).permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "t.npz", x_test=pixels, y_test=data.labels)
    found = evaluate(network(), data=tmp_path / "t.npz", out=tmp_path / "a", **CPU)
    assert found["confusion"] == evaluate(network(), data=data, out=tmp_path / "b", **CPU)["confusion"]


def test_estimate(tmp_path):
    with pytest.raises(Estimate):
        evaluate(network(), data=images(), out=tmp_path / "a", estimate=True, **CPU)
    assert not (tmp_path / "a").exists()


# -- refusals --------------------------------------------------------------------------------------------------------


def test_another_declared_normalisation_is_refused(tmp_path):
    other = images(mean=[0.49, 0.48, 0.45], std=[0.25, 0.24, 0.26])
    with pytest.raises(DatasetError, match=r"declares mean \(0.490, 0.480.*trained with \(0.500.*--mean and --std"):
        evaluate(network(), data=other, **CPU)
    told = evaluate(network(), data=other, mean="0.5", std="0.25", out=tmp_path / "a", **CPU)
    assert told["confusion"] == evaluate(network(), data=images(), out=tmp_path / "b", **CPU)["confusion"]


def test_the_same_declared_normalisation_is_taken(tmp_path):
    same = images(mean=[0.5], std=[0.25])
    assert evaluate(network(), data=same, out=tmp_path / "a", **CPU)["images"] == 60


def test_pixels_that_are_normalised_already_are_refused(tmp_path):
    data = images()
    done = ((data.pixels(range(60)).float() / 255) - 0.5) / 0.25
    floats = ImageDataset.from_arrays(done, labels=data.labels, name="done")
    with pytest.raises(DatasetError, match=r"from -2\.00 to 2\.00, which look normalised already"):
        evaluate(network(), data=floats, **CPU)
    known = evaluate(network(), data=floats, mean="0", std="1", out=tmp_path / "a", **CPU)
    raw = ImageDataset.from_arrays(data.pixels(range(60)).float() / 255, labels=data.labels)
    plain = evaluate(network(), data=raw, out=tmp_path / "b", **CPU)
    assert known["confusion"] == plain["confusion"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (images(classes=9), "test has 9 classes, .* has 7"),
        (ImageDataset.from_arrays(np.zeros((4, 3, 9, 8), np.uint8), labels=[0] * 4, classes=7), "3x9x8 .* takes 3x8x8"),
        (
            ImageDataset.from_arrays(np.zeros((4, 3, 8, 8), np.uint8), labels=np.ones((4, 7)), task="multi"),
            "task multi",
        ),
        (ImageDataset.from_arrays(np.zeros((4, 3, 8, 8), np.uint8), classes=7), "neither labels nor logits"),
        (Path("nowhere"), "nowhere"),
        (Path("nowhere.npz"), "cannot be read"),
    ],
)
def test_data_that_does_not_fit(data, message):
    with pytest.raises(DatasetError, match=message):
        evaluate(network(), data=data, **CPU)


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(SettingsError, match="--data is missing"):
        evaluate(network(), **CPU)
    with pytest.raises(TeacherError, match="--mean"):
        evaluate(nn.Sequential(nn.Flatten(), nn.Linear(192, 7)), data=images(), **CPU)
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "arch.json").write_text("{}")
    with pytest.raises(TeacherError, match="not a finished run of `phosphene train`"):
        evaluate(tmp_path / "search", data=images(), **CPU)
