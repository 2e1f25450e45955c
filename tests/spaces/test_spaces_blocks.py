"""The block spaces and NAS-Bench-201: published networks to the last parameter, texts, supernet against network."""

import json
import os
import random
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from phosphene import spaces
from phosphene.core import Architecture, Paths, SearchSpace
from phosphene.costs import budget as costs
from phosphene.costs import tables as prices
from phosphene.errors import ArchitectureError, BudgetError, StorageError
from phosphene.spaces import moves
from phosphene.spaces.blocks.blocks import ConvBN, InvertedResidual
from phosphene.spaces.blocks.macro import MacroSpace
from phosphene.spaces.blocks.mbconv import MBConvSpace
from phosphene.spaces.blocks.shufflenet import ShuffleNetSpace, halves
from phosphene.spaces.darts.operations import DepthwiseConv
from phosphene.spaces.fast.depthwise import depthwise, input_gradient
from phosphene.spaces.nasbench201 import OPERATIONS, Average, NasBench201Space, Residual

IMAGENET = {"classes": 1000, "shape": (3, 224, 224)}
GPU = {"first": 40, "last": 1728}
ALL = "|{0}~0|+|{0}~0|{0}~1|+|{0}~0|{0}~1|{0}~2|"
PUBLISHED = {  # counted on the authors' code: our name or text, settings, parameters, MACs
    "SPOS published": ("spos", IMAGENET, 3558464, 322918720),
    "SPOS all-0": ("spos-all-shuffle-3x3", IMAGENET, 3154880, 295842496),
    "SPOS all-1": ("spos-all-shuffle-5x5", IMAGENET, 3211968, 313654976),
    "SPOS all-2": ("spos-all-shuffle-7x7", IMAGENET, 3297600, 340373696),
    "SPOS all-3": ("spos-all-xception", IMAGENET, 3870816, 358825920),
    "proxyless_gpu": ("proxyless-gpu", IMAGENET, 7119848, 465260160),
    "proxyless_mobile": ("proxyless-mobile", IMAGENET, 4080512, 320427584),
    "NB201 all conv3x3": (ALL.format("nor_conv_3x3"), {}, 1531546, 220119680),
    "NB201 all conv1x1": (ALL.format("nor_conv_1x1"), {}, 241306, 31376000),
    "NB201 all skip": (ALL.format("skip_connect"), {}, 73306, 7783040),
    "NB201 all none": (ALL.format("none"), {}, 73306, 7783040),
    "NB201 best CIFAR-10 (published)": ("nb201-best", {}, 1288506, 184730240),
    "NAS-Bench-Macro best": ("macro-best", {}, 1985514, 85164544),
}
TINY = {
    "shufflenet": {"first": 4, "widths": [8, 16, 24, 32], "depths": [2, 1, 2, 1], "last": 12, "dropout": 0.0},
    "mbconv": {"first": 4, "widths": [4, 4, 6, 6, 8, 8, 10], "depths": [2, 1, 1, 2, 1, 1], "last": 12},
    "macro": {"channels": 4, "last": 12},
    "nasbench201": {"channels": 4, "cells": 1},
}
KINDS = tuple(TINY)
on_data = pytest.mark.skipif("PHOSPHENE_DATA" not in os.environ, reason="PHOSPHENE_DATA is not set")


def data(name):
    return json.loads((Path(os.environ["PHOSPHENE_DATA"]) / name).read_text())


def tiny(kind, shape=(3, 16, 16), classes=5, **more):
    return spaces.space({"name": kind, "shape": list(shape), "classes": classes, **TINY[kind], **more})


def drawn(space, seed=0):
    return moves.sample(space, torch.Generator().manual_seed(seed))


def measured(text, **setting):
    found = spaces.architecture(text, **setting)
    return costs.measure(spaces.space(found.space), found.choices)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_to_the_last_parameter(name):
    text, setting, *counted = PUBLISHED[name]
    assert measured(text, **setting) == tuple(counted)


@on_data
def test_the_figures_are_those_of_the_data_folder():
    told = data("parity.json")
    ours = {name for name in told if name.split("_")[0].split(" ")[0] in ("SPOS", "proxyless", "NB201")}
    assert ours == set(PUBLISHED) - {"NAS-Bench-Macro best"}
    for name in ours:
        text, setting, *counted = PUBLISHED[name]
        assert counted == [told[name]["params"], told[name]["macs"]]
        written = told[name].get("arch") or told[name].get("blocks")
        if written:  # as the authors write it, it is the named one
            ends = {end: told[name][end] for end in ("first", "last") if end in told[name]}
            assert spaces.architecture(written, **ends, **setting) == spaces.architecture(text, **setting)


