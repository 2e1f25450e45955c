"""The quantizer against a reference in float64, written value by value; and networks made of it."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from phosphene import models
from phosphene.compression.quantize import fake_quant as quantizer
from phosphene.compression.quantize.fake_quant import (
    ActivationQuantizer,
    WeightQuantizer,
    codes,
    fake_quantize,
    grid,
    levels,
    span,
)
from phosphene.compression.quantize.network import executed, load_quantized, quantize_network
from phosphene.errors import SettingsError, TeacherError

SHAPE = (3, 8, 8)


# -- the quantizer -----------------------------------------------------------------------------------------------------


def reference(x: np.ndarray, low: float, high: float, bits: int) -> tuple[np.ndarray, float, int]:
    """Values on the grid, its scale and its zero point, in float64."""
    low, high, top = min(low, 0.0), max(high, 0.0), 2**bits - 1
    scale = (high - low) / top or 1.0
    zero_point = int(np.clip(np.round(-low / scale), 0, top))
    q = np.clip(np.round(x / scale) + zero_point, 0, top)
    return (q - zero_point) * scale, scale, zero_point


values = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40)
widths = st.integers(2, 8)


@settings(max_examples=300, deadline=None)
@given(values=values, bits=widths, part=st.floats(0.2, 1))
def test_values_against_the_reference(values, bits, part):
    """Also where the range holds only a part of the values, and where all lie on one side of zero or are equal."""
    x = torch.tensor(values)
    low, high = x.min() * part, x.max() * part
    scale, zero_point = grid(low, high, bits)
    expected, step, zero = reference(x.double().numpy(), float(low), float(high), bits)
    if step < 1e-30:
        return  # float32 has no such steps
    assert float(scale) == pytest.approx(step, rel=1e-6)
    assert abs(-float(low.clamp_max(0)) / step - int(zero_point)) <= 0.5 + 1e-4 and abs(int(zero_point) - zero) <= 1
    if int(zero_point) != zero:
        return  # a tie of the zero point itself: either is right
    found = fake_quantize(x, scale, zero_point, bits).double().numpy()
    tie = np.abs(np.abs(x.double().numpy() / step % 1) - 0.5) < 1e-4  # float32 may round it the other way
    assert np.allclose(found[~tie], expected[~tie], rtol=1e-5, atol=1e-6 * step)
    assert np.abs(found - expected).max() <= step * 1.0001


@settings(max_examples=200, deadline=None)
@given(values=values, bits=widths)
def test_zero_is_a_value_and_values_stay_where_they_are(values, bits):
    x = torch.tensor([*values, 0.0])
    scale, zero_point = grid(*span(x), bits)
    once = fake_quantize(x, scale, zero_point, bits)
    assert float(once[-1]) == 0.0 and 0 <= int(zero_point) <= levels(bits) and zero_point.dtype == torch.int32
    assert torch.equal(fake_quantize(once, scale, zero_point, bits), once)
    assert len(once.unique()) <= 2**bits
    integers = codes(x, scale, zero_point, bits)
    assert integers.dtype == torch.uint8 and torch.equal((integers.int() - zero_point) * scale, once)
    assert float((once - x).abs().max()) <= float(scale) * 1.0001  # half a step, and half a one for the zero point


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), bits=widths, axis=st.integers(-3, 2))
def test_every_slice_of_the_axis_has_a_grid_of_its_own(seed, bits, axis):
    x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(seed)) * torch.tensor([0.01, 1, 100]).view(1, 3, 1)
    scale, zero_point = grid(*span(x, axis), bits)
    assert scale.shape == zero_point.shape == (x.shape[axis],)
    found = fake_quantize(x, scale, zero_point, bits, axis)
    for i in range(x.shape[axis]):
        alone = fake_quantize(x.select(axis, i), *grid(*span(x.select(axis, i)), bits), bits)
        assert torch.equal(found.select(axis, i), alone)
    assert torch.equal((codes(x, scale, zero_point, bits, axis).int().movedim(axis, -1) - zero_point) * scale,
                       found.movedim(axis, -1))  # fmt: skip


@pytest.mark.parametrize("axis", [None, 1])
def test_the_way_of_cuda_is_the_same_function(axis):
    """torch's kernels, which a CPU has, too: values, gradients, and NaN for what is not finite."""
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) * 3
    for bits in range(2, 9):
        low, high = (torch.full((4,) if axis else (), end) for end in (-2.0, 5.0))
        scale, zero_point = grid(low, high, bits)
        one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        ours = fake_quantize(one, scale, zero_point, bits, axis)
        theirs = quantizer._by_torch(other, scale, zero_point, levels(bits), axis)
        assert torch.allclose(ours, theirs, atol=1e-6)
        ours.square().sum().backward()
        theirs.square().sum().backward()
        assert torch.allclose(one.grad, other.grad, atol=1e-5)
        for bad in (float("nan"), float("inf")):
            spoilt = torch.where(torch.arange(500).view(-1, 1) == 3, bad, x)
            assert quantizer._by_torch(spoilt, scale, zero_point, levels(bits), axis).isnan().all()


