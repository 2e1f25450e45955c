"""Import and export: each format written by the test itself, read back and compared pixel by pixel."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from phosphene.data.dataset import ImageDataset
from phosphene.data.export import export
from phosphene.data.import_ import import_
from phosphene.errors import DatasetError, PhospheneError, RunError, StorageError

RNG = np.random.default_rng(0)
CIFAR = RNG.integers(0, 256, (60, 3, 32, 32), dtype=np.uint8)
LABELS = np.arange(60) % 10
NAMES = [f"class {k}" for k in range(10)]


def same(data: ImageDataset, images: np.ndarray, labels: np.ndarray) -> bool:
    return np.array_equal(data.pixels(range(len(data))), images) and np.array_equal(data.labels, labels)


# -- .npz -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [("x_train", "y_train"), ("train_images", "train_labels"), ("X_train", "Y_train"), ("trainx", "trainy")],
)
def test_npz_splits_are_found_by_their_usual_names(tmp_path: Path, keys: tuple[str, str]) -> None:
    arrays = {keys[0]: CIFAR.transpose(0, 2, 3, 1), keys[1]: LABELS[:, None].astype(np.uint8)}
    arrays |= {"x_test": CIFAR[:5].transpose(0, 2, 3, 1), "y_test": LABELS[:5]}
    np.savez(tmp_path / "a.npz", **arrays)
    data = import_(str(tmp_path / "a.npz"), split="train", out=tmp_path / "d")
    assert same(data, CIFAR, LABELS) and data.card.classes == 10 and data.card.origin == "real"
    assert len(import_(str(tmp_path / "a.npz"), split="test", out=tmp_path / "e")) == 5
    with pytest.raises(DatasetError, match=r"train\|test; say --split"):
        import_(str(tmp_path / "a.npz"), out=tmp_path / "f")
    with pytest.raises(DatasetError, match="--split validation is not there"):
        import_(str(tmp_path / "a.npz"), split="validation", out=tmp_path / "f")


def test_npz_layouts(tmp_path: Path) -> None:
    def read(images: np.ndarray, labels: np.ndarray = LABELS, **flags: object) -> ImageDataset:
        np.savez(tmp_path / "a.npz", images=images, labels=labels)
        out = tmp_path / f"d{len(list(tmp_path.iterdir()))}"
        return import_(str(tmp_path / "a.npz"), out=out, **flags)  # type: ignore[arg-type]

    assert same(read(CIFAR), CIFAR, LABELS)
    assert same(read(CIFAR[:, 0]), CIFAR[:, :1], LABELS)
    floats = read((CIFAR / 255).astype(np.float64))
    assert floats.pixels([0]).dtype.is_floating_point
    assert np.allclose(
        floats.batch(range(60)).inputs, ImageDataset.from_arrays(CIFAR, labels=LABELS).batch(range(60))[0], atol=1e-3
    )
    assert same(read(CIFAR.astype(np.int64)), CIFAR, LABELS)
    assert same(read(CIFAR, np.eye(10)[LABELS]), CIFAR, LABELS)
    with pytest.raises(DatasetError, match="--layout"):
        read(CIFAR[:, :, :, :3])
    assert read(CIFAR[:, :, :, :3], layout="nchw").card.shape == (3, 32, 3)
    with pytest.raises(DatasetError, match="runs from 0 to 3"):
        read(np.linspace(0, 3, 60 * 3 * 32 * 32).reshape(CIFAR.shape) + 0.0)
    with pytest.raises(DatasetError, match="60 images but 59 labels"):
        read(CIFAR, LABELS[:59])
    with pytest.raises(DatasetError, match="labels count from 0"):
        read(CIFAR, LABELS - 1)


def test_npz_findings_are_a_multi_task(tmp_path: Path) -> None:
    findings = np.array([[1, 0, np.nan], [1, 1, 0]], np.float32)
    np.savez(tmp_path / "a.npz", images=CIFAR[:2], labels=findings, class_names=np.array(["edema", "mass", "nodule"]))
    data = import_(str(tmp_path / "a.npz"), out=tmp_path / "d")
    assert data.card.task == "multi" and data.card.class_names == ["edema", "mass", "nodule"]
    assert np.array_equal(data.targets([0, 1]).numpy(), findings, equal_nan=True)


def test_npz_with_pickled_objects_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.array([{}], dtype=object), labels=np.array([0]))
    with pytest.raises(DatasetError, match="plain arrays"):
        import_(str(tmp_path / "a.npz"), out=tmp_path / "d")
    (tmp_path / "b.npz").write_bytes(b"PK nonsense")
    with pytest.raises(DatasetError, match=r"b\.npz"):
        import_(str(tmp_path / "b.npz"), out=tmp_path / "d")


def test_size_and_channels(tmp_path: Path) -> None:
    flat = np.broadcast_to(np.arange(0, 250, 50, dtype=np.uint8)[:, None, None, None], (5, 3, 32, 32))
    np.savez(tmp_path / "a.npz", x=flat, y=np.arange(5))
    data = import_(str(tmp_path / "a.npz"), out=tmp_path / "d", size="16x12", channels=1)
    assert data.card.shape == (1, 16, 12)
    assert np.array_equal(data.pixels(range(5)), flat[:, :1, :16, :12]), "a flat picture stays flat"


def member(array: np.ndarray, **header: object) -> bytes:
    """An .npy whose header says something else than its content."""
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, np.lib.format.header_data_from_array_1_0(array) | header)
    return content.getvalue() + array.tobytes()


def zipped(path: Path, images: bytes, labels: bytes, how: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", how) as archive:
        archive.writestr("images.npy", images)
        archive.writestr("labels.npy", labels)


IMAGES, ONES = member(CIFAR[:4]), member(np.arange(4))
DAMAGED = {
    "a header of 10^12 images": member(CIFAR[:4], shape=(10**12, 3, 32, 32)),
    "a negative shape": member(CIFAR[:4], shape=(-4, 3, 32, 32)),
    "a header that is no Python": IMAGES.replace(b"{'descr'", b"{'descr(("),
    "a header of brackets": IMAGES[:10] + b"(" * (len(IMAGES) - CIFAR[:4].nbytes - 10) + CIFAR[:4].tobytes(),
    "another version": b"\x93NUMPY\x09\x00" + IMAGES[8:],
    "an object array": member(CIFAR[:4], descr="|O"),
    "text": member(np.array([["ab"]])),
    "complex numbers": member(np.ones((4, 2, 2), complex)),
    "a cut array": IMAGES[:-1],
    "a cut header": IMAGES[:20],
    "nothing": b"",
}


@pytest.mark.parametrize("what", DAMAGED)
@pytest.mark.parametrize("key", ["images", "labels"])
def test_damaged_npz(tmp_path: Path, what: str, key: str) -> None:
    pair = {"images": IMAGES, "labels": ONES} | {key: DAMAGED[what]}
    zipped(tmp_path / "a.npz", **pair)
    with pytest.raises(DatasetError, match=r"a\.npz"):
        import_(str(tmp_path / "a.npz"), out=tmp_path / "d")
    assert not (tmp_path / "d").exists()


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(1, 255), cut=st.booleans())
def test_an_npz_with_any_byte_changed(
    place: float, byte: int, cut: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    zipped(folder / "a.npz", IMAGES, ONES)
    content = bytearray((folder / "a.npz").read_bytes())
    at = int(place * len(content))
    content[at] ^= byte
    (folder / "a.npz").write_bytes(content[:at] if cut else content)
    with contextlib.suppress(DatasetError):  # some bytes decide nothing
        import_(str(folder / "a.npz"), out=folder / "d")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1, 2, 2**62]), "has the label 4611686018427387904"),
        (np.array([0, 1, 2, 2**64 - 1], np.uint64), "has the label 18446744073709551615"),
        (np.array([0, 1, 2, np.inf]), "has the label inf"),
        (np.array([0, 1, 2, np.nan]), "one integer an image"),
        (np.array(["a", "b", "c", "d"]), "one integer an image"),
        (np.array([0, 1, 2, 5]), "labels from 0 to 5, but 3 classes"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, labels: np.ndarray, message: str) -> None:
    np.savez(tmp_path / "a.npz", images=CIFAR[:4], labels=labels, class_names=np.array(["a", "b", "c"]))
    with pytest.raises(DatasetError, match=message):
        import_(str(tmp_path / "a.npz"), out=tmp_path / "d")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("flags", [{}, {"size": "8"}])
def test_no_images(tmp_path: Path, flags: dict[str, str]) -> None:
    np.savez(tmp_path / "a.npz", images=CIFAR[:0], labels=LABELS[:0])
    with pytest.raises(DatasetError, match=r"a\.npz holds no images"):
        import_(str(tmp_path / "a.npz"), out=tmp_path / "d", **flags)
    python_batches(tmp_path / "c")
    (tmp_path / "c" / "test_batch").write_bytes(pickle.dumps({b"data": CIFAR[:0].reshape(0, 3072), b"labels": []}))
    (tmp_path / "c" / "batches.meta").unlink()
    with pytest.raises(DatasetError, match="holds no images of --split test"):
        import_(str(tmp_path / "c"), split="test", out=tmp_path / "d")


def test_a_lack_of_memory_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    np.savez(tmp_path / "a.npz", images=CIFAR, labels=LABELS)
    monkeypatch.setattr(np, "load", short)
    with pytest.raises(OSError, match="Cannot allocate"):
        import_(str(tmp_path / "a.npz"), out=tmp_path / "d")


def test_class_names_in_a_long_list_and_in_a_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=CIFAR, labels=LABELS)
    names = [f"{k} of a long name for a class of which there are ten" for k in range(10)]
    data = import_(str(tmp_path / "a.npz"), out=tmp_path / "d", class_names=",".join(names))
    assert data.card.class_names == names
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(PhospheneError, match=r"--class-names .*names\.txt is not a text file"):
        import_(str(tmp_path / "a.npz"), out=tmp_path / "e", class_names=str(tmp_path / "names.txt"))


# -- class folders ----------------------------------------------------------------------------------------------------


def folders(root: Path, modes: tuple[str, ...] = ("RGB",)) -> None:
    for i, image in enumerate(CIFAR[:12]):
        folder = root / ["ant", "bee", "cow"][i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).convert(modes[i % len(modes)]).save(folder / f"{i:02d}.png")


def test_class_folders(tmp_path: Path) -> None:
    folders(tmp_path / "animals" / "train")
    folders(tmp_path / "animals" / "val")
    (tmp_path / "animals" / "train" / "ant" / "notes.txt").write_text("no picture")
    data = import_(str(tmp_path / "animals"), split="train", out=tmp_path / "d")
    order = [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]
    assert same(data, CIFAR[order], np.repeat([0, 1, 2], 4))
    assert data.card.class_names == ["ant", "bee", "cow"] and data.card.name == "animals-train"
    with pytest.raises(DatasetError, match="several parts"):
        import_(str(tmp_path / "animals"), out=tmp_path / "e")
    with pytest.raises(DatasetError, match="no folder for --split test"):
        import_(str(tmp_path / "animals"), split="test", out=tmp_path / "e")


def test_grey_and_unequal_pictures(tmp_path: Path) -> None:
    folders(tmp_path / "grey", ("L",))
    assert import_(str(tmp_path / "grey"), out=tmp_path / "d").card.shape == (1, 32, 32)
    folders(tmp_path / "mixed", ("L", "RGB"))
    with pytest.raises(DatasetError, match="--channels"):
        import_(str(tmp_path / "mixed"), out=tmp_path / "e")
    assert import_(str(tmp_path / "mixed"), out=tmp_path / "f", channels=3).card.shape == (3, 32, 32)
    Image.new("RGB", (40, 32)).save(tmp_path / "grey" / "cow" / "zz.png")
    with pytest.raises(DatasetError, match=r"zz\.png is 32x40"):
        import_(str(tmp_path / "grey"), out=tmp_path / "g", channels=3)
    assert import_(str(tmp_path / "grey"), out=tmp_path / "h", channels=3, size="24").card.shape == (3, 24, 24)


def test_damaged_pictures_are_named(tmp_path: Path) -> None:
    folders(tmp_path / "a")
    whole = (tmp_path / "a" / "bee" / "04.png").read_bytes()
    (tmp_path / "a" / "bee" / "04.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match=r"04\.png is not a readable image"):
        import_(str(tmp_path / "a"), out=tmp_path / "d")
    (tmp_path / "a" / "bee" / "04.png").write_bytes(whole)
    assert len(import_(str(tmp_path / "a"), out=tmp_path / "e")) == 12


def test_importing_again_is_at_once_and_another_source_does_not_overwrite(tmp_path: Path) -> None:
    folders(tmp_path / "a")
    first = import_(str(tmp_path / "a"), out=tmp_path / "d")
    before = (tmp_path / "d" / "images.npy").stat().st_mtime_ns
    assert import_(str(tmp_path / "a"), out=tmp_path / "d").fingerprint == first.fingerprint
    assert (tmp_path / "d" / "images.npy").stat().st_mtime_ns == before
    (tmp_path / "a" / "ant" / "00.png").unlink()
    with pytest.raises(DatasetError, match="holds another data set"):
        import_(str(tmp_path / "a"), out=tmp_path / "d")


def test_a_picture_of_equal_size_that_was_changed_is_another_data_set(tmp_path: Path) -> None:
    folders(tmp_path / "a")
    import_(str(tmp_path / "a"), out=tmp_path / "d")
    picture = tmp_path / "a" / "ant" / "00.png"
    size = picture.stat().st_size
    other = CIFAR[0].transpose(1, 2, 0).copy()
    other[0, 0] ^= 1
    Image.fromarray(other).save(picture)
    picture.write_bytes(picture.read_bytes()[:size].ljust(size, b"\0"))
    with pytest.raises(DatasetError, match="holds another data set"):
        import_(str(tmp_path / "a"), out=tmp_path / "d")
    assert np.array_equal(import_(str(tmp_path / "a"), out=tmp_path / "e").pixels([0])[0], other.transpose(2, 0, 1))


def test_a_file_of_another_name_and_an_unreadable_one(tmp_path: Path) -> None:
    folders(tmp_path / "a")
    import_(str(tmp_path / "a"), out=tmp_path / "d")
    (tmp_path / "a" / "ant" / "00.png").rename(tmp_path / "a" / "ant" / "01.png")
    with pytest.raises(DatasetError, match="holds another data set"):
        import_(str(tmp_path / "a"), out=tmp_path / "d")


def test_a_folder_whose_name_is_no_text(tmp_path: Path) -> None:
    folders(tmp_path / "a")
    os.rename(tmp_path / "a" / "cow", os.fsencode(tmp_path / "a") + b"/c\xffw")
    data = import_(str(tmp_path / "a"), out=tmp_path / "d")
    assert data.card.class_names == ["ant", "bee", "c\ufffdw"]


# -- CIFAR ------------------------------------------------------------------------------------------------------------


def python_batches(folder: Path, protocol: int = 2) -> None:
    folder.mkdir()
    for name, part in [(f"data_batch_{i + 1}", slice(i * 10, i * 10 + 10)) for i in range(5)] + [
        ("test_batch", slice(50, 60))
    ]:
        batch = {b"data": CIFAR[part].reshape(-1, 3072), b"labels": LABELS[part].tolist(), b"batch_label": b"one of"}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=protocol))
    (folder / "batches.meta").write_bytes(
        pickle.dumps({b"label_names": [n.encode() for n in NAMES]}, protocol=protocol)
    )


def binary_batches(folder: Path) -> None:
    folder.mkdir()
    table = np.concatenate([LABELS[:, None].astype(np.uint8), CIFAR.reshape(60, -1)], axis=1)
    for i in range(5):
        (folder / f"data_batch_{i + 1}.bin").write_bytes(table[i * 10 : i * 10 + 10].tobytes())
    (folder / "test_batch.bin").write_bytes(table[50:].tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(n.replace(" ", "-") for n in NAMES) + "\n\n")


@pytest.mark.parametrize("make", [python_batches, binary_batches])
def test_cifar_batches(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "cifar-10")
    train = import_(str(tmp_path / "cifar-10"), split="train", out=tmp_path / "d")
    test = import_(str(tmp_path / "cifar-10"), split="test", out=tmp_path / "e")
    assert same(train, CIFAR[:50], LABELS[:50]) and same(test, CIFAR[50:], LABELS[50:])
    assert [n.replace("-", " ") for n in test.card.class_names or []] == NAMES
    with pytest.raises(DatasetError, match=r"--split train\|test"):
        import_(str(tmp_path / "cifar-10"), out=tmp_path / "f")


def test_cifar_archive_is_read_in_place(tmp_path: Path) -> None:
    python_batches(tmp_path / "cifar-10-batches-py")
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    data = import_(str(tmp_path / "cifar-10-python.tar.gz"), split="test", out=tmp_path / "d")
    assert same(data, CIFAR[50:], LABELS[50:]) and data.card.name == "cifar-10-python-test"


def test_cifar_100_has_fine_labels(tmp_path: Path) -> None:
    (tmp_path / "py").mkdir()
    batch = {b"data": CIFAR.reshape(60, -1), b"fine_labels": LABELS.tolist(), b"coarse_labels": [0] * 60}
    (tmp_path / "py" / "test").write_bytes(pickle.dumps(batch, protocol=2))
    (tmp_path / "py" / "meta").write_bytes(pickle.dumps({b"fine_label_names": [f"f{k}".encode() for k in range(100)]}))
    data = import_(str(tmp_path / "py"), split="test", out=tmp_path / "d")
    assert same(data, CIFAR, LABELS) and data.card.classes == 100
    (tmp_path / "bin").mkdir()
    heads = np.stack([np.zeros(60), LABELS], axis=1).astype(np.uint8)
    (tmp_path / "bin" / "test.bin").write_bytes(np.concatenate([heads, CIFAR.reshape(60, -1)], axis=1).tobytes())
    assert same(import_(str(tmp_path / "bin"), split="test", out=tmp_path / "e"), CIFAR, LABELS)


class Harm:
    """Pickles as a call of `os.mkdir`."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_that_calls_anything_is_refused_and_calls_nothing(tmp_path: Path, protocol: int) -> None:
    python_batches(tmp_path / "c")
    bad = {b"data": Harm(str(tmp_path / "broken-in")), b"labels": []}
    (tmp_path / "c" / "test_batch").write_bytes(pickle.dumps(bad, protocol=protocol))
    with pytest.raises(DatasetError, match=r"is refused \(it refers to \w+\.mkdir"):
        import_(str(tmp_path / "c"), split="test", out=tmp_path / "d")
    assert not (tmp_path / "broken-in").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"rubbish",
        pickle.dumps([1, 2]),
        pickle.dumps({b"data": 3}),
        pickle.dumps({b"data": CIFAR.reshape(60, -1)}),
        pickle.dumps({b"data": CIFAR.reshape(60, -1), b"labels": [2**70] * 60}),
        pickle.dumps({b"data": CIFAR.reshape(60, -1), b"labels": [-1] * 60}),
        pickle.dumps({b"data": CIFAR.reshape(60, -1), b"labels": [1.5] * 60}),
        pickle.dumps({"\udcff": 1}),
    ],
)
def test_damaged_batches_are_named(tmp_path: Path, content: bytes) -> None:
    python_batches(tmp_path / "c")
    (tmp_path / "c" / "test_batch").write_bytes(content)
    with pytest.raises(DatasetError, match="test_batch"):
        import_(str(tmp_path / "c"), split="test", out=tmp_path / "d")
    binary_batches(tmp_path / "b")
    (tmp_path / "b" / "test_batch.bin").write_bytes(content + b"x")
    with pytest.raises(DatasetError, match=r"test_batch\.bin"):
        import_(str(tmp_path / "b"), split="test", out=tmp_path / "d")


