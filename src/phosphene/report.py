"""One self-contained HTML page of any set of run folders: what was run, what came out, pictures and curves.

It reads files and imports no torch: a report of a long job takes a second, on any machine.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from .errors import RunError
from .sheets import Tile, sheet, short_names, spread, visible

MARKS = ("config.json", "card.json")  # either makes a folder one of ours
ORDER = ("data set", "synthesize", "noise", "search", "train", "evaluate")  # of the runs in a folder
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
    "top1": "top-1, %",
    "top5": "top-5, %",
    "ece": "ECE, %",
    "teacher": "teacher, %",
    "found": "found, %",
    "noise": "noise, %",
    "random": "random, %",
}
CAPTIONS = {
    "contact.png": "Images of the set, a row for each class.",
    "cells.png": "The cells found: normal and reduction. Nodes are feature maps, edges are operations.",
    "alphas.png": "How the architecture weights moved: one panel a decision, one line an option.",
    "images.png": "The same classes in several data sets.",
    "distributions.png": "The teacher's class distribution, averaged over images of a class; dots are single images.",
    "samples.png": "Single images and their five likeliest classes.",
}
FIGURES = {
    "bn": "BatchNorm distance",
    "ce": "cross-entropy",
    "tv": "total variation",
    "lr": "learning rate",
    "valid_loss": "loss on the architecture's half",
}
POINTS = 300  # of a curve, at most; more are averaged in bins
LINES = 40  # chains drawn over each other, at most


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


def report(
    runs: Annotated[list[str], "run folders and data sets, or folders that hold some"],
    *,
    out: Annotated[Path | None, "the page to write; default report.html"] = None,
    title: Annotated[str, "its heading"] = "Phosphene report",
) -> dict[str, Any]:
    """Make one self-contained HTML page of any set of run folders: settings, tables, contact sheets, cells, curves.

    Raises `RunError` naming a folder that is no run, or a file in it that is damaged.

    Example:
        phosphene report runs --out report.html
    """
    folders = [folder for run in runs for folder in _expand(Path(run))]
    sections = [_section(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]
    target = out or Path("report.html")
    target.parent.mkdir(parents=True, exist_ok=True)
    page = _render(title, sections)
    target.write_text(page, encoding="utf-8")
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
    return sorted(inside, key=lambda p: _rank(str(_json(p / "config.json").get("stage", ORDER[0]))))


def _rank(stage: str) -> int:
    return ORDER.index(stage) if stage in ORDER else len(ORDER)


def _is_ours(path: Path) -> bool:
    return any((path / mark).exists() for mark in MARKS)


def _names(folders: list[Path]) -> list[str]:
    """The folders' names, longer where two are alike."""
    short = [folder.resolve().name for folder in folders]
    return [n if short.count(n) == 1 else str(Path(*f.parts[-2:])) for n, f in zip(short, folders, strict=True)]


def _json(path: Path) -> dict[str, Any]:
    """A JSON object, or {} where there is no such file."""
    if not path.exists():
        return {}
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is damaged ({error}); run that stage again") from error
    if not isinstance(loaded, dict):
        raise RunError(f"{path} is damaged (no JSON object); run that stage again")
    return loaded


def _metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a torn last line of a run that is going on is left out."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            if number < len(lines):
                raise RunError(f"{path} is damaged in line {number} ({error}); run that stage again") from error
    return found


def _section(folder: Path, name: str) -> Section:
    config, card, result = (_json(folder / f"{file}.json") for file in ("config", "card", "result"))
    if config and "stage" not in config:
        raise RunError(f"{folder}/config.json names no stage; it is not a run of ours")
    minutes = _json(folder / "timing.json").get("seconds")
    minutes = None if minutes is None else float(minutes) / 60
    stage = str(config.get("stage", "data set"))
    figures = result or {"images": card.get("count"), **card.get("statistics", {})} if card or result else {}
    section = Section(name, stage, str(folder), _facts(config, card, minutes), figures, minutes=minutes)
    section.unfinished = bool(config) and not result
    _sort_result(section, figures, card.get("class_names"))
    section.pictures = _pictures(folder, card)
    section.curves = _curves(_metrics(folder / "metrics.jsonl"))
    measured = {key: figures[key] for key in ("mean", "std", "fingerprint") if key in figures}
    about = {"inputs": config.get("inputs"), "teacher": card.get("teacher"), "recipe": card.get("recipe")}
    section.settings = list(_flat({**config.get("settings", {}), **about, "result": measured}))
    return section


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
    figures = [] if nested else [abs(v) for v in values.values() if isinstance(v, (int, float))]
    most = (full or max(figures)) if len(figures) == len(values) else 0
    shares = [round(100 * v / most, 1) for v in figures] if most else []
    return {"label": label, "columns": columns if nested else [], "rows": rows, "shares": shares}


