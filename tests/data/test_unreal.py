"""Unreal data sets: images and labels as functions of (seed, index), stored or not, and what tells that they are."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from phosphene import cli
from phosphene.data.card import Card
from phosphene.data.computed import Computed
from phosphene.data.dataset import ImageDataset
from phosphene.data.export import export
from phosphene.data.procedural.category import find_categories
from phosphene.data.procedural.counter import generators, key, noise_images, random_subset, uniform_labels
from phosphene.errors import DatasetError, Estimate, PhospheneError, SettingsError
from phosphene.reporting.dataset_compare import compare
from phosphene.reporting.dataset_show import show
from phosphene.runtime.run import Run
from phosphene.synthesis.unreal import fractal, noise, random_labels, relabel

SRC = Path(__file__).resolve().parents[2] / "src"


def real(out, images=12_000, side=16):
    """Random pixels stand in for real ones; every image differs."""
    pixels = np.random.default_rng(0).integers(0, 256, (images, 3, side, side), dtype=np.uint8)
    return ImageDataset.from_arrays(pixels, labels=np.arange(images) % 10, name="real", origin="real").save(out)


def real_once(out):
    return ImageDataset.open(out) if (out / "card.json").exists() else real(out)


def noise_set(out, **options):
    return noise(out=out, **({"images": 1200, "seed": 3} | options))


def fractal_set(out, **options):
    return fractal(out=out, **({"images": 3000, "categories": 2, "instances": 2000, "seed": 3} | options))


def labels_set(out, **options):
    base = real_once(out.parent / "base")
    return random_labels(base, out=out, **({"images": 11_000, "seed": 3} | options))


MAKERS = {"noise": noise_set, "fractal": fractal_set, "random-labels": labels_set}


# -- numbers ----------------------------------------------------------------------------------------------------------

SHAPE = (2, 5, 3)
WHOLE = noise_images(np.arange(60), seed=9, shape=SHAPE)


@given(st.lists(st.integers(0, 59), min_size=0, max_size=30))
@settings(max_examples=50, deadline=None)
def test_any_slice_in_any_order_has_the_same_bytes(index):
    at = np.array(index, np.int64)
    assert noise_images(at, seed=9, shape=SHAPE).tobytes() == WHOLE[at].tobytes()
    every = uniform_labels(np.arange(60), seed=9, classes=7)
    assert (uniform_labels(at, seed=9, classes=7) == every[at]).all()


def test_noise_is_standard_normal_and_its_images_are_strangers():
    x = noise_images(np.arange(400), seed=1, shape=(3, 32, 32)).reshape(400, -1).astype(np.float64)
    n = x.size
    assert abs(x.mean()) < 5 / np.sqrt(n) and abs(x.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs((x**3).mean()) < 5 * np.sqrt(15 / n) and abs((x**4).mean() - 3) < 5 * np.sqrt(96 / n)
    likeness = np.corrcoef(x) - np.eye(400)
    assert np.abs(likeness).max() < 6 / np.sqrt(x.shape[1])
    other = noise_images(np.arange(400), seed=2, shape=(3, 32, 32)).reshape(400, -1)
    assert abs(np.corrcoef(x.ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(n)


@pytest.mark.parametrize("classes", [2, 10, 5000])
def test_labels_are_uniform_and_independent_of_their_neighbours(classes):
    labels = uniform_labels(np.arange(200_000), seed=5, classes=classes)
    counts = np.bincount(labels, minlength=classes)
    expected = len(labels) / classes
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi2 - (classes - 1)) < 5 * np.sqrt(2 * (classes - 1))
    centred = (labels - (classes - 1) / 2) / np.sqrt((classes**2 - 1) / 12)
    assert abs((centred[1:] * centred[:-1]).mean()) < 5 / np.sqrt(len(labels))
    other = uniform_labels(np.arange(200_000), seed=6, classes=classes)
    assert abs((other == labels).mean() - 1 / classes) < 5 / np.sqrt(len(labels) * classes)


def test_the_numbers_stay_what_they_are():
    """Recorded once: another version of numpy that draws others is noticed here, not in somebody's results."""
    first = next(generators(0, 1, np.array([5])))
    assert first.standard_normal(3, dtype=np.float32).tolist() == GOLDEN_NORMALS
    assert key(0, 2, np.array([0, 1]))[:2].tolist() == GOLDEN_WORDS
    assert uniform_labels(np.arange(6), seed=0, classes=1000).tolist() == GOLDEN_LABELS


