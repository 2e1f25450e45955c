"""One self-contained HTML page of any set of run folders: what was run, what came out, pictures and curves.

It reads files and imports no torch: a report of a long job takes a second, on any machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from typing_extensions import TypedDict

from .. import limits
from ..drawing.console_table import column_texts, is_number, text
from ..drawing.contact_sheet import short_names
from ..errors import PhospheneError, RunError, is_memory, shown
from ..settings import Settings, check_file, command
from ..storage import typed, whole
from .pictures import curves, pictures

MARKS = ("config.json", "card.json")  # either makes a folder one of ours
ORDER = ("data set", "synthesize", "noise", "unreal", "search", "train", "evaluate", "arch", "study")  # in a folder
FOLDED = 6  # runs of a stage that are shown in full; of more, each unfolds when it is clicked
HEADLINES = {  # result keys that the first tables show, and their column heads
    "network": "network",
    "data": "data",
    "images": "images",
    "agreement": "agreement",
    "entropy": "entropy, nats",
    "bn_distance": "BN distance",
    "loss": "loss",
    "validation": "validation",
    "params": "parameters",
    "macs": "MACs",
    "algorithm": "algorithm",
    "top1": "top-1, %",
    "top5": "top-5, %",
    "ece": "ECE, %",
    "teacher": "teacher, %",
    "found": "found, %",
    "noise": "noise, %",
    "random": "random, %",
}


@dataclass
class Section:
    """One run folder, ready for the template."""

    name: str
    stage: str
    path: str
    facts: list[str]
    headline: dict[str, Any]
    unfinished: bool = False
    scalars: list[tuple[str, str]] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    confusion: dict[str, Any] | None = None
    pictures: list[dict[str, str]] = field(default_factory=list)
    curves: list[dict[str, str]] = field(default_factory=list)
    settings: list[tuple[str, str]] = field(default_factory=list)
    minutes: float | None = None
    folded: bool = False


class PageSettings(Settings, heading="The page"):
    out: Annotated[Path | str, "HTML page to write"] = Path("report.html")
    title: Annotated[str, "heading of the page"] = "Phosphene report"


@command
def report(
    runs: Annotated[list[str], "run folders and data sets, or folders that hold some"], settings: PageSettings
) -> dict[str, Any]:
    """Make one self-contained HTML page of any set of run folders: settings, tables, contact sheets, cells, curves.

    Raises `RunError` naming a folder that is no run, or a file in it that is damaged.

    Example:
        phosphene report runs --out report.html
    """
    check_file("--out", settings.out, (".html", ".htm"), in_a_folder=False)
    folders = [folder for run in runs for folder in _expand(Path(run))]
    sections = [_readable(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]
    target = Path(settings.out)
    page = _render(settings.title, sections)
    with whole.storing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    whole.write(target, page.encode(errors="backslashreplace"))
    return {"path": str(target), "runs": len(sections), "kib": round(len(page) / 1024)}


# -- reading ----------------------------------------------------------------------------------------------------------


def _expand(path: Path) -> list[Path]:
    """The folder itself where it is a run, else the runs in it, two levels deep."""
    if not path.is_dir():
        raise RunError(f"{path} is not a folder; name run folders")
    if _is_ours(path):
        return [path]
    inside = sorted(p for pattern in ("*", "*/*") for p in path.glob(pattern) if p.is_dir() and _is_ours(p))
    if not inside:
        raise RunError(f"{path} is no run folder: it has neither {' nor '.join(MARKS)}, and no folder in it has")
    return sorted(inside, key=lambda p: _rank(str(_json(p / "config.json", Config).get("stage", ORDER[0]))))


def _rank(stage: str) -> int:
    """Where a stage stands; those of one kind share a first word: unreal-noise, study-collapse."""
    kind = stage.split("-")[0]
    return ORDER.index(kind) if kind in ORDER else len(ORDER)


def _is_ours(path: Path) -> bool:
    return any((path / mark).exists() for mark in MARKS)


def _names(folders: list[Path]) -> list[str]:
    """The folders' names, longer where two are alike."""
    short = [folder.resolve().name for folder in folders]
    return [n if short.count(n) == 1 else str(Path(*f.parts[-2:])) for n, f in zip(short, folders, strict=True)]


REMEDY = "run that stage again"


class Config(TypedDict, total=False):
    """``config.json``"""

    stage: str
    settings: dict[str, Any]
    versions: dict[str, Any]
    seed: int | None
    git: str | None


