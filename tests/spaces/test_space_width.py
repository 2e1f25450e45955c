"""The space of channel widths: the published network's figures, what is built, what the supernet generates."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phosphene import models, spaces
from phosphene.core import Paths, SearchSpace
from phosphene.costs import budget as costs
from phosphene.costs.budget import Budget
from phosphene.errors import ArchitectureError, BudgetError, StorageError
from phosphene.models.cifar_resnet import ZeroPad
from phosphene.spaces.moves import sample
from phosphene.spaces.width.designs import DESIGNS, design
from phosphene.spaces.width.space import PERCENT, WidthSpace, full, kept
from phosphene.spaces.width.supernet import Generated

SMALL: dict[str, dict[str, Any]] = {  # network -> what makes it small; every kind of block is among them
    "cifar-resnet8": {"scale": 0.5},
    "cifar-resnet8b": {"scale": 0.5},
    "resnet18": {"scale": 0.1, "depths": [1, 2, 1, 1]},
    "resnet50": {"scale": 0.1, "depths": [1, 2, 1, 1]},
    "mobilenetv2": {"scale": 0.2, "depths": [1, 1, 2, 1, 1, 1, 1]},
    "vgg11-bn": {"scale": 0.1},
}
FAMILIES = list(SMALL)


def small(network: str, **settings: Any) -> WidthSpace:
    return WidthSpace(network=network, **{"shape": (2, 9, 8), "classes": 3, **SMALL[network], **settings})


def drawn(space: SearchSpace, seed: int = 0) -> dict[str, int]:
    return sample(space, torch.Generator().manual_seed(seed))


# -- figures ---------------------------------------------------------------------------------------------------------


def test_the_published_resnet50_has_the_figures_of_the_authors_code() -> None:
    """parity.json: counted on the authors' own network."""
    found = spaces.architecture("metapruning-resnet50", classes=1000, shape=(3, 224, 224))
    space: Any = spaces.space(found.space)
    assert costs.measure(space, found.choices) == (10_567_336, 1_027_554_986)
    assert [d.name for d in space.decisions][:5] == ["stem", "stage1", "stage2", "stage3", "stage1/block1"]
    assert space.channels(found.choices)["stage4"] == 2048  # the last stage is full


@pytest.mark.skipif("PHOSPHENE_DATA" not in os.environ, reason="needs PHOSPHENE_DATA")
def test_they_are_those_of_the_parity_file() -> None:
    facts = json.loads((Path(os.environ["PHOSPHENE_DATA"]) / "parity.json").read_text())
    published = facts["MetaPruning resnet ResNet50"]
    ids = json.loads(published["encoding"][0].partition("=")[2])
    space = WidthSpace(network="resnet50", shape=(3, 224, 224), classes=1000)
    choices = dict(zip((d.name for d in space.decisions), ids, strict=True))
    assert costs.measure(space, choices) == (published["params"], published["macs"])


@pytest.mark.parametrize("network", ["cifar-resnet8", "cifar-resnet20b", "cifar-resnet18", "cifar-mobilenetv2"])
def test_at_full_width_it_is_the_network_of_that_name(network: str) -> None:
    space = WidthSpace(network=network)
    with torch.device("meta"):
        ours, theirs = space.build(space.uniform(30)), models.build(network)
    assert costs.count(ours, (3, 32, 32)) == costs.count(theirs, (3, 32, 32))
    shapes = [sorted(tuple(p.shape) for p in net.parameters()) for net in (ours, theirs)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("network", "params"),
    [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032), ("mobilenetv2", 3_504_872)],
)
def test_the_networks_of_imagenet_have_their_known_sizes(network: str, params: int) -> None:
    space = WidthSpace(network=network, shape=(3, 224, 224), classes=1000)
    assert space.prices(costs.count).of(space.uniform(30))[0] == params


@pytest.mark.parametrize("network", FAMILIES)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (2, 37, 21)])
def test_the_formula_counts_what_is_built(network: str, shape: tuple[int, int, int]) -> None:
    space = small(network, shape=shape, classes=7)
    prices = space.prices(costs.count)
    for choices in (drawn(space, 1), space.uniform(0)):
        assert prices.of(choices) == costs.measure(space, choices)
    assert prices.range() == (prices.of(space.uniform(0)), prices.of(space.uniform(30)))