GOLDEN_NORMALS = [-0.2817642092704773, 0.0531495027244091, 1.478078842163086]
GOLDEN_WORDS = [15415986080105920549, 5890467614480005915]
GOLDEN_LABELS = [835, 319, 308, 812, 242, 52]


@given(st.integers(0, 50), st.integers(0, 60), st.integers(-5, 5))
@settings(max_examples=50, deadline=None)
def test_a_random_subset_keeps_the_order(count, images, seed):
    index = random_subset(count, images, seed)
    assert len(index) == min(count, images) and (np.diff(index) > 0).all()
    assert not len(index) or (index[0] >= 0 and index[-1] < count)
    assert set(random_subset(count, max(0, images - 1), seed)) <= set(index), "a smaller subset is part of a larger one"


# -- data sets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKERS)
def test_stored_and_computed_sets_are_the_same(tmp_path, kind):
    computed, stored = MAKERS[kind](tmp_path / "c"), MAKERS[kind](tmp_path / "s", store=True)
    assert not (tmp_path / "c" / "images.npy").exists() and not (tmp_path / "c" / "labels.npy").exists()
    assert sum(f.stat().st_size for f in (tmp_path / "c").iterdir()) < 40_000, "nothing of size N is stored"
    assert stored.card.source is None and computed.card.source is not None
    assert stored.card.random_labels and computed.card.random_labels
    order = np.random.default_rng(0).permutation(len(stored))[:500]
    assert torch.equal(computed.pixels(order), stored.pixels(order))
    assert torch.equal(computed.targets(order), stored.targets(order)) and (computed.labels == stored.labels).all()
    assert torch.equal(computed.batch(order).inputs, stored.batch(order).inputs), "normalised alike"
    assert computed.fingerprint == ImageDataset.open(tmp_path / "c").fingerprint


