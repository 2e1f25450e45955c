"""Real images in, class folders out.

`import_` reads a folder of class folders, an .npz, CIFAR's own python or binary batches (folder or .tar.gz), or a data
set of torchvision. `export` writes class folders and a CSV of rows. Pickled CIFAR batches pass an unpickler that can
make numpy arrays and nothing else.
"""

from __future__ import annotations

import csv
import hashlib
import inspect
import io
import pickle
import re
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from .card import Card
from .dataset import ImageDataset
from .errors import DatasetError, MissingExtra
from .journal import Writer
from .teacher import read_names, read_size

SPLITS = {"train": ("train", "training"), "validation": ("validation", "val", "valid"), "test": ("test", "testing")}
IMAGE_KEYS, LABEL_KEYS = ("images", "image", "x", "data"), ("labels", "label", "y", "targets")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
CHUNK = 256  # images decoded, written and journaled at a time


@dataclass
class Found:
    """What a source holds: `read(range)` gives images (n, C, H, W) of `dtype`."""

    read: Callable[[range], np.ndarray]
    labels: np.ndarray
    shape: tuple[int, int, int]
    classes: int
    class_names: Sequence[str] | None = None
    dtype: str = "uint8"
    digest: str = ""

    @property
    def task(self) -> Literal["single", "multi"]:
        """Rows of findings make a `multi` task."""
        return "single" if self.labels.ndim == 1 else "multi"


@dataclass(frozen=True)
class Wish:
    """What the flags ask of the images."""

    split: str | None
    size: tuple[int, int] | None
    channels: int | None
    layout: str
    root: Path


def import_(
    source: Annotated[str, "folder of class folders, .npz, folder or .tar.gz of CIFAR batches, or torchvision:NAME"],
    *,
    out: Annotated[Path | None, "folder of the new data set; default runs/import-NAME-SPLIT"] = None,
    split: Annotated[Literal["train", "validation", "test"] | None, "which part, where the source has several"] = None,
    format: Annotated[Literal["auto", "folders", "npz", "cifar", "torchvision"], "what the source is"] = "auto",
    size: Annotated[str | None, "resize to SIDE or HEIGHTxWIDTH, cropping at the centre to the aspect"] = None,
    channels: Annotated[int | None, "1 (grey) or 3 (colour); default: as the first image is"] = None,
    layout: Annotated[Literal["auto", "nchw", "nhwc"], "order of the axes in an .npz"] = "auto",
    class_names: Annotated[
        str | None, "comma-separated names, or a file with one a line; default: the source's"
    ] = None,
    name: Annotated[str | None, "the data set's name; default: of the source and split"] = None,
    root: Annotated[Path | None, "where torchvision keeps its downloads; default: ./downloads"] = None,
) -> ImageDataset:
    """Import real images as a data set: class folders, .npz, CIFAR's own files, or torchvision's data sets.

    An .npz may call its arrays images/labels, x/y or data/targets, alone or joined to train, val or test on either side
    (x_train, test_images, ...), as (N, H, W), (N, H, W, C) or (N, C, H, W). Labels of shape (N, K) that are not one-hot
    are independent findings, NaN where nobody looked. Raises `DatasetError` naming the file or flag.

    Example:
        phosphene dataset import cifar10.npz --split test --out data/cifar10-test
    """
    wish = Wish(split, None if size is None else read_size(size), channels, layout, root or Path("downloads"))
    if channels not in (None, 1, 3):
        raise DatasetError(f"--channels {channels} is neither 1 nor 3")
    kind = _kind(source) if format == "auto" else format
    found = READERS[kind](source, wish)
    if not len(found.labels):
        raise DatasetError(f"{source} holds no images" + (f" of --split {split}" if split else ""))
    stem = re.sub(r"(\.npz|\.tar\.gz|\.tgz|\.tar)$", "", source.removeprefix("torchvision:").rstrip("/").split("/")[-1])
    title = name or "-".join(filter(None, (stem.lower(), split)))
    names = read_names(class_names, found.classes) if class_names else found.class_names
    card = Card(
        name=title,
        origin="real",
        task=found.task,
        shape=found.shape,
        classes=found.classes,
        class_names=None if names is None else list(names),
        recipe={"source": source, "split": split, "format": kind, "size": size, "digest": found.digest},
    )
    return _write(found, card, out or Path("runs") / f"import-{title}")