def test_every_design_has_the_layers_of_its_name() -> None:
    """He et al. 2015, Table 1 and §4.2; Simonyan & Zisserman 2015, Table 1, of whose linear layers one is left."""
    for name in DESIGNS:
        layers = 1 + sum(len(block.convs) for block in design(name).blocks)
        said = int("".join(letter for letter in name if letter.isdigit()))
        assert layers == (53 if "mobilenet" in name else said - 2 if "vgg" in name else said), name


def test_widths_are_the_published_shares_rounded_down() -> None:
    assert tuple(range(10, 101, 3)) == PERCENT and len(PERCENT) == 31
    assert [kept(64, p) for p in (10, 67, 100)] == [6, 42, 64] and kept(4, 10) == 1


# -- budgets ---------------------------------------------------------------------------------------------------------


def test_draws_keep_a_narrow_window() -> None:
    space = WidthSpace()
    (_, low), (most, high) = space.prices(costs.count).range()
    budget = Budget.parse(params=str(most), macs=f"{int(0.48 * high)}..{int(0.5 * high)}").of(space)
    for seed in range(3):
        found = sample(space, torch.Generator().manual_seed(seed), budget.fits)
        assert int(0.48 * high) <= costs.measure(space, found)[1] <= 0.5 * high
    with pytest.raises(BudgetError, match="excludes every architecture"):
        Budget.parse(macs=str(low - 1)).of(space)


def test_partial_choices_fit_as_long_as_a_completion_may() -> None:
    space = WidthSpace()
    prices, top = space.prices(costs.count), space.uniform(30)
    most = prices.of(top)
    assert prices.allow({}, most, most) and prices.allow(top, most, most)
    assert not prices.allow({"stage1": 29}, most, most)
    assert not prices.allow({"stage1": 30}, (0, 0), (0, 0))


def test_the_expected_costs_are_the_means_over_all_architectures() -> None:
    space = small("resnet50", depths=[1, 1, 1, 1])  # a middle counts squared in its 3x3 convolution
    prices = space.prices(costs.count)
    names = [d.name for d in space.decisions]
    shares = {name: F.one_hot(torch.tensor(17), 31).double() for name in names}
    for name in ("stage1", "stage2/block1"):
        shares[name] = F.one_hot(torch.tensor(3), 31).double() * 0.25 + F.one_hot(torch.tensor(28), 31).double() * 0.75
    made = {"stage3": 5}
    mean = torch.zeros(2, dtype=torch.float64)
    for one, p in ((3, 0.25), (28, 0.75)):
        for other, q in ((3, 0.25), (28, 0.75)):
            choices = {**space.uniform(17), "stage1": one, "stage2/block1": other, **made}
            mean += p * q * torch.tensor(prices.of(choices), dtype=torch.float64)
    assert torch.allclose(prices.expected(shares, made), mean)


class Rule:
    """A clock that counts parameters: of a block, and 1000 more of a network."""

    def __init__(self) -> None:
        self.keys: set[Any] = set()

    def part(self, space: Any, key: Any) -> int:
        self.keys.add(json.dumps(key))
        net, shape = space.part(key)
        assert costs.macs(net, shape) > 0  # it takes an input of that shape
        return costs.params(net)

    def network(self, space: Any, choices: dict[str, int]) -> int:
        return costs.params(space.build(choices)) + 1000


@pytest.mark.parametrize("network", ["cifar-resnet8b", "mobilenetv2"])
def test_times_are_measured_on_few_blocks_and_linear_between(network: str) -> None:
    space, clock = small(network), Rule()
    prices = space.prices(costs.count, clock)
    assert len(clock.keys) <= 27 * len(space.design.blocks) and prices.times
    classifier = costs.params(space.build(space.uniform(30)).linear)  # type: ignore[arg-type,attr-defined]
    for option in (0, 30):  # at the knots it is the sum of what was measured
        params, _, nanoseconds = prices.of(space.uniform(option))
        assert nanoseconds == params - classifier + prices.base
    middle = prices.of(space.uniform(22))[2]
    assert prices.of(space.uniform(0))[2] < middle < prices.of(space.uniform(30))[2]
    sure = {d.name: F.one_hot(torch.tensor(22), 31).double() for d in space.decisions}
    assert abs(float(prices.expected(sure)[2]) - middle) <= 1
    half = {**sure, "stage1": sure["stage1"] / 2 + F.one_hot(torch.tensor(3), 31) / 2}
    mean = sum(prices.of({**space.uniform(22), "stage1": k})[2] for k in (3, 22)) / 2
    assert abs(float(prices.expected(half)[2]) - mean) <= 1
    assert space.prices(costs.count, Rule()).times == prices.times