@on_data
def test_nas_bench_macro_is_its_table():
    table = data("nas-bench-macro_cifar10.json")
    space = MacroSpace()
    cost = prices.prices(space, costs.count)
    codes = random.Random(5).sample(sorted(table), 200)
    for code in codes:
        assert cost.of(space.choices(code)) == (table[code]["params"], table[code]["flops"]), code
    for code in codes[:10]:  # the table behind a budget is right about built networks too
        assert costs.measure(space, space.choices(code)) == (table[code]["params"], table[code]["flops"]), code
    assert table["22212220"]["mean_acc"] == max(row["mean_acc"] for row in table.values())
    alike = {}
    for code in table:
        alike.setdefault(space.notation(space.canonical(space.choices(code))), []).append(code)
    assert len(table) == 6561 and len(alike) == 3969
    assert all(len({(table[c]["params"], table[c]["flops"]) for c in codes}) == 1 for codes in alike.values())


def test_3969_macro_networks_are_distinct():
    space = MacroSpace()
    codes = ["".join(digits) for digits in product("012", repeat=8)]
    found = {space.notation(space.canonical(space.choices(code))) for code in codes}
    assert len(found) == 3969 and found <= set(codes)
    assert space.notation(space.canonical(space.choices("00101002"))) == "00110020"  # the first of a stage stays


def test_alike_macro_networks_compute_the_same():
    space = tiny("macro")
    one, other = (space.build(space.choices(code)).eval() for code in ("10201202", "10210220"))
    assert space.canonical(space.choices("10201202")) == space.choices("10210220") != space.choices("10201202")
    assert [p.shape for p in one.parameters()] == [p.shape for p in other.parameters()]
    other.load_state_dict(dict(zip(other.state_dict(), one.state_dict().values(), strict=True)))
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(one(x), other(x))


def cells():
    for options in product(range(5), repeat=6):
        yield dict(zip((d.name for d in NasBench201Space().decisions), options, strict=True))


def test_6466_cells_of_nas_bench_201_are_unique():
    space = NasBench201Space()
    texts = [space.canonical(cell) for cell in cells()]
    assert len(texts) == 15625 and len(set(texts)) == 6466
    cell = space.choices("|nor_conv_3x3~0|+|skip_connect~0|none~1|+|none~0|avg_pool_3x3~1|skip_connect~2|")
    assert space.canonical(cell) == "#+#+0+((0)@nor_conv_3x3)@avg_pool_3x3"


def test_alike_cells_compute_the_same():
    """Cells without parameters, whose networks differ in nothing but the cell."""
    space = tiny("nasbench201", shape=(1, 8, 8))
    alike = {}
    for options in product((0, 1, 4), repeat=6):
        cell = dict(zip((d.name for d in space.decisions), options, strict=True))
        alike.setdefault(space.canonical(cell), []).append(cell)
    x, outputs = torch.randn(2, 1, 8, 8), []
    for found in random.Random(0).sample(sorted(alike.values(), key=str), 25):
        nets = []
        for cell in (found[0], found[-1]):
            torch.manual_seed(0)
            nets.append(space.build(cell).double().eval())
        one, other = (net(x.double()) for net in nets)
        torch.testing.assert_close(one, other)
        outputs.append(one)
    assert len({tuple(output.flatten().round(decimals=9).tolist()) for output in outputs}) > 12  # and others differ


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_texts_go_round(kind, seed):
    made = spaces.space({"name": kind})
    choices = drawn(made, seed)
    text = made.notation(choices)
    assert made.choices(text) == choices
    assert spaces.architecture(text) == Architecture(made.spec, choices)


