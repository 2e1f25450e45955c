"""Export of a data set: class folders of PNGs and a CSV of targets."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from typing_extensions import TypedDict

from ..drawing.contact_sheet import picture, visible
from ..errors import DatasetError
from ..runtime.progress import Progress
from ..settings import OUTSIDE, Settings, command
from ..storage import lock, typed, whole
from .arrays import parts
from .card import Card
from .dataset import Data, ImageDataset
from .writer import alone_in

CHUNK = 256  # images read and written at a time
TABLE, RECORD = "rows.csv", ".phosphene-export.json"


class ExportSettings(Settings, heading="Export"):
    out: Annotated[Path, OUTSIDE, "new folder for the class folders and rows.csv"] = Path("export")


@command
def export(
    data: Data,
    settings: ExportSettings,
) -> dict[str, Any]:
    """Write a data set as class folders of PNGs and a CSV of targets, for other tools.

    `rows.csv` has one line an image: file, label, and the targets, one column a class, where there is more than a
    label. Images of noise are shown from black at mean − 2.5 standard deviations to white at mean + 2.5.

    The same command goes on where it was stopped. Raises `DatasetError` when `out` holds anything else, or for images
    that are neither grey nor RGB.

    Example:
        phosphene dataset export d --out folders
    """
    data, out = ImageDataset.open(data), Path(settings.out)
    if data.card.shape[0] not in (1, 3):
        raise DatasetError(f"images of {data.card.shape[0]} channels have no PNG; read {data.path}/images.npy instead")
    files = _files(data)
    _check(out, data)
    if all((out / file).exists() for file in (TABLE, *files)):
        lock.clear(out)
    else:
        with alone_in(out):
            _begin(out, data)
            _write_pictures(data, out, files)
            _write_table(data, out / TABLE, files)
    return {"path": str(out), "images": len(data), "classes": data.card.classes, "rows": str(out / TABLE)}


class Record(TypedDict):
    """What the folder is an export of."""

    fingerprint: str
    name: str


def _check(out: Path, data: ImageDataset) -> None:
    """Raise `DatasetError` where the folder holds another export, or anything but an export."""
    if (out / RECORD).exists():
        there = typed.read(out / RECORD, Record, DatasetError, "remove the folder, or name another --out")
        if there["fingerprint"] != data.fingerprint:
            raise DatasetError(f"--out {out} is an export of another data set ({there['name']}); name another")
    elif out.exists() and (not out.is_dir() or any(not lock.is_trace(file) for file in out.iterdir())):
        raise DatasetError(f"--out {out} is not an empty folder; name another")


def _begin(out: Path, data: ImageDataset) -> None:
    """Write the record, make the class folders, remove half files."""
    _check(out, data)  # once more: whoever held the folder until now may have begun
    if not (out / RECORD).exists():
        record: Record = {"fingerprint": data.fingerprint, "name": data.card.name}
        typed.write_json(out / RECORD, {**record})
    folders = [out / folder for folder in folder_names(data.card)]
    for folder in folders:
        with whole.storing(folder):
            folder.mkdir(parents=True, exist_ok=True)
    for folder in folders:  # the lock has put `out` itself in order
        for file in filter(whole.unfinished, folder.iterdir()):
            file.unlink(missing_ok=True)


def _files(data: ImageDataset) -> list[str]:
    """The path of each image's PNG in the export."""
    folders, width = folder_names(data.card), len(str(len(data) - 1))
    return [f"{folders[label]}/{i:0{width}d}.png" for i, label in enumerate(data.labels)]


def _write_pictures(data: ImageDataset, out: Path, files: list[str]) -> None:
    """Write the PNGs that are not there yet, each whole."""
    left = np.array([i for i, file in enumerate(files) if not (out / file).exists()], np.int64)
    bar = Progress(f"exporting {data.card.name}", len(files), len(files) - len(left))
    try:
        for start in range(0, len(left), CHUNK):
            index = left[start : start + CHUNK]
            for i, image in zip(index, visible(data.pixels(index).numpy(), data.card.statistics), strict=True):
                with whole.replacing(out / files[i]) as temporary:
                    picture(image).save(temporary)
            bar.update(len(files) - len(left) + start + len(index), {})
    finally:
        bar.close()


def _write_table(data: ImageDataset, path: Path, files: list[str]) -> None:
    hard = data.card.task == "single" and not data.soft
    text: dict[str, Any] = {"newline": "", "encoding": "utf-8", "errors": "replace"}
    with whole.replacing(path) as temporary, open(temporary, "w", **text) as file:
        table = csv.writer(file)
        table.writerow(["file", "label", *([] if hard else data.card.class_names or range(data.card.classes))])
        for index in parts(np.arange(len(data)), CHUNK):
            targets: Any = [()] * len(index) if hard else data.targets(index).numpy()
            for i, target in zip(index, targets, strict=True):
                label = int(data.labels[i])
                table.writerow([files[i], label, *("" if np.isnan(p) else f"{p:.6g}" for p in target)])


def folder_names(card: Card) -> list[str]:
    """A folder for each class: its number, so that sorting keeps the order, and its name where known."""
    width = len(str(card.classes - 1))
    names = card.class_names or [""] * card.classes
    plain = [re.sub(r"[^\w-]+", "_", name).strip("_")[:60] for name in names]
    return [f"{k:0{width}d}_{name}" if name else f"{k:0{width}d}" for k, name in enumerate(plain)]
