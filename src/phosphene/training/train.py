"""Train one architecture on the labels of a data set, real or synthesized, or on a teacher's labels of each batch.

There is no test data here: nothing is selected, and the result is the network of the last step.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from .. import losses
from ..core import Architecture, Batch, Objective
from ..costs import budget
from ..data.augment import Augment, Grid
from ..data.concat import Joined, counts, join, next_batch
from ..data.dataset import ImageDataset
from ..errors import DatasetError, SettingsError
from ..models import weights
from ..runtime.machine import Machine
from ..runtime.machine import machine as decide_machine
from ..runtime.progress import say
from ..runtime.run import Run
from ..settings import Changes, RunSettings, Settings, command
from ..teachers.loaders import read_input
from ..teachers.loaders import read_network as load_network
from ..teachers.teacher import Teacher, Weights
from . import init_weights, setup
from .recipes import RECIPES, TrainingRecipe, effective, learning_rate, length
from .setup import Trained

__all__ = ["Trained", "load_network", "train"]

CURVE = 400  # points of the curve in metrics.jsonl, at most
LabelSource = Literal["stored", "asked", "regions"]
"""Soft labels of a batch: those of the data set, the teacher's on the augmented images, those of the crops."""


RecipeChanges = Annotated[Changes[TrainingRecipe], RECIPES]


class TrainingData(Settings, heading="Data and teacher"):
    data: Annotated[ImageDataset | str | list[ImageDataset | str] | None, "data set to train on; repeatable"] = None
    shares: Annotated[str | None, "share of each --data in a batch, like 2,1; default: by their images"] = None
    rows: Annotated[LabelSource | None, "soft labels: stored, per crop (regions), --teacher's (asked if given)"] = None


class TrainSettings(TrainingData, Weights, RunSettings):
    init: Annotated[str | None, "initial weights: a run, a file, or pretrained[@WEIGHTS] (torchvision, timm)"] = None
    recipe: Annotated[str, lambda: RECIPES, "published settings, the defaults of what is not set"] = "short"
    teacher: Annotated[Teacher | nn.Module | str | None, "network that labels every augmented batch"] = None


@command
def train(
    arch: Annotated[
        Architecture | nn.Module | str, "search run, arch.json, darts-v2, cifar-resnet8, torchvision:NAME or timm:NAME"
    ],
    settings: TrainSettings,
    changes: RecipeChanges,
) -> Trained:
    """Train an architecture on a data set, or on a teacher's soft labels for its images.

    Example:
        phosphene train cifar-resnet8 --data d --out student

    Under torchrun every process takes its part of each batch, and the gradients are averaged; BatchNorm is per process.
    A network given as a module is copied and trained from the weights it has. Multi-label targets (task multi) are
    trained with the binary cross-entropy of their labelled entries; mixed with an unlabelled entry, one is unlabelled.
    `--init` loads what has the same name and shape: a head for other classes stays fresh; the result lists them.
    Several data sets are normalised as the first one is. With `--rows regions` images are cropped, padded and mirrored
    by the data's grid of crops. With `--ema` the saved network is the average, as the result's `evaluated` has it.

    Raises:
        SettingsError: a flag has a value that cannot be used.
        DatasetError: the data does not fit the architecture or the teacher.
        ArchitectureError: `arch` names no architecture.
    """
    if settings.data is None:
        raise SettingsError("--data is missing; give a data set of `phosphene synthesize` or `dataset import`")
    machine = decide_machine(settings.device, settings.precision)
    data = join(settings.data, settings.shares)
    teacher = None if settings.teacher is None else settings.load(settings.teacher)
    network, explicit = setup.find(arch), changes.given.keys()
    source = _label_source(settings.rows, teacher, data)
    recipe = effective(settings.recipe, changes)
    recipe = setup.settle(recipe, explicit, network, data, soft=data.soft or teacher is not None)
    recipe = setup.on_grid(recipe, explicit, data) if source == "regions" else recipe
    shape = setup.input_shape(data, recipe)
    setup.check(data, shape, teacher, recipe, machine.world)
    design = None if isinstance(network, nn.Module) else setup.design(network, data.card.classes, shape, recipe)
    start = None if settings.init is None else init_weights.read(settings.init, network)

    identity = {"weights": weights.digest(network)} if isinstance(network, nn.Module) else asdict(network)
    inputs = [data.fingerprint, *([teacher.fingerprint] if teacher else [])]
    began: dict[str, Any] = {} if start is None else {"init": start.digest}
    began |= _about_labels(source, data, recipe)
    figures = {"arch": identity, "recipe": settings.recipe, **began, **recipe.identity()}
    run = Run.start("train", settings, figures, inputs, machine)
    with run.seeded("weights"):
        net = setup.build(network, design)
    setup.check_output(net, shape, data)
    if run.finished is None:
        loaded: dict[str, Any] = {} if start is None else {"init": init_weights.load(net, start)}
        loss = _loop(run, net, data, teacher, recipe, data.grid if source == "regions" else None)
        final, bare = setup.finish(net, design)
        info = setup.write(run, final, bare, data, shape)
        total, _ = length(recipe, len(data))
        size = {"params": budget.params(final), "macs": budget.macs(final, shape)}
        same = {"fingerprint": weights.digest(final, info["mean"], info["std"])}  # as evaluate's results have it
        loaded |= _about_labels(source, data, recipe)
        loaded |= {"evaluated": f"moving average, {recipe.ema}"} if recipe.ema else {}
        result = run.finish({"loss": loss, "steps": total, "images": len(data), **size, **same, **loaded})
    else:
        say(f"{run.path} is finished")
        final, bare = setup.finish(net, design)
        weights.fit(final, weights.read(run.path / "weights.safetensors"), str(run.path / "weights.safetensors"))
        result = run.finished
    return Trained(final.eval(), dict(read_input(run.path)), run.path, result, bare)