class Card(TypedDict, total=False):
    """``card.json``, as far as it is shown."""

    count: Annotated[int, Field(ge=0)]
    classes: Annotated[int, Field(ge=1, le=limits.CLASSES)]
    shape: list[int]
    class_names: list[str] | None
    statistics: dict[str, Any]
    task: str


class Timing(TypedDict, total=False):
    """``timing.json``"""

    seconds: Annotated[float, Field(ge=0)] | None


class Logged(TypedDict, total=False):
    """A line of ``metrics.jsonl``."""

    phase: str
    step: int


def _json(path: Path, kind: Any = dict[str, Any]) -> dict[str, Any]:
    """A JSON object, or {} where there is no such file."""
    return typed.read(path, kind, RunError, REMEDY) if path.exists() else {}


def _metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a torn last line of a run that is going on is left out."""
    kind: Any = Logged
    return typed.lines(path, kind, RunError, REMEDY) if path.exists() else []


def _readable(folder: Path, name: str) -> Section:
    """The section of a folder; raises `RunError` where anything in its files is not what a page can show."""
    try:
        return _section(folder, name)
    except PhospheneError:
        raise
    except Exception as error:  # figures may be of any type, and pictures of any bytes
        if is_memory(error):
            raise
        raise RunError(f"{folder} cannot be shown ({type(error).__name__}: {shown(error, str)}); {REMEDY}") from error


def _section(folder: Path, name: str) -> Section:
    config, card = _json(folder / "config.json", Config), _json(folder / "card.json", Card)
    result = _json(folder / "result.json")
    if config and "stage" not in config:
        raise RunError(f"{folder}/config.json names no stage; it is not a run of ours")
    stage = str(config.get("stage", "data set"))
    inside = [path.parent for path in sorted(folder.rglob("config.json")) if path.parent != folder]
    minutes = _minutes([folder, *inside])
    figures = result or {"images": card.get("count"), **card.get("statistics", {})} if card or result else {}
    facts = _facts(config, card, minutes) + _counted(inside) + _csv(folder / "table.csv")
    section = Section(name, stage.replace("-", " "), str(folder), facts, figures, minutes=minutes)
    section.unfinished = bool(config) and not result
    _sort_result(section, figures, card.get("class_names"))
    section.pictures = pictures(folder, card)
    section.curves = curves(_metrics(folder / "metrics.jsonl"))
    measured = {key: figures[key] for key in ("mean", "std", "fingerprint") if key in figures}
    about = {"inputs": config.get("inputs"), "teacher": card.get("teacher"), "recipe": card.get("recipe")}
    section.settings = list(_flat({**config.get("settings", {}), **about, "result": measured}))
    return section


def _minutes(folders: list[Path]) -> float | None:
    """Of a run and of those inside, as far as they are known: a study computes in its pieces."""
    seconds = [_json(folder / "timing.json", Timing).get("seconds") for folder in folders]
    known = [float(one) for one in seconds if one is not None]
    return sum(known) / 60 if known else None


def _counted(inside: list[Path]) -> list[str]:
    """Number of runs inside a run, and of those that are finished."""
    done = sum((folder / "result.json").exists() for folder in inside)
    finished = "" if done == len(inside) else f", {done} finished"
    return [f"{len(inside)} runs inside{finished}"] if inside else []


def _csv(path: Path) -> list[str]:
    """How long a table beside the figures is; the page shows its summary."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [f"table.csv has {len(lines) - 1:,} rows"]


def _facts(config: dict[str, Any], card: dict[str, Any], minutes: float | None) -> list[str]:
    """One line under the heading: seed, precision, versions, minutes."""
    versions = ", ".join(f"{k} {v}" for k, v in config.get("versions", {}).items())
    shape = "×".join(map(str, card["shape"])) if "shape" in card else ""
    facts = [
        f"{card.get('count', 0):,} images of {shape}, {card.get('classes')} classes" if card else "",
        f"seed {config['seed']}" if "seed" in config else "",
        str(config.get("precision") or ""),
        "" if minutes is None else f"{minutes:.1f} minutes",
        versions,
        f"revision {str(config['git'])[:9]}" if config.get("git") else "",
    ]
    return [fact for fact in facts if fact]


def _sort_result(section: Section, result: dict[str, Any], names: list[str] | None) -> None:
    """Figures into a list, long texts, dicts and lists of dicts into tables, the confusion matrix on its own."""
    for key, value in result.items():
        label = key.replace("_", " ")
        if key in ("fingerprint", "mean", "std"):  # of use to machines; among the settings
            continue
        if key == "confusion":
            section.confusion = _confusion(value, list(result.get("per_class", {})) or names)
        elif isinstance(value, dict) and value:
            section.tables.append(_table(label, value, 100 if key == "per_class" else None))
        elif isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            section.tables.append(_table(label, dict(enumerate(value))))
        elif isinstance(value, str) and len(value) > 40:
            section.texts.append((label, value))
        elif value is not None:
            section.scalars.append((HEADLINES.get(key, label), _text(value)))


