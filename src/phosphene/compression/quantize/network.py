"""Any network with its convolutions and linear layers fake-quantized, in place of hand-copied model classes.

Weights are quantized by a parametrization, activations at the input of each quantized layer. Residual sums,
concatenations and attention in between are the network's own, so that any network can be quantized.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NotRequired

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from torch.nn.utils import parametrize
from typing_extensions import TypedDict

from ...errors import SettingsError, TeacherError, is_memory, shown
from ...models.weights import check as check_weights
from ...storage import checksums, typed
from ...storage import tensors as stored
from ...storage.typed import write_json
from .fake_quant import ActivationQuantizer, WeightQuantizer, codes, levels

__all__ = ["Quantized", "Widths", "executed", "load_quantized", "quantize_network"]

KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
WEIGHTS, DESCRIPTION = "quantized.safetensors", "quantized.json"
REMEDY = "run `phosphene quantize` again"
Widths = Mapping[str, tuple[int, int]]
"""layer -> (bits of its weights, bits of its input)"""


class LayerBits(TypedDict):
    """What `quantized.json` has of each layer, beside its ranges."""

    layer: str
    weight_bits: Annotated[int, Ge(2), Le(8)]
    activation_bits: Annotated[int, Ge(2), Le(8)]


class Description(TypedDict):
    """`quantized.json`."""

    layers: list[LayerBits]
    per_channel: dict[str, bool]
    left_float: list[str]
    folded: bool
    rectifiers: NotRequired[list[str]]


@dataclass
class Quantized:
    """A fake-quantized network; `net` is used like any other, in evaluation mode: BatchNorm stays frozen."""

    net: nn.Module
    layers: tuple[str, ...]
    """the quantized ones, in the order of their first call"""
    left: tuple[str, ...] = ()
    """parameters of two or more dimensions that stay in float"""
    folded: bool = False
    """whether BatchNorm is folded into the convolutions before it"""
    notes: dict[str, Any] = field(default_factory=dict)
    """JSON that is saved with it"""

    def __getitem__(self, name: str) -> nn.Module:
        return self.net.get_submodule(name)

    def weight_quantizer(self, name: str) -> WeightQuantizer:
        """Quantizer of a layer's weight."""
        return self[name].parametrizations.weight[0]  # type: ignore[union-attr,index,return-value]

    def input_quantizer(self, name: str) -> ActivationQuantizer:
        """Quantizer of a layer's input."""
        return self[name].input_quantizer  # type: ignore[return-value]

    def original(self, name: str) -> nn.Parameter:
        """A layer's float weight, which training moves."""
        return self[name].parametrizations.weight.original  # type: ignore[union-attr,return-value]

    @property
    def widths(self) -> dict[str, tuple[int, int]]:
        """Bits of weight and input of every quantized layer."""
        return {name: (self.weight_quantizer(name).bits, self.input_quantizer(name).bits) for name in self.layers}

    def observe(self, on: bool) -> None:
        """Switch the moving averages of the activations' ranges on or off."""
        for name in self.layers:
            self.input_quantizer(name).observing = on

    def enable(self, weights: bool = True, activations: bool = True, only: str | None = None) -> None:
        """Switch quantizers on or off, of all layers or of one; then all others are off."""
        for name in self.layers:
            chosen = only in (None, name)
            self.weight_quantizer(name).enabled = weights and chosen
            self.input_quantizer(name).enabled = activations and chosen

    @property
    def size(self) -> int:
        """Bytes of the network: weights packed at their widths with a scale and a zero point a grid, the rest float."""
        bits = 0
        for name in self.layers:
            quantizer = self.weight_quantizer(name)
            bits += self.original(name).numel() * quantizer.bits + quantizer.scale.numel() * (32 + 8)
        quantized = {id(self.original(name)) for name in self.layers}
        rest = sum(p.numel() * 32 for p in self.net.parameters() if id(p) not in quantized)
        return -(-(bits + rest) // 8)

    @torch.no_grad()
    def table(self) -> list[dict[str, Any]]:
        """One row per layer: bits, the weight's range and its error, the range of the input.

        `weight_error` is ‖ŵ - w‖² / ‖w‖² in decibels: 4 bits give about -20, each bit more 6 less.
        """
        rows = []
        for name in self.layers:
            weight, quantizer = self.original(name).detach(), self.weight_quantizer(name)
            error = (quantizer(weight) - weight).double().square().sum() / weight.double().square().sum()
            low, high = self.input_quantizer(name).range
            rows.append(
                {
                    "layer": name,
                    "weight_bits": quantizer.bits,
                    "activation_bits": self.input_quantizer(name).bits,
                    "weights": weight.numel(),
                    "weight_low": float(weight.min()),
                    "weight_high": float(weight.max()),
                    "weight_error": float(10 * error.log10()),
                    "input_low": low,
                    "input_high": high,
                }
            )
        return rows

    def save(self, folder: Path | str) -> None:
        """Write `quantized.safetensors` (integer codes, scales, zero points, float tensors) and `quantized.json`.

        Raises:
            TeacherError: a range was never set, or a weight is not finite.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors, own = _rest(self.net), set(self.layers)
        for name in self.layers:
            tensors |= self._stored(name)
        stored.save(folder / WEIGHTS, tensors)
        about = {
            "format": 1,
            "layers": [row for row in self.table() if row["layer"] in own],
            "per_channel": {name: self.weight_quantizer(name).axis is not None for name in self.layers},
            "left_float": list(self.left),
            "folded": self.folded,
            **self.notes,
        }
        write_json(folder / DESCRIPTION, about)
        checksums.record(folder, DESCRIPTION)

    @torch.no_grad()
    def _stored(self, name: str) -> dict[str, Tensor]:
        """A layer's codes and grids, by their names in the file."""
        quantizer, seen, weight = self.weight_quantizer(name), self.input_quantizer(name), self.original(name).cpu()
        if seen.scale.isnan():
            raise TeacherError(f"the input of layer {name} has no range yet: let it observe some data first")
        scale, zero_point = (part.cpu() for part in quantizer.grid(self.original(name)))
        return {
            f"{name}.weight": codes(weight, scale, zero_point, quantizer.bits, quantizer.axis).contiguous(),
            f"{name}.weight.scale": scale.clone(),
            f"{name}.weight.zero_point": zero_point.to(torch.uint8),
            f"{name}.input.scale": seen.scale.cpu().clone(),
            f"{name}.input.zero_point": seen.zero_point.cpu().to(torch.uint8),
        }


def _rest(net: nn.Module) -> dict[str, Tensor]:
    """The state of a network without its quantized weights and its quantizers."""
    state = net.state_dict().items()
    rest = {name: t for name, t in state if ".parametrizations." not in f".{name}" and ".input_quantizer." not in name}
    return {name: t.detach().cpu().contiguous().clone() for name, t in rest.items()}


def executed(net: nn.Module, shape: Sequence[int]) -> tuple[str, ...]:
    """Convolutions and linear layers in the order of their first call, for an input of `shape` (C, H, W)."""
    order: dict[str, None] = {}

    def hook(name: str) -> Any:
        return lambda layer, args: order.setdefault(name)

    layers = [(name, layer) for name, layer in net.named_modules() if isinstance(layer, KINDS)]
    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers]
    first = next(net.parameters())
    with torch.no_grad():
        net(torch.zeros(1, *shape, device=first.device, dtype=first.dtype))
    for handle in handles:
        handle.remove()
    return tuple(order)


