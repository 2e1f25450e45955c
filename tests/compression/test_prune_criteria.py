"""Cutting channels out of any network: sums, concatenations, depthwise and grouped layers, shortcuts of zeros."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from phosphene import spaces
from phosphene.costs import budget as costs
from phosphene.errors import ArchitectureError, BudgetError, SettingsError, TeacherError
from phosphene.models import build
from phosphene.models.cifar_resnet import ZeroPad
from phosphene.spaces.fixed import Kept, Placed, cut, placed

pytest.importorskip("torch_pruning", reason="needs the extra prune")
from phosphene.compression.prune.criteria import choose, surrogates

SHAPE = (3, 8, 8)


def conv(inputs: int, outputs: int, kernel: int = 3, **more: Any) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **more)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


class Dense(nn.Module):
    """Concatenations, as in DenseNet, and a convolution with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = conv(3, 8), conv(8, 6), conv(14, 10)
        self.last = nn.Conv2d(24, 12, 1)
        self.linear = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.one(x)
        b = torch.cat([a, self.two(a)], 1)
        c = torch.cat([b, self.three(b)], 1)
        return self.linear(self.last(c).mean((2, 3)))


class Mobile(nn.Module):
    """A depthwise convolution inside of a residual, PReLU, and a map that is flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv(3, 8, stride=2)
        self.block = nn.Sequential(conv(8, 16, 1), conv(16, 16, groups=16), nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8))
        self.act = nn.PReLU(8)
        self.linear = nn.Sequential(nn.Flatten(), nn.Linear(8 * 16, 10), nn.ReLU(), nn.Linear(10, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.linear(self.act(x + self.block(x)))


class Grouped(nn.Module):
    """A convolution in two groups, as in ResNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(conv(3, 8), conv(8, 12, groups=2), conv(12, 8))
        self.linear = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.layers(x).mean((2, 3)))


