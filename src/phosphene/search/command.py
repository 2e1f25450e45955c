"""The commands `phosphene search …`: data and settings in, an architecture within its budget out.

Files in the run's folder: `arch.json` (the final network: its space and choices), `genotype.txt`, `cells.png`,
`result.json`; of a supernet, too: `alphas.npy`, `alphas.png`, `supernet.safetensors`, `supernet.json`.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from .. import costs, spaces
from ..architecture import draw_cells
from ..augment import Augment
from ..core import Architecture, Batch, Choices, SearchSpace
from ..costs import Budget
from ..dataset import ImageDataset
from ..errors import SettingsError
from ..hardware import machine as decide_machine
from ..objectives import soft_cross_entropy
from ..progress import say
from ..run import Run
from . import SEARCHES, notation

RATES = ("lr", "lr_min", "momentum", "weight_decay", "clip", "alpha_lr", "alpha_weight_decay", "alpha_init")


@dataclass(frozen=True)
class Found(Architecture):
    """What a search found: an architecture (of the final network), its run folder, and what `result.json` holds."""

    path: Path
    result: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """The result and where its files are."""
        return {**self.result, "out": str(self.path)}


def darts(
    data: Annotated[ImageDataset | str | Path | None, "the data set to search on"] = None,
    *,
    space: Annotated[Literal["darts"], "what to choose from"] = "darts",
    epochs: Annotated[int, "epochs over the training half"] = 50,
    steps: Annotated[int | None, "weight steps, instead of --epochs"] = None,
    batch: Annotated[int, "images of each half in a step, over all processes"] = 64,
    order: Annotated[int, "1: first order; 2: second order (about twice the time)"] = 1,
    channels: Annotated[int, "supernet: channels of a node in the first cell"] = 16,
    cells: Annotated[int, "supernet: cells"] = 8,
    nodes: Annotated[int, "nodes in a cell"] = 4,
    stem: Annotated[Literal["auto", "cifar", "imagenet", "tiny"], "first layers; auto: from the input's size"] = "auto",
    final_channels: Annotated[int | None, "final network: channels; default 36, ImageNet 48"] = None,
    final_cells: Annotated[int | None, "final network: cells; default 20, ImageNet 14"] = None,
    params: Annotated[str | None, "bound on the final network's parameters: 3.5M or 3M..4M"] = None,
    macs: Annotated[str | None, "bound on the final network's multiply-accumulates: 600M or 500M..600M"] = None,
    warm_up: Annotated[int, "epochs that train weights only"] = 0,
    lr: Annotated[float, "learning rate of the weights, at first"] = 0.025,
    lr_min: Annotated[float, "learning rate of the weights, at last (cosine)"] = 0.001,
    momentum: Annotated[float, "momentum of the weights' SGD"] = 0.9,
    weight_decay: Annotated[float, "weight decay of the weights"] = 3e-4,
    clip: Annotated[float, "largest gradient norm of the weights"] = 5.0,
    alpha_lr: Annotated[float, "learning rate of the architecture parameters (Adam)"] = 3e-4,
    alpha_weight_decay: Annotated[float, "weight decay of the architecture parameters"] = 1e-3,
    alpha_init: Annotated[float, "deviation of the architecture parameters' initial noise (authors' code: 1e-3)"] = 0.0,
    train_fraction: Annotated[float, "share of the images that trains weights, the others architecture"] = 0.5,
    crop: Annotated[int | None, "side of the random crop; default: the teacher's input, else the image"] = None,
    pad: Annotated[int | None, "black border; default: an eighth of the side, 0 if --crop is smaller"] = None,
    flip: Annotated[bool | None, "mirror half of the images; default: colour images only"] = None,
    temperature: Annotated[float, "of the rows, where the data set has logits"] = 1.0,
    out: Annotated[Path | None, "the run's folder; default: runs/search-HASH"] = None,
    seed: Annotated[int, "of all random numbers"] = 0,
    device: Annotated[str, "auto, cpu, cuda[:i] or mps"] = "auto",
    precision: Annotated[str, "auto, fp32 or bf16"] = "auto",
    estimate: Annotated[bool, "only measure minutes, memory and disk it would need"] = False,
) -> Found:
    """Search a cell by gradients through a supernet that mixes all operations (DARTS, Liu et al. 2019).

    Defaults are the paper's: 50 epochs of 64 images from either half, 16 channels, 8 cells. The result is
    within the bounds of --params and --macs, which are of the final network. The same command again resumes the run.

    Example:
        phosphene search darts --data d --epochs 10 --params 3M..4M --out found

    Raises:
        SettingsError: a setting that cannot be used, or that does not fit the data.
        DatasetError: the data set cannot be read.
        ArchitectureError: the space cannot be built with these settings.
        BudgetError: no architecture keeps the bounds.
    """
    given = dict(locals())
    images = _open(given.pop("data"))
    augment = _augment(images, crop, pad, flip)
    epoch_steps = _check(images, given)
    passed = {name: given[name] for name in (*RATES, "batch", "order", "warm_up", "train_fraction", "temperature")}
    passed |= {"steps": epochs * epoch_steps if steps is None else steps, "augment": augment}
    return _run("darts", images, augment, given, passed)


def random(
    data: Annotated[ImageDataset | str | Path | None, "the data set that the network is for"] = None,
    *,
    space: Annotated[Literal["darts"], "what to choose from"] = "darts",
    nodes: Annotated[int, "nodes in a cell"] = 4,
    stem: Annotated[Literal["auto", "cifar", "imagenet", "tiny"], "first layers; auto: from the input's size"] = "auto",
    final_channels: Annotated[int | None, "channels in the first cell; default 36, ImageNet 48"] = None,
    final_cells: Annotated[int | None, "cells; default 20, ImageNet 14"] = None,
    params: Annotated[str | None, "bound on parameters: 3.5M or 3M..4M"] = None,
    macs: Annotated[str | None, "bound on multiply-accumulates: 600M or 500M..600M"] = None,
    crop: Annotated[int | None, "side of the network's input; default: the teacher's input, else the image"] = None,
    out: Annotated[Path | None, "the run's folder; default: runs/search-HASH"] = None,
    seed: Annotated[int, "of the draw"] = 0,
    estimate: Annotated[bool, "only say what it would need"] = False,
) -> Found:
    """Draw an architecture at random within the bounds: the baseline of every search. Nothing is trained.

    Example:
        phosphene search random --data d --params 3M..4M --out drawn

    Raises:
        SettingsError: a setting that cannot be used, or that does not fit the data.
        DatasetError: the data set cannot be read.
        ArchitectureError: the space cannot be built with these settings.
        BudgetError: no architecture keeps the bounds.
    """
    given = dict(locals()) | {"channels": 16, "cells": 8, "device": "cpu", "precision": "fp32"}
    images = _open(given.pop("data"))
    return _run("random", images, _augment(images, crop, 0, False), given, {"steps": 1})


def top1(output: Tensor, batch: Batch) -> float:
    """The share of images whose arg-max is the row's: the default score."""
    return float((output.argmax(1) == batch.targets.argmax(1)).float().mean())


