"""Evaluation of a trained network on test data: accuracy and AUC, in all and per class, calibration, confusion."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import nn

from ..costs import budget
from ..data import targets
from ..data.dataset import ImageDataset
from ..errors import DatasetError, SettingsError
from ..runtime.machine import machine as decide_machine
from ..runtime.progress import say
from ..runtime.run import Run
from ..settings import OUTSIDE, Estimate, Hardware, Output, command
from ..storage import arrays
from ..teachers import teacher as teachers
from ..teachers.teacher import ForwardBatch, Normalisation, Numbers, Teacher, Weights, open_test
from ..training.train import Trained
from .metrics import LARGE, confusion, measures, multi_label

__all__ = ["evaluate"]


class EvaluateSettings(Weights, Normalisation, ForwardBatch, Output, Hardware, Estimate, heading="Evaluation"):
    data: Annotated[ImageDataset | str | Path | None, OUTSIDE, "test data: a data set with labels, or an .npz"] = None
    precision: str = "fp32"


@command
def evaluate(
    run: Annotated[Trained | Teacher | nn.Module | str | Path, "a run of `phosphene train`, or any trained network"],
    settings: EvaluateSettings,
) -> dict[str, Any]:
    """Measure a trained network on test data: top-1, top-5, AUC, each class, calibration, confusion.

    Example:
        phosphene evaluate student --data test

    Accuracies and the calibration error are percentages, `nll` is in nats. `ece` is the expected calibration error over
    15 equally wide bins of confidence (Guo et al. 2017); row i of `confusion` counts the predictions for images of
    class i (with over 100 classes it is written to `confusion.npy` instead). Labels are the arg-max of the targets.
    `auc`, in [0, 1], is that of class 1 where there are two classes, else the mean over the classes that occur, each
    against all others. Multi-label data (task multi) has its own figures: `auc` is the mean over the labels that are
    both present and absent in the test data, `accuracy` that of probabilities above .5 over all labelled entries.
    --mean and --std are needed where the network's normalisation is unknown or the data declares another one.

    Raises:
        DatasetError: the data has another shape, other classes, or another normalisation than the network.
        TeacherError: the network cannot be loaded.
    """
    if settings.data is None:
        raise SettingsError("--data is missing; give test data: a data set with labels, or an .npz")
    mean, std, batch = settings.mean, settings.std, settings.batch
    machine = decide_machine(settings.device, settings.precision)
    data = settings.data if isinstance(settings.data, ImageDataset) else open_test(settings.data)
    network = _network(run, data, settings.checkpoint, mean, std)
    _check(network, data, explicit=mean is not None or std is not None)
    figures = {"mean": list(network.mean), "std": list(network.std), "batch": batch}
    folder = Run.open(
        "evaluate", figures, [network.fingerprint, data.fingerprint], settings.out, machine, estimate=settings.estimate
    )
    if folder.finished is not None:
        say(f"{folder.path} is finished")
        return folder.finished

    logits = torch.zeros(len(data), network.classes)
    for step in folder.steps("evaluate", -(-len(data) // batch), title="evaluate", logits=logits):
        index = torch.arange(step * batch, min((step + 1) * batch, len(data)))
        logits[index] = network.logits(data.pixels(index), machine, batch)
    names = [str(name) for name in network.class_names or data.card.class_names or range(network.classes)]
    if data.card.task == "multi":
        result = multi_label(logits, data.targets(range(len(data))), names)
    else:
        labels = torch.from_numpy(data.labels)
        result = measures(logits, labels, names)
        if network.classes > LARGE and machine.rank == 0:
            arrays.save(folder.path / "confusion.npy", confusion(logits.argmax(1), labels, network.classes).numpy())
    if result.get("no_auc"):
        say(f"no AUC, and no part in the mean: {', '.join(result['no_auc'])} (present in all labelled images or none)")
    about = {
        "network": network.name,
        "fingerprint": network.fingerprint,
        "data": data.card.name,
        "params": budget.params(network.net),
    }
    return folder.finish(about | result)


def _network(
    run: Trained | Teacher | nn.Module | str | Path,
    data: ImageDataset,
    checkpoint: Path | str | None,
    mean: Numbers,
    std: Numbers,
) -> Teacher:
    """The network, frozen, with its input; flags win over its own normalisation."""
    if isinstance(run, Trained):
        run_info = run.info
        names = run_info["class_names"]
        known = {"mean": mean or run_info["mean"], "std": std or run_info["std"], "size": run_info["shape"][1:]}
        return replace(teachers.load(run.net, **known, class_names=names), name=run.path.name)
    if isinstance(run, Teacher):
        if mean is None and std is None:
            return run
        size = run.shape[1:]
        return teachers.load(run.net, mean=mean or run.mean, std=std or run.std, size=size, class_names=run.class_names)
    if isinstance(run, nn.Module):
        return teachers.load(run, mean=mean, std=std, size=data.card.shape[1:], channels=data.card.shape[0])
    return teachers.load(run, checkpoint=checkpoint, mean=mean, std=std)


def _check(network: Teacher, data: ImageDataset, explicit: bool) -> None:
    """Refuse data on which the network's figures would mean nothing; `explicit`: --mean or --std is set."""
    card = data.card
    targets.check(data)
    if tuple(card.shape) != network.shape:
        theirs, ours = ("x".join(map(str, shape)) for shape in (card.shape, network.shape))
        raise DatasetError(f"{card.name} has {theirs} images, {network.name} takes {ours}; import it at that size")
    if card.classes != network.classes:
        raise DatasetError(f"{card.name} has {card.classes} classes, {network.name} has {network.classes}")
    if explicit:
        return
    if card.mean is not None and card.std is not None:
        declared = np.broadcast_to(card.mean, card.shape[0]), np.broadcast_to(card.std, card.shape[0])
        own = np.array(network.mean), np.array(network.std)
        if not all(np.allclose(a, b, atol=2e-3) for a, b in zip(declared, own, strict=True)):
            raise DatasetError(
                f"{card.name} declares mean {_text(declared[0])} and std {_text(declared[1])}, "
                f"{network.name} was trained with {_text(own[0])} and {_text(own[1])}; "
                "say which holds with --mean and --std, or import the data without a normalisation"
            )
    sample = data.pixels(np.linspace(0, len(data) - 1, min(len(data), 64)).astype(np.int64))
    if sample.dtype != torch.uint8 and not 0 <= float(sample.min()) <= float(sample.max()) <= 1:
        raise DatasetError(
            f"{card.name} has float pixels from {float(sample.min()):.2f} to {float(sample.max()):.2f}, which look "
            f"normalised already, and {network.name} would normalise them again with mean {_text(network.mean)}; give "
            "raw pixels in [0, 1], or say --mean and --std of these numbers"
        )


def _text(numbers: Any) -> str:
    return "(" + ", ".join(f"{float(n):.3f}" for n in numbers) + ")"