class Own(nn.Module):
    """A parameter outside of every layer, across the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
        self.scale = nn.Parameter(torch.ones(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear((self.conv(x) * self.scale).mean((2, 3)))


def mobilenet() -> nn.Module:
    space: Any = spaces.space(
        {"name": "width", "network": "mobilenetv2", "scale": 0.25, "depths": [1, 2, 1, 1, 1, 1, 1]}
        | {"shape": SHAPE, "classes": 4}
    )
    return space.build(space.uniform(30))


NETWORKS = {
    "shortcut A": lambda: build("cifar-resnet8", 4, 3),
    "shortcut B": lambda: build("cifar-resnet8b", 4, 3),
    "concatenation": Dense,
    "depthwise": Mobile,
    "groups": Grouped,
    "a scale outside of layers": Own,
    "inverted residuals": mobilenet,
}


def made(name: str) -> nn.Module:
    """The network with weights and BatchNorm statistics of its own."""
    torch.manual_seed(1)
    net = NETWORKS[name]()  # type: ignore[operator]
    net.train()
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(0, 0.3)
        net(torch.randn(16, *SHAPE))
    ready: nn.Module = net.eval()
    return ready


def chosen(net: nn.Module, criterion: str = "group-norm", share: float = 0.75, **settings: Any) -> Kept:
    total = costs.macs(net, SHAPE)

    def excess(kept: Kept) -> float:
        return costs.macs(cut(copy.deepcopy(net).to("meta"), kept), SHAPE) / total - share

    return choose(net, SHAPE, criterion, excess, **settings)


class Mask(nn.Module):
    """What passes through a shortcut into a channel that is not kept."""

    def __init__(self, kept: Sequence[int], most: int) -> None:
        super().__init__()
        self.left = torch.tensor([float(k in {*kept}) for k in range(most)]).view(-1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.left[: x.shape[1]]


def silenced(net: nn.Module, kept: Kept) -> nn.Module:
    """The whole network, nothing cut: what is not kept is neither written nor read, since its weights are zero."""
    quiet = copy.deepcopy(net)
    for name, sides in kept.items():
        if name == "scale":
            continue  # of a channel that is zero before it
        layer: Any = quiet.get_submodule(name)
        if isinstance(layer, ZeroPad):
            quiet.set_submodule(name, nn.Sequential(layer, Mask(sides["outputs"], 64)))
        if isinstance(layer, ZeroPad | nn.PReLU):
            continue
        for dim, side in enumerate(("outputs", "inputs")):
            if side not in sides or (side == "inputs" and getattr(layer, "groups", 1) > 1):
                continue
            own = layer.weight.shape[dim] if layer.weight.ndim > dim else len(layer.weight)
            gone = torch.tensor([k not in {*sides[side]} for k in range(own)])
            with torch.no_grad():
                layer.weight[(slice(None),) * min(dim, layer.weight.ndim - 1) + (gone,)] = 0
                if side == "outputs" and layer.bias is not None:
                    layer.bias[gone] = 0
    return quiet


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("criterion", ["magnitude", "group-norm"])
def test_a_pruned_network_is_the_whole_one_with_silent_channels(name: str, criterion: str) -> None:
    """Every channel that is left meets what it met before, through whatever joins it."""
    net = made(name)
    kept = chosen(net, criterion)
    small = cut(copy.deepcopy(net), kept)
    assert 0.6 < costs.macs(small, SHAPE) / costs.macs(net, SHAPE) <= 0.75
    x = torch.randn(4, *SHAPE)
    with torch.no_grad():
        assert torch.allclose(small(x), silenced(net, kept)(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "multiple"), [("shortcut A", 8), ("shortcut B", 4), ("concatenation", 4), ("depthwise", 4)]
)
@pytest.mark.parametrize("scope", ["layer", "network"])
def test_channels_go_down_to_a_multiple(name: str, multiple: int, scope: Any) -> None:
    net = made(name)
    kept = chosen(net, share=0.8, multiple=multiple, scope=scope)
    before = {name: layer.out_channels for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d)}
    left = {name: len(kept.get(name, {}).get("outputs", range(count))) for name, count in before.items()}
    assert all(left[name] % multiple == 0 or left[name] == before[name] for name in before)
    assert left != before
    x = torch.randn(4, *SHAPE)
    with torch.no_grad():
        assert torch.allclose(cut(copy.deepcopy(net), kept)(x), silenced(net, kept)(x), atol=1e-4, rtol=1e-4)


def test_the_first_state_within_the_bound_is_found_with_few_measurements() -> None:
    net, asked = made("shortcut B"), []
    total = costs.macs(net, SHAPE)

    def excess(kept: Kept) -> float:
        asked.append(costs.macs(cut(copy.deepcopy(net).to("meta"), kept), SHAPE) / total)
        return asked[-1] - 0.5

    kept = choose(net, SHAPE, "group-norm", excess)
    found = costs.macs(cut(copy.deepcopy(net), kept), SHAPE) / total
    assert found == max(share for share in asked if share <= 0.5)
    assert 0.5 - found < min(share for share in asked if share > 0.5) - found < 0.08  # a group of channels more
    assert len(asked) < 30


def test_channels_of_all_layers_compared_at_once() -> None:
    net = made("concatenation")
    everywhere, each = chosen(net, scope="network"), chosen(net)
    assert everywhere != each
    assert costs.macs(cut(copy.deepcopy(net), everywhere), SHAPE) <= costs.macs(net, SHAPE) * 0.75


def test_the_same_twice_and_the_network_stays_as_it_was() -> None:
    net = made("shortcut A")
    before = copy.deepcopy(net.state_dict())
    assert chosen(net, share=0.9) == chosen(net, share=0.9)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert any(isinstance(layer, ZeroPad) for layer in net.modules())


def test_the_criterion_takes_the_faintest_filters() -> None:
    """L1 norms by hand; the same share goes from every layer, so the first convolution loses its own faintest."""
    net = build("cifar-resnet8", 4, 3).eval()
    faint = [3, 7, 11]
    with torch.no_grad():
        net.layer1[0].conv1.weight[faint] *= 1e-3  # type: ignore[index,union-attr,operator]
    kept = chosen(net, "magnitude", 0.85)
    lost = {*range(16)} - {*kept["layer1.0.conv1"]["outputs"]}
    assert lost and (lost <= {*faint} or {*faint} <= lost)


def test_layers_that_are_named_keep_their_outputs() -> None:
    net = made("shortcut B")
    kept = chosen(net, share=0.9, keep=["layer1.0.conv1", "layer3.0.conv1"])
    assert "outputs" not in kept.get("layer1.0.conv1", {}) and "outputs" not in kept.get("layer3.0.conv1", {})
    assert "outputs" not in kept["linear"]


def test_what_is_small_enough_is_left_alone() -> None:
    assert chosen(made("groups"), share=1.0) == {}


def test_a_surrogate_is_the_shortcut_that_it_stands_for() -> None:
    net = made("shortcut A")
    layer: Any = net.layer2[0].shortcut  # type: ignore[index,union-attr]
    stand_in: Any = surrogates(copy.deepcopy(net)).layer2[0].shortcut  # type: ignore[index,union-attr]
    x = torch.randn(2, 16, 8, 8)
    assert torch.allclose(stand_in(x) / 1e-6, layer(x), atol=1e-4)


def test_what_is_left_of_a_shortcut_of_zeros() -> None:
    """Four channels into eight, at 2 to 5; of those read 1 and 3 stay, of those written 0, 3, 4 and 5."""
    left = placed(ZeroPad(4, 8, 2), [1, 3], [0, 3, 4, 5])
    x = torch.arange(1.0, 3.0).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    assert left(x).shape == (1, 4, 2, 2) and left(x)[0, :, 0, 0].tolist() == [0, 1, 0, 2]
    assert isinstance(left, Placed) and not left.state_dict()
    assert torch.equal(
        placed(ZeroPad(4, 8, 2), None, None)(torch.ones(1, 4, 4, 4)), ZeroPad(4, 8, 2)(torch.ones(1, 4, 4, 4))
    )


class Normed(nn.Module):
    """Groups of channels that are normalised together."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(self.conv(x)).mean((2, 3)))


