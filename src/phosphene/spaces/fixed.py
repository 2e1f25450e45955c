"""Spaces of a single network: a model of `models`, torchvision or timm, or a channel-pruned network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from .. import models
from ..core import Choices, Decision, Gates
from ..errors import ArchitectureError, is_memory, shown
from ..models.cifar_resnet import ZeroPad


class Gateless(nn.Module):
    """A network with a supernet's signature, which ignores the gates."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Tensor, gates: Gates) -> Tensor:
        output: Tensor = self.net(inputs)
        return output


class SingleNetwork:
    """A space of one network: no decisions; its supernet is the network, which ignores its gates."""

    decisions: tuple[Decision, ...] = ()
    spec: dict[str, Any]

    def network(self) -> nn.Module:
        """The network, with fresh weights."""
        raise NotImplementedError

    def supernet(self) -> nn.Module:
        """The network itself, with gates that it ignores."""
        return Gateless(self.network())

    def build(self, choices: Choices) -> nn.Module:
        """The network; raises `ArchitectureError` for any choices."""
        if choices:
            name = self.spec.get("model", "a pruned network")
            raise ArchitectureError(f"{name} leaves nothing to choose; {sorted(choices)[0]!r} is given")
        return self.network()

    def forced(self, made: Choices) -> Choices:
        """Nothing."""
        return {}


class FixedSpace(SingleNetwork):
    """A `model` that `models.build` knows, for inputs of `shape` (C, H, W); `classes` logits; no decisions.

    Raises:
        ArchitectureError: there is no such model.
    """

    def __init__(self, *, model: str, classes: int = 10, shape: Sequence[int] = (3, 32, 32)) -> None:
        models.check(model)
        self.spec = {"name": "fixed", "model": model, "classes": int(classes), "shape": list(shape)}

    def network(self) -> nn.Module:
        """The model, with fresh weights."""
        return models.build(self.spec["model"], self.spec["classes"], self.spec["shape"][0])


Kept = Mapping[str, Mapping[str, Sequence[int]]]
"""layer -> "inputs" or "outputs" -> indices of the channels that remain"""


class Placed(nn.Module):
    """A pruned zero-padding shortcut (`ZeroPad`): each output is one input at every `stride`-th pixel, or zero.

    Args:
        inputs: number of input channels.
        sources: for each output its input channel, or `inputs` for zeros.
    """

    sources: Tensor

    def __init__(self, inputs: int, sources: Sequence[int], stride: int) -> None:
        super().__init__()
        self.inputs, self.stride, self.order = inputs, stride, tuple(sources)
        self.register_buffer("sources", torch.tensor(self.order, dtype=torch.long), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        nothing = x.new_zeros(x.shape[0], 1, *x.shape[2:])
        return torch.cat([x, nothing], 1).index_select(1, self.sources)


@torch.no_grad()
def cut(net: nn.Module, kept: Kept) -> nn.Module:
    """Remove all channels but `kept` from `net`, in place: its tensors shrink. Returns `net`.

    Raises:
        ArchitectureError: `kept` names a layer or a channel that does not exist, or a kind of layer that cannot be cut.
    """
    for name, sides in kept.items():
        owner, _, own = name.rpartition(".")
        try:
            if isinstance(getattr(net.get_submodule(owner), own, None), nn.Parameter):
                _parameter(net.get_submodule(owner), own, sides["outputs"])
                continue
            _cut(net, name, net.get_submodule(name), sides.get("inputs"), sides.get("outputs"))
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            if is_memory(error):
                raise
            why = shown(error, str)
            raise ArchitectureError(f"layer {shown(name)} cannot be cut as described ({why})") from error
    return net


def _cut(net: nn.Module, name: str, layer: Any, inputs: Sequence[int] | None, outputs: Sequence[int] | None) -> None:
    if isinstance(layer, _ConvNd) and not layer.transposed:
        _convolution(layer, inputs, outputs)
    elif isinstance(layer, nn.Linear):
        layer.weight, layer.bias = _part(layer.weight, 0, outputs), _part(layer.bias, 0, outputs)
        layer.weight = _part(layer.weight, 1, inputs)
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, _BatchNorm):
        channels = outputs if inputs is None else inputs
        for own in ("weight", "bias", "running_mean", "running_var"):
            setattr(layer, own, _part(getattr(layer, own), 0, channels))
        layer.num_features = layer.num_features if channels is None else len(channels)
    elif isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
        channels = outputs if inputs is None else inputs
        layer.weight, layer.bias = _part(layer.weight, 0, channels), _part(layer.bias, 0, channels)
        layer.normalized_shape = layer.normalized_shape if channels is None else (len(channels),)
    elif isinstance(layer, nn.PReLU):
        layer.weight = _part(layer.weight, 0, outputs if inputs is None else inputs)
        layer.num_parameters = len(layer.weight)
    elif isinstance(layer, ZeroPad | Placed):
        net.set_submodule(name, placed(layer, inputs, outputs))
    else:
        raise ArchitectureError(f"layer {name!r} is a {type(layer).__name__}, which cannot be cut")


