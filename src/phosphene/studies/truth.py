"""A file of what architectures are known to reach: JSON or CSV, architecture -> accuracy.

JSON: ``{"Genotype(…)": 93.1, "found/run": 92.8}``; instead of a number an entry may be a table that has the number as
`mean_acc`, as in NAS-Bench-Macro's file. CSV: two columns, the accuracy last, a line of names or none; a
genotype has commas, so it stands in quotes. An architecture is anything that `phosphene train` takes; files and run
folders are looked for beside the truth file, too.
"""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

from ..errors import SettingsError

MEAN = "mean_acc"


def read(path: Path) -> dict[str, float]:
    """Architecture -> accuracy, in the file's order.

    Raises:
        SettingsError: the file cannot be read, or says something else, or says something twice.
    """
    try:
        pairs = _json(path) if path.suffix == ".json" else _csv(path)
        numbers = [(str(name).strip(), _figure(figure)) for name, figure in pairs]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        remedy = "give JSON or CSV, architecture to accuracy"
        raise SettingsError(f"--truth {path} cannot be read ({error}); {remedy}") from error
    found = {_located(name, path.parent): figure for name, figure in numbers}
    if len(found) < len(numbers):
        raise SettingsError(f"--truth {path} names an architecture twice; keep one line of it")
    if len(found) < 3 or not all(map(math.isfinite, found.values())):
        raise SettingsError(f"--truth {path} has {len(found)} architectures; three with finite accuracies are needed")
    return found


def _json(path: Path) -> list[tuple[str, Any]]:
    def once(pairs: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        return pairs  # a dict would swallow what is said twice

    pairs: list[tuple[str, Any]] = json.loads(path.read_text(), object_pairs_hook=once)
    return pairs


def _figure(entry: Any) -> float:
    """The number of an entry, which is a number or the pairs of a table."""
    return float(dict(entry)[MEAN] if isinstance(entry, list) else entry)


def _csv(path: Path) -> list[tuple[str, Any]]:
    with open(path, newline="", encoding="utf-8") as file:
        rows: list[tuple[str, Any]] = [(row[0], row[-1]) for row in csv.reader(file, skipinitialspace=True) if row]
    return rows[1:] if rows and not _is_number(rows[0][1]) else rows


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