def export(
    data: Annotated[ImageDataset | str, "folder of a data set"],
    *,
    out: Annotated[Path, "new folder to write class folders and rows.csv into"] = Path("export"),
) -> dict[str, Any]:
    """Write a data set as class folders of PNGs and a CSV of rows, for other tools.

    `rows.csv` has one line an image: file, label, and the target row, one column a class. Raises `DatasetError` when
    `out` is not empty, or for images that are neither grey nor RGB.

    Example:
        phosphene dataset export d --out folders
    """
    from PIL import Image

    data = data if isinstance(data, ImageDataset) else ImageDataset.open(data)
    if data.card.shape[0] not in (1, 3):
        raise DatasetError(f"images of {data.card.shape[0]} channels have no PNG; read {data.path}/images.npy instead")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"--out {out} is not an empty folder; name another")
    folders = folder_names(data.card)
    for folder in folders:
        (out / folder).mkdir(parents=True, exist_ok=True)
    width = len(str(len(data) - 1))
    with open(out / "rows.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "label", *(data.card.class_names or range(data.card.classes))])
        for start in range(0, len(data), CHUNK):
            index = range(start, min(start + CHUNK, len(data)))
            pixels = as_bytes(data.pixels(index).numpy())
            for i, image, row in zip(index, pixels, data.rows(index).numpy(), strict=True):
                label = int(data.labels[i])
                path = f"{folders[label]}/{i:0{width}d}.png"
                Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(out / path)
                table.writerow([path, label, *("" if np.isnan(p) else f"{p:.6g}" for p in row)])
    return {"path": str(out), "images": len(data), "classes": data.card.classes, "rows": str(out / "rows.csv")}


def folder_names(card: Card) -> list[str]:
    """A folder for each class: its number, so that sorting keeps the order, and its name where known."""
    width = len(str(card.classes - 1))
    names = card.class_names or [""] * card.classes
    plain = [re.sub(r"[^\w-]+", "_", name).strip("_")[:60] for name in names]
    return [f"{k:0{width}d}_{name}" if name else f"{k:0{width}d}" for k, name in enumerate(plain)]


def as_bytes(pixels: np.ndarray) -> np.ndarray:
    """uint8 as it is; float on the scale 0..1 rounded to uint8, clipped."""
    if pixels.dtype == np.uint8:
        return pixels
    scaled: np.ndarray = (np.clip(pixels.astype(np.float32), 0, 1) * 255).round().astype(np.uint8)
    return scaled


def _write(found: Found, card: Card, out: Path) -> ImageDataset:
    writer = Writer.create(out, card, len(found.labels), logits=False, dtype=found.dtype)
    starts = [] if writer.finished else range(0, len(found.labels), CHUNK)
    for start in starts:
        if start not in writer.done:
            slots = range(start, min(start + CHUNK, len(found.labels)))
            writer.write(slots, found.read(slots), labels=found.labels[slots.start : slots.stop])
    writer.close()
    return ImageDataset.open(out)


def _kind(source: str) -> str:
    if source.startswith("torchvision:"):
        return "torchvision"
    path = Path(source)
    if not path.exists():
        raise DatasetError(f"{source} is not there; give a folder, an .npz, CIFAR's batches or torchvision:NAME")
    if path.suffix == ".npz":
        return "npz"
    if path.is_file() and not tarfile.is_tarfile(path):
        raise DatasetError(f"{source} is neither an .npz nor a .tar.gz of CIFAR batches; say which with --format")
    return "cifar" if path.is_file() or any(_is_batch(p.name) for p in path.iterdir() if p.is_file()) else "folders"


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


# -- pictures: class folders, torchvision -----------------------------------------------------------------------------


def _folders(source: str, wish: Wish) -> Found:
    """SOURCE/CLASS/*.png, or SOURCE/SPLIT/CLASS/*.png."""
    path = _split_folder(Path(source), wish.split)
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    files = [(k, p) for k, folder in enumerate(folders) for p in sorted(folder.rglob("*")) if _is_picture(p)]
    if not files:
        raise DatasetError(f"{path} holds no class folders with images ({', '.join(SUFFIXES)})")
    digest = _digest(*(f"{p.relative_to(path)}:{p.stat().st_size}".encode() for _, p in files))
    labels = np.array([k for k, _ in files])
    found = _pictures(lambda i: _open(files[i][1]), lambda i: str(files[i][1]), labels, len(folders), wish)
    found.class_names, found.digest = [folder.name for folder in folders], digest
    return found


def _split_folder(path: Path, split: str | None) -> Path:
    if not path.is_dir():
        raise DatasetError(f"{path} is not a folder of class folders")
    there = {s: path / word for s, words in SPLITS.items() for word in words if (path / word).is_dir()}
    if split is None:
        if there:
            raise DatasetError(f"{path} has several parts; say which with --split {'|'.join(sorted(there))}")
        return path
    if split not in there:
        raise DatasetError(f"{path} has no folder for --split {split}" + (f"; it has {sorted(there)}" if there else ""))
    return there[split]


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")


def _open(path: Path) -> Any:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)  # this decodes it
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path} is not a readable image ({error}); remove or replace it") from error


