"""Figures of each file of a compression, measured and drawn: agreement with the original, accuracy, size, latency."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired

import torch
from torch import Tensor
from typing_extensions import TypedDict

from ..costs import budget as costs
from ..costs.budget import short
from ..data.dataset import ImageDataset
from ..drawing.figure_style import COLOURS, INK, figure, save_picture
from ..errors import DatasetError
from ..evaluation.metrics import measures, multi_label
from ..storage import checksums, typed
from ..storage.typed import write_json
from ..teachers.teacher import Teacher
from .export import safetensors
from .export.check import center_crops, compare, interleaved, noise_images, predictions, uint8
from .export.command import Exported, format_module
from .export.graph import Job, Predict, predictor

__all__ = ["Stage", "draw", "figures_of", "label", "latencies", "seen"]

HEADS = {
    "agreement": "agreement, %",
    "accuracy": "accuracy, %",
    "auc": "AUC",
    "params": "parameters",
    "macs": "MACs",
    "mib": "file, MiB",
    "ms": "one image, ms",
}
"""figure -> title of its panel"""
KEEPS = ("agreement", "accuracy", "auc")
BATCH = 64
EDGE = 1e-7  # of probabilities that are turned into logits again


@dataclass(frozen=True)
class Stage:
    """One file of a compression: the network, how it was exported, and the export."""

    job: Job
    exported: Exported

    @property
    def content(self) -> bytes:
        """The file."""
        file = self.exported.file
        checksums.verify(file.parent, file.name, remedy="remove that folder and run the same command again")
        return file.read_bytes()

    @property
    def format(self) -> str:
        """The file's format: onnx, torch or safetensors."""
        return str(self.exported.result["to"])

    def predictions(self) -> Predict:
        """Predictions of the file in its own runtime, or of a network with the tensors of a safetensors file."""
        if self.format == "safetensors":
            return predictor(safetensors.read(self.exported.path, self.content, self.job))
        if self.format == "torch" and self.job.int8:
            importlib.import_module("torchao")  # whose operators are in the file
        predict: Predict = format_module(self.format).predictions(self.content)
        return predict


def figures_of(stage: Stage, pixels: Tensor, logits: Tensor, test: ImageDataset | None) -> dict[str, Any]:
    """Agreement in percent with the original's logits for `pixels`, accuracy (and AUC) on test data, and sizes."""
    predict, threshold = stage.predictions(), stage.job.threshold
    expected = logits.sigmoid() if threshold == 0.5 else logits
    same = compare(expected, predictions(stage.job, predict, pixels, (BATCH,)), threshold)["agreement"]
    tested = {} if test is None else _accuracy(stage.job, predict, test)
    params, macs = costs.count(stage.job.teacher.net, stage.job.teacher.shape)
    size = round(len(stage.content) / 2**20, 4)
    return {"agreement": same, **tested, "params": params, "macs": macs, "mib": size}


def seen(data: ImageDataset, original: Teacher) -> Tensor:
    """uint8 ``(n, C, H, W)``: center crops of larger images.

    Raises:
        DatasetError: they have other channels, or are too small for the network.
    """
    inside = all(ours <= theirs for ours, theirs in zip(original.shape[1:], data.card.shape[1:], strict=True))
    if data.card.shape[0] != original.shape[0] or not inside:
        theirs, ours = ("x".join(map(str, shape)) for shape in (data.card.shape, original.shape))
        raise DatasetError(f"{data.card.name} has {theirs} images, {original.name} takes {ours}; give another --data")
    return center_crops(data, range(len(data)), original.shape)


class Latencies(TypedDict):
    """`latency.json`: milliseconds of each file, and where they were measured."""

    ms: dict[str, float]
    runtime: NotRequired[str]
    threads: NotRequired[int]
    batch: NotRequired[int]


def latencies(stages: Mapping[str, Stage], file: Path, seed: int) -> dict[str, Any]:
    """Milliseconds of one image on one thread, all files taking turns in one runtime; measured once, kept in `file`."""
    if file.is_file():
        return dict(typed.read(file, Latencies))
    first = next(iter(stages.values()))
    image = first.job.inputs(noise_images(first.job, seed)[:1])
    runs, runtime = format_module(first.format).fastest(image, *(stage.content for stage in stages.values()))
    calls = {name: lambda predict=predict: predict(image) for name, predict in zip(stages, runs, strict=True)}
    taken = {name: round(ms, 4) for name, ms in interleaved(calls).items()}
    write_json(file, {"ms": taken, "runtime": runtime, "threads": 1, "batch": 1})
    return dict(typed.read(file, Latencies))


def _accuracy(job: Job, predict: Predict, test: ImageDataset) -> dict[str, Any]:
    """Accuracy and AUC of a file, as `phosphene evaluate` has them."""
    parts = torch.arange(len(test)).split(BATCH)
    logits = torch.cat([predict(job.inputs(uint8(test.pixels(part)))).float() for part in parts])
    if job.preprocessing:
        logits = logits.clamp(EDGE, 1 - EDGE).logit() if job.task == "multi" else logits.log()
    names = [str(name) for name in job.teacher.class_names or range(job.teacher.classes)]
    if job.task == "multi":
        figures = multi_label(logits, test.targets(range(len(test))), names)
        return {"accuracy": figures["accuracy"], "auc": figures["auc"]}
    figures = measures(logits, torch.from_numpy(test.labels), names)
    return {"accuracy": figures["top1"], **({"auc": figures["auc"]} if len(names) == 2 else {})}


# -- the figure -------------------------------------------------------------------------------------------------------


def label(name: str) -> str:
    """The printed name of a file: "given, int8" in result.json is "original, int8"."""
    network, comma, kind = name.partition(",")
    return {"given": "original", "small": "compressed"}.get(network, network) + comma + kind


def draw(files: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """One panel a figure, one bar a file: quality in one colour, costs in another, with shares of the first file's."""
    names = list(files)
    columns = [column for column in HEADS if any(one.get(column) is not None for one in files.values())]
    drawn, axes = figure(1, len(columns), (1.1 + 1.75 * len(columns), 0.9 + 0.42 * len(names)), sharey=True)
    for axis, column in zip(axes[0], columns, strict=True):
        values = [files[name].get(column) for name in names]
        _panel(axis, column, values)
    axes[0, 0].set_yticks(range(len(names)), [label(name) for name in names])
    axes[0, 0].invert_yaxis()
    save_picture(drawn, path, dpi=140)


def _panel(axis: Any, column: str, values: list[float | None]) -> None:
    keeps = column in KEEPS
    known = [0.0 if value is None else value for value in values]
    axis.barh(range(len(known)), known, height=0.62, color=COLOURS[0 if keeps else 1], alpha=0.85)
    most = max(known) or 1.0
    for place, value in enumerate(values):
        axis.text((value or 0) + 0.03 * most, place, _text(value, values[0], keeps), va="center", fontsize=8, color=INK)
    axis.set_title(HEADS[column], fontsize=9.5, color=INK, loc="left")
    axis.set_xlim(0, most * (1.38 if keeps else 1.9))
    axis.set_xticks([])
    axis.grid(False)
    axis.spines["bottom"].set_visible(False)


def _text(value: float | None, first: float | None, keeps: bool) -> str:
    """100, or 595.2K (50 %)."""
    if value is None:
        return "–"
    if keeps:
        return f"{value:.4g}"
    share = "" if not first or value == first else f" ({100 * value / first:.0f} %)"
    return short(value) + share