@pytest.mark.parametrize("axis", [None, 1])
def test_gradients_go_straight_through_and_end_with_the_range(axis):
    """The gradient is 1 where a value rounds to one of the grid, 0 beyond: as torch's own has it."""
    x = (torch.randn(6, 4, generator=torch.Generator().manual_seed(1)) * 2).requires_grad_()
    low, high = (torch.full((4,), -1.0), torch.full((4,), 2.0)) if axis else (torch.tensor(-1.0), torch.tensor(2.0))
    scale, zero_point = grid(low, high, 3)
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    fake_quantize(x, scale, zero_point, 3, axis).mul(weight).sum().backward()
    step, zero = float(scale.flatten()[0]), int(zero_point.flatten()[0])
    rounded = np.round(x.detach().double().numpy() / step) + zero
    inside = (rounded >= 0) & (rounded <= 7)
    assert inside.any() and not inside.all()
    assert np.allclose(x.grad.numpy(), weight.numpy() * inside)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_have_the_values_and_gradients_of_float32(dtype):
    """Rounded in float32, then to the type: never divided in a short one. The gradient's mask is that of the values."""
    x = (torch.randn(4000, generator=torch.Generator().manual_seed(4)) * 2).to(dtype)
    scale, zero_point = grid(torch.tensor(-1.0), torch.tensor(2.0), 6)
    short, long = x.clone().requires_grad_(), x.float().requires_grad_()
    found, expected = (fake_quantize(one, scale, zero_point, 6) for one in (short, long))
    assert found.dtype == dtype and torch.equal(found, expected.to(dtype))
    found.sum().backward()
    expected.sum().backward()
    assert short.grad.dtype == dtype and torch.equal(short.grad.float(), long.grad)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(TeacherError, match="infinities"):
            fake_quantize(torch.cat([x, torch.tensor([bad], dtype=dtype)]), scale, zero_point, 6)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), bits=widths, axis=st.sampled_from([0, 1, None]), last=st.booleans())
def test_weights_are_rounded_alike_on_their_own_grids_and_on_given_ones(seed, bits, axis, last):
    """A weight's own range has no outside: the gradient is the output's, in the weight's layout."""
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(seed))
    weight[2] = 0
    weight = weight.contiguous(memory_format=torch.channels_last) if last else weight
    weight.requires_grad_()
    made = WeightQuantizer(weight, bits, axis)
    found = made(weight)
    scale, zero_point = grid(*span(weight, axis), bits)
    assert torch.equal(found, fake_quantize(weight, scale, zero_point, bits, axis))
    assert found.stride() == weight.stride()
    ahead = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed + 1))
    found.mul(ahead).sum().backward()
    assert torch.equal(weight.grad, ahead)
    made.fix(weight.detach())
    assert torch.equal(made(weight), found)
    if axis is not None:
        low, high = span(weight, axis)
        assert torch.equal(low, weight.detach().movedim(axis, 0).flatten(1).min(1).values)
        assert torch.equal(high, weight.detach().movedim(axis, 0).flatten(1).max(1).values)


def test_ends_halfway_between_two_values_stay_on_the_grid():
    """-1.5 and 1.5 steps from zero at two bits: both round to two steps, four apart where there are but three."""
    weight = torch.tensor([[-1.5, 0.2, 1.5]], requires_grad=True)
    made = WeightQuantizer(weight, 2)
    found = made(weight)
    assert found.tolist() == [[-2.0, 0.0, 1.0]] and made(found.detach()).tolist() == [[-2.0, 0.0, 1.0]]
    found.sum().backward()
    assert weight.grad.tolist() == [[1.0, 1.0, 1.0]]


def test_the_memory_layout_stays():
    for x in (torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last), torch.randn(4, 6).t()):
        assert fake_quantize(x, *grid(*span(x), 4), 4).stride() == x.stride()


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-20, 1e-40, 1e30])
@pytest.mark.parametrize("bits", [2, 5, 8])
def test_constant_tensors_stay_what_they_are(value, bits):
    x = torch.full((7,), value)
    found = fake_quantize(x, *grid(*span(x), bits), bits)
    assert torch.allclose(found, x, rtol=1e-6, atol=1e-37)


