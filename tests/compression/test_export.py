"""`phosphene export`: what is in the files, read back by other programs' means; agreement, refusals, resuming."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from phosphene import distill, prune, train
from phosphene.compression.export import check as export_check
from phosphene.compression.export.check import compare, interleaved
from phosphene.compression.export.command import Exported, export
from phosphene.compression.export.onnx_int8 import without_quantizers
from phosphene.compression.quantize.command import quantize
from phosphene.compression.quantize.network import load_quantized
from phosphene.costs import budget as costs
from phosphene.data.dataset import ImageDataset
from phosphene.errors import DatasetError, ExportError, RunError, SettingsError
from phosphene.teachers import teacher as teachers

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
runtime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
QUICK = {"latency": False, "images": 32}


class Body(nn.Module):
    """8x8 images to 5 logits; `between` is what a kind of network adds."""

    def __init__(self, between: nn.Module, channels: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.between = between
        self.head = nn.Linear(channels, 5)

    def forward(self, x):
        return self.head(self.between(self.stem(x)).mean((2, 3)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 3, 2, 1, bias=False), nn.Conv2d(8, 8, 3, 1, 1)
        self.norm, self.last = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.short = nn.Conv2d(8, 8, 1, 2)

    def forward(self, x):
        return F.relu(self.short(x) + self.last(self.b(F.relu(self.norm(self.a(x))))))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depth, self.norm = nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.point = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return F.relu6(self.point(F.relu6(self.norm(self.depth(x)))))


class Concatenation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x):
        return F.max_pool2d(torch.cat([F.relu(self.a(x)), torch.sigmoid(self.b(x))], 1), 2)


KINDS_OF_NETWORKS = {"residual": Residual, "depthwise": Depthwise, "concatenation": Concatenation}


def lively(net: nn.Module) -> nn.Module:
    """BatchNorm statistics and factors, some of them negative, that a training might have left."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.5)
            layer.running_var.uniform_(0.5, 2)
            nn.init.normal_(layer.weight, 1)
            nn.init.normal_(layer.bias, 0, 0.3)
    return net.eval()


def network(kind: str = "residual", **changed) -> teachers.Teacher:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = lively(Body(KINDS_OF_NETWORKS[kind]()))
        nn.init.normal_(net.head.weight, 0, 2)
    return teachers.load(net, **{"mean": MEAN, "std": STD, "size": 8, **changed})


def data(count: int = 48, **fields) -> ImageDataset:
    numbers = np.random.default_rng(5)
    images = numbers.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
    fields = {"classes": 5, "origin": "synthesis", "labels": numbers.integers(0, 5, count), **fields}
    return ImageDataset.from_arrays(images, **fields)


def pixels(count: int = 7) -> torch.Tensor:
    return data().pixels(range(count))


def ask(exported: Exported, inputs: torch.Tensor) -> torch.Tensor:
    """What ONNX Runtime, as anybody would use it, makes of the file."""
    session = runtime.InferenceSession(str(exported.file), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0])


def close(a: torch.Tensor, b: torch.Tensor, share: float) -> bool:
    return float((a - b).abs().max()) <= share * float(b.abs().max())


# -- ONNX --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS_OF_NETWORKS)
def test_onnx_answers_like_the_network_and_int8_nearly(kind, tmp_path):
    teacher = network(kind)
    floats = export(teacher, out=tmp_path / "f", **QUICK)
    small = export(teacher, int8=True, data=data(), out=tmp_path / "q", **QUICK)
    for count in (1, 7):
        inputs = teacher.normalise(pixels(count))
        expected = teacher.net(inputs)
        assert close(ask(floats, inputs), expected, 1e-4)
        assert close(ask(small, inputs), expected, 0.1)
    assert not close(ask(small, inputs), expected, 1e-4)  # it is another arithmetic
    assert floats.result["agreement_noise"] == 100 and small.result["agreement_images"] >= 80
    assert small.result["calibrated_on"] == "32 images (synthesis)"
    assert small.result["compared_on"]["images"] == 16  # the rest
    layers = sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in teacher.net.modules())
    assert small.result["int8_layers"] == layers and small.result["integer_layers"] == f"{layers} of {layers}"