@pytest.mark.parametrize("kind", MAKERS)
def test_another_process_reads_the_same_bytes(tmp_path, kind):
    data = MAKERS[kind](tmp_path / "d")
    code = (
        "import sys, numpy as np; from phosphene.data.dataset import ImageDataset; d = ImageDataset.open(sys.argv[1]);"
        "at = np.arange(len(d))[::-7][:40];"
        "sys.stdout.buffer.write(d.pixels(at).numpy().tobytes() + d.labels.tobytes())"
    )
    env = os.environ | {"PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "d")], capture_output=True, env=env, timeout=120)
    at = np.arange(len(data))[::-7][:40]
    assert done.stdout == data.pixels(at).numpy().tobytes() + data.labels.tobytes(), done.stderr


@pytest.mark.parametrize("kind", MAKERS)
def test_views_splits_and_workers(tmp_path, kind):
    data = MAKERS[kind](tmp_path / "d")
    one, two = data.split(0.3, seed=1)
    assert len(one) + len(two) == len(data) and abs(len(one) - 0.3 * len(data)) <= 1
    part = data.subset(range(20, 60))
    sent = pickle.dumps(part)
    assert len(sent) < 5000
    back = pickle.loads(sent)
    assert torch.equal(back.pixels(range(40)), data.pixels(range(20, 60))) and back.fingerprint == part.fingerprint
    loader = torch.utils.data.DataLoader(part, batch_size=16, num_workers=2)
    inputs = torch.cat([x for x, _ in loader])
    assert torch.allclose(inputs, part.batch(range(40)).inputs, atol=1e-6)
    saved = part.save(tmp_path / "saved")
    assert torch.equal(saved.pixels(range(40)), part.pixels(range(40))) and (saved.labels == part.labels).all()
    assert saved.card.source is None and saved.card.random_labels


def test_the_rows_of_a_batch_need_no_other_labels(tmp_path):
    data, asked = noise(images=500, out=tmp_path / "n"), []
    assert isinstance(data._labels, Computed)
    plain = data._labels.draw
    data._labels.draw = lambda index: asked.extend(index.tolist()) or plain(index)
    data.batch([3, 77])
    assert asked == [3, 77]


def test_noise_is_taken_as_it_is(tmp_path):
    data = noise(images=50, out=tmp_path / "n", channels=2, size=9)
    batch = data.batch(range(50))
    assert torch.equal(batch.inputs, data.pixels(range(50))) and batch.inputs.dtype == torch.float32
    assert (data.card.mean, data.card.std) == ([0.0], [1.0]) and data.card.shape == (2, 9, 9)


@pytest.mark.parametrize(("per", "make"), [(5, noise_set), (5, fractal_set), (25, labels_set)])
def test_a_smaller_set_keeps_the_images_of_a_class(tmp_path, per, make):
    assert make(tmp_path / "a", images=1000).card.classes == 1000 // per
    assert make(tmp_path / "b", images=1).card.classes == 2
    assert make(tmp_path / "c", images=1000, classes=17).card.classes == 17


def test_the_defaults_are_those_of_the_paper(tmp_path):
    data = noise(out=tmp_path / "n")
    assert (len(data), data.card.classes, data.card.shape) == (25_000, 5000, (3, 32, 32))
    base = ImageDataset.from_arrays(np.zeros((26_000, 1, 1, 1), np.uint8), classes=2).save(tmp_path / "base")
    data = random_labels(base, out=tmp_path / "r")
    assert (len(data), data.card.classes) == (25_000, 1000)
    drawn = fractal(out=tmp_path / "f", categories=50, instances=30, points=256)
    assert (len(drawn), drawn.card.classes) == (1500, 300), "there are no more than categories x instances"
    help_ = CliRunner().invoke(cli.command("unreal fractal"), ["--help"]).output
    assert "25000" in help_ and "600" in help_


def test_fractals_know_their_categories(tmp_path):
    data = fractal(out=tmp_path / "f", categories=3, images=30, labels="category")
    assert data.labels.tolist() == [0, 1, 2] * 10 and data.card.classes == 3 and not data.card.random_labels
    grey = data.pixels(range(30))
    assert torch.equal(grey[:, 0], grey[:, 2]) and grey.flatten(1).any(1).all(), "no empty image"
    coloured = fractal(out=tmp_path / "c", categories=3, images=30, labels="category", colour=True)
    assert not torch.equal(coloured.pixels([0])[:, 0], coloured.pixels([0])[:, 2])
    thin = fractal(out=tmp_path / "t", categories=3, images=30, patch=False, channels=1, size=48, points=400)
    assert thin.card.shape == (1, 48, 48) and (thin.pixels(range(30)) > 0).flatten(1).sum(1).max() <= 400


def test_random_labels_keep_images_and_their_normalisation(tmp_path):
    base = real(tmp_path / "base", 600)
    data = random_labels(str(tmp_path / "base"), images=200, classes=9, out=tmp_path / "r", seed=4)
    index = random_subset(600, 200, 4)
    assert torch.equal(data.pixels(range(200)), base.pixels(index))
    assert all(torch.equal(a, b) for a, b in zip(data.normalisation, base.normalisation, strict=True))
    assert data.card.origin == "real, random labels" and data.card.class_names is None
    assert data.card.source["path"] == "../base"
    again = random_labels(data, classes=4, out=tmp_path / "deep" / "again", seed=1)
    assert torch.equal(again.pixels(range(200)), data.pixels(range(200))), "of unreal sets too"


def test_folders_that_move_together_still_know_each_other(tmp_path):
    real(tmp_path / "a" / "base", 60)
    before = random_labels(tmp_path / "a" / "base", out=tmp_path / "a" / "r").fingerprint
    (tmp_path / "a").rename(tmp_path / "b")
    assert ImageDataset.open(tmp_path / "b" / "r").fingerprint == before


def test_a_relabelled_view(tmp_path):
    data = real(tmp_path / "base", 300).subset(range(50, 150))
    view = relabel(data, 30, seed=2)
    assert torch.equal(view.pixels([0, 7]), data.pixels([0, 7])) and len(view) == 100
    assert view.card.random_labels and view.card.classes == 30 and view.labels.max() < 30
    assert (view.labels == relabel(data, 30, seed=2).labels).all()
    prints = {data.fingerprint, view.fingerprint, *(relabel(data, *k).fingerprint for k in [(30, 3), (31, 2)])}
    assert len(prints) == 4
    sent = pickle.dumps(view)
    assert len(sent) < 8000, "the images stay where they are"
    assert torch.equal(pickle.loads(sent).batch([1, 2]).inputs, view.batch([1, 2]).inputs)
    assert (view.save(tmp_path / "saved").labels == view.labels).all()
    with pytest.raises(SettingsError, match="--classes must be at least 2"):
        relabel(data, 1, seed=0)


# -- resuming ---------------------------------------------------------------------------------------------------------


def contents(folder):
    """Every file but the clock's; of the configuration all but the checkout's revision."""
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "timing.json"}
    config = json.loads(found["config.json"])
    return found | {"config.json": json.dumps({k: v for k, v in config.items() if k != "git"}).encode()}