def _torchvision(source: str, wish: Wish) -> Found:
    """Any data set of torchvision that gives (picture, integer)."""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        raise MissingExtra("torchvision", "vision") from error
    name = source.removeprefix("torchvision:")
    make = getattr(datasets, name, None)
    if not inspect.isclass(make):
        raise DatasetError(f"torchvision has no data set {name!r}; names are case-sensitive, as in torchvision:CIFAR10")
    try:
        items: Any = make(**_arguments(make, name, wish))
        known = getattr(items, "targets", None)  # where it is missing, every picture is decoded once for its label
        labels = np.array([int(k) for k in (known if known is not None else (items[i][1] for i in range(len(items))))])
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        raise DatasetError(f"{source} cannot be had ({error}); put its files into --root {wish.root}") from error
    names = getattr(items, "classes", None)
    classes = len(names) if names else int(labels.max(initial=0)) + 1
    found = _pictures(lambda i: items[i][0], lambda i: f"{source} image {i}", labels, classes, wish)
    found.class_names, found.digest = names and [str(n) for n in names], _digest(labels.tobytes())
    return found


def _arguments(make: Any, name: str, wish: Wish) -> dict[str, Any]:
    takes = inspect.signature(make).parameters
    given: dict[str, Any] = {"root": str(wish.root), "download": True}
    if "train" in takes or "split" in takes:
        if wish.split is None:
            raise DatasetError(f"torchvision:{name} has several parts; say which with --split train|test")
        given |= {"train": wish.split == "train", "split": "val" if wish.split == "validation" else wish.split}
    return {key: value for key, value in given.items() if key in takes}


def _pictures(
    get: Callable[[int], Any], where: Callable[[int], str], labels: np.ndarray, classes: int, wish: Wish
) -> Found:
    """Pillow images as bytes; size and colour are those of the first one where no flag says otherwise."""
    if not len(labels):
        raise DatasetError("there are no images")
    first = get(0)
    channels = wish.channels or (1 if first.mode in GREY else 3)
    height, width = wish.size or (first.height, first.width)

    def one(i: int) -> np.ndarray:
        from PIL import Image, ImageOps

        image = get(i)
        if wish.channels is None and channels == 1 and image.mode not in GREY:
            raise DatasetError(f"{where(i)} is in colour, the first image is grey; say --channels 1 or 3")
        if wish.size is None and image.size != (width, height):
            text = f"{image.height}x{image.width}, the first image {height}x{width}"
            raise DatasetError(f"{where(i)} is {text}; give --size SIDE to make them alike")
        image = image.convert("L" if channels == 1 else "RGB")
        pixels = np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC))
        return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)

    return Found(lambda part: np.stack([one(i) for i in part]), labels, (channels, height, width), classes)


GREY = ("1", "L", "LA", "I", "I;16", "F")

# -- .npz -------------------------------------------------------------------------------------------------------------


def _npz(source: str, wish: Wish) -> Found:
    try:
        with np.load(source, allow_pickle=False) as arrays:
            pairs = _pairs(arrays.files)
            image_key, label_key = pairs[_one_split(source, pairs, wish.split)]
            images, labels = arrays[image_key], arrays[label_key]
            names = [str(n) for n in arrays["class_names"]] if "class_names" in arrays.files else None
    except (OSError, ValueError, EOFError, AttributeError, pickle.UnpicklingError) as error:
        raise DatasetError(f"{source} cannot be read as an .npz of plain arrays ({error})") from error
    images = _nchw(_pixels(images, f"{source}:{image_key}"), wish.layout, f"{source}:{image_key}")
    labels = _targets(labels, f"{source}:{label_key}")
    if len(images) != len(labels):
        raise DatasetError(f"{source} has {len(images)} {image_key} but {len(labels)} {label_key}")
    classes = len(names) if names else labels.shape[1] if labels.ndim == 2 else int(labels.max(initial=0)) + 1
    images = _resized(images, wish)
    digest = _digest(images.tobytes(), labels.tobytes())
    shape = (images.shape[1], images.shape[2], images.shape[3])
    return Found(lambda at: images[at.start : at.stop], labels, shape, classes, names, str(images.dtype), digest)