def test_int8_weights_are_the_networks_rounded_by_channel(tmp_path):
    """The last layer has no BatchNorm: its codes are its weight over its own scale, symmetric."""
    teacher = network()
    made = onnx.load(export(teacher, int8=True, data=data(), out=tmp_path / "q", **QUICK).file)
    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in made.graph.initializer}
    weight = teacher.net.head.weight.detach().numpy()
    (codes,) = (a for a in arrays.values() if a.dtype == np.int8 and a.shape == weight.shape)
    scale = np.abs(weight).max(1, keepdims=True) / 127
    assert np.abs(codes - np.rint(weight / scale)).max() <= 1
    assert not [name for name, a in arrays.items() if a.dtype == np.float32 and a.ndim > 1]


def test_no_source_lines_and_paths_are_in_the_files(tmp_path):
    made = export(network(), out=tmp_path / "f", **QUICK)
    small = export(network(), int8=True, data=data(), out=tmp_path / "q", **QUICK)
    for file in (made.file, small.file):
        assert b"test_export" not in file.read_bytes() and str(tmp_path).encode() not in file.read_bytes()


def test_the_same_export_is_the_same_bytes(tmp_path):
    first, second = (export(network(), int8=True, data=data(), out=tmp_path / name, **QUICK) for name in "ab")
    assert first.file.read_bytes() == second.file.read_bytes() and first.result == second.result


def test_onnx_says_what_it_takes(tmp_path):
    names = tuple("vwxyz")
    made = onnx.load(export(network(class_names=names), out=tmp_path / "f", **QUICK).file)
    said = {entry.key: entry.value for entry in made.metadata_props}
    assert json.loads(said["mean"]) == list(MEAN) and json.loads(said["class_names"]) == list(names)
    assert "float32 (N, 3, 8, 8)" in said["input"] and "logits (N, 5)" in said["output"]


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("task", ["single", "multi"])
def test_preprocessing_is_the_formula(int8, task, tmp_path):
    teacher = network()
    images = data() if task == "single" else data(task="multi", labels=np.zeros((48, 5)))
    made = export(teacher, int8=int8, with_preprocessing=True, data=images, out=tmp_path / "p", **QUICK)
    found = ask(made, pixels().permute(0, 2, 3, 1).contiguous())
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (MEAN, STD))
    logits = teacher.net((pixels().float() / 255 - mean) / std)
    expected = torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True) if task == "single" else logits.sigmoid()
    assert float((found - expected).abs().max()) < (0.2 if int8 else 1e-5)
    assert task == "multi" or torch.allclose(found.sum(1), torch.ones(7), atol=1e-5)
    assert made.result["output"] == "probabilities (N, 5)" and "uint8 (N, 8, 8, 3)" in made.result["input"]


def test_logits_are_not_rounded_to_a_byte(tmp_path):
    """A network that ends in a convolution, and so in a pool and a reshape: what leaves the graph is float."""

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 3)

        def forward(self, x):
            return self.conv(x).flatten(1)[:, :5]

    teacher = teachers.load(Pooled(), mean=MEAN, std=STD, size=8)
    made = export(teacher, int8=True, data=data(), out=tmp_path / "p", **QUICK)
    kinds = {name: node.op_type for node in onnx.load(made.file).graph.node for name in node.output}
    assert kinds["logits"] != "DequantizeLinear"
    assert close(ask(made, teacher.normalise(pixels())), teacher.net(teacher.normalise(pixels())), 0.05)


