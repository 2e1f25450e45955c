"""Pruning by a criterion: whole channels are removed, the least important first, until the network is small enough.

Which channels must go together (through sums, concatenations, depthwise convolutions) is torch-pruning's dependency
graph (Fang et al. 2023, DepGraph); so are the criteria:

magnitude     the L1 norm of the filters that make a channel (Li et al. 2017, §3.1)
group-norm    the L2 norm of everything that makes or reads it (DepGraph, §3.3)

A shortcut of zeros (`ZeroPad`, shortcut A of CIFAR ResNets) moves channels without weights, which the graph cannot
see. It is replaced by the strided 1x1 convolution that it equals, so that the streams before and after it lose
channels of their own; what the surrogate kept says which input is read by which output afterwards.

Several steps are taken between two measurements; the first state within the bounds is found among them by bisection, so
that a bound on measured time costs a dozen measurements.
"""

from __future__ import annotations

import bisect
import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from typing_extensions import TypedDict

from ...core import Architecture
from ...costs import budget as costs
from ...costs.budget import Budget
from ...errors import BudgetError, MissingExtra, SettingsError, TeacherError
from ...models.cifar_resnet import ZeroPad
from ...runtime.run import Run
from ...spaces.fixed import Kept, Placed, PrunedSpace, as_placed, cut
from ..quantize.network import executed
from . import plan
from .plan import Criterion, Original, Scope

DESCRIPTION = "pruned.json"  # the channels that are kept
CRITERIA: dict[str, dict[str, Any]] = {
    "magnitude": {"p": 1, "group_reduction": "first"},  # the making filters alone, L1
    "group-norm": {"p": 2, "group_reduction": "mean"},  # makers and readers, L2
}
"""name -> settings of torch-pruning's GroupMagnitudeImportance"""
STEPS = 100  # the share that is taken out grows by 1/100 of all channels
AT_ONCE = 4  # steps between two measurements
MOST = 0.95  # of the channels of one layer, however unimportant
FAINT = 1e-6  # weights of a surrogate: no criterion counts them
CUT = (_ConvNd, nn.Linear, _BatchNorm, nn.LayerNorm, nn.PReLU)


def choose(
    net: nn.Module,
    shape: Sequence[int],
    criterion: str,
    excess: Callable[[Kept], float],
    *,
    scope: Scope = "layer",
    multiple: int = 1,
    keep: Sequence[str] = (),
) -> Kept:
    """The channels that are kept once the network is within its bounds; `net` stays as it is.

    Args:
        net: a classifier in float.
        shape: (C, H, W) of its input.
        criterion: a key of `CRITERIA`.
        excess: by how much a network with these channels exceeds its bounds; 0 or less: within them.
        scope: "layer" removes the same share of every layer, "network" compares the channels of all layers.
        multiple: channels are kept in multiples of this; a layer with no more channels than that keeps all.
        keep: layers that keep all their outputs, besides the last one, whose outputs are the classes.

    Raises:
        MissingExtra: torch-pruning is not installed.
        SettingsError: no such criterion, or `keep` names no layer.
        TeacherError: the network cannot be traced, or has layers that cannot be cut.
        BudgetError: nothing more can go, and it is not enough.
    """
    if criterion not in CRITERIA:
        raise SettingsError(f"--method {criterion} is not one of {', '.join(CRITERIA)}")
    trial = surrogates(copy.deepcopy(net).eval()).requires_grad_(True)  # the original stays as it is
    pruner = _pruner(trial, shape, criterion, scope, multiple, keep)
    if excess({}) <= 0:
        return {}
    cuts = Cuts(trial)
    states: list[Kept] = [{}]
    for step in range(1, STEPS):
        for group in pruner.step(interactive=True):  # channels that must go together
            cuts.note(group, pruner.DG)  # before the group is gone
            group.prune()
            states.append({name: dict(sides) for name, sides in cuts.kept.items()})
        if step % AT_ONCE == 0 or step == STEPS - 1:  # a measured time costs much
            if excess(states[-1]) <= 0:
                _check(net, trial, shape, states[-1])
                return _first(states, excess)
            del states[:-1]  # the bisection starts from the last measured one
    raise BudgetError("nothing more can be taken out of this network, and it is not within the bounds; raise them")


