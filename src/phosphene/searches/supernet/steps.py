"""What searches through a mixed supernet share: α to gates, a step of the weights, a step of α, score and save.

The loops that call these are the algorithms' own, in their files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...core import Batch, Choices, Decision, Gate, Gates, Objective, Score, SearchSpace
from ...errors import NotFinite, SettingsError
from ...runtime.machine import Machine
from ...runtime.run import Run
from ...storage import arrays, checksums, tensors
from ...storage.typed import write_json
from .alpha_gradient import AlphaGradient, MakeGates, first_order, second_order
from .data import Halves, look

SKIP = "skip_connect"
NOTHING: Choices = {}
STATISTICS = 20  # batches for the BatchNorm statistics of the chosen network


class Softmax:
    """α of all decisions to gates: for each the softmax over the options that it has (DARTS, eq. 2).

    ``softmax(alphas, made, skip)``: decisions in `made` have their choice for a gate, an int, so that their other
    options are not computed; `skip` is added to the gate of every skip connection (see `skip_weight`).
    """

    def __init__(self, decisions: Sequence[Decision], machine: Machine) -> None:
        self.decisions = decisions
        counts = torch.tensor([len(decision.options) for decision in decisions])
        columns = torch.arange(int(counts.max()))
        self.lacking = machine.place(columns[None] >= counts[:, None])
        skips = [[d.options[k : k + 1] == (SKIP,) for k in columns.tolist()] for d in decisions]
        self.skips = machine.place(torch.tensor(skips).float())

    def __call__(self, alphas: Sequence[Tensor], made: Choices = NOTHING, skip: float = 0.0) -> dict[str, Gate]:
        gates: dict[str, Gate] = dict(self.weights(alphas[0], skip))  # one vector per decision
        return gates | made  # an int: only this option is computed

    def weights(self, alphas: Tensor, skip: float = 0.0) -> dict[str, Tensor]:
        """The softmax of each decision."""
        mixed = alphas.masked_fill(self.lacking, -math.inf).softmax(-1)  # eq. 2; what a decision lacks has weight 0
        if skip:
            mixed = mixed + skip * self.skips  # DARTS-: β on top of the softmax
        return {d.name: one[: len(d.options)] for d, one in zip(self.decisions, mixed.unbind(), strict=True)}


def initial(decisions: Sequence[Decision], deviation: float) -> Tensor:
    """α (decisions, most options): zeros, or normal noise of this deviation."""
    shape = len(decisions), max(len(decision.options) for decision in decisions)
    return torch.normal(0.0, deviation, shape) if deviation else torch.zeros(shape)  # 1e-3 in DARTS's code; paper: 0


def cosine(first: float, last: float, step: int, steps: int) -> float:
    """The learning rate of this step, on half a cosine from `first` to `last`."""
    return last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2


def begin(space: SearchSpace, run: Run, deviation: float) -> tuple[nn.Module, Tensor]:
    """(the supernet, α as a leaf), with initial values by the run's seed, on its machine."""
    with run.seeded("supernet"):
        net = run.machine.place(space.supernet()).train()
        alphas = run.machine.place(initial(space.decisions, deviation)).requires_grad_()
    run.disk(12 * sum(weight.numel() for weight in net.parameters()))  # bytes: the supernet and two checkpoints of it
    return net, alphas


def skip_weight(first: float, step: int, steps: int) -> float:
    """β of DARTS- (Chu et al. 2021), what skips weigh outside of the softmax: from `first` linearly to 0."""
    return first * (1 - step / steps)


def check_skips(space: SearchSpace, flag: str) -> None:
    """Raise `SettingsError` where no decision has a skip connection."""
    if not any(SKIP in decision.options for decision in space.decisions):
        raise SettingsError(f"{flag} has nothing to act on: no decision of this space has the option {SKIP}")


def check_learning(loss: Tensor, epoch: int) -> None:
    """Raise `NotFinite` where the loss is not a number: α is none then, and all choices by it are ties."""
    if math.isnan(float(loss)):
        raise NotFinite(f"the loss of epoch {epoch} is not a number, the search has diverged: lower --lr or --alpha-lr")