# -- a network of `phosphene quantize` ---------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [{}, {"method": "dfq", "weight_grid": "tensor"}], ids=["rtn", "dfq"])
@pytest.mark.parametrize("kind", KINDS_OF_NETWORKS)
def test_a_quantized_network_keeps_its_grid(kind, flags, tmp_path):
    teacher = network(kind)
    done = quantize(teacher, weight_bits=8, activation_bits=8, out=tmp_path / "small", device="cpu", **flags)
    made = export(teacher, int8=True, quantized=tmp_path / "small", data=data(), out=tmp_path / "q", **QUICK)
    inputs = teacher.normalise(pixels(48))
    expected, found, floats = done.net(inputs), ask(made, inputs), teacher.net(inputs)
    assert (found - expected).abs().mean() < 0.1 * (floats - expected).abs().mean()  # rounding falls alike but for ties
    assert made.result["compared_with"] == "the fake-quantized network" and made.result["agreement_images"] >= 95
    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(made.file).graph.initializer}
    stored = load_file(tmp_path / "small" / "quantized.safetensors")
    for name in done.student.layers:
        mirrored = stored[f"{name}.weight"].numpy().astype(int)
        codes = arrays[f"{name}.codes"].astype(int)
        rows = [np.array_equal(a, b) or np.array_equal(255 - a, b) for a, b in zip(mirrored, codes, strict=True)]
        assert all(rows), name
        assert arrays[f"{name}.input.scale"] == stored[f"{name}.input.scale"].numpy()


def test_taking_the_quantizers_off_leaves_the_original_alone(tmp_path):
    teacher = network()
    student = quantize(teacher, weight_bits=8, activation_bits=8, out=tmp_path / "small", device="cpu").student
    inputs = teacher.normalise(pixels())
    before = student.net(inputs)
    bare = without_quantizers(student)
    student.enable(activations=False)
    assert torch.allclose(bare(inputs), student.net(inputs), atol=1e-5)
    student.enable()
    assert torch.equal(student.net(inputs), before)


def test_fewer_bits_are_refused(tmp_path):
    teacher = network()
    quantize(teacher, weight_bits=4, activation_bits=8, out=tmp_path / "small", device="cpu")
    for to in ("onnx", "safetensors"):
        with pytest.raises(ExportError, match=r"stem.0 has 4/8 bits.*--weight-bits 8"):
            export(teacher, to=to, int8=True, quantized=tmp_path / "small", out=tmp_path / to, **QUICK)
    with pytest.raises(SettingsError, match=r"--quantized .*--to onnx"):
        export(teacher, to="torch", int8=True, quantized=tmp_path / "small", out=tmp_path / "t", **QUICK)
    with pytest.raises(SettingsError, match=r"--quantized .*--int8"):
        export(teacher, quantized=tmp_path / "small", out=tmp_path / "x")
    with pytest.raises(SettingsError, match=r"has no design.*--quantized"):
        export(str(tmp_path / "small"), out=tmp_path / "y")


# -- torch and safetensors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preprocessing", [False, True])
def test_torch_export_loads_without_this_package(preprocessing, tmp_path):
    teacher = network()
    made = export(teacher, to="torch", with_preprocessing=preprocessing, out=tmp_path / "t", **QUICK)
    code = (
        "import sys, torch\n"
        "net = torch.export.load(sys.argv[1]).module()\n"
        "images = torch.load(sys.argv[2])\n"
        "torch.save(net(images), sys.argv[3])\n"
        "assert 'phosphene' not in sys.modules\n"
    )
    inputs = pixels().permute(0, 2, 3, 1) if preprocessing else teacher.normalise(pixels())
    torch.save(inputs, tmp_path / "in.pt")
    command = [sys.executable, "-c", code, made.file, tmp_path / "in.pt", tmp_path / "out.pt"]
    subprocess.run(list(map(str, command)), check=True, timeout=200)
    logits = teacher.net(teacher.normalise(pixels()))
    expected = logits.softmax(1) if preprocessing else logits
    assert torch.allclose(torch.load(tmp_path / "out.pt"), expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS_OF_NETWORKS)