def _cells(values: list[Any]) -> list[dict[str, Any]]:
    """One column; its fractions have as many places as the longest needs, so that the points stand in line."""
    places = max((len(_text(v).partition(".")[2]) for v in values if isinstance(v, float)), default=0)
    aligned = places <= 4 and all(isinstance(v, float) and "e" not in _text(v) for v in values if v is not None)
    return [
        {
            "text": f"{v:.{places}f}" if aligned and v is not None else _text(v),
            "number": isinstance(v, (int, float)) and not isinstance(v, bool),
        }
        for v in values
    ]


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
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u2009")  # thin space
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(_brief(item) for item in value[:24]) + (" …" if len(value) > 24 else "")
    return str(value)


def _brief(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else _text(value)


# -- pictures ---------------------------------------------------------------------------------------------------------


def _pictures(folder: Path, card: dict[str, Any]) -> list[dict[str, str]]:
    found = [] if (folder / "contact.png").exists() or not card else _contact(folder, card)
    known = [folder / name for name in CAPTIONS if (folder / name).exists()]
    others = [path for path in sorted(folder.glob("*.png")) if path.name not in CAPTIONS]
    return found + [
        {"data": _base64(path.read_bytes()), "caption": CAPTIONS.get(path.name, path.stem.replace("_", " ") + ".")}
        for path in known + others
    ]


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _contact(folder: Path, card: dict[str, Any], columns: int = 8) -> list[dict[str, str]]:
    """A contact sheet of the data set in `folder`, with the three likeliest classes where rows are soft."""
    try:
        arrays = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in ("images", "labels", "logits")
            if (folder / f"{name}.npy").exists()
        }
    except (OSError, ValueError, EOFError) as error:
        raise RunError(f"{folder} holds a damaged array ({error}); make the data set again") from error
    if "images" not in arrays or not {"labels", "logits"} & set(arrays):
        return []
    names = short_names(card.get("class_names"), int(card["classes"]))
    soft = "logits" in arrays and card.get("task") != "multi"
    table = arrays["logits"] if "logits" in arrays else arrays["labels"]
    labels = np.asarray(table) if table.ndim == 1 else np.nan_to_num(np.asarray(table, np.float32), nan=-1e9).argmax(1)
    rows = []
    for k in spread(len(names), 10):
        at = np.flatnonzero(labels == k)[:columns]
        pictures = visible(np.array(arrays["images"][at]), card.get("statistics", {}))
        under = [_top3(np.asarray(row, np.float64), names) if soft else () for row in table[at]]
        rows.append((names[k], [Tile(p, u) for p, u in zip(pictures, under, strict=True)]))
    file = io.BytesIO()
    sheet(rows).save(file, "PNG", optimize=True)
    below = " Below each image the three likeliest classes of its soft label, in per cent." if soft else ""
    of = f" ({len(rows)} of {len(names)})" if len(rows) < len(names) else ""
    return [{"data": _base64(file.getvalue()), "caption": f"Images of the set, a row for each class{of}.{below}"}]


def _top3(logits: np.ndarray, names: list[str]) -> tuple[tuple[str, float], ...]:
    p = np.exp(logits - logits.max())
    p /= p.sum()
    return tuple((names[k], float(p[k])) for k in np.argsort(-p)[:3])


# -- curves -----------------------------------------------------------------------------------------------------------