def _table(label: str, values: dict[Any, Any], full: float | None = None) -> dict[str, Any]:
    """Rows by name; one column of figures with bars up to `full`, or one for each key of the inner dicts."""
    nested = all(isinstance(v, dict) for v in values.values())
    columns = list(dict.fromkeys(k for v in values.values() for k in v)) if nested else ["value"]
    numbered = all(isinstance(k, int) for k in values)
    by_column = [_cells([v.get(c) if nested else v for v in values.values()]) for c in columns]
    rows = [
        {"name": "" if numbered else str(k), "cells": list(cells)}
        for k, cells in zip(values, zip(*by_column, strict=True), strict=True)
    ]
    figures = [] if nested else [v for v in values.values() if isinstance(v, (int, float)) and v >= 0]
    most = (full or max(figures)) if len(figures) == len(values) else 0
    shares = [round(100 * v / most, 1) for v in figures] if most else []
    return {"label": label, "columns": columns if nested else [], "rows": rows, "shares": shares}


def _cells(values: list[Any]) -> list[dict[str, Any]]:
    """The cells of one column."""
    return [{"text": cell, "number": is_number(v)} for cell, v in zip(column_texts(values, _text), values, strict=True)]


def _confusion(matrix: Any, names: list[str] | None) -> dict[str, Any] | None:
    """Rows of shares, for at most 20 classes; more do not fit a page."""
    counts = np.array(matrix, dtype=float)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not 0 < len(counts) <= 20:
        return None
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    labels = short_names(names, len(counts)) if names is None or len(names) == len(counts) else []
    labels = labels or [str(k) for k in range(len(counts))]
    rows = [
        [{"count": _text(int(n)), "share": float(s)} for n, s in zip(*row, strict=True)]
        for row in zip(counts, shares, strict=True)
    ]
    return {"names": labels, "rows": list(zip(labels, rows, strict=True))}


def _flat(values: dict[str, Any], before: str = "") -> Iterable[tuple[str, str]]:
    """Nested settings as dotted names; what is None was not set."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        elif value is not None:
            yield f"{before}{key}", _text(value)


def _text(value: Any) -> str:
    """As on the terminal, but with thin spaces between thousands, and lists longer, of shorter fractions."""
    if isinstance(value, int) and not isinstance(value, bool):
        return text(value).replace(",", "\u2009")
    if isinstance(value, list):
        return ", ".join(_brief(item) for item in value[:24]) + (" …" if len(value) > 24 else "")
    return text(value)


def _brief(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else _text(value)


# -- the page ---------------------------------------------------------------------------------------------------------


def _render(title: str, sections: list[Section]) -> str:
    import jinja2

    from ..__version__ import __version__

    template = Path(__file__).with_name("template.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    known = [s.minutes for s in _outermost(sections) if s.minutes is not None]
    return environment.from_string(template).render(
        title=title,
        sections=sections,
        groups=_groups(sections),
        minutes=f"{sum(known):.1f}" if known else None,
        version=__version__,
    )


def _outermost(sections: list[Section]) -> list[Section]:
    """Those that lie in no other one, whose minutes would count twice."""
    paths = {Path(section.path).resolve() for section in sections}
    return [section for section in sections if not paths.intersection(Path(section.path).resolve().parents)]


def _groups(sections: list[Section]) -> list[dict[str, Any]]:
    """A table for each stage, with the columns that its runs have."""
    groups = []
    for stage in dict.fromkeys(section.stage for section in sections):
        runs = [(number, section) for number, section in enumerate(sections, 1) if section.stage == stage]
        for _, section in runs:
            section.folded = len(runs) > FOLDED
        plain = (int, float, str)
        keys = [k for k in HEADLINES if any(isinstance(section.headline.get(k), plain) for _, section in runs)]
        columns = [_cells([section.headline.get(k) for _, section in runs]) for k in keys]
        rows = [(number, section, [column[i] for column in columns]) for i, (number, section) in enumerate(runs)]
        numeric = [any(cell["number"] for cell in column) for column in columns]
        heads = [{"text": HEADLINES[k], "number": n} for k, n in zip(keys, numeric, strict=True)]
        groups.append({"stage": stage, "heads": heads, "rows": rows})
    return groups