# -- networks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", FAMILIES)
def test_every_tensor_has_the_channels_that_were_chosen(network: str) -> None:
    space = small(network)
    net, whole = space.build(space.uniform(10)), space.build(space.uniform(30))
    inside = [(a.shape, b.shape) for a, b in zip(net.parameters(), whole.parameters(), strict=True)]
    assert all(one <= other for a, b in inside for one, other in zip(a, b, strict=True))
    last = space.design.last
    fixed = [b for a, b in inside if a == b]
    assert len(fixed) <= 8 and space.channels(space.uniform(10))[last] == space.design.streams[last]
    assert net(torch.randn(2, 2, 9, 8)).shape == (2, 3)


@pytest.mark.parametrize("network", FAMILIES)
def test_residual_sums_fit_whatever_is_drawn(network: str) -> None:
    space = small(network)
    for seed in range(4):
        net = space.build(drawn(space, seed)).train()
        net(torch.randn(2, 2, 9, 8)).sum().backward()
        assert all(p.grad is not None for p in net.parameters())


def test_a_shortcut_of_zeros_crops_where_the_next_stage_is_narrower() -> None:
    x = torch.arange(5.0).view(1, 5, 1, 1)
    assert ZeroPad(5, 2, 2)(x).flatten().tolist() == [2.0, 3.0]
    assert ZeroPad(5, 8, 2)(x).flatten().tolist() == [0, 0, 1, 2, 3, 4, 0, 0]


def test_a_network_is_rebuilt_from_its_description() -> None:
    found = spaces.architecture(full("cifar-resnet8"))
    assert spaces.architecture(found, classes=4, shape=(3, 16, 16)).choices == found.choices
    space: Any = spaces.space(found.space)
    assert space.choices(space.notation(found.choices)) == found.choices
    other = drawn(space, 4)
    assert space.choices(space.notation(other)) == other


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cifar-resnet8: 100 100", "2 shares, cifar-resnet8 here 5 decisions"),
        ("cifar-resnet8: 100 100 100 100 101", "101 is no share"),
        ("resnet9000: 100", "'resnet9000' has no widths to choose; there are: cifar-resnet8"),
    ],
)
def test_a_text_that_means_nothing_is_refused(text: str, says: str) -> None:
    with pytest.raises(ArchitectureError, match=says):
        spaces.architecture(text)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"network": "alexnet"}, "no widths to choose"),
        ({"depths": [1, 1]}, "cifar-resnet20 has 3 stages"),
        ({"scale": 0.0}, "scale 0.0 is not above 0"),
        ({"classes": 0}, "--classes 0"),
        ({"shape": (3, 32)}, r"shape \[3, 32\]"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ArchitectureError, match=says):
        WidthSpace(**settings)


def test_depths_and_scale_change_the_design() -> None:
    one, two = design("cifar-resnet20", [1, 2, 1]), design("cifar-resnet20", [1, 2, 1], 0.5)
    assert len(one.blocks) == 5 and one.streams["stage2"] == 32 and two.streams["stage2"] == 16
    mids = ("stage1/block1", "stage2/block1", "stage2/block2", "stage3/block1")
    assert one.free == two.free == ("stage1", "stage2", *mids)


# -- the supernet ----------------------------------------------------------------------------------------------------


def transplanted(space: WidthSpace, choices: dict[str, int]) -> tuple[nn.Module, nn.Module]:
    """The supernet, and the network of these choices with the weights that the supernet generates for them."""
    torch.manual_seed(0)
    supernet, net = space.supernet(), space.build(choices)
    widths = space.channels(choices)
    shares = {name: PERCENT[o] / 100 for name, o in space.canonical(choices).items()} | {space.design.last: 1.0}
    units: Any = supernet.units
    for block, source, target in zip(space.design.blocks, units, net.blocks, strict=True):  # type: ignore[arg-type]
        code = torch.tensor([shares[name] for name in block.streams])
        pairs = [(layer, ours[0], ours[1]) for layer, ours in zip(source.convs, target.convs, strict=True)]
        if source.shortcut is not None:
            pairs.append((source.shortcut, target.shortcut[0], target.shortcut[1]))
        for layer, conv, norm in pairs:
            conv.weight.data.copy_(reference(layer, code)[: conv.weight.shape[0], : conv.weight.shape[1]])
            own = layer.norms[str(widths[layer.conv.outputs])]
            norm.load_state_dict({**own.state_dict(), "weight": torch.ones_like(norm.weight), "bias": norm.bias})
    net.linear.load_state_dict(supernet.linear.state_dict())  # type: ignore[union-attr,arg-type]
    return supernet, net