class Detached(nn.Module):
    """What no tracer of gradients can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).detach().mean((2, 3)))


def test_networks_that_cannot_be_cut_are_refused() -> None:
    with pytest.raises(TeacherError, match=r"norm is a GroupNorm, which cannot be cut"):
        chosen(Normed().eval())
    with pytest.raises((TeacherError, BudgetError)):
        chosen(Detached().eval())
    with pytest.raises(TeacherError, match="no convolutions"):
        choose(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192)).eval(), SHAPE, "magnitude", lambda _: 1.0)
    with pytest.raises(SettingsError, match="--method l0 is not one of magnitude, group-norm"):
        chosen(made("groups"), "l0")


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        ({"nowhere": {"outputs": [0]}}, "'nowhere' cannot be cut"),
        ({"linear": {"inputs": [99]}}, "'linear' cannot be cut"),
        ({"linear": {"inputs": []}}, "'linear' cannot be cut"),
        ({"layers": {"outputs": [0]}}, "is a Sequential, which cannot be cut"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_descriptions_that_do_not_fit_are_refused(kept: Kept, says: str, device: str) -> None:
    with pytest.raises(ArchitectureError, match=says):
        cut(Grouped().to(device), kept)


def test_a_pruned_space_takes_other_classes_and_sizes() -> None:
    net = build("cifar-resnet8", 4, 3).eval()
    kept = chosen(net, share=0.9)
    whole = spaces.architecture("cifar-resnet8", classes=4, shape=SHAPE)
    of = {"space": whole.space, "choices": whole.choices}
    made: Any = spaces.space({"name": "pruned", "of": of, "kept": kept})
    assert made.spec == spaces.space(made.spec).spec and made.decisions == () and made.spec["classes"] == 4
    other = spaces.space({**made.spec, "classes": 7, "shape": [3, 16, 16]}).build({})
    assert other(torch.randn(2, 3, 16, 16)).shape == (2, 7)
    assert made.supernet()(torch.randn(1, *SHAPE), {}).shape == (1, 4) and made.forced({}) == {}
    for wrong in ({"of": 1, "kept": kept}, {"of": of, "kept": [1]}):
        with pytest.raises(ArchitectureError, match=r"of should be an architecture|kept should be layers"):
            spaces.space({"name": "pruned", **wrong})
    with pytest.raises(ArchitectureError, match="leaves nothing to choose"):
        made.build({"a": 1})
