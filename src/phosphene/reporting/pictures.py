"""The pictures of a run folder: those it holds, a contact sheet where a data set has none yet, and curves of its log.

It reads arrays and imports no torch.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..drawing.console_table import text
from ..drawing.contact_sheet import sheet, short_names, spread, tiles_of
from ..errors import RunError
from ..storage import checksums
from ..storage.arrays import mapped

REMEDY = "make the data set again"
CAPTIONS = {
    "contact.png": "Images of the set, a row for each class.",
    "cells.png": "The cells: normal and reduction. Nodes are feature maps, edges are operations.",
    "architecture.png": "The network: its layers in order, or the edges of its cell.",
    "evolution.png": "Every candidate of the search by its score, and the best so far.",
    "front.png": "The front of the search: no other architecture is better at one thing and as good at the others.",
    "scatter.png": "Every architecture: its true accuracy and its score in each ranking.",
    "baselines.png": "The same for baselines that need no training.",
    "rho.png": "How well each ranking agrees with the truth, with 95 % intervals; baselines are grey.",
    "genotypes.png": "The cells of several architectures, drawn to one scale.",
    "networks.png": "Several architectures of one space, each with its layers or edges.",
    "compress.png": "Each file beside the original network: accuracy kept, and cost.",
    "curves.png": "Learning curves.",
    "skips.png": "Skip connections in the current genotype by search epoch.",
    "operations.png": "Operations of the current genotype by search epoch: means over searches.",
    "classes.png": "Accuracy and size by the number of random classes, beside random architectures.",
    "layers.png": "How far each BatchNorm layer's input is from the teacher's statistics, layer by layer.",
    "nearest.png": "How far the nearest training image is; dotted: the distance below which an image is suspicious.",
    "pairs.png": "The images whose nearest training image is nearest, and below them that image.",
    "alphas.png": "How the architecture weights moved: one panel a decision, one line an option.",
    "images.png": "The same classes in several data sets.",
    "distributions.png": "The teacher's class distribution, averaged over images of a class; dots are single images.",
    "samples.png": "Single images and their five likeliest classes.",
}
WIDE = 2000  # pixels from which a picture may be wider than the text
NAMES = {  # of logged figures, where the key alone says too little
    "bn": "BatchNorm distance",
    "ce": "cross-entropy",
    "tv": "total variation",
    "lr": "learning rate",
    "valid_loss": "loss on the architecture's half",
}
CURVE_POINTS = 300  # of a curve, at most; more are averaged in bins
CURVES = 40  # chains drawn over each other, at most


def pictures(folder: Path, card: dict[str, Any]) -> list[dict[str, str]]:
    """Each as `data` (a PNG in base64), `caption` and `shape`; raises `RunError` where an array is damaged."""
    sheets = [] if (folder / "contact.png").exists() or not card else _contact(folder, card)
    known = [folder / name for name in CAPTIONS if (folder / name).exists()]
    others = [path for path in sorted(folder.glob("*.png")) if path.name not in CAPTIONS]
    return sheets + [_picture(path) for path in known + others]


def _picture(path: Path) -> dict[str, str]:
    content = path.read_bytes()
    width = int.from_bytes(content[16:20], "big")  # of the PNG's header
    caption = CAPTIONS.get(path.name, path.stem.replace("_", " ") + ".")
    return {"data": _base64(content), "caption": caption, "shape": "wide" if width >= WIDE else ""}


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _contact(folder: Path, card: dict[str, Any], columns: int = 8) -> list[dict[str, str]]:
    """A contact sheet of the data set in `folder`, with the three likeliest classes where labels are soft."""
    files = [path for name in ("images", "labels", "logits") if (path := folder / f"{name}.npy").exists()]
    checksums.verify(folder, *(path.name for path in files), error=RunError, remedy=REMEDY)
    arrays = {path.stem: mapped(path, RunError, REMEDY) for path in files}
    if "images" not in arrays or not {"labels", "logits"} & set(arrays):
        return []
    names = short_names(card.get("class_names"), int(card["classes"]))
    soft = "logits" in arrays and card.get("task") != "multi"
    table = arrays["logits"] if "logits" in arrays else arrays["labels"]
    is_of = _members(table, card.get("task") == "multi", "logits" in arrays)
    rows = []
    for k in spread(len(names), 10):
        at = np.flatnonzero(is_of(k))[:columns]
        likely = (_softmax(np.asarray(row, np.float64)) for row in table[at]) if soft else ()
        rows.append((names[k], tiles_of(np.array(arrays["images"][at]), card.get("statistics", {}), likely, names)))
    file = io.BytesIO()
    sheet(rows).save(file, "PNG", optimize=True)
    below = " Below each image the three likeliest classes of its soft label, in percent." if soft else ""
    of = f" ({len(rows)} of {len(names)})" if len(rows) < len(names) else ""
    return [{"data": _base64(file.getvalue()), "caption": f"Images of the set, a row for each class{of}.{below}"}]


def _members(table: np.ndarray, multi: bool, soft: bool) -> Callable[[int], np.ndarray]:
    """Which images (N,) are of class k; in a `multi` task an image has any number of them."""
    if multi:
        return lambda k: np.asarray(table[:, k], np.float32) > (0.0 if soft else 0.5)  # NaN is unlabelled
    labels = np.asarray(table) if table.ndim == 1 else np.nan_to_num(np.asarray(table, np.float32), nan=-1e9).argmax(1)
    return lambda k: labels == k


def _softmax(logits: np.ndarray) -> np.ndarray:
    p: np.ndarray = np.exp(logits - logits.max())
    p /= p.sum()
    return p


# -- curves -----------------------------------------------------------------------------------------------------------


def curves(lines: list[dict[str, Any]]) -> list[dict[str, str]]:
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
        shown = [phases[i] for i in spread(len(phases), CURVES)]
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
    caption = f"{NAMES.get(key, key.replace('_', ' '))}: {many}{kind}; {mean}{text(last)} at the end"
    return {"svg": svg[svg.index("<svg") :], "caption": caption}


def _thinned(points: np.ndarray) -> np.ndarray:
    """(2, n): steps and values, averaged in bins where there are more than can be seen."""
    parts = np.array_split(points, min(len(points), CURVE_POINTS))
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