def test_torch_int8_holds_integers_alone(kind, tmp_path, capfd):
    pytest.importorskip("torchao", reason="needs the extra int8")
    teacher, preprocessing = network(kind), kind == "depthwise"
    flags = {"to": "torch", "int8": True, "with_preprocessing": preprocessing}
    made = export(teacher, data=data(), out=tmp_path / "t", **flags, **QUICK)
    traced = torch.export.load(made.file)
    tensors = {**traced.state_dict, **traced.constants}
    assert sum(t.dtype == torch.int8 for t in tensors.values()) == made.result["int8_layers"] >= 4
    assert not [name for name, t in tensors.items() if t.is_floating_point() and sum(side > 1 for side in t.shape) > 1]
    inputs = pixels().permute(0, 2, 3, 1) if preprocessing else teacher.normalise(pixels())
    logits = teacher.net(teacher.normalise(pixels()))
    assert close(traced.module()(inputs), logits.softmax(1) if preprocessing else logits, 0.15)
    assert traced.module()(inputs[:1]).shape == (1, 5)
    assert "torchao" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("kind", KINDS_OF_NETWORKS)
def test_safetensors_in_float_and_int8(kind, tmp_path):
    teacher = network(kind)
    floats = export(teacher, to="safetensors", out=tmp_path / "f")
    state = load_file(floats.file)
    assert all(torch.equal(state[name], value) for name, value in teacher.net.state_dict().items())
    about = json.loads((tmp_path / "f" / "network.json").read_text())
    assert about["mean"] == pytest.approx(MEAN) and about["tensors"]["head.weight"]["shape"] == [5, 8]
    assert floats.latency is None  # numbers have no runtime
    small = export(teacher, to="safetensors", int8=True, data=data(), out=tmp_path / "q", images=32)
    stored = load_file(small.file)
    assert stored["head.weight"].dtype == torch.uint8 and small.result["agreement_images"] >= 80
    zero = stored["head.weight.zero_point"].view(-1, 1).int()
    weight = (stored["head.weight"].int() - zero) * stored["head.weight.scale"].view(-1, 1)
    assert close(weight, teacher.net.head.weight, 0.02)
    layers = {name for name, layer in teacher.net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    assert {name for name, t in stored.items() if t.ndim > 1} == {f"{name}.weight" for name in layers}
    assert all(stored[f"{name}.weight"].dtype == torch.uint8 for name in layers)


def test_a_quantized_run_as_safetensors_is_itself(tmp_path):
    teacher = network()
    done = quantize(teacher, weight_bits=8, activation_bits=8, out=tmp_path / "small", device="cpu")
    made = export(teacher, to="safetensors", int8=True, quantized=tmp_path / "small", out=tmp_path / "q")
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "quantized.safetensors").write_bytes(made.file.read_bytes())
    (tmp_path / "again" / "quantized.json").write_bytes((tmp_path / "q" / "network.json").read_bytes())
    again = load_quantized(tmp_path / "again", teacher.net)
    inputs = teacher.normalise(pixels())
    assert torch.allclose(again.net(inputs), done.net(inputs), atol=1e-5)


# -- what is found, distilled, bundled ---------------------------------------------------------------------------------


def test_a_searched_network_exports_without_what_training_needed(tmp_path):
    """A cell network that was trained with drop-path and an auxiliary head."""
    cells = {"recipe": "darts-cifar", "channels": 4, "cells": 3, "batch": 8, "steps": 2, "drop_path": 0.3}
    place = {"device": "cpu", "precision": "fp32", "out": tmp_path / "run"}
    images = ImageDataset.from_arrays(data().pixels(range(24)), labels=[k % 5 for k in range(24)], classes=5)
    done = train("darts-v2", data=images, auxiliary=0.4, **cells, **place)
    made = export(str(tmp_path / "run"), int8=True, data=data(), out=tmp_path / "q", **QUICK)
    teacher = teachers.load(tmp_path / "run")
    inputs = teacher.normalise(pixels())
    assert torch.equal(done.net(inputs), teacher.net(inputs))
    assert close(ask(made, inputs), teacher.net(inputs), 0.25)
    graph = onnx.load(made.file).graph
    assert not [one.name for one in graph.initializer if "auxiliary" in one.name]
    assert not {"RandomUniformLike", "RandomUniform", "Dropout"} & {node.op_type for node in graph.node}