def quantize_network(
    net: nn.Module,
    shape: Sequence[int],
    weight_bits: int,
    activation_bits: int,
    *,
    ends: int | None = None,
    widths: Widths | None = None,
    per_channel: bool = True,
    decay: float = 0.9,
) -> Quantized:
    """A copy of a network with every executed convolution and linear layer fake-quantized; its ranges are unset.

    Args:
        net: in float; it stays as it is. The copy's weights can be trained.
        shape: (C, H, W) of an input.
        weight_bits, activation_bits: 2 to 8.
        ends: bits of the first and the last layer where they are not those of the others.
        widths: layers with bits of their own, which take precedence over `ends`.
        per_channel: a grid for each output channel of a weight, or one for the tensor.
        decay: of the moving average of the activations' ranges.

    Raises:
        SettingsError: no such width, `widths` names no layer, or the network has nothing to quantize.
    """
    copied = copy.deepcopy(net).eval().requires_grad_(True)
    layers = executed(copied, shape)
    if not layers:
        raise SettingsError("this network has no convolutions and no linear layers to quantize")
    chosen = dict.fromkeys(layers, (weight_bits, activation_bits))
    if ends is not None:
        chosen |= {layers[0]: (ends, ends), layers[-1]: (ends, ends)}
    unknown = [name for name in widths or {} if name not in chosen]
    if unknown:
        raise SettingsError(f"no layer {unknown[0]!r} to quantize; there are {', '.join(layers)}")
    chosen |= widths or {}
    for name in layers:
        _attach(copied.get_submodule(name), *chosen[name], per_channel, decay)
    return Quantized(copied.eval(), layers, tuple(_float(copied, layers)))