def _curves(lines: list[dict[str, Any]]) -> list[dict[str, str]]:
    """One small figure for each phase and figure logged; phases that differ by a number alone are drawn together."""
    series: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for line in lines:
        phase, step = str(line.get("phase", "")), line.get("step", 0)
        for key, value in line.items():
            if key not in ("phase", "step", "epoch") and isinstance(value, (int, float)) and np.isfinite(value):
                kind = re.sub(r"[-_ ]?\d+", "", phase)
                series.setdefault((kind, key), {}).setdefault(phase, []).append((float(step), float(value)))
    drawn = {k: v for k, v in series.items() if max(map(len, v.values())) > 1}
    return [_curve(kind, key, list(phases.values())) for (kind, key), phases in drawn.items()]


def _curve(kind: str, key: str, phases: list[list[tuple[float, float]]]) -> dict[str, str]:
    import matplotlib
    from matplotlib.figure import Figure

    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "phosphene", "font.size": 8}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(3.1, 1.75), layout="constrained")
        axis = figure.subplots()
        shown = [phases[i] for i in spread(len(phases), LINES)]
        for points in shown:
            x, y = _thinned(np.array(points))
            axis.plot(x, y, color="#4a7fc1", lw=1.3 if len(shown) == 1 else 0.7, alpha=1 if len(shown) == 1 else 0.5)
        _quiet(axis, np.concatenate([np.array(points)[:, 1] for points in shown]))
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    many = f"{len(phases)} times, " if len(phases) > 1 else ""
    last = float(np.mean([points[-1][1] for points in phases]))
    mean = "a mean of " if len(phases) > 1 else ""
    caption = f"{FIGURES.get(key, key.replace('_', ' '))}: {many}{kind}; {mean}{_text(last)} at the end"
    return {"svg": svg[svg.index("<svg") :], "caption": caption}


def _thinned(points: np.ndarray) -> np.ndarray:
    """(2, n): steps and values, averaged in bins where there are more than can be seen."""
    parts = np.array_split(points, min(len(points), POINTS))
    return np.array([part.mean(0) for part in parts]).T


def _quiet(axis: Any, values: np.ndarray) -> None:
    """No frame, few ticks, greys that read on white and on black; logarithmic where the range asks for it."""
    from matplotlib.ticker import MaxNLocator, NullFormatter, ScalarFormatter

    if values.min() > 0 and values.max() / values.min() > 30:
        axis.set_yscale("log")
        axis.yaxis.set_minor_formatter(NullFormatter())
    else:
        axis.yaxis.set_major_locator(MaxNLocator(4))
        axis.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axis.tick_params(length=2, color="#9a9aa0", labelcolor="#77777d", width=0.6)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set(color="#9a9aa0", linewidth=0.6)
    axis.grid(axis="y", color="#9a9aa0", alpha=0.25, lw=0.5)


# -- the page ---------------------------------------------------------------------------------------------------------


def _render(title: str, sections: list[Section]) -> str:
    import jinja2

    from .__version__ import __version__

    text = Path(__file__).with_name("report_template.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    known = [s.minutes for s in sections if s.minutes is not None]
    return environment.from_string(text).render(
        title=title,
        sections=sections,
        groups=_groups(sections),
        minutes=f"{sum(known):.1f}" if known else None,
        version=__version__,
    )


def _groups(sections: list[Section]) -> list[dict[str, Any]]:
    """A table for each stage, with the columns that its runs have."""
    groups = []
    for stage in dict.fromkeys(section.stage for section in sections):
        runs = [(number, section) for number, section in enumerate(sections, 1) if section.stage == stage]
        plain = (int, float, str)
        keys = [k for k in HEADLINES if any(isinstance(section.headline.get(k), plain) for _, section in runs)]
        columns = [_cells([section.headline.get(k) for _, section in runs]) for k in keys]
        rows = [(number, section, [column[i] for column in columns]) for i, (number, section) in enumerate(runs)]
        numeric = [any(cell["number"] for cell in column) for column in columns]
        heads = [{"text": HEADLINES[k], "number": n} for k, n in zip(keys, numeric, strict=True)]
        groups.append({"stage": stage, "heads": heads, "rows": rows})
    return groups
