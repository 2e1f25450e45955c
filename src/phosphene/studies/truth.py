"""The true accuracies of architectures: a file of known ones, or networks trained and tested on real images.

JSON: ``{"Genotype(…)": 93.1, "found/run": 92.8}``; instead of a number an entry may be a table that has the number as
`mean_acc`, as in NAS-Bench-Macro's file. CSV: two columns, the accuracy last, a line of names or none; a
genotype has commas, so it stands in quotes. An architecture is anything that `phosphene train` takes; files and run
folders are looked for beside the truth file, too.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from .. import spaces
from ..data.dataset import ImageDataset
from ..errors import SettingsError, is_memory, shown
from ..searches import notation
from ..settings import Ge, Settings
from .datasets import RealTest, named_folders
from .probing import Probe
from .ranks import regret

MEAN = "mean_acc"
SCORES = "scores.jsonl"


class TruthFile(Settings, heading="The truth"):
    truth: Annotated[Path | None, "JSON or CSV file of true accuracies (NAS-Bench-Macro's as it is)"] = None


class Truth(TruthFile, RealTest):
    truth_data: Annotated[str | None, "instead of --truth: real images to train each architecture on"] = None
    truth_epochs: Annotated[int | None, Ge(1), "epochs on --truth-data; default: --epochs"] = None
    truth_images: Annotated[int | None, Ge(1), "images of --truth-data; default: as of the data sets, or all"] = None
    truth_augment: Annotated[bool, "shift and mirror the images of --truth-data"] = False

    def trained(self, first: Probe) -> Probe:
        """The network whose test accuracy is the truth: as `first`, on the real images."""
        data = str(self.truth_data)
        size = len(ImageDataset.open(data))
        images = self.truth_images or (size if first.images is None else min(first.images, size))
        epochs = self.truth_epochs or first.epochs
        return replace(first, data=data, test=self.test, epochs=epochs, images=images, augment=self.truth_augment)


def read(path: Path) -> dict[str, float]:
    """Architecture -> accuracy, in the file's order.

    Raises:
        SettingsError: the file cannot be read, or says something else, or says something twice.
    """
    try:
        pairs = _json(path) if path.suffix == ".json" else _csv(path)
        numbers = [(str(name).strip(), _accuracy(entry)) for name, entry in pairs]
    except Exception as error:  # the readers of JSON and CSV, and float, raise what they like of others' files
        if is_memory(error):
            raise
        remedy = "give JSON or CSV, architecture to accuracy"
        raise SettingsError(f"--truth {path} cannot be read ({shown(error, str)}); {remedy}") from error
    known = {_located(name, path.parent): accuracy for name, accuracy in numbers}
    if len(known) < len(numbers):
        raise SettingsError(f"--truth {path} names an architecture twice; keep one line of it")
    if len(known) < 3 or not all(map(math.isfinite, known.values())):
        raise SettingsError(f"--truth {path} has {len(known)} architectures; three with finite accuracies are needed")
    return known


def _json(path: Path) -> list[tuple[str, Any]]:
    # pairs instead of a dictionary, which would hide an architecture that is named twice
    pairs: list[tuple[str, Any]] = json.loads(path.read_text(), object_pairs_hook=lambda pairs: pairs)
    return pairs


def _accuracy(entry: Any) -> float:
    """The number of an entry, which is a number or the pairs of a table."""
    return float(dict(entry)[MEAN] if isinstance(entry, list) else entry)


def _csv(path: Path) -> list[tuple[str, Any]]:
    with open(path, newline="", encoding="utf-8") as file:
        lines: list[tuple[str, Any]] = [(line[0], line[-1]) for line in csv.reader(file, skipinitialspace=True) if line]
    return lines[1:] if lines and not _is_number(lines[0][1]) else lines


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _located(name: str, folder: Path) -> str:
    """A file or run folder beside the truth file by its path; any other name as it is."""
    if name.startswith("Genotype("):
        return name
    beside = folder / name
    return str(beside) if len(name) < 200 and beside.exists() else name


def look_up(searches: Sequence[str], path: Path) -> dict[str, dict[str, Any]]:
    """For FOLDER or NAME=FOLDER of searches: the architecture, its truth, and its regret to the best of the file.

    `better` is the share of the file's architectures that are better, in per cent. Where the search has scored
    candidates, `random_best` is the truth of the best of as many random ones, in expectation: what random search
    reaches with as many trainings.

    Raises:
        SettingsError: the file does not know an architecture.
        ArchitectureError: a folder has no architecture.
    """
    known = read(path)
    reached = np.array(list(known.values()))
    looked_up: dict[str, dict[str, Any]] = {}
    for name, folder in named_folders(searches):
        architecture = spaces.architecture(folder)
        text = notation(spaces.space(architecture.space), architecture.choices)
        if text not in known:
            raise SettingsError(f"--found {folder}: --truth {path} does not know {text[:60]!r}")
        figures: dict[str, Any] = {"truth": known[text], "regret": round(float(reached.max() - known[text]), 4)}
        figures["better"] = round(100 * float((reached > known[text]).mean()), 4)
        if (scored := Path(folder) / SCORES).is_file():
            count = scored.read_bytes().count(b"\n")
            lost = regret(np.zeros(len(reached)), reached, count)  # equal scores: `count` random architectures
            figures |= {"scored": count, "random_best": round(float(reached.max() - lost), 4)}
        looked_up[name] = {"architecture": text, **figures}
    return looked_up