def chosen(run: Run, original: Original, budget: Budget, criterion: str, settings: Criterion) -> Kept:
    """The channels that a criterion keeps within the budget; `pruned.json` keeps the choice."""
    net, shape = original.teacher.net, original.teacher.shape
    bare = copy.deepcopy(net).to("meta")  # shapes alone: enough for params and macs

    def figures(kept: Kept) -> dict[str, float]:
        pruned = cut(copy.deepcopy(bare), kept)
        known: dict[str, float] = dict(zip(("params", "macs"), costs.count(pruned, shape), strict=True))
        if budget.latency is not None:
            known["latency"] = plan.milliseconds(cut(copy.deepcopy(net), kept), shape, settings, run.machine)
        return known

    def excess(kept: Kept) -> float:
        return plan.outside(budget, figures(kept))[0]

    def description() -> dict[str, Any]:
        own: dict[str, Any] = {"scope": settings.scope, "multiple": settings.multiple}
        kept = choose(net.cpu(), shape, criterion, excess, keep=settings.keep or (), **own)
        reached = figures(kept)
        plan.check_window(plan.outside(budget, reached)[1], reached)
        return {"format": 1, "criterion": criterion, **own, "kept": kept}

    kept: Kept = plan.once(run, DESCRIPTION, description, Pruned)["kept"]
    return kept


class Pruned(TypedDict):
    """What a cut network keeps: layer -> sides -> channels."""

    kept: dict[str, dict[str, list[Annotated[int, Ge(0)]]]]


def pruned(original: Original, kept: Kept) -> tuple[nn.Module, Architecture | None]:
    """The original network's weights, cut, and the architecture that rebuilds the network where its design is known."""
    net = cut(copy.deepcopy(original.teacher.net), kept).requires_grad_(True)
    if original.design is None:
        return net, None
    space = PrunedSpace(of={"space": original.design.space, "choices": original.design.choices}, kept=dict(kept))
    with torch.device("meta"):
        again = space.build({})
    return net, Architecture(space.spec, {}) if alike(again, net) else None


def _first(states: Sequence[Kept], excess: Callable[[Kept], float]) -> Kept:
    """The first state within the bounds, of ever smaller states of which the last one is."""
    return states[bisect.bisect_left(range(len(states) - 1), True, key=lambda k: excess(states[k]) <= 0)]