def test_tensors_on_one_side_use_every_value():
    for x in (torch.linspace(0, 3, 100), torch.linspace(1, 3, 100), -torch.linspace(0.5, 3, 100)):
        scale, zero_point = grid(*span(x), 4)
        assert int(zero_point) == (0 if x.max() > 0 else 15) and float(scale) == pytest.approx(0.2)


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_infinities_are_refused(bad):
    x = torch.tensor([1.0, bad, -2.0])
    with pytest.raises(TeacherError, match="infinities"):
        grid(*span(x), 4)
    with pytest.raises(TeacherError, match="infinities"):
        fake_quantize(x, torch.tensor(0.1), torch.tensor(3, dtype=torch.int32), 4)
    with pytest.raises(TeacherError, match="infinities"):
        WeightQuantizer(x.view(3, 1), 4)
    large = torch.full((4,), 3e38)  # finite, though their sum is not
    assert float(fake_quantize(large, *grid(*span(large), 4), 4)[0]) == pytest.approx(3e38)


@pytest.mark.parametrize("bits", [0, 1, 9, 32])
def test_other_widths_are_refused(bits):
    with pytest.raises(SettingsError, match=f"{bits} bits"):
        ActivationQuantizer(bits)
    with pytest.raises(SettingsError, match=f"{bits} bits"):
        WeightQuantizer(torch.ones(2, 2), bits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_type_stays(dtype):
    x = torch.linspace(-1, 1, 9, dtype=dtype)
    assert fake_quantize(x, *grid(*span(x), 8), 8).dtype == dtype


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), batches=st.integers(1, 12))
def test_moving_ranges_are_corrected_once(seed, batches):
    """The average with weights .9^age that sum to one: never divided twice."""
    data = np.random.default_rng(seed).normal(size=(batches, 50)).astype(np.float32)
    quantizer = ActivationQuantizer(8)
    quantizer.observing = True
    for row in data:
        quantizer(torch.from_numpy(row))
    weight = 0.9 ** np.arange(batches)[::-1]
    expected = [(weight * ends).sum() / weight.sum() for ends in (data.min(1), data.max(1))]
    low, high = (quantizer.moving[:2] / quantizer.moving[2]).tolist()
    assert [low, high] == pytest.approx(expected, rel=1e-5)
    step = (high - low) / 255
    assert quantizer.range == pytest.approx((low, high), abs=0.51 * step)


def test_ranges_stay_when_nobody_observes_and_must_be_there():
    quantizer, x = ActivationQuantizer(4), torch.linspace(-1, 2, 20)
    with pytest.raises(TeacherError, match="no range yet"):
        quantizer(x)
    quantizer.observing = True
    quantizer(x)
    quantizer.observing = False
    before = quantizer.range
    assert float(quantizer(10 * x).max()) == pytest.approx(before[1]) and quantizer.range == before


# -- networks ----------------------------------------------------------------------------------------------------------


def network(name="cifar-resnet8"):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return models.build(name, 10, 3).eval()


def images(count=6, size=8):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3))


def calibrated(net, *arguments, **options):
    made = quantize_network(net, SHAPE, *arguments, **options)
    made.observe(True)
    with torch.no_grad():
        made.net(images())
    made.observe(False)
    return made


def test_every_layer_sees_what_the_reference_says():
    """Layer by layer in float64: the input and the weight on their grids, and the network's own arithmetic between."""
    net, seen = network(), {}
    made = calibrated(net, 3, 4)
    for name in made.layers:
        made[name].register_forward_hook(lambda layer, args, out, name=name: seen.update({name: (args[0], out)}))
    with torch.no_grad():
        made.net(images())
    for name in made.layers:
        entered, out = (t.double() for t in seen[name])
        low, high = made.input_quantizer(name).range
        step = (high - low) / 15
        assert np.allclose(entered / step, (entered / step).round(), atol=1e-4)
        weight = net.get_submodule(name).weight.double().detach().numpy()
        rows = [reference(row, row.min(), row.max(), 3)[0] for row in weight]
        layer = made[name]
        if isinstance(layer, nn.Conv2d):
            again = nn.functional.conv2d(entered, torch.tensor(np.stack(rows)), None, layer.stride, layer.padding)
            assert torch.allclose(again, out, atol=1e-4)


def test_the_given_network_stays_and_eight_bits_are_nearly_it():
    net = network()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    made = calibrated(net, 8, 8)
    assert all(torch.equal(before[name], t) for name, t in net.state_dict().items())
    assert set(net.state_dict()) == set(before) and not made.net.training and not made.left
    with torch.no_grad():
        error = (made.net(images()) - net(images())).norm() / net(images()).norm()
        rough = (calibrated(net, 2, 2).net(images()) - net(images())).norm() / net(images()).norm()
    assert float(error) < 0.03 < float(rough)