def test_texts_as_others_write_them():
    spos = ShuffleNetSpace()
    digits = ", ".join("0123" * 5)
    assert spos.choices(digits) == spos.choices(f"[{digits}]") == spos.choices(f"({digits})")
    cells = NasBench201Space()
    short = "|nor_conv_3x3~0|+|nor_conv_3x3~1|+|skip_connect~2|skip_connect~0|"  # none left out, in any order
    assert cells.notation(cells.choices(short)) == spaces.nasbench201.PUBLISHED["nb201-resnet"]
    short = "k3e3 k3e6 id id k5e3 id id id k7e3 id id id k3e3 id id id k3e3 id id id k7e6"
    mb = MBConvSpace()
    assert mb.notation(mb.choices(short)).startswith("k3e1c16s1 k3e3c24s1 k3e6c24s1+ id id k5e3c40s2")
    with_channels = spaces.architecture(mb.notation(mb.choices(short)).replace("c24", "c28"))
    assert with_channels.space["widths"] == [16, 28, 40, 80, 96, 192, 320]
    assert with_channels.choices == mb.choices(short)


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("shufflenet", "(1, 2, 3)", "3 layers"),
        ("shufflenet", "(1, 2, 4)", "options from 0 to 3"),
        ("macro", "2221222", "7 layers"),
        ("macro", "22212223", "digits from 0 to 2"),
        ("mbconv", "k3e3 k3e3", "2 layers"),
        ("mbconv", " ".join(["k3e3"] * 20 + ["id"]), "'id' is none of"),
        ("mbconv", " ".join(["k3e3c23s1"] + ["k3e3"] * 20), "23 channels"),
        ("mbconv", "k3e3 conv", "'conv' cannot be read"),
        ("nasbench201", "|nor_conv_3x3~0|", "cannot be read"),
        ("nasbench201", "|nor_conv_9x9~0|+|none~0|none~1|+|none~0|none~1|none~2|", "operations: none"),
        ("nasbench201", "|none~0|+|none~0|none~2|+|none~0|none~1|none~2|", "node 2"),
        ("nasbench201", "|none~0|+|none~0|skip_connect~0|+|none~0|none~1|none~2|", "twice"),
    ],
)
def test_texts_that_cannot_be_read(kind, text, says):
    with pytest.raises(ArchitectureError, match=says):
        spaces.space({"name": kind}).choices(text)


def inherited(net, supernet, choices):
    """The network takes its state from the supernet, option by option; gives the names of what was not there."""
    state = supernet.state_dict()

    def place(name):
        part, number, *rest = name.split(".")
        if part != "layers" or isinstance(net.layers[int(number)], Residual):
            return name
        if rest[0] == "edges":
            return ".".join([part, number, "edges", rest[1], "options", str(choices[rest[1]]), *rest[2:]])
        decided = choices[supernet.names[int(number)]]
        return ".".join([part, number, "options", str(decided), *rest])

    found = {name: state[place(name)] for name in net.state_dict() if place(name) in state}
    return net.load_state_dict(found, strict=False).missing_keys


