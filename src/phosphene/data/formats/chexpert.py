"""CheXpert's own layout (Irvin et al. 2019): a CSV of paths and labels for each part, beside folders of X-rays.

    CheXpert-v1.0-small/train.csv        Path, Sex, Age, Frontal/Lateral, AP/PA, then 14 observations
    CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg

A label is 1.0 (present), 0.0 (absent), -1.0 (the report is uncertain) or blank (the report does not mention it).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...errors import DatasetError
from . import ChexpertSettings, RawImages, digest_of, from_pictures, open_picture
from .contents import digest_of_files

__all__ = ["COMPETITION", "OBSERVATIONS", "is_chexpert", "read"]

OBSERVATIONS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
    "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
    "Support Devices",
)  # fmt: skip
COMPETITION = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
FILES = {
    "train": ("train.csv",),
    "validation": ("valid.csv",),
    "test": ("test.csv", "test_labels.csv"),  # released later, under either name
}
SIDE = 320  # of the paper's images; the small release is about 390 x 320
UNCERTAIN = {"ones": 1.0, "zeros": 0.0, "ignore": float("nan")}
BLANK = {"zeros": 0.0, "ignore": float("nan")}


@dataclass(frozen=True)
class Line:
    """One line of the CSV: its number, its picture and its labels."""

    number: int
    path: str
    codes: list[float]


def is_chexpert(folder: Path) -> bool:
    """Whether a folder has one of the CSVs, with CheXpert's columns."""
    names = (name for files in FILES.values() for name in files)
    return any(_has_columns(folder / name) for name in names)


def _has_columns(path: Path) -> bool:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = next(csv.reader(file), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return False
    return "Path" in header and {*COMPETITION} <= {*header}


def read(source: str, settings: ChexpertSettings) -> RawImages:
    """The X-rays of one part and their multi-label targets under the policies of `settings`, decoded when read."""
    folder = Path(source)
    table = _table(folder, settings.split)
    names = COMPETITION if settings.findings in (None, "competition") else OBSERVATIONS
    lines = list(_lines(table, names, settings.views or "all"))
    if not lines:
        raise DatasetError(f"{table} has no {settings.views or ''} images; give --views all")
    files = _files(folder, table, lines)
    labels = _policies(np.array([line.codes for line in lines], np.float32), settings)
    sized = replace(settings, size=settings.size or str(SIDE))  # X-rays are of many sizes
    raw = from_pictures(lambda i: open_picture(files[i]), lambda i: str(files[i]), labels, len(names), sized)
    raw.class_names = names
    named = [(line.path, file) for line, file in zip(lines, files, strict=True)]
    raw.digest = digest_of(labels.tobytes(), digest_of_files(named, table.name).encode())
    raw.about = {
        "uncertain": settings.uncertain or "ones",
        "blank": settings.blank or "zeros",
        "findings": settings.findings or "competition",
        "views": settings.views or "all",
    }
    return raw


def _table(folder: Path, split: str | None) -> Path:
    """The CSV of a part."""
    there = {part: folder / name for part, files in FILES.items() for name in files if (folder / name).is_file()}
    if not there:
        raise DatasetError(f"{folder} has none of train.csv, valid.csv and test.csv; name the folder that holds them")
    if split is None and len(there) > 1:
        raise DatasetError(f"{folder} has several parts; say which with --split {'|'.join(there)}")
    if split is not None and split not in there:
        raise DatasetError(f"{folder} has no {FILES[split][0]} for --split {split}; it has {', '.join(there)}")
    return next(iter(there.values())) if split is None else there[split]


def _lines(table: Path, names: tuple[str, ...], views: str) -> Iterator[Line]:
    """The lines of these views; errors name the line."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            missing = [name for name in ("Path", *names) if name not in (reader.fieldnames or ())]
            if missing:
                raise DatasetError(f"{table} lacks the columns {', '.join(missing)}; give CheXpert's own CSV")
            for row in reader:
                where = f"{table}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise DatasetError(f"{where}: {_cells(row)} cells for {len(reader.fieldnames or ())} columns")
                if _wanted(row, views, where):
                    yield Line(reader.line_num, row["Path"], [_code(row[name], name, where) for name in names])
    except (csv.Error, UnicodeDecodeError) as error:
        raise DatasetError(f"{table} is not a readable CSV ({error}); fetch it again") from error


def _cells(row: dict[str, str]) -> int:
    """How many cells a line has, whatever the header says."""
    extra: list[str] = row.get(None, [])  # type: ignore[call-overload]  # where DictReader puts what is too much
    return sum(value is not None for key, value in row.items() if key is not None) + len(extra)


def _wanted(row: dict[str, str], views: str, where: str) -> bool:
    """Whether the line is of the wanted view, by its column or else by the picture's name."""
    if views == "all":
        return True
    view = (row.get("Frontal/Lateral") or Path(row["Path"]).stem.rpartition("_")[2]).lower()
    if view not in ("frontal", "lateral"):
        raise DatasetError(
            f"{where}: neither the column Frontal/Lateral nor the file's name says the view; {row['Path']}"
        )
    return view == views


def _code(text: str, name: str, where: str) -> float:
    """1, 0, -1, or NaN for a blank."""
    if not text.strip():
        return float("nan")
    try:
        value = float(text)
    except ValueError:
        value = 2.0
    if value not in (1.0, 0.0, -1.0):
        raise DatasetError(f"{where}: {name} is {text!r}; it may be 1.0, 0.0, -1.0 or blank")
    return value


def _policies(codes: np.ndarray, settings: ChexpertSettings) -> np.ndarray:
    """Codes (N, K) as targets (N, K) in {0, 1, NaN}."""
    blank, uncertain = BLANK[settings.blank or "zeros"], UNCERTAIN[settings.uncertain or "ones"]
    return np.where(np.isnan(codes), blank, np.where(codes == -1, uncertain, codes)).astype(np.float32)


def _files(folder: Path, table: Path, lines: list[Line]) -> list[Path]:
    """The picture of each line: paths count from the folder's parent, the folder, or a folder of another name."""
    bases = (
        lambda path: folder.absolute().parent / path,
        lambda path: folder / path,
        lambda path: folder.joinpath(*Path(path).parts[1:]),
    )
    base = next((base for base in bases if base(lines[0].path).is_file()), bases[0])
    files = [base(line.path) for line in lines]
    for line, file in zip(lines, files, strict=True):
        if not file.is_file():
            raise DatasetError(f"{table}, line {line.number}: there is no picture {file}; is the folder whole?")
    return files