def _convolution(layer: Any, inputs: Sequence[int] | None, outputs: Sequence[int] | None) -> None:
    depthwise = layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels
    if depthwise:
        inputs = outputs = outputs if inputs is None else inputs
    layer.weight, layer.bias = _part(layer.weight, 0, outputs), _part(layer.bias, 0, outputs)
    if depthwise:
        layer.groups = layer.in_channels = layer.out_channels = len(layer.weight)
        return
    layer.out_channels = len(layer.weight)
    if inputs is not None:  # every group keeps the same channels as the first
        own = layer.in_channels // layer.groups
        layer.weight = _part(layer.weight, 1, [channel for channel in inputs if channel < own])
        layer.in_channels = len(inputs)


def _parameter(owner: nn.Module, name: str, outputs: Sequence[int]) -> None:
    """Cut a parameter outside of layers, such as a scale per channel, along its only dimension above 1."""
    tensor = getattr(owner, name)
    wide = [dim for dim, size in enumerate(tensor.shape) if size > 1]
    if len(wide) != 1:
        raise TypeError(f"a parameter of shape {tuple(tensor.shape)} has no one dimension of channels")
    setattr(owner, name, _part(tensor, wide[0], outputs))


def as_placed(layer: ZeroPad | Placed) -> Placed:
    """An unpruned zero-padding shortcut in the form of a pruned one."""
    if isinstance(layer, Placed):
        return layer
    outputs, before = layer.before + layer.inputs + layer.after, layer.before
    sources = [k - before if 0 <= k - before < layer.inputs else layer.inputs for k in range(outputs)]
    return Placed(layer.inputs, sources, layer.stride)


def placed(layer: ZeroPad | Placed, inputs: Sequence[int] | None, outputs: Sequence[int] | None) -> Placed:
    """A zero-padding shortcut between the remaining channels of both sides; channels removed on a side are dropped."""
    old = as_placed(layer)
    read = list(range(old.inputs)) if inputs is None else list(inputs)
    written = list(range(len(old.order))) if outputs is None else list(outputs)
    where = {channel: k for k, channel in enumerate(read)}
    return Placed(len(read), [where.get(old.order[channel], len(read)) for channel in written], old.stride)


def _part(tensor: Any, dim: int, channels: Sequence[int] | None) -> Any:
    """These channels of a parameter or a buffer; all of them for None."""
    if tensor is None or channels is None:
        return tensor
    index = torch.tensor(list(channels), dtype=torch.long, device=tensor.device)
    if len(index) == 0 or (tensor.device.type == "meta" and max(channels) >= tensor.shape[dim]):
        raise IndexError(f"{len(index)} of {tensor.shape[dim]} channels")
    selected = tensor.detach().index_select(dim, index).contiguous()
    return nn.Parameter(selected, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else selected


class PrunedSpace(SingleNetwork):
    """The architecture `of`, as JSON (space and choices), with only the channels that `kept` names.

    Args:
        of: {"space": …, "choices": …} of the original network.
        kept: layer -> sides -> channels, see `cut`.
        shape: (C, H, W) of the input; None: as in `of`.
        classes: number of logits; None: as in `of`.

    Raises:
        ArchitectureError: `of` is no architecture.
    """

    def __init__(
        self, *, of: dict[str, Any], kept: Kept, shape: Sequence[int] | None = None, classes: int | None = None
    ) -> None:
        from . import space

        if not isinstance(of, dict) or "space" not in of or not isinstance(kept, dict):
            raise ArchitectureError("a pruned network names the original one (`of`) and the channels it keeps (`kept`)")
        own = dict(of["space"])
        own |= {} if shape is None else {"shape": list(shape)}
        own |= {} if classes is None else {"classes": int(classes)}
        self.original, self.original_choices = space(own), dict(of.get("choices", {}))
        self.spec = {
            "name": "pruned",
            "of": {"space": self.original.spec, "choices": self.original_choices},
            "kept": {name: {side: list(ks) for side, ks in sides.items()} for name, sides in kept.items()},
            "shape": list(self.original.spec["shape"]),
            "classes": int(self.original.spec["classes"]),
        }

    def network(self) -> nn.Module:
        """The original network with fresh weights, cut."""
        return cut(self.original.build(self.original_choices), self.spec["kept"])