def unsettled(net):
    """BatchNorm's statistics and scales away from where they begin, so that a mistake in them shows."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5), nn.init.uniform_(module.running_var, 0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 2), nn.init.uniform_(module.bias, -0.5, 0.5)
    return net


@pytest.mark.parametrize(("kind", "affine", "seed"), product(KINDS, (True, False), range(3)))
def test_the_supernet_is_the_network(kind, affine, seed):
    torch.manual_seed(seed)
    space = tiny(kind, affine=affine)
    supernet, choices = unsettled(space.supernet().double()), drawn(space, seed)
    net = space.build(choices).double()
    lacking = inherited(net, supernet, choices)
    assert all(name.endswith((".weight", ".bias")) for name in lacking) and (not affine or not lacking)
    for name in lacking:  # an affine-free BatchNorm is one with scale 1 and shift 0
        nn.init.constant_(net.get_parameter(name), float(name.endswith(".weight")))
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    one_hot = {d.name: F.one_hot(torch.tensor(choices[d.name]), len(d.options)).double() for d in space.decisions}
    paths = {name: Paths((option,), torch.ones(1, dtype=torch.float64)) for name, option in choices.items()}
    for training in (False, True):
        supernet.train(training), net.train(training)
        for gates in (choices, paths) if training else (choices, one_hot, paths):
            torch.testing.assert_close(supernet(x, gates), net(x))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_flow_through_gates(kind):
    torch.manual_seed(0)
    space = tiny(kind)
    supernet, x = space.supernet().double(), torch.randn(4, 3, 16, 16, dtype=torch.float64)
    alphas = {d.name: torch.randn(len(d.options), dtype=torch.float64, requires_grad=True) for d in space.decisions}
    F.cross_entropy(supernet(x, {name: a.softmax(0) for name, a in alphas.items()}), torch.arange(4)).backward()
    assert all(a.grad.isfinite().all() and a.grad.abs().min() > 0 for a in alphas.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in supernet.parameters())
    decision = space.decisions[1]
    others = {d.name: d.free[-1] for d in space.decisions}
    weight = torch.tensor([0.0, 0.6], dtype=torch.float64, requires_grad=True)
    some = supernet(x, others | {decision.name: Paths((0, 2), weight)})
    full = torch.zeros(len(decision.options), dtype=torch.float64)
    full[2] = 0.6
    full.requires_grad_()
    whole = supernet(x, others | {decision.name: full})
    torch.testing.assert_close(some, whole)
    (a,), (b,) = torch.autograd.grad(some.sum(), weight), torch.autograd.grad(whole.sum(), full)
    torch.testing.assert_close(a, b[[0, 2]])  # an option of weight 0 is computed too, for its gradient


@pytest.mark.parametrize("kind", KINDS)
def test_gates_that_do_not_fit(kind):
    space = tiny(kind)
    choices, supernet, x = drawn(space), space.supernet().eval(), torch.randn(1, 3, 16, 16)
    name = space.decisions[-1].name
    with pytest.raises(ArchitectureError, match="no gate for decision"):
        supernet(x, {key: option for key, option in choices.items() if key != name})
    with pytest.raises(ArchitectureError, match="option 9"):
        supernet(x, choices | {name: 9})
    with pytest.raises(ArchitectureError, match="is left open"):
        space.build({key: option for key, option in choices.items() if key != name})
    with pytest.raises(ArchitectureError, match="is no decision"):
        space.build(choices | {"nonsense": 0})
    with pytest.raises(ArchitectureError, match="option 9 does not exist"):
        space.build(choices | {name: 9})


SHAPES = [(1, 8, 8), (1, 28, 28), (3, 30, 33), (3, 96, 64)]


@pytest.mark.parametrize(("kind", "shape"), product(KINDS, SHAPES))
def test_every_option_on_every_input(kind, shape):
    torch.manual_seed(0)
    space = tiny(kind, shape, classes=7)
    assert isinstance(space, SearchSpace) and isinstance(space, prices.Additive)
    for option in range(max(len(d.options) for d in space.decisions)):
        choices = {d.name: min(option, len(d.options) - 1) for d in space.decisions}
        net = space.build(choices)
        logits = net(torch.randn(2, *shape))
        assert logits.shape == (2, 7)
        logits.square().sum().backward()
        lost = kind == "nasbench201" and option == 0  # nothing passes a cell of none
        assert all(p.grad.isfinite().all() if p.grad is not None else lost for p in net.parameters())
        assert space.supernet()(torch.randn(2, *shape), choices).shape == (2, 7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("side", "last"), [(8, 2), (32, 4), (96, 3), (224, 7)])
def test_strides_adapt_to_the_input(kind, side, last):
    """The map before the head, and parameters that are the same at every size."""
    space = spaces.space({"name": kind, "shape": [3, side, side]})
    choices = drawn(space)
    with torch.device("meta"):
        net = space.build(choices)
        x = net.first(torch.zeros(1, 3, side, side))
        for layer in net.layers:
            x = layer(x)
    if kind == "nasbench201":  # one reduction fewer, at every size
        last = {8: 2, 32: 8, 96: 6, 224: 14}[side]
    assert x.shape[2:] == (last, last)
    published = spaces.space({"name": kind})
    assert costs.params(net) == costs.measure(published, drawn(published))[0]


@pytest.mark.parametrize("kind", KINDS)
def test_specs_are_json_and_follow_the_shape(kind):
    space = tiny(kind)
    assert space.spec["stem"] == "tiny"
    assert spaces.space(json.loads(json.dumps(space.spec))).spec == space.spec
    assert [d.name for d in spaces.space(space.spec).decisions] == [d.name for d in space.decisions]
    found = Architecture(space.spec, drawn(space))
    large = spaces.architecture(found, shape=(1, 224, 224), classes=3)
    assert (large.space["stem"], large.choices) == ("imagenet", found.choices)
    assert spaces.architecture(found, shape=(1, 224, 224), stem="cifar").space["stem"] == "cifar"
    with pytest.raises(ArchitectureError, match=r"is no decision|is left open"):
        spaces.architecture(Architecture(space.spec, {"nonsense": 0}), classes=3)


@pytest.mark.parametrize(
    ("kind", "setting", "says"),
    [
        ("macro", {"shape": [3, 16]}, "not \\(channels, height, width\\)"),
        ("macro", {"shape": [3, 4, 4]}, "8 pixels or more"),
        ("mbconv", {"stem": "imagenet", "shape": [3, 16, 16]}, "32 pixels or more"),
        ("nasbench201", {"stem": "deep"}, "--stem 'deep'"),
        ("nasbench201", {"classes": 0}, "--classes 0"),
        ("nasbench201", {"cells": 0}, "cells \\[0\\]"),
        ("macro", {"depths": []}, "depths \\[\\]"),
        ("shufflenet", {"widths": [64, 64, 320, 640]}, "rising"),
        ("shufflenet", {"widths": [64, 161, 320, 640]}, "even"),
        ("shufflenet", {"dropout": 1.0}, "--dropout"),
        ("mbconv", {"depths": [4]}, "six depths"),
        ("mbconv", {"cells": 3}, "no setting 'cells'; it has: shape"),
        ("mbconv", {"widths": 3}, "widths should be a list of whole numbers"),
    ],
)
def test_settings_that_cannot_be(kind, setting, says):
    with pytest.raises(ArchitectureError, match=says):
        spaces.space({"name": kind, **setting})


@pytest.mark.parametrize("kind", KINDS)
def test_tables_of_costs_are_exact(kind):
    space = spaces.space({"name": kind, "shape": [1, 28, 28], "classes": 7})
    table, before = prices.prices(space, costs.count), torch.get_rng_state()
    assert isinstance(table, prices.Table)
    for seed in range(2):
        choices = drawn(space, seed)
        assert table.of(choices) == costs.measure(space, choices)
    assert torch.equal(before, torch.get_rng_state())


def test_budgets_are_kept():
    space = ShuffleNetSpace(**IMAGENET)
    budget = costs.Budget.parse(macs="290M..330M").of(space)
    generator = torch.Generator().manual_seed(3)
    for _ in range(2):
        found = moves.sample(space, generator, budget.fits)
        assert 290e6 <= costs.measure(space, found)[1] <= 330e6
        changed = moves.mutate(space, found, generator, 0.1, budget.fits)
        assert changed != found and budget.fits(changed)
    with pytest.raises(BudgetError, match=r"--macs 200M excludes .* \(smallest 270\.4M, largest 398\.6M\)"):
        costs.Budget.parse(macs="200M").of(space)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_turned_into_choices(kind):
    space = tiny(kind)
    wanted = drawn(space, 4)
    weights = {d.name: F.one_hot(torch.tensor(wanted[d.name]), len(d.options)).double() for d in space.decisions}
    assert moves.commit(space, weights, {}) == wanted


def test_the_published_details():
    spos = ShuffleNetSpace()
    net, supernet = spos.build(drawn(spos)), spos.supernet()
    assert {m.affine for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {True}
    assert {m.affine for m in supernet.modules() if isinstance(m, nn.BatchNorm2d)} == {False}
    assert len(spos.decisions) == 20 and net.last[-1].bias is None and net.last[-2].p == 0.1
    mb = MBConvSpace()
    assert {m.eps for m in mb.supernet().modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}
    assert [d.name for d in mb.decisions if "id" not in d.options] == [f"stage{k}/layer1" for k in range(1, 7)]
    assert len(mb.decisions) == 21 and not any(isinstance(m, nn.ReLU) for m in mb.supernet().modules())


def test_a_shuffle_block_splits_even_from_odd():
    x = torch.randn(2, 6, 3, 5, requires_grad=True)
    even, odd = halves(x)
    assert torch.equal(even, x[:, ::2]) and torch.equal(odd, x[:, 1::2])
    weight = torch.randn_like(x)
    (gradient,) = torch.autograd.grad((even * weight[:, ::2]).sum() + (odd * weight[:, 1::2]).sum(), x)
    assert torch.equal(gradient, weight)
    space = tiny("shufflenet")
    block = space.block("shuffle_5x5", 8, 8, 1, True).eval()
    y = torch.randn(1, 8, 4, 4)
    assert torch.equal(block(y)[:, :4], y[:, ::2])
    torch.testing.assert_close(block(y)[:, 4:], block.main(y[:, 1::2]))


def test_an_inverted_residual_is_what_the_paper_draws():
    x = torch.randn(2, 4, 7, 7)
    block = InvertedResidual(4, 4, 5, 3).eval()
    widen, filtered, narrow = block.conv
    h = F.relu(widen[1](widen[0](x)))
    h = F.relu(filtered[1](F.conv2d(h, filtered[0].weight, None, 1, 2, 1, 12)))
    torch.testing.assert_close(block(x), x + narrow[1](narrow[0](h)))
    assert not InvertedResidual(4, 4, 5, 3, 2).shortcut and len(InvertedResidual(4, 6, 3, 1).conv) == 2


@pytest.mark.parametrize(("kernel", "stride", "side"), product((3, 5, 7), (1, 2), (4, 7)))
def test_blocks_have_the_library_s_gradients(kernel, stride, side, monkeypatch):
    """A block whose depthwise convolution takes the fast kernels, against the same block with the library's."""
    torch.manual_seed(0)
    block = ConvBN(6, 6, kernel, stride, depthwise=True).double()
    x = torch.randn(3, 6, side, side, dtype=torch.float64, requires_grad=True)
    ours = block(x)
    assert "Depthwise" in block[0](x).grad_fn.name()
    monkeypatch.setattr(DepthwiseConv, "forward", nn.Conv2d.forward)
    theirs, weights = block(x), [x, *block.parameters()]
    g = torch.randn_like(ours)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, weights, g), torch.autograd.grad(theirs, weights, g))


