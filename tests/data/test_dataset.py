"""The data set: rows, normalisation, views, streaming, damage, and a writer that survives being killed."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phosphene.data.arrays import centred, statistics
from phosphene.data.augment import Augment
from phosphene.data.card import YOUNGER, Card
from phosphene.data.dataset import ImageDataset, batches
from phosphene.data.writer import Writer
from phosphene.errors import DatasetError


def pixels(n: int = 60, c: int = 3, h: int = 8, w: int = 10, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, c, h, w), dtype=np.uint8)


def scores(n: int = 60, k: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, k)) * 4 + 7


def labelled(n: int = 60, k: int = 5, **fields: object) -> ImageDataset:
    return ImageDataset.from_arrays(pixels(n), labels=np.arange(n) % k, **fields)


def test_rows_of_logits_are_a_softmax_at_any_temperature(tmp_path: Path) -> None:
    logits = scores()
    data = ImageDataset.from_arrays(pixels(), logits=logits).save(tmp_path / "d")
    for temperature in (1.0, 3.0):
        x = logits / temperature
        expected = np.exp(x - x.max(1, keepdims=True))
        expected /= expected.sum(1, keepdims=True)
        assert np.allclose(data.targets(range(60), temperature), expected, atol=3e-3)
    assert np.load(tmp_path / "d" / "logits.npy").dtype == np.float16
    assert abs(float(data.logits(range(60)).mean(1).abs().max())) < 2e-3
    assert (data.labels == logits.argmax(1)).all() and data.soft


def test_rows_of_labels_are_one_hot() -> None:
    data = labelled()
    assert torch.equal(data.targets([0, 1, 6]), torch.eye(5)[[0, 1, 1]])
    assert data.logits([0]) is None and not data.soft


def test_unlabelled_findings_stay_nan(tmp_path: Path) -> None:
    findings = np.array([[1, 0, np.nan], [0, np.nan, 1]])
    data = ImageDataset.from_arrays(pixels(2), labels=findings, task="multi").save(tmp_path / "d")
    assert np.array_equal(data.targets([0, 1]).numpy(), findings.astype(np.float32), equal_nan=True)
    assert data.card.classes == 3
    soft = ImageDataset.from_arrays(pixels(2), logits=np.array([[0.0, 9, -9], [1, 1, 1]]), task="multi")
    assert torch.allclose(soft.targets([0])[0], torch.sigmoid(torch.tensor([0.0, 9, -9])), atol=1e-3)


def test_rounding_logits_twice_changes_nothing() -> None:
    once = centred(scores())
    assert np.array_equal(once, centred(once))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_normalisation_declared_else_measured(dtype: type) -> None:
    stored = pixels() if dtype is np.uint8 else (pixels() / 255).astype(np.float32)
    unit = stored.astype(np.float64) / (255 if dtype is np.uint8 else 1)
    measured = ImageDataset.from_arrays(stored, labels=np.zeros(60, int))
    inputs = measured.batch(range(60)).inputs.double()
    assert inputs.mean((0, 2, 3)).abs().max() < 1e-4 and (inputs.std((0, 2, 3)) - 1).abs().max() < 1e-3
    declared = ImageDataset.from_arrays(stored, labels=np.zeros(60, int), mean=[0.1, 0.2, 0.3], std=[0.5, 0.25, 2])
    expected = (unit - np.array([0.1, 0.2, 0.3])[:, None, None]) / np.array([0.5, 0.25, 2])[:, None, None]
    assert np.allclose(declared.batch(range(60)).inputs, expected, atol=1e-5)
    assert np.allclose(declared[7][0], expected[7], atol=1e-5)


def test_statistics_stream_in_chunks_to_the_same_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = statistics(pixels(500))
    monkeypatch.setattr("phosphene.data.dataset.CHUNK", 3000)
    assert statistics(pixels(500)) == whole
    assert np.allclose(whole["mean"], (pixels(500) / 255).mean((0, 2, 3)), atol=1e-6)
    assert np.allclose(whole["std"], (pixels(500) / 255).std((0, 2, 3)), atol=1e-5)


def test_disk_and_memory_are_the_same_set(tmp_path: Path) -> None:
    memory = ImageDataset.from_arrays(pixels(), logits=scores(), name="x", class_names=list("abcde"))
    disk = memory.save(tmp_path / "d")
    assert disk.fingerprint == memory.fingerprint == ImageDataset.open(tmp_path / "d").fingerprint
    assert torch.equal(disk.pixels(range(60)), memory.pixels(range(60)))
    assert disk.card == memory.card
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == [
        "card.json",
        "checksums.json",
        "images.npy",
        "logits.npy",
    ]


def test_fingerprints_tell_sets_apart() -> None:
    base = labelled()
    other = [
        ImageDataset.from_arrays(pixels(seed=1), labels=np.arange(60) % 5),
        ImageDataset.from_arrays(pixels(), labels=np.arange(1, 61) % 5),
        labelled(name="other"),
        base.subset(range(30)),
        base.subset(range(30, 60)),
    ]
    prints = {base.fingerprint, *(data.fingerprint for data in other)}
    assert len(prints) == 6


@given(n=st.integers(20, 200), fraction=st.floats(0.1, 0.9), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_split_is_stratified_and_a_partition(n: int, fraction: float, seed: int) -> None:
    data = ImageDataset.from_arrays(np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1), labels=np.arange(n) ** 2 % 7)
    one, two = data.split(fraction, seed)
    seen = torch.cat([one.pixels(range(len(one))), two.pixels(range(len(two)))]).flatten().tolist()
    assert sorted(seen) == list(range(n))
    assert abs(len(one) - fraction * n) <= 1
    for k in range(7):
        assert abs((one.labels == k).sum() - fraction * (data.labels == k).sum()) <= 1
    assert np.array_equal(one._index, data.split(fraction, seed)[0]._index)


def test_views_of_views_and_saved_views(tmp_path: Path) -> None:
    data = labelled().subset(range(10, 40)).subset([3, 1, 2])
    assert len(data) == 3 and data.labels.tolist() == [3, 1, 2]
    saved = data.save(tmp_path / "d")
    assert torch.equal(saved.pixels(range(3)), torch.from_numpy(pixels()[[13, 11, 12]]))
    assert saved.card.count == 3
    with pytest.raises(IndexError):
        data.pixels([3])


def test_batches_are_a_pure_function_and_visit_every_image_once_an_epoch() -> None:
    backwards = [batches(103, 10, 7, step) for step in reversed(range(30))][::-1]
    forwards = [batches(103, 10, 7, step) for step in range(30)]
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))
    for epoch in range(3):
        seen = torch.cat(forwards[epoch * 10 : epoch * 10 + 10])
        assert len(seen.unique()) == 100
    assert not torch.equal(forwards[0], forwards[10]) and not torch.equal(forwards[0], batches(103, 10, 8, 0))
    mine = batches(103, 10, 7, 0)
    mine.zero_()
    assert torch.equal(batches(103, 10, 7, 0), forwards[0]), "the caller may change what it got"


def test_batches_larger_than_the_set_run_on() -> None:
    flat = torch.cat([batches(4, 10, 0, step) for step in range(6)])
    assert (torch.bincount(flat) == 15).all()
    for start in range(0, 60, 4):
        assert sorted(flat[start : start + 4].tolist()) == [0, 1, 2, 3]


def test_a_torch_data_loader_reads_it_with_workers(tmp_path: Path) -> None:
    data = ImageDataset.from_arrays(pixels(), logits=scores()).save(tmp_path / "d")
    loader = torch.utils.data.DataLoader(data, batch_size=16, num_workers=2)
    inputs, rows = (torch.cat(part) for part in zip(*loader, strict=True))
    expected = data.batch(range(60))
    assert torch.allclose(inputs, expected.inputs, atol=1e-6) and torch.allclose(rows, expected.targets)


def test_a_mapped_set_is_pickled_by_path(tmp_path: Path) -> None:
    data = ImageDataset.from_arrays(pixels(2000), logits=scores(2000)).save(tmp_path / "d").subset(range(5, 25))
    sent = pickle.dumps(data)
    assert len(sent) < 10_000
    back = pickle.loads(sent)
    assert torch.equal(back.pixels(range(20)), data.pixels(range(20))) and back.fingerprint == data.fingerprint


def test_images_may_be_a_function_of_their_index() -> None:
    def draw(index: np.ndarray) -> np.ndarray:
        return np.stack([np.random.default_rng(int(i)).normal(size=(1, 4, 4)) for i in index]).astype(np.float32)

    data = ImageDataset.from_function(draw, Card(shape=(1, 4, 4), classes=2, count=1000), labels=np.arange(1000) % 2)
    assert torch.equal(data.pixels([3, 900]), data.pixels([900, 3]).flip(0))
    assert abs(data.card.statistics["std"][0] - 1) < 0.05
    assert data.batch(batches(1000, 32, 0, 0)).inputs.shape == (32, 1, 4, 4)
    with pytest.raises(DatasetError, match="returned float32"):
        ImageDataset.from_function(draw, Card(shape=(3, 4, 4), classes=2, count=10))


def test_batch_augments_and_follows_its_generator() -> None:
    data = ImageDataset.from_arrays(pixels(60, h=12, w=12), logits=scores())
    augment = Augment(crop=8, flip=True, cutout=2, mixup=1.0)
    one, two = (
        data.batch(range(20), augment=augment, temperature=2.0, generator=torch.Generator().manual_seed(4))
        for _ in range(2)
    )
    assert torch.equal(one.inputs, two.inputs) and one.inputs.shape == (20, 3, 8, 8)
    assert torch.allclose(one.targets.sum(1), torch.ones(20), atol=1e-5)


BIG = """
    import resource, sys
    import numpy as np, torch
    from phosphene.data.dataset import ImageDataset, batches
    data = ImageDataset.open(sys.argv[1])
    data.batch([0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for step in range(20):
        batch = data.batch(batches(len(data), 16, 0, step))
    data.fingerprint
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(len(data), batch.inputs.shape[-1], (after - before) // 1024)
"""


def test_27_gigabytes_of_images_stream(tmp_path: Path) -> None:
    """140,000 images of 256x256, as a sparse file: reading batches must not map the whole into memory."""
    card = Card(shape=(3, 256, 256), classes=1000, count=140_000, mean=[0.5] * 3, std=[0.2] * 3)
    (tmp_path / "big").mkdir()
    for name, dtype, shape in (("images", "uint8", (140_000, 3, 256, 256)), ("logits", "float16", (140_000, 1000))):
        np.lib.format.open_memmap(tmp_path / "big" / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
    size = (tmp_path / "big" / "images.npy").stat()
    assert size.st_size > 27e9 and size.st_blocks * 512 < 1e8, "the file is sparse"
    dataclasses.replace(card, statistics={"mean": [0.5] * 3, "std": [0.2] * 3}).save(tmp_path / "big")
    code = textwrap.dedent(BIG)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "big")], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    count, side, grown = map(int, done.stdout.split())
    assert (count, side) == (140_000, 256)
    assert grown < 400, f"{grown} MiB for 20 batches of 16"


# -- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda d: (d / "card.json").unlink(), "no card.json"),
        (lambda d: (d / "card.json").write_text("{"), "card.json is damaged"),
        (
            lambda d: (d / "card.json").write_text('{"shape": [3, 8, 10], "colour": 1}'),
            "has the key 'colour'",
        ),
        (lambda d: (d / "images.npy").unlink(), "images.npy is missing"),
        (lambda d: (d / "images.npy").write_bytes(b"not an array"), r"images\.npy cannot be read"),
        (
            lambda d: (d / "images.npy").write_bytes((d / "images.npy").read_bytes()[:500]),
            r"images\.npy cannot be read",
        ),
        (lambda d: (d / "logits.npy").write_bytes(b""), r"logits\.npy cannot be read"),
        (lambda d: np.save(d / "logits.npy", np.zeros((60, 4), np.float16)), "4 columns for 5 classes"),
        (lambda d: np.save(d / "logits.npy", np.zeros((59, 5), np.float16)), "59 logits for 60 images"),
        (lambda d: np.save(d / "images.npy", pixels(59)), "but the card has"),
        (lambda d: np.save(d / "images.npy", pixels().astype(np.int32)), "images are int32"),
        (
            lambda d: np.save(d / "logits.npy", np.array([{}] * 60), allow_pickle=True),
            r"logits\.npy cannot be read",
        ),
    ],
)
def test_damage_is_named(tmp_path: Path, harm: object, says: str) -> None:
    ImageDataset.from_arrays(pixels(), logits=scores()).save(tmp_path / "d")
    harm(tmp_path / "d")  # type: ignore[operator]
    with pytest.raises(DatasetError, match=says):
        ImageDataset.open(tmp_path / "d")


def test_what_cannot_be_a_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="not a folder"):
        ImageDataset.open(tmp_path / "nothing")
    with pytest.raises(DatasetError, match="four dimensions"):
        ImageDataset.from_arrays(pixels()[0], labels=[1])
    with pytest.raises(DatasetError, match="labels run from 0 to 4"):
        labelled(classes=3)
    with pytest.raises(DatasetError, match="not one integer"):
        ImageDataset.from_arrays(pixels(2), labels=np.array([0.5, 1]))
    with pytest.raises(DatasetError, match="2 class names for 5 classes"):
        labelled(classes=5, class_names=["a", "b"])
    with pytest.raises(DatasetError, match="neither labels nor logits"):
        ImageDataset.from_arrays(pixels(), classes=4).targets([0])
    with pytest.raises(DatasetError, match="mean and std together"):
        labelled(mean=[0.5])


def test_a_data_set_of_no_images_is_refused_at_every_door(tmp_path: Path) -> None:
    doors = [
        lambda: ImageDataset.from_arrays(pixels(0), labels=[], classes=3),
        lambda: ImageDataset.open(labelled().subset([])),
        lambda: ImageDataset.open(tmp_path / "d"),
        lambda: labelled().subset([]).save(tmp_path / "e"),
    ]
    labelled().save(tmp_path / "d")
    card = json.loads((tmp_path / "d" / "card.json").read_text())
    (tmp_path / "d" / "card.json").write_text(json.dumps(card | {"count": 0}))
    np.save(tmp_path / "d" / "images.npy", pixels(0))
    np.save(tmp_path / "d" / "labels.npy", np.zeros(0, np.int64))
    for door in doors:
        with pytest.raises(DatasetError, match=r"holds no images|count"):
            door()
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    "labels",
    [[0, 2**40], [0, -1], [0.0, np.inf], [0.0, np.nan], ["a", "b"], [1j, 0], [[0, 1], [2]], np.array([0, 2**64 - 1])],
)
def test_labels_that_are_no_classes(labels: object) -> None:
    with pytest.raises(DatasetError):
        ImageDataset.from_arrays(pixels(2), labels=labels)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("labels", np.zeros((60, 5), np.int64)),
        ("labels", np.zeros(60, np.float32)),
        ("logits", np.zeros((60, 5), np.int64)),
        ("logits", np.zeros(60, np.float16)),
    ],
)
def test_arrays_of_other_kinds_than_the_tasks(tmp_path: Path, name: str, values: np.ndarray) -> None:
    labelled().save(tmp_path / "d")
    np.save(tmp_path / "d" / f"{name}.npy", values)
    with pytest.raises(DatasetError, match=rf"{name} are .*, but the task single has"):
        ImageDataset.open(tmp_path / "d")


# -- writing ----------------------------------------------------------------------------------------------------------


def test_what_nobody_labelled_is_saved_without_labels(tmp_path: Path) -> None:
    saved = ImageDataset.from_arrays(pixels(), classes=4).save(tmp_path / "d")
    assert not (tmp_path / "d" / "labels.npy").exists() and saved.summary()["targets"] == "none"
    with pytest.raises(DatasetError, match="neither labels nor logits"):
        saved.targets([0])


CARD = Card(name="made", origin="test", shape=(3, 8, 10), classes=5, recipe={"steps": 3})


def chain(k: int) -> tuple[range, np.ndarray, np.ndarray, np.ndarray]:
    return range(k * 6, k * 6 + 6), pixels(6, seed=k), scores(6, seed=k), np.full((6, 3), k)


def write(writer: Writer, chains: list[int]) -> None:
    for k in chains:
        slots, images, logits, seeds = chain(k)
        writer.write(slots, images, logits=logits, seeds=seeds, chain=k, facts={"agreement": k / 10})


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("made") / "d"
    writer = Writer.create(folder, CARD, 30, seeds=3)
    write(writer, [0, 1, 2, 3, 4])
    writer.close(extra={"agreement": [f["agreement"] for f in writer.facts.values()]})
    return files(folder)


def test_the_order_of_writing_leaves_no_trace(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    writer = Writer.create(tmp_path / "d", CARD, 30, seeds=3)
    write(writer, [3, 0, 4, 2, 1])
    writer.close(extra={"agreement": [f["agreement"] for f in writer.facts.values()]})
    assert files(tmp_path / "d") == undisturbed
    assert set(undisturbed) == {"card.json", "checksums.json", "images.npy", "logits.npy", "seeds.npy"}


def test_scattered_slots(tmp_path: Path) -> None:
    writer = Writer.create(tmp_path / "d", CARD, 6)
    writer.write([0, 2, 4], pixels(3, seed=1), logits=scores(3), chain=0)
    writer.write(torch.tensor([5, 1, 3]), pixels(3, seed=2), logits=scores(3), chain=1)
    writer.close()
    data = ImageDataset.open(tmp_path / "d")
    assert torch.equal(data.pixels([5, 1, 3]), torch.from_numpy(pixels(3, seed=2)))


def test_ranks_fill_one_set(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    ranks = [Writer.create(tmp_path / "d", CARD, 30, seeds=3, rank=rank) for rank in range(2)]
    write(ranks[1], [3, 4])
    write(ranks[0], [0, 1, 2])
    again = Writer.create(tmp_path / "d", CARD, 30, seeds=3)
    assert again.done == {0, 1, 2, 3, 4}
    ranks[0].close(extra={"agreement": [f["agreement"] for f in again.facts.values()]})
    ranks[1].close()
    assert files(tmp_path / "d") == undisturbed


KILLED = """
    import os, signal, sys
    import numpy as np
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    import test_dataset as t
    writer = t.Writer.create(Path(sys.argv[2]), t.CARD, 30, seeds=3)
    t.write(writer, [k for k in (0, 1) if k not in writer.done])
    slots, images, logits, seeds = t.chain(2)
    writer._arrays["images"][slots.start : slots.stop] = 77   # half a slice, no promise
    writer._arrays["images"].flush()
    (Path(sys.argv[2]) / "journal-0.jsonl").open("a").write('{"chain": 2, "slo')
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_and_run_again_gives_the_same_bytes(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    code, here = textwrap.dedent(KILLED), str(Path(__file__).parent)
    killed = subprocess.run([sys.executable, "-c", code, here, str(tmp_path / "d")], env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(DatasetError, match="unfinished"):
        ImageDataset.open(tmp_path / "d")
    writer = Writer.create(tmp_path / "d", CARD, 30, seeds=3)
    assert writer.done == {0, 1}
    with pytest.raises(DatasetError, match="lacks 18 of 30 images"):
        writer.close()
    write(writer, [2, 3, 4])
    writer.close(extra={"agreement": [f["agreement"] for f in writer.facts.values()]})
    assert files(tmp_path / "d") == undisturbed


def test_a_finished_set_is_recognised_and_another_is_not_overwritten(tmp_path: Path) -> None:
    writer = Writer.create(tmp_path / "d", CARD, 6)
    writer.write(range(6), pixels(6), logits=scores(6))
    writer.close()
    again = Writer.create(tmp_path / "d", CARD, 6)
    written = {file.name: file.read_bytes() for file in (tmp_path / "d").iterdir()}
    again.close()
    assert again.finished and written == {file.name: file.read_bytes() for file in (tmp_path / "d").iterdir()}
    with pytest.raises(DatasetError, match="is finished"):
        again.write(range(6), pixels(6), logits=scores(6))
    with pytest.raises(DatasetError, match="holds another data set"):
        Writer.create(tmp_path / "d", dataclasses.replace(CARD, recipe={"steps": 4}), 6)
    Writer.create(tmp_path / "e", CARD, 6).write(range(3), pixels(3), logits=scores(3))
    with pytest.raises(DatasetError, match="another unfinished"):
        Writer.create(tmp_path / "e", dataclasses.replace(CARD, name="other"), 6)


def test_killed_between_card_and_journal(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    """The card is there, the journal still too: closing again is enough."""
    writer = Writer.create(tmp_path / "d", CARD, 30, seeds=3)
    write(writer, [0, 1, 2, 3, 4])
    journal = (tmp_path / "d" / "journal-0.jsonl").read_bytes()
    fields = {"extra": {"agreement": [f["agreement"] for f in writer.facts.values()]}}
    writer.close(**fields)
    (tmp_path / "d" / "journal-0.jsonl").write_bytes(journal)
    again = Writer.create(tmp_path / "d", CARD, 30, seeds=3)
    assert again.done == {0, 1, 2, 3, 4}
    again.close(**fields)
    assert files(tmp_path / "d") == undisturbed


def test_the_card_is_plain_json(tmp_path: Path) -> None:
    labelled(class_names=list("abcde"), teacher={"name": "t"}).save(tmp_path / "d")
    card = json.loads((tmp_path / "d" / "card.json").read_text())
    assert set(card) == {f.name for f in dataclasses.fields(Card)} - set(YOUNGER) and card["shape"] == [3, 8, 10]