def start(kind, out, kill=0, launcher=()):
    """This file as a process of its own: stores the set, and kills itself at step `kill`."""
    known = os.environ | {"PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1", "PHOSPHENE_CHECKPOINT_SECONDS": "0"}
    command = [sys.executable, *launcher, __file__, kind, str(out), str(kill)]
    return subprocess.run(command, env=known, capture_output=True, text=True, timeout=180)


@pytest.mark.parametrize("kind", MAKERS)
def test_kill_minus_nine_then_the_same_command(tmp_path, kind):
    real(tmp_path / "base")
    killed = start(kind, tmp_path / "a" / ".." / "set", kill=2)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with pytest.raises(DatasetError, match="unfinished"):
        ImageDataset.open(tmp_path / "set")
    again = start(kind, tmp_path / "set")
    assert again.returncode == 0, again.stderr
    killed_and_run_again = contents(tmp_path / "set")
    shutil.rmtree(tmp_path / "set")
    MAKERS[kind](tmp_path / "set", store=True)
    assert contents(tmp_path / "set") == killed_and_run_again


@pytest.mark.parametrize("kind", MAKERS)
def test_same_seed_same_set_and_nothing_is_made_twice(tmp_path, kind, monkeypatch):
    one = MAKERS[kind](tmp_path / "a" / "set")
    two = MAKERS[kind](tmp_path / "b" / "set")
    assert contents(tmp_path / "a" / "set") == contents(tmp_path / "b" / "set")
    assert one.fingerprint == two.fingerprint
    monkeypatch.setattr(Run, "finish", None)
    assert MAKERS[kind](tmp_path / "a" / "set").fingerprint == one.fingerprint
    monkeypatch.undo()
    other = MAKERS[kind](tmp_path / "c" / "set", seed=4)
    assert other.fingerprint != one.fingerprint and (other.labels[:99] != one.labels[:99]).any()
    with pytest.raises(PhospheneError, match="holds another run"):
        MAKERS[kind](tmp_path / "a" / "set", seed=4)