def reference(layer: Generated, code: Tensor) -> Tensor:
    """The whole weight, uncropped: two linear layers with a ReLU between."""
    return layer.second(F.relu(layer.first(code))).view(layer.full)


@pytest.mark.parametrize("network", FAMILIES)
@pytest.mark.parametrize("training", [True, False])
def test_the_supernet_computes_the_cropped_network(network: str, training: bool) -> None:
    space = small(network, shape=(2, 16, 16))
    choices = drawn(space, 3)
    supernet, net = transplanted(space, choices)
    x = torch.randn(4, 2, 16, 16)
    ours, theirs = supernet.train(training)(x, choices), net.train(training)(x)
    assert torch.allclose(ours, theirs, atol=1e-4, rtol=1e-4)


def test_options_of_one_width_are_one_path() -> None:
    space = WidthSpace(network="cifar-resnet8", scale=0.25, shape=(1, 8, 8), classes=3)
    one = space.uniform(30) | {"stage1": 30}
    same = one | {"stage1": max(k for k, w in enumerate(space.widths["stage1"]) if w == 3)}
    other = one | {"stage1": min(k for k, w in enumerate(space.widths["stage1"]) if w == 3)}
    assert same != other and space.canonical(same) == space.canonical(other) != space.canonical(one)
    supernet, x = space.supernet().eval(), torch.randn(2, 1, 8, 8)
    assert torch.equal(supernet(x, same), supernet(x, other))


def test_a_mixture_is_the_expected_mask_of_channels() -> None:
    """Paths with all weight on one option leave the other's channels at zero, but not its BatchNorm and code."""
    space = small("cifar-resnet8", shape=(2, 8, 8))
    supernet, x = space.supernet().eval(), torch.randn(2, 2, 8, 8)
    ints = space.uniform(30)
    alone = supernet(x, ints)
    sure = {name: F.one_hot(torch.tensor(30), 31).float() for name in ints}
    assert torch.allclose(supernet(x, sure), alone, atol=1e-6)
    assert torch.allclose(supernet(x, ints | {"stage1": Paths((30, 4), torch.tensor([1.0, 0.0]))}), alone, atol=1e-6)


def test_gradients_reach_the_gates_even_at_weight_zero() -> None:
    space = small("mobilenetv2")
    supernet, x = space.supernet(), torch.randn(3, 2, 9, 8)
    alphas = {d.name: torch.zeros(31, requires_grad=True) for d in space.decisions}
    supernet(x, {name: row.softmax(0) for name, row in alphas.items()}).square().sum().backward()
    assert all(row.grad is not None and row.grad.abs().sum() > 0 for row in alphas.values())
    weight = torch.tensor([1.0, 0.0], requires_grad=True)
    gates = {**space.uniform(8), "stage3": Paths((20, 30), weight)}
    supernet(x, gates).square().sum().backward()
    assert weight.grad is not None and weight.grad[1] != 0


def test_a_step_trains_the_hypernetworks_and_only_the_statistics_of_its_widths() -> None:
    space = small("cifar-resnet8b")
    supernet = space.supernet().train()
    before = copy.deepcopy(supernet.state_dict())
    choices = drawn(space, 2)
    supernet(torch.randn(4, 2, 9, 8), choices).square().mean().backward()
    assert all(p.grad is not None for p in supernet.parameters())
    widths = {str(width) for width in space.channels(choices).values()}
    moved = {n.split(".norms.")[1].split(".")[0] for n, t in supernet.state_dict().items() if "running_mean" in n
             and not torch.equal(t, before[n])}  # fmt: skip
    assert moved and moved <= widths


def test_a_missing_gate_is_named() -> None:
    space = small("cifar-resnet8")
    with pytest.raises(ArchitectureError, match="no gate for decision 'stage2'"):
        space.supernet()(torch.randn(1, 2, 9, 8), {"stage1": 0})
    with pytest.raises(ArchitectureError, match="option 31"):
        space.supernet()(torch.randn(1, 2, 9, 8), space.uniform(30) | {"stage1": 31})


def test_a_picture_of_the_widths(tmp_path: Path) -> None:
    space = WidthSpace()
    space.draw(drawn(space), tmp_path / "widths.png", "cifar-resnet20")
    assert (tmp_path / "widths.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(StorageError, match="cannot be written"):
        space.draw(drawn(space), tmp_path / "no" / "widths.png")
