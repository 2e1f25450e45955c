"""Train one network from scratch on one data set, and note how well it has learned its own images, epoch by epoch.

    results = train_all([Probe("Genotype(…)", "noise", epochs=50), …], Path("study/networks"), jobs=Jobs(jobs=4),
                        title="distinguish")

This is the probe net of UnrealNAS §3.1. Each network has a run folder of its own, whose name follows from everything
that decides the result. So a network that is finished is never trained again, whichever study needs it, and one that
was interrupted goes on from its last checkpoint. Accuracies are per cent.

Networks see what the teacher saw: of larger canvases a random region in training, the middle in tests. A teacher's soft
labels are the targets as they are, at temperature 1; an image is recognised where the arg-max of the logits is theirs.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import TypedDict

from .. import spaces
from ..core import Architecture
from ..costs import budget
from ..data.augment import Augment, View
from ..data.dataset import ImageDataset, batches
from ..errors import DatasetError, Estimate, SettingsError
from ..proxies.inputs import prepared
from ..reporting.arch_show import title as short_name
from ..runtime.machine import Machine
from ..runtime.machine import machine as decide_machine
from ..runtime.parallel import Call, Jobs, side_by_side
from ..runtime.run import Run
from ..settings import CellSizes, Hardware, LearningRate, Seed
from ..storage import typed
from ..training.recipes import BatchSize, Epochs
from .datasets import cut

HELD = 1 << 28  # bytes of images that a network keeps in memory; of more, each batch is read anew
REAL_DECAY = 3e-4  # weight decay on data whose labels mean something, 0 on unreal data (UnrealNAS §7.1)
SAMPLED = 2  # networks on each data set that an estimate measures
ONE_JOB = Jobs()
COMMON = ("epochs", "channels", "cells", "images", "batch", "lr")  # what decides the training of a study's networks


class Training(Epochs, CellSizes, BatchSize, LearningRate, Seed, Hardware):
    """Networks trained from scratch; the learning rate falls to 0 over the epochs (cosine)."""

    epochs: int = 50
    channels: int | None = 16
    cells: int | None = 8
    batch: int = 64
    lr: float = 0.025

    def probe(self, images: int | None, test: str | None = None) -> Probe:
        """A network of this training, on no data set yet and of no architecture; `replace` gives those of a study."""
        return Probe(
            arch="",
            data="",
            test=test,
            images=images,
            epochs=self.epochs,
            channels=self.channels,
            cells=self.cells,
            batch=self.batch,
            lr=self.lr,
            seed=self.seed,
            device=self.device,
            precision=self.precision,
        )


@dataclass(frozen=True)
class Probe:
    """One network on one data set; plain values, so that it can travel to a worker.

    Args:
        arch: anything `phosphene.spaces.architecture` reads: a genotype's text, a name, a file.
        data: folder of the data set to train on.
        test: folder of the data set to test on at the end.
        channels, cells: size of a cell architecture; None = as the architecture says.
        images: number of images to train on, the same ones for all networks; None = all.
        half: 0 or 1: only this half of those images, every class split evenly.
        weight_decay: None = 0 where the labels are random, else 3e-4.
        augment: random shifts by an eighth of the side (regions of larger canvases are shifted anyway), and mirroring
            of colour images.
        stop_at: training accuracy (per cent) after which an epoch is the last; the learning rate falls as if not.
    """

    arch: str
    data: str
    epochs: int = 50
    test: str | None = None
    channels: int | None = None
    cells: int | None = None
    images: int | None = None
    half: int | None = None
    batch: int = 64
    lr: float = 0.025
    momentum: float = 0.9
    weight_decay: float | None = None
    clip: float = 5.0
    augment: bool = False
    stop_at: float | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"

    @property
    def common(self) -> dict[str, Any]:
        """What decides the training of all networks of a study: with another value it is another study."""
        return {name: getattr(self, name) for name in COMMON}


class Trained(TypedDict):
    """What is read of the `result.json` of a trained network."""

    train: list[float | None]
    loss: list[float | None]
    test: float | None
    params: int
    macs: int
    images: int


def train_all(
    probes: Sequence[Probe], folder: Path, jobs: Jobs = ONE_JOB, title: str = "networks"
) -> list[dict[str, Any]]:
    """Train every network that `folder` does not hold yet; the results of all, in order.

    A result is ``{"train": [accuracy of each epoch], "loss": […], "test": accuracy or None, "params", "macs",
    "images", "folder"}``. An epoch's accuracy and loss are means over its batches, each taken before its step.

    Raises:
        Stopped: after Ctrl-C or SIGTERM; the same call goes on.
        SettingsError, DatasetError, ArchitectureError: a probe cannot be trained; the others are.
    """
    paths = [path_of(probe, folder) for probe in probes]
    todo = {path: probe for path, probe in zip(paths, probes, strict=True) if not (path / "result.json").exists()}
    calls: list[Call] = [(train, (probe, folder), {}) for probe in todo.values()]
    side_by_side(calls, jobs=jobs.jobs, backend=jobs.backend, title=title)
    return [{**typed.read(path / "result.json", Trained), "folder": str(path)} for path in paths]


def check(groups: Iterable[Sequence[Probe]]) -> None:
    """Raise what `train` would raise, before anything is trained; a group shares its data sets."""
    all_groups = list(groups)
    for group in all_groups:  # first, since all are cut to the size of the smallest
        _enough(ImageDataset.open(group[0].data))
    for group in all_groups:
        data, test = data_of(group[0]), group[0].test
        if test is not None:
            _check_test(ImageDataset.open(test), data)
        for probe in group:
            _architecture(probe)


def estimate_all(probes: Sequence[Probe], folder: Path | None, jobs: int = 1) -> Estimate:
    """Minutes and memory to train what `folder` does not hold yet, from a few steps of some on each data set."""
    left = [p for p in probes if folder is None or not (path_of(p, folder) / "result.json").exists()]
    groups: dict[tuple[str, int], list[Probe]] = {}
    for probe in left:
        groups.setdefault((probe.data, probe.epochs), []).append(probe)
    needs: dict[str, Any] = {"networks": len(left), "minutes": 0.0, "memory_mib": 0.0}
    for group in groups.values():
        measured = [measure(probe) for probe in group[:SAMPLED]]
        needs["minutes"] += sum(one["minutes"] for one in measured) / len(measured) * len(group) / jobs
        needs["memory_mib"] = max(needs["memory_mib"], *(one["memory_mib"] * jobs for one in measured))
    return Estimate({**needs, "minutes": round(needs["minutes"], 2)})


def measure(probe: Probe) -> dict[str, Any]:
    """Minutes and memory that one network takes, from a few steps of it."""
    try:
        train(probe, None)
    except Estimate as estimate:
        return estimate.needs
    raise AssertionError("an estimating run ends in an estimate")


def train(probe: Probe, folder: Path | None) -> dict[str, Any]:
    """Train one network, or read its result; with no folder only measure a few steps (raises `Estimate`)."""
    machine = decide_machine(probe.device, probe.precision)
    data, architecture = data_of(probe), _architecture(probe)
    if probe.test is not None:
        _check_test(ImageDataset.open(probe.test), data)
    path = None if folder is None else path_of(probe, folder)
    settings, inputs = _identity(probe)
    run = Run.open("probe", settings, inputs, path, machine, seed=probe.seed, estimate=path is None)
    if run.finished is not None:
        return run.finished
    with run.seeded("weights"):
        net = spaces.network(architecture)
    size = {"params": budget.params(net), "macs": budget.macs(net, architecture.space["shape"])}
    curve = _fit(run, machine.place(net).train(), Images(data, probe, machine), probe)
    test = None if probe.test is None else accuracy(net, ImageDataset.open(probe.test), data, machine)
    return run.finish({**curve, "test": test, **size, "images": len(data)})


def _fit(run: Run, net: nn.Module, images: Images, probe: Probe) -> dict[str, Any]:
    """Train `net` in place; accuracy and loss of every epoch."""
    # as UnrealNAS searches (§7.1): SGD with momentum .9, batch 64, rate .025; gradients clipped at 5, as in DARTS
    opt = torch.optim.SGD(net.parameters(), probe.lr, probe.momentum, weight_decay=images.decay)
    total = probe.epochs * images.steps
    curve: dict[str, Any] = {"train": [], "loss": []}
    seen = torch.zeros(2, device=run.machine.device)  # in this epoch: images recognised, sum of the losses

    title = f"{short_name(probe.arch)} on {Path(probe.data).name}, seed {probe.seed}"
    for step in run.steps("train", total, title=title, net=net, opt=opt, curve=curve, seen=seen):
        for group in opt.param_groups:
            group["lr"] = 0.5 * probe.lr * (1 + math.cos(math.pi * step / total))  # cosine to 0, no restart (§7.1)
        inputs, targets = images.batch(step)
        with run.machine.autocast():
            logits = net(inputs)
        loss = F.cross_entropy(logits.float(), targets)  # of soft labels: their KL divergence and a constant
        opt.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), probe.clip)
        opt.step()
        labels = targets if targets.ndim == 1 else targets.argmax(1)
        # before the step: what Fig. 1 plots is training accuracy, and no second pass over the images is needed
        seen += torch.stack([(logits.detach().argmax(1) == labels).sum(), loss.detach() * len(labels)])
        if (step + 1) % images.steps == 0:
            right, loss_sum = (seen / (images.steps * probe.batch)).tolist()
            seen.zero_()
            curve["train"].append(round(100 * right, 4))
            curve["loss"].append(round(loss_sum, 6))
            run.log(epoch=len(curve["train"]), accuracy=curve["train"][-1], loss=curve["loss"][-1])
            if probe.stop_at is not None and curve["train"][-1] >= probe.stop_at:
                break
    return curve


class Images:
    """What a network is trained on: batches as functions of (seed, step), normalised, with labels or soft labels."""

    def __init__(self, data: ImageDataset, probe: Probe, machine: Machine) -> None:
        self.data, self.probe, self.machine = data, probe, machine
        self.steps = max(1, len(data) // probe.batch)
        """batches in an epoch; what does not fill one is left out"""
        self.decay = decay_of(probe, data)
        bytes_each = int(np.prod(data.card.shape)) * (1 if str(data.dtype) == "uint8" else 4)
        self.held = data.pixels(range(len(data))) if len(data) * bytes_each <= HELD else None
        # labels as numbers: 5,000 classes are not written out as one-hot targets for every image
        self.labels = None if data.soft else torch.from_numpy(np.array(data.labels)).to(machine.device)
        self.moves = _moves(data, probe.augment)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs (N, C, H, W), and labels (N,) or a teacher's soft labels (N, K) at temperature 1."""
        index = batches(len(self.data), self.probe.batch, self.probe.seed, step)
        pixels = self.data.pixels(index) if self.held is None else self.held[index]
        if self.moves is not None:
            pixels = self.moves.move(pixels)
        inputs = self.machine.place(self.data.normalise(pixels.to(self.machine.device)))
        if self.labels is None:
            return inputs, self.data.targets(index).to(self.machine.device)
        return inputs, self.labels[index.to(self.machine.device)]


