"""A run that has lost its finite numbers stops and stores no network; damage of what was stored is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from phosphene import models
from phosphene.compression.distill.command import distill
from phosphene.compression.prune.command import prune
from phosphene.compression.quantize.command import quantize
from phosphene.compression.quantize.network import load_quantized
from phosphene.data.dataset import ImageDataset
from phosphene.errors import ArchitectureError, NotFinite, PhospheneError, RunError, SettingsError, TeacherError
from phosphene.searches.spos import spos
from phosphene.searches.supernet.evaluator import Supernet
from phosphene.storage import checksums
from phosphene.synthesis.generator import train as generators
from phosphene.synthesis.inversion.command import synthesize
from phosphene.teachers import teacher as teachers
from phosphene.training.train import train

CPU = {"device": "cpu", "precision": "fp32"}
WILD = {"lr": 1e30, **CPU}


@pytest.fixture(scope="module")
def data() -> ImageDataset:
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    return ImageDataset.from_arrays(images, labels=np.arange(40) % 10, classes=10, mean=[0.3], std=[0.4])


def runs(data):
    """Each command with a learning rate that no network survives, into the folder `out`."""
    teacher = teachers.load("digits")
    return {
        "train": lambda out: train("cifar-resnet8", data=data, steps=4, batch=8, out=out, **WILD),
        "one step": lambda out: train("cifar-resnet8", data=data, steps=1, batch=8, out=out, **WILD),
        "distill data": lambda out: distill(
            teacher, "cifar-resnet8", method="data", data=data, steps=4, batch=8, out=out, **WILD
        ),
        "distill dfad": lambda out: distill(
            teacher, "cifar-resnet8", method="dfad", epochs=1, iterations=4, batch=8, out=out, **WILD
        ),
        "generator": lambda out: generators.train(teacher, steps=4, batch=8, scale=0.1, out=out, **WILD),
        "prune": lambda out: prune(
            teacher, method="magnitude", data=data, macs="50%", steps=4, batch=8, out=out, **WILD
        ),
        "spos": lambda out: spos(
            data=data, steps=4, batch=4, space="macro", held_out=1, generations=1, out=out, **WILD
        ),
    }


@pytest.mark.parametrize("command", runs(None))
def test_a_run_that_loses_its_numbers_stops(command, data, tmp_path):
    with pytest.raises(NotFinite, match="NaN or infinite"):
        runs(data)[command](tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_nothing_is_synthesized_from_a_network_without_numbers(tmp_path):
    net = teachers.load("digits").net
    next(net.parameters()).data.view(-1)[3] = float("nan")
    with pytest.raises(TeacherError, match="1 value that is NaN"):
        synthesize(net, mean=0.3, std=0.4, size=8, images=10, iterations=2, out=tmp_path / "a", **CPU)
    with pytest.raises(TeacherError, match="--std nan"):
        synthesize("digits", std="nan", images=10, iterations=2, out=tmp_path / "a", **CPU)
    assert not (tmp_path / "a").exists()


def test_images_that_lose_their_numbers_are_not_stored(tmp_path):
    with pytest.raises(NotFinite, match=r"images has .* NaN"):
        synthesize("digits", bn_weight=3e37, images=10, iterations=3, out=tmp_path / "a", **CPU)
    assert not (tmp_path / "a" / "card.json").exists()


def test_initial_weights_are_finite(data, tmp_path):
    state = models.build("cifar-resnet8", 10, 1).state_dict()
    state["conv1.weight"][0] = float("inf")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(TeacherError, match=r"--init .*conv1\.weight has 9 values that are NaN or infinite"):
        train("cifar-resnet8", data=data, init=str(tmp_path / "w.safetensors"), steps=1, out=tmp_path / "a", **CPU)


def test_networks_that_cannot_be_trained(data, tmp_path):
    class Counted(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), 10, dtype=torch.long)

    with pytest.raises(TeacherError, match="gives int64, not logits"):
        train(Counted(), data=data, steps=1, out=tmp_path / "a", **CPU)
    with pytest.raises(SettingsError, match="no weights that can be trained"):
        train(nn.Sequential(nn.Flatten(), nn.AvgPool1d(6)), data=data, steps=1, out=tmp_path / "b", **CPU)


# -- bits flipped on the disk -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(tmp_path_factory, data) -> Path:
    """A trained network, a generator, a quantized network and a supernet."""
    folder = tmp_path_factory.mktemp("stored")
    train("cifar-resnet8", data=data, steps=1, batch=8, out=folder / "net", **CPU)
    generators.train(teachers.load("digits"), steps=1, batch=8, scale=0.1, out=folder / "generator", **CPU)
    quantize("digits", method="rtn", out=folder / "quantized", **CPU)
    small = {"space": "macro", "width": 0.25, "held_out": 1, "batch": 4, "generations": 1, "population": 4}
    spos(data=data, steps=1, out=folder / "supernet", **small, **CPU)
    return folder


READERS = {
    "net": (lambda folder: teachers.load(str(folder)), (TeacherError, ArchitectureError)),
    "generator": (lambda folder: generators.load(folder), (TeacherError, ArchitectureError, SettingsError)),
    "quantized": (lambda folder: load_quantized(folder, teachers.load("digits").net), (TeacherError,)),
    "supernet": (Supernet.open, (RunError,)),
}
FILES = [
    *(("net", name) for name in ("weights.safetensors", "arch.json", "network.json")),
    *(("generator", name) for name in ("weights.safetensors", "arch.json", "generator.json")),
    *(("quantized", name) for name in ("quantized.safetensors", "quantized.json")),
    *(("supernet", name) for name in ("supernet.safetensors", "supernet.json")),
]


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_a_bit_flipped_on_the_disk_is_noticed(stored, kind, name, monkeypatch):
    read, errors = READERS[kind]
    read(stored / kind)
    path = stored / kind / name
    content = bytearray(path.read_bytes())
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    try:
        with pytest.raises(errors, match=f"{name} was changed since it was written"):
            read(stored / kind)
        monkeypatch.setenv(checksums.SWITCH, "off")
        if name.endswith(".safetensors"):
            read(stored / kind)  # one bit of a weight is a sound file
    finally:
        path.write_bytes(content)
    monkeypatch.delenv(checksums.SWITCH)
    read(stored / kind)


WRONG = [
    ("net", "network.json", "shape", [1, 8], "shape"),
    ("net", "network.json", "shape", [1, 8, 10**9], "shape.2"),
    ("net", "network.json", "classes", "10", "classes"),
    ("net", "network.json", "class_names", ["a"], "class_names has 1 entries, where 10"),
    ("net", "network.json", "mean", [None], "mean.0"),
    ("net", "network.json", "std", [0.0], "std.0"),
    ("net", "network.json", "std", [0.4, 0.4], "std has 2 entries, where 1"),
    ("net", "arch.json", "choices", {"x": 0}, "'x' is no decision|leaves nothing to choose"),
    ("net", "arch.json", "choices", {"x": -1}, "choices.x"),
    ("net", "arch.json", "choices", [], "choices"),
    ("net", "arch.json", "space", {"name": "none"}, "no space is called 'none'"),
    ("net", "arch.json", "space", 3, "space"),
    ("generator", "generator.json", "view", {"low_pass": "much"}, "low_pass"),
    ("generator", "arch.json", "space", {"name": "generator", "latent": 10**9}, "latent should be"),
    ("quantized", "quantized.json", "layers", [{"layer": 3}], "layers.0"),
    ("quantized", "quantized.json", "per_channel", {}, "does not fit this network"),
]


@pytest.mark.parametrize(("kind", "name", "key", "value", "says"), WRONG)
def test_a_value_of_another_type_is_one_line(stored, kind, name, key, value, says, monkeypatch):
    monkeypatch.setenv(checksums.SWITCH, "off")
    path = stored / kind / name
    content = path.read_text()
    path.write_text(json.dumps(json.loads(content) | {key: value}))
    try:
        with pytest.raises(PhospheneError, match=says) as caught:
            READERS[kind][0](stored / kind)
    finally:
        path.write_text(content)
    assert len(str(caught.value).splitlines()) == 1