def _run(
    algorithm: str, images: ImageDataset, augment: Augment, given: dict[str, Any], passed: dict[str, Any]
) -> Found:
    """Open the run, search, and write the result; a finished run is read."""
    here = decide_machine(given["device"], given["precision"])
    searched = _space(given, images, augment, given["channels"], given["cells"])
    published = spaces.published(searched.spec["stem"])
    asked = {name: given[f"final_{name}"] for name in published}
    final = _space(given, images, augment, **{name: published[name] if n is None else n for name, n in asked.items()})
    budget = Budget.parse(given["params"], given["macs"]).of(final)
    identity = {name: value for name, value in given.items() if name not in ("out", "seed", "device", "estimate")}
    identity |= {"algorithm": algorithm, "searched": searched.spec, "final": final.spec, "augment": vars(augment)}
    run = Run.open(
        *("search", identity, [images.fingerprint], given["out"], here), seed=given["seed"], estimate=given["estimate"]
    )
    if run.finished is not None:
        say(f"{run.path} is finished")
        there = Architecture.load(run.path / "arch.json")
        return Found(there.space, there.choices, run.path, run.finished)
    found = _algorithm(algorithm)(searched, images, soft_cross_entropy, top1, budget, run, **passed)
    architecture = Architecture(final.spec, found.choices)
    if here.rank == 0:
        _write(run.path, searched, final, architecture)
    here.barrier()
    result = run.finish(_result(algorithm, final, architecture, run.path, passed["steps"]))
    return Found(architecture.space, architecture.choices, run.path, result)


def _algorithm(name: str) -> Callable[..., Architecture]:
    module, function = SEARCHES[name].split(":")
    found: Callable[..., Architecture] = getattr(importlib.import_module(module), function)
    return found


def _open(data: ImageDataset | str | Path | None) -> ImageDataset:
    if data is None:
        raise SettingsError("--data is missing: name a data set, made by `phosphene synthesize` or `dataset import`")
    return ImageDataset.open(data)


def _check(images: ImageDataset, given: dict[str, Any]) -> int:
    """Refuse what would fail or mislead hours later; gives the steps of an epoch."""
    if images.card.task != "single":
        raise SettingsError(f"--data {images.card.name} has independent findings (task multi); rows must sum to 1 here")
    if given["order"] not in (1, 2):
        raise SettingsError(f"--order {given['order']} is neither 1 nor 2")
    for name in RATES:
        if given[name] < 0:
            raise SettingsError(f"--{name.replace('_', '-')} {given[name]} is negative")
    for name in ("lr", "clip", "temperature"):
        if given[name] <= 0:
            raise SettingsError(f"--{name} {given[name]} is not positive")
    return _schedule(len(images), given)