def test_two_ranks_write_the_bytes_of_one_process(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = start("fractal", tmp_path / "set", launcher=launcher)
    assert done.returncode == 0, done.stderr[-2000:]
    two = contents(tmp_path / "set")
    shutil.rmtree(tmp_path / "set")
    fractal_set(tmp_path / "set", store=True)
    assert contents(tmp_path / "set") == two


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("store", [False, True])
def test_an_estimate_leaves_nothing(tmp_path, kind, store):
    real(tmp_path / "base")
    with pytest.raises(Estimate) as found:
        MAKERS[kind](tmp_path / "set", store=store, estimate=True)
    each = {"noise": 1200 * 12296, "fractal": 3000 * 3080, "random-labels": 11_000 * 776}[kind]
    assert found.value.needs["disk_mib"] == (pytest.approx(each / 2**20, abs=0.06) if store else 0)
    assert not (tmp_path / "set").exists()


def test_an_estimate_of_fractals_finds_one_category_and_counts_all(tmp_path, monkeypatch):
    asked = []

    def slow(count, seed, **settings):
        asked.append(count)
        time.sleep(0.05)
        return find_categories(count, seed, **settings)

    monkeypatch.setattr("phosphene.data.procedural.fractal.find_categories", slow)
    with pytest.raises(Estimate) as found:
        fractal(categories=10_000, images=20, size=8, out=tmp_path / "set", estimate=True)
    assert set(asked) == {1}
    assert found.value.needs["phases"]["categories"]["minutes"] >= 10_000 * 0.05 / 60


# -- looking ----------------------------------------------------------------------------------------------------------


def test_thousands_of_classes_are_shown_in_short(tmp_path):
    data = noise(images=6000, classes=5000, size=8, out=tmp_path / "n")
    shown = show(data, columns=3)
    assert set(shown["counts"]) == {"fewest", "most", "empty classes"} and shown["entropy"] == 0
    assert shown["drawn"] == "mean ± 2.5 std from black to white"
    assert len(json.dumps(shown)) < 2000 and Path(shown["sheet"]).exists()
    assert "drawn" not in show(fractal(images=20, categories=2, out=tmp_path / "f"))


def test_noise_is_exported_in_shades(tmp_path):
    from PIL import Image

    data = noise(images=40, classes=500, size=8, out=tmp_path / "n")
    export(data, out=tmp_path / "x")
    lines = (tmp_path / "x" / "rows.csv").read_text().splitlines()
    assert lines[0] == "file,label" and len(lines) == 41
    with Image.open(tmp_path / "x" / lines[1].split(",")[0]) as image:
        seen = np.asarray(image).transpose(2, 0, 1)
    mean, std = (np.array(data.card.statistics[name])[:, None, None] for name in ("mean", "std"))
    wanted = np.clip((data.pixels([0])[0].numpy() - mean) / (5 * std) + 0.5, 0, 1) * 255
    assert np.abs(seen - wanted).max() <= 0.51


def test_unreal_and_real_sets_are_compared(tmp_path):
    base = real(tmp_path / "base", 300)
    sets = [base, noise(images=30, out=tmp_path / "n"), random_labels(base, out=tmp_path / "r")]
    result = compare(sets, out=tmp_path / "c", per_class=2)
    assert Path(result["images"]).exists() and list(result["sets"]) == ["real", "n", "r"]
    assert Path(compare(sets[1:], out=tmp_path / "e")["images"]).exists()
    other = ImageDataset.from_arrays(np.zeros((4, 3, 8, 8), np.uint8), labels=[0, 1, 2, 3])
    with pytest.raises(DatasetError, match="same single-label classes"):
        compare([*sets, other], out=tmp_path / "d")


def test_json_on_the_command_line(tmp_path):
    done = CliRunner().invoke(cli.command("unreal noise"), ["--images", "30", "--out", str(tmp_path / "n"), "--json"])
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert printed["images"] == 30 and printed["classes"] == 6 and printed["origin"] == "noise"
    card = json.loads((tmp_path / "n" / "card.json").read_text())
    assert card["source"] == {"kind": "noise", "seed": 0} and card["recipe"]["command"] == "unreal noise"


# -- what can be wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda d: noise(images=0, out=d), "--images must be at least 1"),
        (lambda d: noise(classes=1, out=d), "--classes must be at least 2"),
        (lambda d: noise(size=0, out=d), "--size must be at least 1"),
        (lambda d: noise(channels=-1, out=d), "--channels must be at least 1"),
        (lambda d: fractal(categories=0, out=d), "--categories must be at least 1"),
        (lambda d: fractal(instances=0, out=d), "--instances must be at least 1"),
        (lambda d: fractal(size=7, out=d), "--size must be at least 8 and at most 1024"),
        (lambda d: fractal(channels=2, out=d), "--channels 2 is not 1 or 3"),
        (lambda d: fractal(channels=1, colour=True, out=d), "--colour needs --channels 3"),
        (lambda d: fractal(points=10, out=d), "--points 10 are too few"),
        (lambda d: fractal(labels="category", classes=7, out=d), "--classes 7: with --labels category"),
        (lambda d: fractal(labels="category", categories=1, out=d), "--categories must be at least 2 with --labels"),
        (lambda d: fractal(filling=0.9, out=d), "--filling 0.9 is not between 0 and 0.38"),
        (lambda d: fractal(filling=float("nan"), out=d), "--filling nan"),
        (lambda d: noise(classes=10**23, out=d), "--classes must be at least 2 and at most 10000000"),
        (lambda d: relabel(real(d / "base", 30), 10**8, 0), "--classes must be at least 2 and at most 10000000"),
        (lambda d: noise(images=10**23, out=d), "--images must be at least 1 and at most 10000000000"),
        (lambda d: fractal(images=10**23, out=d), "--images must be at least 1 and at most 10000000000"),
        (lambda d: noise(size=10_000, out=d), "--size 10000 with --channels 3 is too large"),
        (lambda d: random_labels(d / "nothing", out=d), "not a folder"),
        (lambda d: random_labels(real(d / "base", 30), images=0, out=d / "r"), "--images must be at least 1"),
        (lambda d: random_labels(real(d / "base", 30), classes=1, out=d / "r"), "--classes must be at least 2"),
        (lambda d: random_labels(real(d / "base", 30).subset([]), out=d / "r"), "real holds no images"),
        (lambda d: random_labels(real(d / "base", 30).subset([1, 2]), out=d / "r"), "give --store"),
    ],
)
def test_what_cannot_be_made_is_refused(tmp_path, call, says):
    with pytest.raises((SettingsError, DatasetError), match=says):
        call(tmp_path / "d")
    assert not (tmp_path / "d" / "config.json").exists()  # so that the same --out can be tried again


