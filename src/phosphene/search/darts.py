"""DARTS (Liu et al. 2019): mix all options by a softmax over α, and learn α and the weights w in turn by gradients.

    until the steps are done:                                                     (Algorithm 1)
        α ← α − Adam(∇_α L_val(w − ξ ∇_w L_train(w, α), α))      ξ = 0 is the first order
        w ← w − SGD(∇_w L_train(w, α))
    choose by α

The data set is halved: one half trains the weights, the other α. Settings are those of the authors' code, but that α
starts from exact zeros (as in their paper and in DFNAS) and that the learning rate falls every step, not every epoch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..augment import Augment
from ..bilevel import AlphaGradient, first_order, second_order
from ..core import Architecture, Batch, Decision, Gates, Objective, Score, SearchSpace
from ..costs import Budget
from ..dataset import ImageDataset, batches
from ..errors import SettingsError
from ..hardware import Machine
from ..run import Run
from ..spaces.moves import commit
from . import notation


def search(
    space: SearchSpace,
    data: ImageDataset,
    objective: Objective,
    score: Score,
    budget: Budget,
    run: Run,
    *,
    steps: int,
    batch: int = 64,
    order: int = 1,
    lr: float = 0.025,
    lr_min: float = 0.001,
    momentum: float = 0.9,
    weight_decay: float = 3e-4,
    clip: float = 5.0,
    alpha_lr: float = 3e-4,
    alpha_betas: tuple[float, float] = (0.5, 0.999),
    alpha_weight_decay: float = 1e-3,
    alpha_init: float = 0.0,
    warm_up: int = 0,
    train_fraction: float = 0.5,
    augment: Augment | None = None,
    temperature: float = 1.0,
) -> Architecture:
    """Search by DARTS.

    Writes into the run's folder: `alphas.npy`, float32 (epochs + 1, decisions, options), α before the first and after
    each epoch (unused options of shorter decisions are 0); `supernet.safetensors`; `supernet.json` (the supernet's
    space, α's softmax, its score on the validation half).

    Args:
        space: what to choose from.
        data: halved at random within each class into a training and a validation half.
        objective: trains weights and α alike.
        score: for the supernet's validation score.
        budget: kept by the choices.
        run: its folder, seed and machine.
        steps: weight steps; an epoch is as many as the training half has batches.
        batch: images a step takes from either half, over all ranks.
        order: 1 or 2, see `phosphene.bilevel`.
        lr, lr_min, momentum, weight_decay, clip: SGD for the weights, cosine from `lr` to `lr_min`, gradient norm.
        alpha_lr, alpha_betas, alpha_weight_decay: Adam for α.
        alpha_init: α starts from normal noise of this deviation (authors' code 1e-3).
        warm_up: epochs in which only the weights are trained.
        train_fraction: share of the images that trains weights.
        augment: random crops and flips, of both halves.
        temperature: of the rows, where the targets are logits.

    Raises:
        SettingsError: `order`, or a `batch` that the ranks cannot share.
        BudgetError: nothing keeps the budget.
    """
    machine = run.machine
    if order not in (1, 2):
        raise SettingsError(f"--order {order} is neither 1 nor 2")
    if batch % machine.world:
        raise SettingsError(f"--batch {batch} cannot be shared by {machine.world} processes; take a multiple of that")
    train, valid = data.split(train_fraction, run.seed)
    epoch_steps = max(1, len(train) // batch)
    with run.seeded("supernet"):
        net = machine.place(space.supernet()).train()
        alphas = machine.place(_initial(space.decisions, alpha_init)).requires_grad_()
    make = Softmax(space.decisions, machine)
    sgd = torch.optim.SGD(net.parameters(), lr, momentum, weight_decay=weight_decay)
    adam = torch.optim.Adam([alphas], alpha_lr, alpha_betas, weight_decay=alpha_weight_decay)
    run.disk(12 * sum(weight.numel() for weight in net.parameters()))  # the supernet and two checkpoints of it
    history = torch.zeros(1 + math.ceil(steps / epoch_steps), *alphas.shape)
    history[0] = alphas.detach()

    def draw(part: ImageDataset, purpose: str, step: int) -> Batch:
        index = batches(len(part), batch, _number(run.seed, purpose), step)[machine.rank :: machine.world]
        generator = torch.Generator().manual_seed(_number(run.seed, purpose, step, machine.rank))
        return part.batch(index, augment=augment, temperature=temperature, generator=generator, machine=machine)

    for step in run.steps("supernet", steps, net=net, alphas=alphas, sgd=sgd, adam=adam, history=history):
        epoch, last = divmod(step, epoch_steps)
        sgd.param_groups[0]["lr"] = lr_min + (lr - lr_min) * (1 + math.cos(math.pi * step / steps)) / 2
        seen = draw(train, "train", step)
        figures: dict[str, Any] = {}
        if epoch >= warm_up or run.estimating:
            unseen = draw(valid, "valid", step)
            if order == 1:
                alpha_gradient = first_order(net, make, [alphas], unseen, objective, machine)
            else:
                alpha_gradient = second_order(net, make, [alphas], seen, unseen, objective, sgd, machine)
            _alpha_step(alphas, alpha_gradient, adam)
            figures["valid_loss"] = alpha_gradient.loss
        figures["loss"] = _weight_step(net, make([alphas.detach()]), seen, objective, sgd, clip, machine)
        if last == epoch_steps - 1 or step == steps - 1:
            history[epoch + 1] = alphas.detach()
            figures |= {"epoch": epoch + 1, "genotype": notation(space, _choose(space, make, alphas, None))}
            run.log(**figures)
        elif step % 10 == 9:  # reading a figure waits for the device
            run.log(**figures)

    found = _choose(space, make, alphas, budget)
    _same_buffers(net, machine)
    value = _validate(net, make([alphas.detach()]), valid, batch, score, run, augment)
    if machine.rank == 0:
        _save(run, space, net, make([alphas.detach()]), history, value)
    return Architecture(space.spec, found)


class Softmax:
    """α of all decisions, one row each, to gates: each row's softmax over the options that the decision has."""

    def __init__(self, decisions: Sequence[Decision], machine: Machine) -> None:
        self.decisions = decisions
        counts = torch.tensor([len(decision.options) for decision in decisions])
        self.lacking = machine.place(torch.arange(int(counts.max()))[None] >= counts[:, None])

    def __call__(self, alphas: Sequence[Tensor]) -> dict[str, Tensor]:
        rows = alphas[0].masked_fill(self.lacking, -math.inf).softmax(-1)
        return {d.name: row[: len(d.options)] for d, row in zip(self.decisions, rows.unbind(), strict=True)}


def _initial(decisions: Sequence[Decision], deviation: float) -> Tensor:
    shape = len(decisions), max(len(decision.options) for decision in decisions)
    return torch.normal(0.0, deviation, shape) if deviation else torch.zeros(shape)


def _number(*what: object) -> int:
    """A seed for this purpose, the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:7], "little")


def _alpha_step(alphas: Tensor, gradient: AlphaGradient, adam: torch.optim.Optimizer) -> None:
    alphas.grad = gradient.gradients[0]
    adam.step()
    alphas.grad = None


def _weight_step(
    net: nn.Module,
    gates: Gates,
    batch: Batch,
    objective: Objective,
    sgd: torch.optim.SGD,
    clip: float,
    machine: Machine,
) -> Tensor:
    """One step of SGD on the gradient averaged over ranks, clipped after that; gives the loss, averaged too."""
    with machine.autocast():
        loss = objective(net(batch.inputs, gates), batch)
    sgd.zero_grad()
    loss.backward()
    loss = loss.detach()
    machine.average([*(weight.grad for weight in net.parameters()), loss])
    nn.utils.clip_grad_norm_(net.parameters(), clip)
    sgd.step()
    return loss


def _choose(space: SearchSpace, make: Softmax, alphas: Tensor, budget: Budget | None) -> dict[str, int]:
    """All decisions at once, most certain first."""
    weights = {name: weight.cpu() for name, weight in make([alphas.detach()]).items()}
    return commit(space, weights, {}, len(space.decisions), fits=None if budget is None else budget.fits)


def _same_buffers(net: nn.Module, machine: Machine) -> None:
    """Running statistics, which each rank gathered from its own images, become their mean."""
    machine.average(buffer for buffer in net.buffers() if buffer.is_floating_point())


@torch.no_grad()
def _validate(
    net: nn.Module, gates: Gates, valid: ImageDataset, batch: int, score: Score, run: Run, augment: Augment | None
) -> float:
    """The supernet's mean score over the validation half, with running statistics, on centre crops."""
    net.eval()
    tally = {"sum": 0.0, "seen": 0}
    for step in run.steps("validation", math.ceil(len(valid) / batch), tally=tally):
        index = range(step * batch, min((step + 1) * batch, len(valid)))
        images = valid.batch(index, machine=run.machine)
        images = Batch(_centre(images.inputs, augment), images.targets)
        with run.machine.autocast():
            output = net(images.inputs, gates)
        tally["sum"] += len(index) * score(output.float(), images)
        tally["seen"] += len(index)
    return tally["sum"] / max(1, tally["seen"])


def _centre(inputs: Tensor, augment: Augment | None) -> Tensor:
    """The middle of the images, of the size that training saw."""
    if augment is None or augment.crop is None:
        return inputs
    side = augment.crop
    top, left = ((length - side) // 2 for length in inputs.shape[2:])
    return inputs[:, :, max(0, top) : max(0, top) + side, max(0, left) : max(0, left) + side]


def _save(
    run: Run, space: SearchSpace, net: nn.Module, gates: dict[str, Tensor], history: Tensor, value: float
) -> None:
    np.save(run.path / "alphas.npy", history.numpy())
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    save_file(state, run.path / "supernet.safetensors")
    facts: dict[str, Any] = {
        "space": space.spec,
        "gates": {name: weight.tolist() for name, weight in gates.items()},
        "score": value,
    }
    (run.path / "supernet.json").write_text(json.dumps(facts, indent=1) + "\n")