def test_first_and_last_layers_and_layers_of_their_own():
    net = network()
    order = executed(net, SHAPE)
    made = quantize_network(net, SHAPE, 4, 3, ends=8, widths={order[2]: (2, 5)})
    assert made.widths[order[0]] == made.widths[order[-1]] == (8, 8)
    assert made.widths[order[1]] == (4, 3) and made.widths[order[2]] == (2, 5)
    with pytest.raises(SettingsError, match="no layer 'conv9'"):
        quantize_network(net, SHAPE, 4, 4, widths={"conv9": (4, 4)})
    with pytest.raises(SettingsError, match="no convolutions"):
        quantize_network(nn.Sequential(nn.BatchNorm2d(3)), SHAPE, 4, 4)


def test_size_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(180, 4))
    bits = 135 * 4 + 5 * 40 + 5 * 32 + 720 * 4 + 4 * 40 + 4 * 32
    assert quantize_network(net, SHAPE, 4, 8).size == -(-bits // 8)


def test_a_copy_is_a_copy_and_gradients_reach_the_float_weights():
    made = calibrated(network(), 4, 4)
    twin = copy.deepcopy(made)
    made.net(images()).square().sum().backward()
    assert all(made.original(name).grad.abs().sum() > 0 for name in made.layers)
    with torch.no_grad():
        for name in twin.layers:
            twin.original(name).mul_(2)
            assert twin.input_quantizer(name) is not made.input_quantizer(name)
        assert not torch.equal(twin.net(images()), made.net(images()))


@pytest.mark.parametrize("per_channel", [True, False])
def test_saved_and_loaded(tmp_path, per_channel):
    """As integers: the loaded network has another's float weights underneath, and says the same."""
    made = calibrated(network(), 3, 4, ends=8, per_channel=per_channel)
    made.save(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        other = models.build("cifar-resnet8", 10, 3)
    loaded = load_quantized(tmp_path, other)
    with torch.no_grad():
        assert torch.equal(loaded.net(images()), made.net(images()))
    assert loaded.widths == made.widths and loaded.size == made.size
    about = json.loads((tmp_path / "quantized.json").read_text())
    assert [row["layer"] for row in about["layers"]] == list(made.layers)
    loaded.save(tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(load_quantized(tmp_path / "again", other).net(images()), made.net(images()))


def test_files_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(TeacherError, match="not the result of"):
        load_quantized(tmp_path, network())
    with pytest.raises(TeacherError, match="no range yet"):
        quantize_network(network(), SHAPE, 4, 4).save(tmp_path)
    calibrated(network(), 4, 4).save(tmp_path)
    with pytest.raises(TeacherError, match="does not fit"):
        load_quantized(tmp_path, network("cifar-resnet20"))
    (tmp_path / "quantized.safetensors").write_bytes(b"nothing")
    with pytest.raises(TeacherError, match="was changed since it was written"):
        load_quantized(tmp_path, network())


def test_the_table_has_a_row_a_layer():
    made = calibrated(network(), 4, 4)
    table = made.table()
    assert [row["layer"] for row in table] == list(made.layers)
    assert all(-30 < row["weight_error"] < -10 and row["input_low"] <= 0 < row["input_high"] for row in table)


DESIGNS = ["mobilenet_v2", "densenet121", "shufflenet_v2_x0_5", "efficientnet_b0", "googlenet"]


@pytest.mark.parametrize("name", DESIGNS)
def test_any_network_of_torchvision(name):
    """Residual adds, concatenation, depthwise and squeeze-excitation, channel shuffles, branches: all take part."""
    designs = pytest.importorskip("torchvision").models
    with torch.random.fork_rng():
        torch.manual_seed(0)
        extra = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
        net = designs.get_model(name, weights=None, num_classes=10, **extra).eval()
    made = quantize_network(net, (3, 32, 32), 8, 8)
    made.observe(True)
    with torch.no_grad():
        out, plain = made.net(images(2, 32)), net(images(2, 32))
    layers = [n for n, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert sorted(made.layers) == sorted(layers) and not made.left
    assert torch.isfinite(out).all() and float((out - plain).norm() / plain.norm()) < 0.2


def test_what_stays_float_is_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.idle, self.table = nn.Conv2d(3, 4, 3), nn.Linear(4, 4), nn.Parameter(torch.ones(4, 4))

        def forward(self, x):
            return self.conv(x).mean((2, 3)) @ self.table

    made = quantize_network(Odd(), SHAPE, 4, 4)
    assert made.layers == ("conv",) and set(made.left) == {"table", "idle.weight"}