def _pairs(keys: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Which arrays are images and labels of which split ("" where the names say none)."""
    lower = {key.lower(): key for key in keys}
    found = {}
    for split, words in {"": ("",), **SPLITS}.items():
        picks = [
            next((lower[k] for word in words for n in names for k in _joined(word, n) if k in lower), None)
            for names in (IMAGE_KEYS, LABEL_KEYS)
        ]
        if picks[0] and picks[1]:
            found[split] = (picks[0], picks[1])
    return found


def _joined(word: str, name: str) -> tuple[str, ...]:
    return (f"{word}_{name}", f"{name}_{word}", word + name) if word else (name,)


def _one_split(source: str, pairs: dict[str, tuple[str, str]], split: str | None) -> str:
    if not pairs:
        raise DatasetError(f"{source} has no images and labels under names we know (x_train/y_train, test_images, ...)")
    if split in pairs:
        return str(split)
    if split is None and len(pairs) == 1:
        return next(iter(pairs))
    there = "|".join(k for k in pairs if k) or "none"
    raise DatasetError(
        f"{source} has the parts {there}; " + (f"--split {split} is not there" if split else "say --split")
    )


def _pixels(images: np.ndarray, where: str) -> np.ndarray:
    """uint8, or float32 on the scale 0..1."""
    if images.dtype == np.uint8:
        return images
    if images.dtype == bool:
        return images.astype(np.uint8) * 255
    low, high = float(images.min(initial=0)), float(images.max(initial=0))
    whole = np.issubdtype(images.dtype, np.integer) or (high > 1 and bool((images == np.round(images)).all()))
    if whole and low >= 0 and high <= 255:
        return images.astype(np.uint8)
    if low >= 0 and high <= 1:
        return images.astype(np.float32)
    raise DatasetError(f"{where} runs from {low:.3g} to {high:.3g}; bytes 0..255 or floats 0..1 are needed")


def _nchw(images: np.ndarray, layout: str, where: str) -> np.ndarray:
    if images.ndim == 3:
        return images[:, None]
    if images.ndim != 4:
        raise DatasetError(f"{where} has shape {images.shape}; (N, H, W), (N, H, W, C) or (N, C, H, W) is needed")
    last, first = images.shape[3] in (1, 3), images.shape[1] in (1, 3)
    if layout == "auto" and last == first:
        raise DatasetError(f"{where} has shape {images.shape}: say --layout nchw or nhwc")
    if layout == "nhwc" or (layout == "auto" and last):
        return images.transpose(0, 3, 1, 2)
    return images


def _targets(labels: np.ndarray, where: str) -> np.ndarray:
    """Integers (N,); rows (N, K) of findings where they are not one-hot."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and (labels.sum(1) == 1).all() and ((labels == 0) | (labels == 1)).all():
        labels = labels.argmax(1)
    if labels.ndim == 2 and np.issubdtype(labels.dtype, np.number):
        return labels.astype(np.float32)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.number) or not (labels == np.round(labels)).all():
        raise DatasetError(f"{where} is {labels.dtype}{labels.shape}; one integer an image, or rows (N, K), is needed")
    if labels.min(initial=0) < 0:
        raise DatasetError(f"{where} has the label {labels.min()}; labels count from 0")
    return labels.astype(np.int64)


def _resized(images: np.ndarray, wish: Wish) -> np.ndarray:
    """As the flags wish; untouched where they wish nothing."""
    images = np.ascontiguousarray(images)
    if wish.channels in (None, images.shape[1]) and wish.size in (None, images.shape[2:]):
        return images
    if images.shape[1] not in (1, 3):
        raise DatasetError(f"images of {images.shape[1]} channels cannot be resized; leave --size and --channels out")
    from PIL import Image

    get = as_bytes(images)
    wish = Wish(wish.split, wish.size, wish.channels or images.shape[1], wish.layout, wish.root)
    open_ = lambda i: Image.fromarray(get[i][0] if get.shape[1] == 1 else get[i].transpose(1, 2, 0))  # noqa: E731
    return _pictures(open_, str, np.zeros(len(images)), 1, wish).read(range(len(images)))


# -- CIFAR's own files ------------------------------------------------------------------------------------------------

BATCHES: dict[str, tuple[str, ...]] = {
    "train": ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "train")
}
BATCHES["test"] = ("test_batch", "test")
META = ("batches.meta", "meta", "batches.meta.txt", "fine_label_names.txt")