def _label_source(rows: LabelSource | None, teacher: Teacher | None, data: ImageDataset) -> LabelSource:
    """Where soft labels come from; raises where they cannot."""
    source: LabelSource = rows or ("stored" if teacher is None else "asked")
    if source == "asked" and teacher is None:
        raise SettingsError("--rows asked needs a network that labels the images; give --teacher")
    if source != "asked" and teacher is not None:
        raise SettingsError(f"--rows {source} uses no --teacher; leave out one of them")
    if source == "stored" and isinstance(data, Joined) and not data.labelled:
        some = ", ".join(f"{part.card.name} {'logits' if part.soft else 'labels or none'}" for part in data.parts)
        raise DatasetError(f"labels of one kind are needed: {some}; see `phosphene dataset label`, or give --teacher")
    return source


def _about_labels(source: LabelSource, data: ImageDataset, recipe: TrainingRecipe) -> dict[str, Any]:
    """Keys of a run about soft labels per crop, and about several data sets: images of each in a batch."""
    known: dict[str, Any] = {"rows": source} if source == "regions" else {}
    if isinstance(data, Joined) and data.shares is not None:
        known["shares"] = counts(data.shares, recipe.batch)
    return known


def _loop(
    run: Run,
    net: nn.Module,
    data: ImageDataset,
    teacher: Teacher | None,
    recipe: TrainingRecipe,
    grid: Grid | None,
) -> float:
    """Train `net` in place; the mean loss of the last epoch."""
    machine = run.machine
    net = machine.place(net).train()
    cell_net: Any = net  # only networks of the DARTS space have set_drop_path and forward_auxiliary
    machine.agree(net)
    opt = _optimizer(net, recipe)
    total, epoch = length(recipe, len(data))
    loss_sum = torch.zeros((), device=machine.device)  # over the current epoch
    augment = Augment(recipe.crop, recipe.pad or 0, bool(recipe.flip), recipe.cutout, recipe.mixup, recipe.cutmix)
    average = Average(net, recipe.ema) if recipe.ema else None
    beside: dict[str, Any] = {} if average is None else {"ema": average.net}
    objective = _objective(data.card.task, recipe.temperature)
    forward = machine.compiled(cell_net.forward_auxiliary if recipe.auxiliary else net)

    for step in run.steps("train", total, title="train", net=net, opt=opt, loss=loss_sum, **beside):
        if step % epoch == 0:
            loss_sum.zero_()
        for group in opt.param_groups:
            group["lr"] = learning_rate(recipe, step, total, epoch)
        if recipe.drop_path:
            cell_net.set_drop_path(recipe.drop_path * (step // epoch) * epoch / total)  # linear over the epochs
        batch = _draw(data, teacher, augment, recipe, run.seed, step, machine, grid)
        with machine.autocast():
            output = forward(batch.inputs)
        logits, second = output if recipe.auxiliary else (output, None)
        loss = total_loss = objective(logits.float(), batch)
        if second is not None:
            total_loss = loss + recipe.auxiliary * objective(second.float(), batch)
        opt.zero_grad(set_to_none=True)
        total_loss.backward()
        machine.average(p.grad for p in net.parameters())
        if recipe.clip:
            nn.utils.clip_grad_norm_(net.parameters(), recipe.clip)
        opt.step()
        if average is not None:
            average.update(net, step)
        loss_sum += loss.detach()
        if step % max(1, total // CURVE) == 0 or step == total - 1:
            run.log(loss=_mean(loss, machine), lr=opt.param_groups[0]["lr"])
    if average is not None:
        net.load_state_dict(average.net.state_dict())
    return round(_mean(loss_sum, machine) / ((total - 1) % epoch + 1), 6)


class Average:
    """Polyak averaging: ā ← d ā + (1 − d) a after every step, for all weights and BatchNorm statistics; `net` has ā.

    d = min(decay, (1 + t) / (10 + t)) at step t, so that the first steps' weights are soon forgotten. Integer
    counters are copied from the network.

    Args:
        net: copied as it is now.
        decay: in (0, 1).
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.net, self.decay = deepcopy(net).requires_grad_(False), decay

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Add the weights of `net` after step `step`, counted from 0."""
        keep = min(self.decay, (1 + step) / (10 + step))
        mine, theirs = (list(each.state_dict().values()) for each in (self.net, net))
        floating = [(a, b) for a, b in zip(mine, theirs, strict=True) if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in floating], [b.detach() for _, b in floating], 1 - keep)
        for a, b in zip(mine, theirs, strict=True):
            if not a.is_floating_point():
                a.copy_(b)


def _objective(task: str, temperature: float) -> Objective:
    """The loss of a task at temperature T on both sides, times T², so that gradients keep their size at every T."""
    if task == "single":
        return losses.distillation(temperature, squared=True)
    plain = losses.OBJECTIVES[task]
    return lambda output, batch: temperature**2 * plain(output / temperature, batch)


def _draw(
    data: ImageDataset,
    teacher: Teacher | None,
    augment: Augment,
    recipe: TrainingRecipe,
    seed: int,
    step: int,
    machine: Machine,
    grid: Grid | None = None,
) -> Batch:
    """This rank's part of the batch of this step: a function of (seed, step, rank) alone."""
    index = next_batch(data, recipe.batch, seed, step)[machine.rank :: machine.world]
    generator = torch.Generator().manual_seed(_mixed(seed, step, machine.rank))
    if grid is not None:
        region = grid.draw(len(index), generator)
        inputs = data.normalise(grid.cut(machine.place(data.pixels(index)), region))
        stored = data.targets(index, recipe.temperature, region).to(machine.device)
        labelled = Batch(*augment.mix(inputs, stored, generator))
    elif teacher is None:
        labelled = data.batch(
            index, augment=augment, temperature=recipe.temperature, generator=generator, machine=machine
        )
    else:
        pixels = augment.move(machine.place(data.pixels(index)), generator)
        inputs, _ = augment.mix(data.normalise(pixels), pixels.new_zeros(len(index), 1).float(), generator)
        labelled = Batch(inputs, teacher.soft_labels(inputs, data, recipe.temperature, machine))
    inputs, targets = machine.place(labelled.inputs), labelled.targets
    smooth = recipe.label_smoothing
    ways = 2 if data.card.task == "multi" else targets.shape[1]  # a label of many is present or absent
    return Batch(inputs, targets * (1 - smooth) + smooth / ways if smooth else targets)


def _mixed(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence([abs(n) for n in numbers]).generate_state(1, np.uint64)[0] >> 1)


def _mean(value: Tensor, machine: Machine) -> float:
    """A figure's mean over the ranks."""
    shared = value.detach().float().clone()
    machine.average([shared])
    return round(shared.item(), 6)


def _optimizer(net: nn.Module, recipe: TrainingRecipe) -> torch.optim.Optimizer:
    trained = [p for p in net.parameters() if p.requires_grad]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            trained, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov
        )
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(trained, recipe.lr, weight_decay=recipe.weight_decay)