@pytest.mark.parametrize(("kernel", "side"), product((3, 5, 7), (6, 7)))
def test_strided_bfloat16_gradients(kernel, side):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, side, side, requires_grad=True), torch.randn(3, 1, kernel, kernel)
    y = F.conv2d(x, weight, None, 2, kernel // 2, 1, 3)
    g = torch.randn_like(y)
    found = input_gradient(g.bfloat16(), x.detach().bfloat16(), weight.bfloat16(), 2, 1)
    expected = torch.autograd.grad(y, x, g)[0]
    assert found.shape == x.shape and (found.float() - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize(("kernel", "side"), product((5, 7), (1, 2, 9)))
def test_second_derivatives_of_wide_kernels(kernel, side):
    x, w = torch.randn(2, 2, side, side).double().requires_grad_(), torch.randn(2, 1, kernel, kernel).double()
    assert torch.autograd.gradgradcheck(lambda a, b: depthwise(a, b, 2), (x, w.requires_grad_()))


def test_the_average_pool_is_the_library_s():
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    ours, theirs = Average()(x), F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    torch.testing.assert_close(ours, theirs)
    g = torch.randn_like(ours)
    torch.testing.assert_close(torch.autograd.grad(ours, x, g), torch.autograd.grad(theirs, x, g))
    assert torch.equal(Average()(x.detach()), theirs)
    assert OPERATIONS[4] == "avg_pool_3x3"


@pytest.mark.parametrize("kind", KINDS)
def test_drawings(kind, tmp_path):
    space = tiny(kind)
    pictures = set()
    for seed in range(2):
        space.draw(drawn(space, seed), tmp_path / "a.png", title="one")
        pictures.add((tmp_path / "a.png").read_bytes())
    assert len(pictures) == 2 and all(picture.startswith(b"\x89PNG") for picture in pictures)
    with pytest.raises(StorageError, match="cannot be written"):
        space.draw(drawn(space), tmp_path / "nowhere" / "a.png")
    with pytest.raises(ArchitectureError):
        space.draw({}, tmp_path / "a.png")


def test_the_page_about_spaces(tmp_path, capsys):
    page = (Path(__file__).resolve().parents[2] / "docs" / "spaces.md").read_text()
    exec(page.split("```python\n")[1].split("```")[0], {})
    assert (tmp_path / "proxyless-gpu.png").exists()
    blocks, counted = capsys.readouterr().out.splitlines()
    assert blocks.startswith("k3e1c24s1 k5e3c32s2 id id id k7e3c56s2") and counted == "(7119848, 465260160)"
    for name in spaces.NAMED:
        ours = spaces.architecture(name).space["name"] != "darts"
        assert not ours or f"`{name}`" in page or f"`-{name.rsplit('-', 1)[-1]}`" in page