def _is_batch(name: str) -> bool:
    return name.removesuffix(".bin") in (*BATCHES["train"], *BATCHES["test"])


def _cifar(source: str, wish: Wish) -> Found:
    """CIFAR-10's and CIFAR-100's python and binary batches, from their folder or archive; fine labels of CIFAR-100."""
    files = _files(Path(source))
    if wish.split not in BATCHES:
        raise DatasetError(f"{source}: CIFAR has the parts train and test; say which with --split train|test")
    there = [name for stem in BATCHES[wish.split] for name in (stem, stem + ".bin") if name in files]
    if not there:
        raise DatasetError(f"{source} has no CIFAR batches of --split {wish.split}; it has {sorted(files)[:8]}")
    parts = [
        _binary(files, name) if name.endswith(".bin") else _python(files[name], f"{source}/{name}") for name in there
    ]
    images = np.concatenate([images for images, _ in parts]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([labels for _, labels in parts]).astype(np.int64)
    names = _cifar_names(files, source)
    digest = _digest(images.tobytes(), labels.tobytes())
    images = _resized(images, wish)
    shape = (images.shape[1], images.shape[2], images.shape[3])
    classes = len(names) if names else 100 if labels.max() > 9 else 10
    return Found(lambda at: images[at.start : at.stop], labels, shape, classes, names, "uint8", digest)


def _files(path: Path) -> dict[str, bytes]:
    """Batches and names by file name, from a folder or from an archive, which is never unpacked to disk."""
    if path.is_dir():
        return {p.name: p.read_bytes() for p in sorted(path.iterdir()) if _is_batch(p.name) or p.name in META}
    try:
        with tarfile.open(path) as archive:
            members = [(Path(m.name).name, archive.extractfile(m)) for m in archive if m.isfile()]
            return {n: file.read() for n, file in members if file and (_is_batch(n) or n in META)}
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DatasetError(f"{path} is a damaged archive ({error}); fetch it again") from error


def _binary(files: dict[str, bytes], name: str) -> tuple[np.ndarray, np.ndarray]:
    """One label byte (CIFAR-100: coarse, then fine) before each image of 3,072 bytes."""
    head = 2 if name in ("train.bin", "test.bin") else 1
    content = np.frombuffer(files[name], np.uint8)
    if not len(content) or len(content) % (3072 + head):
        raise DatasetError(f"{name} has {len(content)} bytes, not a multiple of {3072 + head}; fetch it again")
    table = content.reshape(-1, 3072 + head)
    return table[:, head:], table[:, head - 1]


def _python(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    batch = _unpickle(content, where)
    images, labels = batch.get(b"data"), batch.get(b"labels", batch.get(b"fine_labels"))
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (3072,):
        raise DatasetError(f"{where} is no CIFAR batch: its data are not bytes (N, 3072)")
    if not isinstance(labels, list) or len(labels) != len(images) or not all(type(x) is int for x in labels):
        raise DatasetError(f"{where} is no CIFAR batch: its labels are not {len(images)} integers")
    return images, np.array(labels)


def _cifar_names(files: dict[str, bytes], source: str) -> list[str] | None:
    for name in META:
        if name in files and name.endswith(".txt"):
            return files[name].decode().split()
        if name in files:
            meta = _unpickle(files[name], f"{source}/{name}")
            names = meta.get(b"label_names", meta.get(b"fine_label_names")) or []
            return [n.decode() if isinstance(n, bytes) else str(n) for n in names] or None
    return None


class _ArraysOnly(pickle.Unpickler):
    """Makes numpy arrays beside Python's own containers; any other name in the file is refused, not imported."""

    def find_class(self, module: str, name: str) -> Any:
        made = {
            ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
            ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): _latin,
        }
        if (module, name) not in made:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return made[module, name]


def _latin(text: str, encoding: str) -> bytes:
    """How Python 3 pickles bytes for Python 2: the one use of `_codecs.encode` that is admitted."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it asks for the codec {encoding!r}")
    return text.encode("latin-1")


def _unpickle(content: bytes, where: str) -> dict[bytes, Any]:
    try:
        loaded = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DatasetError(f"{where} is refused: {error}; only CIFAR's arrays and lists are read") from error
    if not isinstance(loaded, dict):
        raise DatasetError(f"{where} is no CIFAR batch: it holds a {type(loaded).__name__}")
    return {k.encode() if isinstance(k, str) else k: v for k, v in loaded.items()}


READERS: dict[str, Callable[[str, Wish], Found]] = {
    "folders": _folders,
    "npz": _npz,
    "cifar": _cifar,
    "torchvision": _torchvision,
}