@pytest.mark.parametrize("made", ["pruned", "distilled"])
def test_what_other_commands_made_exports(made, tmp_path):
    images, place = data(), {"device": "cpu", "precision": "fp32", "out": tmp_path / made}
    whole = teachers.load("digits")
    grey = ImageDataset.from_arrays(images.pixels(range(24))[:, :1], labels=[k % 10 for k in range(24)], classes=10)
    if made == "pruned":
        pytest.importorskip("torch_pruning", reason="needs the extra prune")
        prune("digits", method="magnitude", macs="50%", data=grey, steps=1, batch=8, **place)
    else:
        distill("digits", student="cifar-resnet8", method="data", data=grey, epochs=1, batch=8, **place)
    small = teachers.load(tmp_path / made)
    found = export(str(tmp_path / made), int8=True, data=grey, out=tmp_path / "q", **QUICK)
    inputs = small.normalise(grey.pixels(range(5)))
    assert close(ask(found, inputs), small.net(inputs), 0.25)
    assert made == "distilled" or found.result["float_mib"] < 0.8 * 4 * costs.params(whole.net) / 2**20


def test_without_data_images_are_synthesized(tmp_path):
    made = export("digits", int8=True, images=8, latency=False, out=tmp_path / "q")
    assert made.result["calibrated_on"] == "8 images (synthesis)"
    assert len(ImageDataset.open(tmp_path / "q" / "images")) == 8