def _pruner(
    trial: nn.Module, shape: Sequence[int], criterion: str, scope: Scope, multiple: int, keep: Sequence[str]
) -> Any:
    """torch-pruning's loop over all groups, with importances computed anew at each step."""
    try:
        import torch_pruning
    except ImportError as error:
        raise MissingExtra("torch_pruning", "prune") from error
    names = dict(trial.named_modules())
    if unknown := [name for name in keep if name not in names]:
        raise SettingsError(f"--keep {unknown[0]}: there is no such layer")
    layers = executed(trial, shape)
    if not layers:
        raise TeacherError("this network has no convolutions and no linear layers to prune")
    importance = torch_pruning.importance.GroupMagnitudeImportance(normalizer="mean", **CRITERIA[criterion])  # |w|^p
    settings: dict[str, Any] = {"in_channel_groups": {}, "out_channel_groups": {}, "num_heads": {}}  # theirs are shared
    settings |= {"global_pruning": scope == "network", "max_pruning_ratio": MOST}
    settings |= {"round_to": multiple if multiple > 1 else None}  # channels in multiples
    settings |= {"ignored_layers": [names[name] for name in (*keep, layers[-1])]}  # the last one's outputs are classes
    settings |= {"pruning_ratio": 1.0, "iterative_steps": STEPS, "root_module_types": [nn.Conv2d, nn.Linear]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # parameters outside of layers, which `Cuts` refuses where they would be cut
        try:
            return torch_pruning.pruner.BasePruner(trial, torch.zeros(1, *shape), importance, **settings)
        except Exception as error:  # a tracer fails in as many ways as networks are written
            raise TeacherError(
                f"torch-pruning cannot trace this network ({type(error).__name__}: {error}); --method metapruning "
                "and uniform need no trace"
            ) from error


class Cuts:
    """The channels that are left of every layer."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.names = net, {layer: name for name, layer in net.named_modules()}
        self.kept: dict[str, dict[str, list[int]]] = {}

    def note(self, group: Any, graph: Any) -> None:
        """Note the channels that a group is about to lose."""
        for dependency, gone in group:
            layer = dependency.target.module
            if isinstance(layer, nn.Parameter):
                name = next(name for name, own in self.net.named_parameters() if own is layer)
                self._lose(name, "outputs", layer.numel(), gone)  # of one dimension, as `cut` will see
                continue
            if not isinstance(layer, CUT):
                self._refuse(layer)
                continue
            outwards = graph.is_out_channel_pruning_fn(dependency.handler)  # the layer makes the channel, or reads it
            side = "outputs" if outwards else "inputs"
            size = graph.get_out_channels(layer) if outwards else graph.get_in_channels(layer)
            if isinstance(layer, nn.LayerNorm | nn.PReLU):
                size = len(layer.weight)
            self._lose(self.names[layer], side, size, gone)

    def _lose(self, name: str, side: str, size: int, gone: Sequence[Any]) -> None:
        sides, lost = self.kept.setdefault(name, {}), {int(k) for k in gone}
        sides[side] = [channel for k, channel in enumerate(sides.get(side, range(size))) if k not in lost]

    def _refuse(self, layer: Any) -> None:
        """A layer with parameters that is none of `CUT`."""
        if isinstance(layer, nn.Module) and any(True for _ in layer.parameters()):
            raise TeacherError(f"{self.names[layer]} is a {type(layer).__name__}, which cannot be cut; see --keep")


def surrogates(net: nn.Module) -> nn.Module:
    """Every shortcut of zeros as a convolution, in place."""
    for name, layer in list(net.named_modules()):
        if isinstance(layer, ZeroPad | Placed):
            net.set_submodule(name, _surrogate(as_placed(layer)))
    return net


def _surrogate(layer: Placed) -> nn.Conv2d:
    convolution = nn.Conv2d(layer.inputs, len(layer.order), 1, layer.stride, bias=False)
    with torch.no_grad():
        convolution.weight.zero_()
        for output, source in enumerate(layer.order):
            if source < layer.inputs:
                convolution.weight[output, source] = FAINT  # ZeroPad has 1 here
    return convolution


def _check(net: nn.Module, trial: nn.Module, shape: Sequence[int], kept: Kept) -> None:
    """Refuse a description unless the network cut by it has the tensors of torch-pruning's, and runs."""
    ours = cut(copy.deepcopy(net), kept).eval()
    zeros = {name for name, layer in net.named_modules() if isinstance(layer, ZeroPad | Placed)}
    theirs = {n: t for n, t in trial.state_dict().items() if n.rpartition(".")[0] not in zeros}
    if broken := sorted(_different(ours.state_dict(), theirs)):
        raise TeacherError(f"{broken[0]} was cut in a way that is no choice of channels; name its layer with --keep")
    try:
        with torch.no_grad():
            ours(torch.zeros(1, *shape, device=next(ours.parameters()).device))
    except (RuntimeError, ValueError, IndexError) as error:
        raise TeacherError(f"the pruned network fails on an image ({error}); name layers with --keep") from error


def _different(ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[str]:
    """Names of tensors that are not the same bits."""
    yield from ours.keys() ^ theirs.keys()
    for name in ours.keys() & theirs.keys():
        if not torch.equal(ours[name].cpu(), theirs[name].cpu()):
            yield name


def alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks have the same tensors by name and shape."""
    states = [{name: tuple(t.shape) for name, t in net.state_dict().items()} for net in (one, other)]
    return states[0] == states[1]
