"""Evaluation: every figure against an independent reference, and refusals of what would mean nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from phosphene import evaluate, models, train
from phosphene.data.dataset import ImageDataset
from phosphene.errors import DatasetError, Estimate, SettingsError, TeacherError
from phosphene.evaluation import metrics
from phosphene.teachers import teacher as teachers

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
    found = metrics.measures(logits, torch.from_numpy(labels), names)
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
    assert metrics.calibration_error(rows, labels) == pytest.approx(100 * (0.5 * 0.15 + 0.5 * 0.1), abs=1e-4)
    sure = torch.eye(3)
    assert metrics.calibration_error(sure, torch.arange(3)) == 0.0


def test_few_classes_have_no_top_five():
    found = metrics.measures(torch.randn(9, 3), torch.zeros(9, dtype=torch.long), ["a", "b", "c"])
    assert found["top5"] is None and list(found["per_class"]) == ["a"]  # the other classes do not occur


def rank_sum(scores: np.ndarray, present: np.ndarray) -> float:
    """AUC by Mann and Whitney's count: pairs won by the present image, ties half."""
    ours, others = scores[present][:, None], scores[~present][None, :]
    return float(((ours > others) + 0.5 * (ours == others)).mean())


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 60), classes=st.integers(2, 5), coarse=st.booleans())
def test_auc_against_the_rank_sum(seed, count, classes, coarse):
    rng = np.random.default_rng(seed)
    scores, labels = rng.normal(size=(count, classes)), rng.integers(0, classes, count)
    scores = scores.round() if coarse else scores  # ties
    found = metrics.measures(torch.from_numpy(scores), torch.from_numpy(labels), [str(k) for k in range(classes)])[
        "auc"
    ]
    rows = torch.from_numpy(scores).softmax(1).numpy()
    each = [rank_sum(rows[:, k], labels == k) for k in set(labels.tolist()) if 0 < (labels == k).sum() < count]
    if not each:
        assert found is None
    elif classes == 2:
        assert found == pytest.approx(rank_sum(scores[:, 1] - scores[:, 0], labels == 1), abs=2e-6)
    else:
        assert found == pytest.approx(np.mean(each), abs=2e-6)


def test_confident_answers_are_not_ties():
    """float32 probabilities would be 1 for all of them."""
    logits = torch.tensor([[0.0, 20.0], [0.0, 22.0], [0.0, 24.0], [0.0, 26.0]])
    assert metrics.measures(logits, torch.tensor([0, 0, 1, 1]), ["a", "b"])["auc"] == 1


def test_findings_are_measured_where_they_are_labelled():
    rng = np.random.default_rng(5)
    logits, truth = rng.normal(size=(50, 4)), rng.integers(0, 2, (50, 4)).astype(np.float32)
    truth[rng.random((50, 4)) < 0.3] = np.nan
    truth[:, 2] = np.where(np.isnan(truth[:, 2]), np.nan, 1.0)  # present wherever somebody looked
    truth[:, 3] = np.nan
    found = metrics.multi_label(torch.from_numpy(logits), torch.from_numpy(truth), ["a", "b", "c", "d"])
    for k, name in enumerate("ab"):
        seen = ~np.isnan(truth[:, k])
        one, present = found["per_finding"][name], truth[seen, k] == 1
        assert one["auc"] == pytest.approx(rank_sum(logits[seen, k], present), abs=2e-6)
        assert one["accuracy"] == pytest.approx(100 * ((logits[seen, k] > 0) == present).mean(), abs=1e-4)
        assert (one["labelled"], one["present"], one["predicted"]) == (
            seen.sum(),
            present.sum(),
            (logits[seen, k] > 0).sum(),
        )
    assert found["per_finding"]["c"]["auc"] is None and found["per_finding"]["d"]["accuracy"] is None
    assert found["no_auc"] == ["c", "d"]
    assert found["auc"] == pytest.approx(np.mean([found["per_finding"][n]["auc"] for n in "ab"]), abs=2e-6)
    seen = ~np.isnan(truth)
    assert found["labelled"] == seen.sum() and found["images"] == 50
    assert found["accuracy"] == pytest.approx(100 * ((logits > 0) == (truth == 1))[seen].mean(), abs=1e-4)
    p = 1 / (1 + np.exp(-logits[seen]))
    assert found["nll"] == pytest.approx(-np.where(truth[seen] == 1, np.log(p), np.log(1 - p)).mean(), abs=1e-5)
    assert json.loads(json.dumps(found)) == found


def test_findings_of_a_network(tmp_path, capfd):
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 2, (60, 7)).astype(np.float32)
    truth[:5, 0], truth[:, 6] = np.nan, 0
    data = ImageDataset.from_arrays(images().pixels(range(60)), labels=truth, task="multi", name="rays")
    asked = network()
    found = evaluate(asked, data=data, batch=7, out=tmp_path / "a", **CPU)
    logits = asked.logits(data.pixels(range(60))).numpy()
    for k in range(6):
        seen = ~np.isnan(truth[:, k])
        expected = rank_sum(logits[seen, k], truth[seen, k] == 1)
        assert found["per_finding"][str(k)]["auc"] == pytest.approx(expected, abs=1e-3)
    assert found["no_auc"] == ["6"] and "no AUC, and no part in the mean: 6" in capfd.readouterr().err
    assert json.loads((tmp_path / "a" / "result.json").read_text()) == found
    with pytest.raises(DatasetError, match="rays has multi-label targets; `phosphene evaluate`"):
        teachers.accuracy(asked, data)


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
        (ImageDataset.from_arrays(np.zeros((4, 3, 8, 8), np.uint8), classes=7), "neither labels nor logits"),
        (Path("nowhere"), "nowhere"),
        (Path("nowhere.npz"), "there is no such file"),
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