def _attach(layer: nn.Module, weight_bits: int, activation_bits: int, per_channel: bool, decay: float) -> None:
    """Quantizers for the weight of a layer, at each call, and for its input."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    quantizer = WeightQuantizer(weight, weight_bits, 0 if per_channel else None)
    parametrize.register_parametrization(layer, "weight", quantizer.to(weight.device))
    layer.input_quantizer = ActivationQuantizer(activation_bits, decay).to(weight.device)
    layer.register_forward_pre_hook(_quantize_input)


def _quantize_input(layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A hook without state, so that a copy of the network shares nothing with it."""
    return (layer.input_quantizer(args[0]), *args[1:])  # type: ignore[operator]


def _float(net: nn.Module, layers: Sequence[str]) -> Iterator[str]:
    """Matrices that are not quantized: of attention, embeddings, layers that are never called."""
    quantized = {f"{name}.parametrizations.weight.original" for name in layers}
    return (name for name, p in net.named_parameters() if p.ndim > 1 and name not in quantized)


def load_quantized(folder: Path | str, network: nn.Module) -> Quantized:
    """A saved quantized network; its weights are those on the grid, and every grid is fixed.

    Args:
        folder: with `quantized.safetensors` and `quantized.json`.
        network: of the same design, with any weights; it stays as it is.

    Raises:
        TeacherError: the files are missing, damaged or of another network.
    """
    folder = Path(folder)
    absent = [name for name in (WEIGHTS, DESCRIPTION) if not (folder / name).is_file()]
    if absent:
        raise TeacherError(f"{folder} has no {', '.join(absent)}: not the result of `phosphene quantize`")
    checksums.verify(folder, DESCRIPTION, error=TeacherError, remedy=REMEDY)
    about: dict[str, Any] = dict(typed.read(folder / DESCRIPTION, Description, TeacherError, REMEDY))
    tensors, rows = stored.load(folder / WEIGHTS, TeacherError, REMEDY), about["layers"]
    check_weights(tensors, f"{folder / WEIGHTS}")
    try:
        net = copy.deepcopy(network).eval()
        for row in rows:
            _restore(net.get_submodule(row["layer"]), row, tensors, about["per_channel"][row["layer"]])
        for name in about.get("rectifiers", ()):
            net.set_submodule(name, nn.ReLU())
        _fill(net, tensors, folder)
    except (KeyError, AttributeError, RuntimeError, TypeError, ValueError, IndexError) as error:
        if is_memory(error):
            raise
        raise TeacherError(f"{folder} does not fit this network, or is damaged ({shown(error, str)})") from error
    known = {"format", "layers", "per_channel", "left_float", "folded"}
    notes = {name: value for name, value in about.items() if name not in known}
    names = tuple(row["layer"] for row in rows)
    return Quantized(net, names, tuple(about["left_float"]), bool(about["folded"]), notes)


def _restore(layer: nn.Module, row: dict[str, Any], tensors: dict[str, Tensor], per_channel: bool) -> None:
    """One layer's weight and grids, taken out of `tensors`."""
    name = row["layer"]
    levels(row["weight_bits"])
    q, scale = tensors.pop(f"{name}.weight"), tensors.pop(f"{name}.weight.scale")
    zero_point = tensors.pop(f"{name}.weight.zero_point").int()
    each = [-1, *[1] * (q.ndim - 1)] if per_channel else [1] * q.ndim
    with torch.no_grad():
        layer.weight.copy_((q.int() - zero_point.view(each)) * scale.view(each))  # type: ignore[operator]
    _attach(layer, row["weight_bits"], row["activation_bits"], per_channel, 0.9)
    quantizer: WeightQuantizer = layer.parametrizations.weight[0]  # type: ignore[union-attr,index,assignment]
    seen: ActivationQuantizer = layer.input_quantizer  # type: ignore[assignment]
    quantizer.scale.copy_(scale)
    quantizer.zero_point.copy_(zero_point)
    quantizer.fixed = True
    seen.scale.copy_(tensors.pop(f"{name}.input.scale"))
    seen.zero_point.copy_(tensors.pop(f"{name}.input.zero_point").int())
    if getattr(layer, "bias", None) is None and f"{name}.bias" in tensors:
        layer.bias = nn.Parameter(torch.zeros_like(tensors[f"{name}.bias"]))


def _fill(net: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    """The float tensors; raises where one is missing or left over."""
    own = _rest(net)
    apart = sorted(set(own) ^ set(tensors))
    if apart:
        raise TeacherError(f"{folder} does not fit this network: {', '.join(apart[:5])} is in one of them only")
    net.load_state_dict(tensors, strict=False)