def _schedule(count: int, given: dict[str, Any]) -> int:
    """The steps of an epoch, where halves, batches and epochs fit together."""
    fraction, batch, epochs, steps = (given[name] for name in ("train_fraction", "batch", "epochs", "steps"))
    if not 0 < fraction < 1:
        raise SettingsError(f"--train-fraction {fraction} is not between 0 and 1; the paper has .5")
    training: int = int(count * fraction + 0.5)
    smaller = min(training, count - training)
    if not 1 <= batch <= smaller:
        raise SettingsError(f"--batch {batch} does not fit: the smaller part of the data set has {smaller} images")
    name, total = ("--epochs", epochs * (training // batch)) if steps is None else ("--steps", steps)
    if total < 1:
        raise SettingsError(f"{name} {epochs if steps is None else steps} is less than 1")
    if not 0 <= given["warm_up"] * (training // batch) < total:
        raise SettingsError(f"--warm-up {given['warm_up']} leaves no step of {total} to the architecture; lower it")
    return training // int(batch)


def _augment(images: ImageDataset, crop: int | None, pad: int | None, flip: bool | None) -> Augment:
    """A crop of the size that the teacher took, where the images are larger canvases; else a shift by an eighth."""
    channels, height, width = images.card.shape
    small = min(height, width)
    if crop is not None and not 1 <= crop <= small:
        raise SettingsError(f"--crop {crop} does not fit images of {height}x{width}")
    crop = images.region if crop is None else crop
    border = (0 if crop is not None and crop < small else small // 8) if pad is None else pad
    return Augment(crop=crop, pad=border, flip=channels == 3 if flip is None else flip)


def _space(given: dict[str, Any], images: ImageDataset, augment: Augment, channels: int, cells: int) -> SearchSpace:
    channels_in, height, width = images.card.shape
    size = (height, width) if augment.crop is None else (augment.crop, augment.crop)
    spec = {"name": given["space"], "nodes": given["nodes"], "stem": given["stem"], "classes": images.card.classes}
    return spaces.space({**spec, "channels": channels, "cells": cells, "shape": [channels_in, *size]})


def _result(algorithm: str, final: SearchSpace, architecture: Architecture, path: Path, steps: int) -> dict[str, Any]:
    with torch.device("meta"):
        net = final.build(architecture.choices)
    result: dict[str, Any] = {
        "algorithm": algorithm,
        "params": costs.params(net),
        "macs": costs.macs(net, final.spec["shape"]),
        "genotype": notation(final, architecture.choices),
        "skips": _count(final, architecture.choices, "skip_connect"),
    }
    supernet = path / "supernet.json"
    if supernet.exists():
        result |= {"steps": steps, "validation": json.loads(supernet.read_text())["score"]}
    return result


def _count(space: SearchSpace, choices: Choices, option: str) -> dict[str, int]:
    """How many decisions of each kind of cell chose this option."""
    counts: dict[str, int] = {}
    for decision in space.decisions:
        kind = decision.name.split("/")[0] if "/" in decision.name else "all"
        counts[kind] = counts.get(kind, 0) + (decision.options[choices[decision.name]] == option)
    return counts


def _write(path: Path, searched: SearchSpace, final: SearchSpace, architecture: Architecture) -> None:
    architecture.save(path / "arch.json")
    (path / "genotype.txt").write_text(notation(final, architecture.choices) + "\n")
    draw_cells(architecture, path / "cells.png")
    if (path / "alphas.npy").exists():
        _plot(np.load(path / "alphas.npy"), searched, path / "alphas.png")


def _plot(history: np.ndarray, space: SearchSpace, path: Path) -> None:
    """The softmax of α over the epochs, one panel for each decision, all on one scale."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns = min(7, len(space.decisions))
    rows = -(-len(space.decisions) // columns)
    figure = Figure(figsize=(1.9 * columns, 1.5 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    lines: dict[str, Any] = {}
    for axis in axes.flat[len(space.decisions) :]:
        axis.remove()
    for row, (decision, axis) in enumerate(zip(space.decisions, axes.flat, strict=False)):
        alphas = history[:, row, : len(decision.options)]
        weights = np.exp(alphas - alphas.max(1, keepdims=True))
        drawn = axis.plot(weights / weights.sum(1, keepdims=True), linewidth=1)
        lines |= {option: line for option, line in zip(decision.options, drawn, strict=True) if option not in lines}
        axis.set_title(decision.name, fontsize=8)
        axis.tick_params(labelsize=6)
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    figure.supxlabel("epoch", fontsize=8)
    figure.supylabel("softmax of α", fontsize=8)
    figure.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=4, fontsize=7)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=100)
