"""Fine-tuning a fake-quantized network on its float original's answers (GDFQ's scheme, on a fixed data set).

    L = λ CE(student, labels) + κ T² KL(teacher ‖ student at temperature T)

GDFQ's code divides the divergence by images times classes, its text by images: `--kl elements` and `--kl images`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dataset import ImageDataset, batches
from ..errors import SettingsError
from ..synthesis.parametrization import numbered
from .layer_inputs import observe
from .quantize_plan import Job, Plan, attach, check_images, chunks, seen_by, set_ranges
from .quantized import Quantized

__all__ = ["divergence", "inversion", "learning_rate", "share_ranges"]

QUARTERS, FACTOR = 4, 0.1  # as at epochs 100, 200 and 300 of 400


def inversion(job: Job) -> tuple[Quantized, dict[str, Any]]:
    """Fine-tune on synthesized images: the ranges are observed first and then fixed, BatchNorm is frozen throughout."""
    if job.data is None:
        raise SettingsError("--method inversion needs --data: images made by `phosphene synthesize` from this teacher")
    check_images(job.data, job.teacher)
    student, plan = attach(job), job.plan
    moving = plan.ranges == "minmax"  # over batches, as published; else fitted to some images once
    if not moving:
        found = observe(job.run.machine.place(job.teacher.net), student.layers, chunks(job, job.data))
        set_ranges(student, found, plan.ranges)
    observed = plan.warmup if moving else 0
    labels = torch.from_numpy(job.data.labels).to(job.run.machine.device)
    opt = torch.optim.SGD(
        student.net.parameters(), plan.lr, plan.momentum, weight_decay=plan.weight_decay, nesterov=plan.momentum > 0
    )
    track: dict[str, Any] = {"best": None, "last": None, "loss": 0.0}

    for step in job.run.steps("fine-tune", observed + plan.steps, net=student.net, opt=opt, track=track):
        index, inputs, logits = _batch(job, job.data, step)
        student.observe(step < observed)
        if step < observed:
            with torch.no_grad():
                student.net(inputs)
            if step == observed - 1:
                share_ranges(student, job)
            continue
        done = step - observed + 1
        for group in opt.param_groups:
            group["lr"] = learning_rate(plan, done - 1)
        loss = _loss(job, student, inputs, logits, labels[index.to(labels.device)])
        opt.zero_grad(set_to_none=True)
        loss.backward()
        job.run.machine.average(p.grad for p in student.net.parameters())
        opt.step()
        if done % plan.epoch == 0 or done == plan.steps:
            _look(job, student, loss, track)
    return student, _figures(job, track)


def _batch(job: Job, data: ImageDataset, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """This rank's indices, images and the teacher's logits: a function of (seed, step, rank) alone."""
    machine = job.run.machine
    index = batches(len(data), job.plan.batch, job.run.seed, step)[machine.rank :: machine.world]
    numbers = numbered(job.run.seed, step * machine.world + machine.rank)
    inputs = machine.place(seen_by(job, data, index, numbers, flip=job.plan.flip))
    with torch.no_grad(), machine.autocast():
        logits: Tensor = machine.place(job.teacher.net)(inputs)
    return index, inputs, logits.float()


def _loss(job: Job, student: Quantized, inputs: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Both terms, weighted; a term of weight 0 is not computed."""
    plan = job.plan
    with job.run.machine.autocast():
        output: Tensor = student.net(inputs)
    loss = output.new_zeros(()).float()
    if plan.ce_weight:
        loss = loss + plan.ce_weight * F.cross_entropy(output.float(), labels)
    if plan.kl_weight:
        loss = loss + plan.kl_weight * divergence(output.float(), logits, plan.temperature, plan.kl)
    return loss


def divergence(output: Tensor, teacher: Tensor, temperature: float, average: str) -> Tensor:
    """T² KL(teacher ‖ output) of logits ``(N, K)`` at a temperature, divided by N (`images`) or N·K (`elements`)."""
    own, target = F.log_softmax(output / temperature, 1), F.log_softmax(teacher / temperature, 1)
    total = F.kl_div(own, target, reduction="sum", log_target=True)
    return temperature**2 * total / (output.numel() if average == "elements" else len(output))


def learning_rate(plan: Plan, step: int) -> float:
    """A tenth after every quarter of the steps, or half a cosine down to 0."""
    if plan.schedule == "cosine":
        return plan.lr * 0.5 * (1 + math.cos(math.pi * step / plan.steps))
    return plan.lr * FACTOR ** (step * QUARTERS // plan.steps)


def share_ranges(student: Quantized, job: Job) -> None:
    """Give every rank the mean of the ranges that all of them saw."""
    job.run.machine.average(student.input_quantizer(name).moving for name in student.layers)
    for name in student.layers:
        student.input_quantizer(name).refresh()


def _look(job: Job, student: Quantized, loss: Tensor, track: dict[str, Any]) -> None:
    """The end of an epoch: log it, with the accuracy where there are test data. Nothing is chosen by it."""
    shared = loss.detach().clone()
    job.run.machine.average([shared])
    track["loss"] = round(float(shared), 6)
    figures = {"loss": track["loss"]}
    if job.test is not None:
        track["last"] = figures["accuracy"] = job.accuracy(student)
        track["best"] = max(track["last"], track["best"] or 0.0)
    job.run.log(**figures)


def _figures(job: Job, track: dict[str, Any]) -> dict[str, Any]:
    """The network is the last one; the best accuracy is that of an epoch chosen by looking at the test data."""
    best = {} if track["best"] is None else {"best_epoch_accuracy": track["best"]}
    assert job.data is not None
    how = "moving average" if job.plan.ranges == "minmax" else f"{min(job.plan.images, len(job.data))} images"
    return {"ranges_from": f"{job.data.card.name}, {how}", "loss": track["loss"], **best}