def _moves(data: ImageDataset, augment: bool) -> Augment | None:
    """A random region of larger canvases, else random shifts with `augment`; None where the images stay as they are."""
    side, flip = min(data.card.shape[1:]), augment and data.card.shape[0] == 3
    if data.region is not None:
        return Augment(crop=data.region, flip=flip)
    return Augment(pad=side // 8, crop=side, flip=flip) if augment else None


@torch.no_grad()
def accuracy(net: nn.Module, test: ImageDataset, trained_on: ImageDataset, machine: Machine) -> float:
    """Top-1 accuracy on a test set, per cent; its pixels are normalised as the training images were."""
    net.eval()
    right, middle = 0, View(test.region)
    for start in range(0, len(test), 256):
        index = range(start, min(start + 256, len(test)))
        with machine.autocast():
            pixels = middle.move(test.pixels(index))
            output = net(machine.place(trained_on.normalise(pixels.to(machine.device))))
        right += int((output.argmax(1).cpu() == torch.from_numpy(test.labels[index.start : index.stop])).sum())
    return round(100 * right / max(1, len(test)), 4)


def _enough(data: ImageDataset) -> None:
    """Raise `DatasetError` for a data set with less than two images."""
    if len(data) < 2:
        raise DatasetError(f"--data {data.card.name} has {len(data)} images; two are needed at least")


def _check_test(test: ImageDataset, trained_on: ImageDataset) -> None:
    """Raise `DatasetError` where a test set does not fit, or has nothing to test."""
    if (test.seen, test.card.classes) != (trained_on.seen, trained_on.card.classes):
        raise DatasetError(f"--test {_figures(test)} does not fit {_figures(trained_on)}")
    if not len(test) or test.card.task != "single":
        raise DatasetError(f"--test {test.card.name} has no images" if not len(test) else _multi("--test", test))
    test.targets([0])  # raises where nobody labelled the images


def _multi(flag: str, data: ImageDataset) -> str:
    return f"{flag} {data.card.name} has multi-label targets (task multi); accuracy needs one class an image"


def _figures(data: ImageDataset) -> str:
    return f"{data.card.name} ({'x'.join(map(str, data.seen))}, {data.card.classes} classes)"


# -- what a probe is -------------------------------------------------------------------------------------------------


def path_of(probe: Probe, folder: Path) -> Path:
    """The network's folder: the data set's name and a hash of everything that decides the result."""
    settings, inputs = _identity(probe)
    machine = decide_machine(probe.device, probe.precision)
    text = json.dumps([settings, inputs, probe.seed, machine.precision], sort_keys=True)
    name = re.sub(r"[^\w-]+", "-", ImageDataset.open(probe.data).card.name)
    return folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _identity(probe: Probe) -> tuple[dict[str, Any], list[str]]:
    """What decides the result: settings with the architecture in full, and fingerprints instead of folders."""
    names = ("epochs", "images", "half", "batch", "lr", "momentum", "clip", "augment", "stop_at")
    settings = {name: value for name, value in asdict(probe).items() if name in names}
    data = ImageDataset.open(probe.data)
    settings |= {"arch": asdict(_architecture(probe)), "weight_decay": decay_of(probe, data)}
    tests = [] if probe.test is None else [ImageDataset.open(probe.test).fingerprint]
    return settings, [data.fingerprint, *tests]


def _architecture(probe: Probe) -> Architecture:
    """The architecture at the input size and the classes of the data, and at the probe's size."""
    data = ImageDataset.open(probe.data)
    sizes = {"channels": probe.channels, "cells": probe.cells}
    return prepared(probe.arch, classes=data.card.classes, shape=data.seen, **sizes)


def data_of(probe: Probe) -> ImageDataset:
    """The images that the probe is trained on.

    Raises:
        DatasetError: the data set is missing, damaged, unlabelled, nearly empty, or has multi-label targets.
        SettingsError: it has fewer images than the probe takes.
    """
    data = ImageDataset.open(probe.data)
    if data.card.task != "single":
        raise DatasetError(_multi("--data", data))
    _enough(data)
    if probe.images is not None and not 2 <= probe.images <= len(data):
        raise SettingsError(f"--images {probe.images}: {data.card.name} has {len(data)}; give 2 to {len(data)}")
    data.targets([0])  # raises where nobody labelled the images
    data = data if probe.images is None else cut(data, probe.images)
    return data if probe.half is None else data.split(0.5)[probe.half]


def decay_of(probe: Probe, data: ImageDataset) -> float:
    """The weight decay: the probe's own, else 0 for random labels and 3e-4 for others (UnrealNAS §7.1)."""
    if probe.weight_decay is not None:
        return probe.weight_decay
    return 0.0 if data.card.random_labels else REAL_DECAY