def test_without_batchnorm_noise_calibrates(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    made = export(net, int8=True, mean="0.5", std="0.25", size=8, out=tmp_path / "q", **QUICK)
    assert made.result["calibrated_on"] == "32 images (noise)"


def test_the_accuracy_is_that_of_the_file(tmp_path):
    made = export("digits", int8=True, data="noise", test="digits", latency=False, out=tmp_path / "q")
    test = teachers.open_test("digits")
    teacher = teachers.load("digits")
    guesses = ask(made, teacher.normalise(test.pixels(range(len(test))))).argmax(1).numpy()
    assert made.result["accuracy"] == pytest.approx(100 * float((guesses == test.labels).mean()), abs=0.01)
    assert made.result["network_accuracy"] == teachers.accuracy(teacher, test)["accuracy"]
    with pytest.raises(DatasetError, match="multi-label targets"):
        findings = data(task="multi", labels=np.zeros((48, 5)))
        export(network(), data="noise", test=findings, out=tmp_path / "m", **QUICK)


# -- refusals ----------------------------------------------------------------------------------------------------------


class Product(nn.Module):
    """A product that is no layer of torch.nn's: neither torchao nor ONNX Runtime has integers for it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.Linear(4, 5)

    def forward(self, x):
        return self.head(torch.einsum("nchw,oc->no", x, self.weight[:, :, 0, 0]))


@pytest.mark.parametrize("to", ["onnx", "torch", "safetensors"])
def test_int8_that_would_hold_float_weights_is_refused(to, tmp_path):
    if to == "torch":
        pytest.importorskip("torchao", reason="needs the extra int8")
    teacher = teachers.load(Product(), mean=MEAN, std=STD, size=8)
    assert export(teacher, to=to, out=tmp_path / "f", **QUICK).result["agreement_noise"] == 100
    with pytest.raises(ExportError, match=r"not int8: float weights would be left in .*weight"):
        export(teacher, to=to, int8=True, data=data(), out=tmp_path / "q", **QUICK)
    assert [path for path in (tmp_path / "q").iterdir() if "network" in path.name] == []


class Odd(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.head = how, nn.Linear(192, 5)

    def forward(self, x):
        if self.how == "flow":
            return self.head(x.flatten(1)) if x.sum() > 0 else self.head(-x.flatten(1))
        if self.how == "batch":
            return self.head((x.view(len(x), -1) if len(x) in (1, 5) else x.view(2, -1)).flatten(1))
        if self.how == "random":
            return self.head(F.dropout(x, training=True).flatten(1))
        return self.head(torch.special.bessel_j0(x).flatten(1))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("flow", "decides by its inputs' values"),
        ("batch", "one number of images"),
        ("random", r"differs from the network by .*random"),
        ("operator", r"ONNX has no counterpart of prims.bessel_j0.*--to torch"),
    ],
)
def test_what_cannot_be_exported_is_named(how, said, tmp_path, capfd):
    teacher = teachers.load(Odd(how), mean=MEAN, std=STD, size=8)
    with pytest.raises(ExportError, match=said):
        export(teacher, out=tmp_path / "o", **QUICK)
    printed = "".join(capfd.readouterr())
    assert "Traceback" not in printed and "torch.onnx" not in printed


def test_flags_that_cannot_be_used(tmp_path):
    teacher = network()
    with pytest.raises(SettingsError, match="--images must be at least 1"):
        export(teacher, images=0)
    with pytest.raises(SettingsError, match="--with-preprocessing"):
        export(teacher, to="safetensors", with_preprocessing=True, out=tmp_path / "a")
    with pytest.raises(DatasetError, match=r"has 3x16x16 images.*takes 3x8x8"):
        big = ImageDataset.from_arrays(np.zeros((2, 3, 16, 16), np.uint8), labels=[0, 1], classes=5)
        export(teacher, data=big, out=tmp_path / "b")
    with pytest.raises(DatasetError, match=r"beyond 0..1"):
        wide = ImageDataset.from_arrays(np.full((2, 3, 8, 8), 4.0, np.float32), labels=[0, 1], classes=5)
        export(teacher, data=wide, out=tmp_path / "c")


# -- resuming, comparing, timing ---------------------------------------------------------------------------------------


def test_a_finished_folder_is_not_redone_and_another_run_is_refused(tmp_path):
    first = export(network(), out=tmp_path / "f", **QUICK)
    first.file.write_bytes(b"touched")
    second = export(network(), out=tmp_path / "f", **QUICK)
    assert second.result == first.result and second.file.read_bytes() == b"touched"
    with pytest.raises(RunError, match="holds another run"):
        export(network(), out=tmp_path / "f", with_preprocessing=True, **QUICK)


def test_what_is_killed_leaves_no_file_and_goes_on(tmp_path, monkeypatch):
    def die(*given, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr("phosphene.compression.export.command.parity", die)
    with pytest.raises(KeyboardInterrupt):
        export(network(), int8=True, data=data(), out=tmp_path / "q", **QUICK)
    assert not list((tmp_path / "q").glob("network*"))
    monkeypatch.undo()
    done = export(network(), int8=True, data=data(), out=tmp_path / "q", **QUICK)
    whole = export(network(), int8=True, data=data(), out=tmp_path / "w", **QUICK)
    assert done.file.read_bytes() == whole.file.read_bytes()


def test_comparisons():
    a = torch.tensor([[1.0, 2, 3], [3, 2, 1]])
    b = torch.tensor([[1.0, 2, 3], [3, 4.5, 1]])
    assert compare(a, a) == {"difference": 0.0, "agreement": 100.0}
    assert compare(a, b) == {"difference": 2.5, "agreement": 50.0}
    assert compare(a, b, threshold=2.0)["agreement"] == pytest.approx(100 * 5 / 6, abs=0.01)


def test_both_are_timed_in_turns_on_one_thread(monkeypatch):
    order = []
    monkeypatch.setattr(export_check, "_lot_size", lambda call: 1)
    found = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert order == list("ababab") and set(found) == {"a", "b"} and all(math.isfinite(t) for t in found.values())


def test_latency_stands_beside_the_result_not_in_it(tmp_path):
    made = export(network(), int8=True, data=data(), images=16, out=tmp_path / "q")
    assert made.latency["int8_ms"] > 0 and made.latency["float_ms"] > 0 and "ONNX Runtime" in made.latency["runtime"]
    assert made.latency["speedup"] == pytest.approx(
        made.latency["float_ms"] / made.latency["int8_ms"], rel=0.05, abs=0.1
    )
    assert json.loads((tmp_path / "q" / "latency.json").read_text()) == made.latency
    assert not [key for key in json.loads((tmp_path / "q" / "result.json").read_text()) if key.endswith("_ms")]
    assert export(network(), int8=True, data=data(), images=16, out=tmp_path / "q").latency == made.latency