def changed(folder, **fields):
    """Another source on the card."""
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"source": {**card["source"], **fields}}))


@pytest.mark.parametrize(
    ("kind", "harm", "says"),
    [
        ("noise", lambda d: changed(d, kind="dreams"), "of kind 'dreams'; this version knows noise, fractal, dataset"),
        ("noise", lambda d: changed(d, kind=["noise"]), "this version knows noise"),
        (
            "noise",
            lambda d: (d / "card.json").write_text('{"shape": [1, 2, 2], "source": "x"}'),
            "source should be an obj",
        ),
        ("noise", lambda d: changed(d, seed="x"), "card.json: source: \\w+ should be a valid integer"),
        ("noise", lambda d: changed(d, seed=None), "card.json: source: \\w+ should be a valid integer"),
        ("fractal", lambda d: changed(d, points="many"), "card.json: source: \\w+ should be a valid integer"),
        ("fractal", lambda d: (d / "categories.json").unlink(), "categories.json cannot be read.*make it again"),
        ("fractal", lambda d: (d / "categories.json").write_text("{}"), "categories.json: format is missing"),
        ("fractal", lambda d: changed(d, categories="0"), "not the file of categories that this data set was made wi"),
        ("random-labels", lambda d: changed(d, path="../gone"), "takes its images from .*gone, which is not there"),
        ("random-labels", lambda d: changed(d, fingerprint="0"), "which is another data set now"),
        ("random-labels", lambda d: shutil.rmtree(d.parent / "base"), "base, which is not there; put it back"),
        ("random-labels", lambda d: changed(d, path="."), "takes its images from itself"),
    ],
)
def test_damage_is_named(tmp_path, kind, harm, says):
    MAKERS[kind](tmp_path / "d", images=60)
    harm(tmp_path / "d")
    with pytest.raises(DatasetError, match=says):
        ImageDataset.open(tmp_path / "d")


def test_cards_from_before_keep_their_fingerprint(tmp_path):
    data = real(tmp_path / "d", 20)
    text = (tmp_path / "d" / "card.json").read_text()
    assert "source" not in text and "random_labels" not in text
    assert Card.load(tmp_path / "d").source is None and not Card.load(tmp_path / "d").random_labels
    assert data.card.dumps() == text


# -- the page for users -----------------------------------------------------------------------------------------------

PAGE = (SRC.parent / "docs" / "unreal.md").read_text()


def test_the_commands_of_the_page_are_commands():
    lines = [line.split()[1:] for line in PAGE.splitlines() if line.startswith("phosphene ")]
    assert len(lines) == 6
    for words in lines:
        cli.command(" ".join(words[:2])).make_context(words[1], words[2:])


@pytest.mark.parametrize("number", [0, 1])
def test_the_python_of_the_page_runs(number, tmp_path):
    code = re.findall(r"```python\n(.*?)```", PAGE, re.S)[number]
    env = os.environ | {"PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    assert {0: "200 x 3x32x32, 100 classes", 1: "torch.Size([2, 1, 32, 32])"}[number] in done.stdout
    assert ImageDataset.open(tmp_path / ("fractals", "stripes")[number]).card.random_labels


if __name__ == "__main__":
    kind, folder, kill = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    left = [kill]

    def perhaps_die(phase, step):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    Run.after_step = staticmethod(perhaps_die)
    MAKERS[kind](folder, store=True)