def test_damaged_names_and_archives_of_cifar(tmp_path: Path) -> None:
    python_batches(tmp_path / "c")
    for names in ([b"\xff"], 3, [b"a", b"b"]):
        (tmp_path / "c" / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}))
        with pytest.raises(DatasetError, match=r"c/batches\.meta has no|labels from 0 to 9, but 2 classes"):
            import_(str(tmp_path / "c"), split="test", out=tmp_path / "d")
    with tarfile.open(tmp_path / "c.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "c", "c")
    whole = (tmp_path / "c.tar.gz").read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:5000] + b"\0" * 100 + whole[5100:]):
        (tmp_path / "c.tar.gz").write_bytes(damaged)
        with pytest.raises(DatasetError, match=r"c\.tar\.gz"):
            import_(str(tmp_path / "c.tar.gz"), split="test", out=tmp_path / "d")


def test_an_archive_that_claims_more_than_any_batch_has(tmp_path: Path) -> None:
    member = tarfile.TarInfo("c/test_batch")
    member.size = 10**12
    (tmp_path / "c.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + b"\0" * 10240)
    with pytest.raises(DatasetError, match=r"more than any batch of CIFAR|damaged archive"):
        import_(str(tmp_path / "c.tar"), split="test", format="cifar", out=tmp_path / "d")


# -- torchvision ------------------------------------------------------------------------------------------------------


def test_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")

    class FewFakes(datasets.FakeData):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__(size=30, image_size=(3, 24, 40))

    monkeypatch.setattr(datasets, "FewFakes", FewFakes, raising=False)
    data = import_("torchvision:FewFakes", out=tmp_path / "d")
    pictures = np.stack([np.asarray(picture).transpose(2, 0, 1) for picture, _ in FewFakes()])
    assert same(data, pictures, np.array([int(label) for _, label in FewFakes()]))
    assert data.card.name == "fewfakes" and len(import_("torchvision:FewFakes", out=tmp_path / "d")) == 30
    monkeypatch.setattr(FewFakes, "__getitem__", lambda self, i: (Image.new("RGB", (40, 24), (i, 0, 1)), i % 10))
    with pytest.raises(DatasetError, match="another data set"):
        import_("torchvision:FewFakes", out=tmp_path / "d")
    monkeypatch.setattr(FewFakes, "__getitem__", lambda self, i: ({} if i == 7 else Image.new("L", (4, 4)), 0))
    with pytest.raises(DatasetError, match="torchvision:FewFakes"):
        import_("torchvision:FewFakes", out=tmp_path / "e")
    with pytest.raises(DatasetError, match="no data set 'CIFAR11'"):
        import_("torchvision:CIFAR11", out=tmp_path / "e")
    with pytest.raises(DatasetError, match="several parts"):
        import_("torchvision:CIFAR10", out=tmp_path / "e")


def test_torchvision_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    with pytest.raises(PhospheneError, match=r"phosphene\[vision\]"):
        import_("torchvision:CIFAR10", split="test", out=tmp_path / "d")


# -- the rest ---------------------------------------------------------------------------------------------------------


def test_what_is_not_there_or_unknown(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is not there"):
        import_(str(tmp_path / "nothing"), out=tmp_path / "d")
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(DatasetError, match="--format"):
        import_(str(tmp_path / "a.csv"), out=tmp_path / "d")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no class folders"):
        import_(str(tmp_path / "empty"), out=tmp_path / "d")


def test_export_and_back(tmp_path: Path) -> None:
    logits = np.random.default_rng(1).normal(size=(60, 10)) + 9 * np.eye(10)[LABELS]
    data = ImageDataset.from_arrays(CIFAR, logits=logits, class_names=NAMES)
    result = export(data, out=tmp_path / "x")
    assert result["images"] == 60
    back = import_(str(tmp_path / "x"), out=tmp_path / "d")
    order = np.argsort(LABELS, kind="stable")
    assert same(back, CIFAR[order], LABELS[order])
    assert back.card.class_names == [f"{k}_class_{k}" for k in range(10)]
    with open(tmp_path / "x" / "rows.csv") as file:
        table = list(csv.DictReader(file))
    assert [int(line["label"]) for line in table] == LABELS.tolist()
    rows = np.array([[float(line[name]) for name in NAMES] for line in table])
    assert np.allclose(rows, data.targets(range(60)), atol=1e-5)
    with Image.open(tmp_path / "x" / table[7]["file"]) as image:
        assert np.array_equal(np.asarray(image).transpose(2, 0, 1), CIFAR[7])
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "mine.txt").write_text("mine")
    with pytest.raises(DatasetError, match="not an empty folder"):
        export(data, out=tmp_path / "y")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class Stopper(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("error", [Stopper(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("number", [1, 31])
def test_an_export_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, number: int
) -> None:
    data = ImageDataset.from_arrays(CIFAR, labels=LABELS, class_names=NAMES)
    export(data, out=str(tmp_path / "whole"))  # type: ignore[arg-type]
    left, save, saved = [number], Image.Image.save, []

    def stop(image: Image.Image, path: Path, *args: object) -> None:
        left[0] -= 1
        if not left[0]:
            Path(path).write_bytes(b"half a fi")
            raise error
        saved.append(path)
        save(image, path, *args)

    monkeypatch.setattr(Image.Image, "save", stop)
    with pytest.raises((Stopper, StorageError), match=r"png cannot be written: No space left|^$"):
        export(data, out=tmp_path / "x")
    (tmp_path / "x" / "0_class_0" / ".unfinished-1-77.png").write_bytes(b"half a file of a kill")
    assert not (tmp_path / "x" / "rows.csv").exists()
    other = ImageDataset.from_arrays(CIFAR[:9], labels=LABELS[:9], classes=10)
    with pytest.raises(DatasetError, match="is an export of another data set"):
        export(other, out=tmp_path / "x")
    export(data, out=tmp_path / "x")
    assert contents(tmp_path / "x") == contents(tmp_path / "whole") and len(saved) == 60
    assert export(data, out=tmp_path / "x")["images"] == 60 and len(saved) == 60, "it is recognised"


def test_traces_of_a_kill_at_the_end_go(tmp_path: Path) -> None:
    data = ImageDataset.from_arrays(CIFAR, labels=LABELS)
    data.save(tmp_path / "d")
    export(data, out=tmp_path / "x")
    for folder in (tmp_path / "d", tmp_path / "x"):
        before = contents(folder)
        (folder / ".lock").touch()
        (folder / ".holder.json").write_text("{}")
        assert contents(folder) != before
        data.save(folder) if folder.name == "d" else export(data, out=folder)
        assert contents(folder) == before


def test_an_unlabelled_export_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="neither labels nor logits"):
        export(ImageDataset.from_arrays(CIFAR, classes=3), out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_two_at_once(tmp_path: Path) -> None:
    """The folder is the first one's; nothing is left of the second."""
    data = ImageDataset.from_arrays(CIFAR, labels=LABELS)
    np.savez(tmp_path / "a.npz", images=CIFAR, labels=LABELS)
    code = "import sys; from phosphene.storage import lock; from pathlib import Path; lock.take(Path(sys.argv[1]))"
    for work in (
        lambda: import_(str(tmp_path / "a.npz"), out=tmp_path / "d"),
        lambda: data.save(tmp_path / "d"),
        lambda: export(data, out=tmp_path / "d"),
    ):
        command = [sys.executable, "-c", code + "; print('held', flush=True); input()", str(tmp_path / "d")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            with pytest.raises(RunError, match="another process is at work in"):
                work()
            holder.communicate("\n")
        assert not list((tmp_path / "d").glob("*"))


def test_exported_names_cannot_leave_the_folder(tmp_path: Path) -> None:
    data = ImageDataset.from_arrays(CIFAR[:2], labels=[0, 1], class_names=["../../up", "a/b: c"])
    export(data, out=tmp_path / "x")
    names = [".phosphene-export.json", "0_up", "1_a_b_c", "rows.csv"]
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == names


def test_real_files(tmp_path: Path) -> None:
    if "PHOSPHENE_DATA" not in os.environ:
        pytest.skip("PHOSPHENE_DATA is not set")
    source = Path(os.environ["PHOSPHENE_DATA"]) / "pneumoniamnist.npz"
    data = import_(str(source), split="test", out=tmp_path / "d", class_names="normal,pneumonia")
    assert len(data) == 624 and data.card.shape == (1, 28, 28) and np.bincount(data.labels).tolist() == [234, 390]
    with np.load(io.BytesIO(source.read_bytes())) as arrays:
        assert same(data, arrays["test_images"][:, None], arrays["test_labels"][:, 0])