def alpha_gradient(
    order: int,
    net: nn.Module,
    gates: MakeGates,
    alphas: Tensor,
    train: Batch,
    valid: Batch,
    objective: Objective,
    sgd: torch.optim.SGD,
    machine: Machine,
) -> AlphaGradient:
    """The gradient of the validation loss by α, of first or second order."""
    if order == 1:
        return first_order(net, gates, [alphas], valid, objective, machine)  # ξ = 0
    return second_order(net, gates, [alphas], train, valid, objective, sgd, machine)  # eqs. 7, 8


@torch.no_grad()
def alpha_step(
    alphas: Tensor, gradient: AlphaGradient, adam: torch.optim.Optimizer, frozen: Tensor | None = None
) -> Tensor:
    """One step of Adam; decisions where `frozen` (decisions, 1) is true stay. Gives the validation loss."""
    before = None if frozen is None else alphas.detach().clone()  # momentum would move α without a gradient, too
    alphas.grad = gradient.gradients[0]  # ∇_α L_val
    adam.step()
    alphas.grad = None
    if frozen is not None:
        alphas.copy_(torch.where(frozen, before, alphas))  # type: ignore[arg-type]
    return gradient.loss


def weight_step(
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
        loss = objective(net(batch.inputs, gates), batch)  # L_train(w, α)
    sgd.zero_grad()
    loss.backward()
    loss = loss.detach()
    machine.average([*(weight.grad for weight in net.parameters()), loss])
    nn.utils.clip_grad_norm_(net.parameters(), clip)  # 5 in DARTS's code
    sgd.step()
    return loss


def estimate_statistics(net: nn.Module, choices: dict[str, int], halves: Halves, batch: int) -> None:
    """Replace the running BatchNorm statistics, which are of many paths, by those of one on training images."""
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()  # they are of many paths
        norm.momentum = None  # the mean of all batches
    with torch.no_grad(), halves.run.machine.autocast():
        for step in range(STATISTICS):
            net(halves.draw("train", step, batch, "statistics").inputs, choices)  # no weight moves
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum


def finish(
    run: Run,
    space: SearchSpace,
    net: nn.Module,
    gates: Gates,
    halves: Halves,
    batch: int,
    score: Score,
    history: Tensor,
    **facts: Any,
) -> None:
    """Score the supernet under these gates and save it.

    Writes `alphas.npy` (`history`), `supernet.safetensors` and `supernet.json`: the supernet's space, the gates, its
    score on the validation part, and `facts`.
    """
    run.machine.average(buffer for buffer in net.buffers() if buffer.is_floating_point())  # of each rank's own images
    value = _validate(net, gates, halves, batch, score)
    if run.machine.rank == 0:
        arrays.save(run.path / "alphas.npy", history.numpy())
    save(run, space, net, gates=_plain(gates), score=value, parts=halves.parts, temperature=halves.temperature, **facts)


def save(run: Run, space: SearchSpace, net: nn.Module, **facts: Any) -> None:
    """Write `supernet.safetensors` and `supernet.json` (the space and `facts`), from which candidates can be scored.

    `parts` among the facts says how the data were shared out (`halves.parts`), `temperature` that of the soft labels.
    """
    if run.machine.rank == 0:
        tensors.save(run.path / "supernet.safetensors", net.state_dict())
        write_json(run.path / "supernet.json", {"space": space.spec, **facts})
        checksums.record(run.path, "supernet.json")
    run.machine.barrier()


@torch.no_grad()
def _validate(net: nn.Module, gates: Gates, halves: Halves, batch: int, score: Score) -> float:
    """The supernet's mean score over the validation part, with running statistics, on the middle of the images."""
    net.eval()  # running statistics
    run, valid = halves.run, halves.valid
    tally = {"sum": 0.0, "seen": 0}
    for step in run.steps("validation", math.ceil(len(valid) / batch), tally=tally):
        index = range(step * batch, min((step + 1) * batch, len(valid)))
        images = look(valid, index, run.machine, halves.scored, teacher=halves.teacher)
        with run.machine.autocast():
            output = net(images.inputs, gates)
        tally["sum"] += len(index) * score(output.float(), images)  # the last batch may be smaller
        tally["seen"] += len(index)
    return tally["sum"] / max(1, tally["seen"])


def _plain(gates: Mapping[str, Any]) -> dict[str, Any]:
    return {name: gate.tolist() if isinstance(gate, Tensor) else gate for name, gate in gates.items()}
