"""Training: the step is the textbook's, the recipes are the published ones, and nothing that stops it changes it."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from phosphene import evaluate, load_network, models, spaces, train
from phosphene.data.augment import Augment
from phosphene.data.dataset import ImageDataset, batches
from phosphene.errors import ArchitectureError, DatasetError, Estimate, RunError, SettingsError, TeacherError
from phosphene.runtime.machine import Machine, machine
from phosphene.runtime.run import Run
from phosphene.settings import Changes, settings
from phosphene.teachers import teacher as teachers
from phosphene.training import setup as trainee
from phosphene.training.recipes import RECIPES, TrainingRecipe, effective, learning_rate, length
from two_ranks import on_two_ranks

MODULE = sys.modules["phosphene.training.train"]
CPU = {"device": "cpu", "precision": "fp32"}
PLAIN = {"pad": 0, "flip": False, "mixup": 0.0, "warmup": 0, "clip": 0.0, "nesterov": False}
CELLS = {"recipe": "darts-cifar", "channels": 4, "cells": 4, "cutout": 2, "pad": 1, "mixup": 0.5, "batch": 8}


class Fault(Exception):
    """Injected."""


def digits(count: int = 40, soft: bool = True, side: int = 8, **fields) -> ImageDataset:
    rng = np.random.default_rng(7)
    images = rng.integers(0, 256, (count, 1, side, side), dtype=np.uint8)
    fields = {"classes": 4, "name": "made", **fields}
    if soft:
        return ImageDataset.from_arrays(images, logits=rng.normal(size=(count, 4)) * 3, **fields)
    return ImageDataset.from_arrays(images, labels=np.arange(count) % 4, **fields)


def findings(labels: np.ndarray | None = None, **fields) -> ImageDataset:
    """40 images with four independent findings, a third of them unlabelled."""
    if labels is None:
        rng = np.random.default_rng(9)
        labels = np.where(rng.random((40, 4)) < 0.3, np.nan, rng.integers(0, 2, (40, 4)))
    fields = {"task": "multi", "name": "rays", **fields}
    return ImageDataset.from_arrays(digits().pixels(range(40)), labels=labels.astype(np.float32), **fields)


def small(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)
        )


def cells(out: Path, **more):
    """A cell network with everything random on: drop-path, auxiliary head, crops, flips, cutout, mixup."""
    return train("darts-v2", data=digits(), out=out, **{**CELLS, "epochs": 3, "drop_path": 0.4, **CPU, **more})


def files(path: Path) -> dict[str, bytes]:
    """All but times, and the revision of the source, which may change while tests run."""
    found = {f.name: f.read_bytes() for f in path.iterdir() if f.name != "timing.json"}
    return found | {"config.json": json.dumps(json.loads(found["config.json"]) | {"git": None}).encode()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# -- the step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_steps_are_the_textbooks(tmp_path, temperature):
    """Three steps of SGD with momentum and weight decay, written out; the loss is T² · KL at temperature T."""
    data, net = digits(), small()
    flags = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "batch": 16, "schedule": "constant"}
    found = train(net, data=data, steps=3, temperature=temperature, out=tmp_path / "a", **PLAIN, **flags, **CPU)
    velocity = [torch.zeros_like(p) for p in net.parameters()]
    for step in range(3):
        index = batches(40, 16, 0, step)
        rows = (data.logits(index) / temperature).softmax(1)
        log = F.log_softmax(net.train()(data.normalise(data.pixels(index))) / temperature, 1)
        loss = temperature**2 * (rows * (rows.log() - log)).sum(1).mean()
        grads = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for p, v, g in zip(net.parameters(), velocity, grads, strict=True):
                v.mul_(0.9).add_(g + 0.01 * p)
                p.sub_(0.1 * v)
    for name, value in net.state_dict().items():
        assert torch.allclose(found.net.state_dict()[name].float(), value.float(), atol=1e-5), name


def test_hard_labels_clip_and_smoothing(tmp_path):
    data, net = digits(soft=False), small()
    flags = {**PLAIN, "clip": 0.1, "label_smoothing": 0.2, "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0}
    found = train(net, data=data, steps=1, batch=40, schedule="constant", out=tmp_path / "a", **flags, **CPU)
    index = batches(40, 40, 0, 0)
    labels = torch.from_numpy(data.labels[index.numpy()])
    loss = F.cross_entropy(net.train()(data.normalise(data.pixels(index))), labels, label_smoothing=0.2)
    grads = torch.autograd.grad(loss, list(net.parameters()))
    norm = torch.cat([g.flatten() for g in grads]).norm()
    for p, g, (name, trained) in zip(net.parameters(), grads, found.net.named_parameters(), strict=True):
        assert torch.allclose(p - g * min(1.0, 0.1 / norm), trained, atol=1e-5), name


def test_the_teacher_online_is_the_stored_rows_where_the_view_is_the_same(tmp_path):
    asked = teachers.load(small(5), mean=0.5, std=0.3, size=8)
    data = digits()
    pixels = data.pixels(range(40))
    stored = ImageDataset.from_arrays(pixels, logits=asked.logits(pixels), classes=4, mean=[0.5], std=[0.3])
    flags = {"steps": 20, "batch": 16, **PLAIN, **CPU}

    def gap(name: str, **more) -> float:
        one = train(small(), data=stored, out=tmp_path / f"{name}1", **{**flags, **more})
        two = train(small(), data=stored, out=tmp_path / f"{name}2", teacher=asked, **{**flags, **more})
        with torch.no_grad():
            return max(
                float((a - b).abs().max()) for a, b in zip(one.net.parameters(), two.net.parameters(), strict=True)
            )

    plain, mixed = gap("plain"), gap("mixed", mixup=1.0)
    assert plain < 1e-3  # stored as float16
    assert mixed > 4 * plain  # of mixed images it is asked anew


def test_the_teacher_sees_its_own_normalisation():
    asked = teachers.load(small(5), mean=0.1, std=0.9, size=8)
    data = digits(mean=[0.4], std=[0.2])
    index = torch.arange(12)
    rows = asked.soft_labels(data.batch(index).inputs, data, 2.0, machine("cpu", "fp32"))
    assert torch.allclose(rows, (asked.logits(data.pixels(index)) / 2).softmax(1), atol=1e-5)


def test_unlabelled_images_need_a_teacher(tmp_path):
    pixels = digits().pixels(range(40))
    bare = ImageDataset.from_arrays(pixels, classes=4)
    with pytest.raises(DatasetError, match="neither labels nor logits"):
        train(small(), data=bare, steps=2, **CPU)
    asked = teachers.load(small(5), mean=0.5, std=0.3, size=8)
    assert train(small(), data=bare, teacher=asked, steps=2, out=tmp_path / "a", **CPU).result["steps"] == 2


# -- independent findings --------------------------------------------------------------------------------------------


def test_findings_are_trained_with_masked_binary_cross_entropy(tmp_path):
    """Two steps of SGD, the loss written out entry by entry, with every finding smoothed over its two ways."""
    data, net = findings(), small()
    flags = {**PLAIN, "lr": 0.5, "momentum": 0.0, "weight_decay": 0.0, "label_smoothing": 0.1, "schedule": "constant"}
    found = train(net, data=data, steps=2, batch=16, out=tmp_path / "a", **flags, **CPU)
    for step in range(2):
        index = batches(40, 16, 0, step)
        p, rows = net.train()(data.normalise(data.pixels(index))).sigmoid(), data.targets(index) * 0.9 + 0.05
        pairs = [(p[i, k], rows[i, k]) for i in range(16) for k in range(4) if not rows[i, k].isnan()]
        loss = -torch.stack([y * q.log() + (1 - y) * (1 - q).log() for q, y in pairs]).mean()
        grads = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for p, g in zip(net.parameters(), grads, strict=True):
                p.sub_(0.5 * g)
    for name, value in net.state_dict().items():
        assert torch.allclose(found.net.state_dict()[name].float(), value.float(), atol=1e-5), name


def test_what_an_unlabelled_entry_would_say_changes_nothing(tmp_path):
    """A finding that nobody labelled leaves its own outputs where they were, and NaN reaches no weight."""
    labels = np.array(findings().targets(range(40)))
    labels[:, 2] = np.nan
    data, net = findings(labels), small()
    found = train(net, data=data, steps=6, batch=8, mixup=1.0, weight_decay=0.0, out=tmp_path / "a", **CPU)
    assert all(value.isfinite().all() for value in found.net.state_dict().values()) and np.isfinite(
        found.result["loss"]
    )
    before, after = net[-1].weight, found.net[-1].weight
    assert torch.equal(before[2], after[2]) and not torch.equal(before[1], after[1])


def test_mixed_with_an_unlabelled_entry_is_unlabelled():
    rows = torch.tensor([[1.0, float("nan")], [0.0, 1.0]])
    inputs = torch.arange(2.0).view(2, 1, 1, 1)
    for seed in range(8):
        moved, mixed = Augment(mixup=1.0).mix(inputs, rows, torch.Generator().manual_seed(seed))
        alone = moved.flatten() == inputs.flatten()
        assert torch.equal(mixed[~alone].isnan().any(1), torch.ones(int((~alone).sum()), dtype=torch.bool))
        assert mixed[:, 0].isfinite().all() and ((mixed[:, 0] >= 0) & (mixed[:, 0] <= 1)).all()


def test_a_teachers_findings_at_a_temperature(tmp_path):
    """Stored logits of a multi task are rows of sigmoids; the loss has T squared, like that of classes."""
    logits = np.random.default_rng(4).normal(size=(40, 4)) * 3
    data = ImageDataset.from_arrays(digits().pixels(range(40)), logits=logits, task="multi")
    net = small()
    flags = {**PLAIN, "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"}
    found = train(net, data=data, steps=1, batch=40, temperature=2.0, out=tmp_path / "a", **flags, **CPU)
    index = batches(40, 40, 0, 0)
    rows = torch.sigmoid(data.logits(index) / 2)
    output = net.train()(data.normalise(data.pixels(index)))
    loss = 4 * F.binary_cross_entropy(torch.sigmoid(output / 2), rows)
    assert found.result["loss"] == pytest.approx(loss.item(), abs=1e-4)
    for p, g, (name, trained) in zip(
        net.parameters(), torch.autograd.grad(loss, list(net.parameters())), found.net.named_parameters(), strict=True
    ):
        assert torch.allclose(p - 0.1 * g, trained, atol=1e-5), name
    asked = teachers.load(small(5), mean=0.5, std=0.3, size=8)
    answers = asked.soft_labels(data.batch(index).inputs, data, 2.0, machine("cpu", "fp32"))
    assert torch.allclose(answers, torch.sigmoid(asked.logits(data.pixels(index)) / 2), atol=1e-5)


def test_a_cell_network_learns_findings_and_is_evaluated(tmp_path):
    flags = {**CELLS, "mixup": 0.0, "epochs": 2, "out": tmp_path / "a", **CPU}
    found = train("darts-v2", data=findings(class_names=["a", "b", "c", "d"]), **flags)
    result = evaluate(tmp_path / "a", data=findings(), out=tmp_path / "e", **CPU)
    assert list(result["per_finding"]) == ["a", "b", "c", "d"] and 0 <= result["auc"] <= 1
    assert result["fingerprint"] == found.result["fingerprint"]


# -- starting from weights -------------------------------------------------------------------------------------------


def earlier(folder: Path, arch: str = "cifar-resnet8", **more) -> Path:
    """A finished run on another task: six classes."""
    six = ImageDataset.from_arrays(digits().pixels(range(40)), labels=np.arange(40) % 6, name="six")
    train(arch, data=six, out=folder, **{"steps": 3, "batch": 8, **CPU, **more})
    return folder


def begun(init: Path | str | None, out: Path, arch: str = "cifar-resnet8", **more):
    """One step at a rate that changes no weight visibly."""
    still = {"lr": 1e-12, "weight_decay": 0.0, "steps": 1, "batch": 8}
    return train(
        arch, **{"data": digits(), "init": None if init is None else str(init), "out": out, **still, **CPU, **more}
    )


def test_begins_from_an_earlier_run_but_for_the_head(tmp_path, capfd):
    before = load_file(earlier(tmp_path / "a") / "weights.safetensors")
    found = begun(tmp_path / "a", tmp_path / "b")
    plain = begun(None, tmp_path / "c")
    for name, value in found.net.named_parameters():
        if name.startswith("linear"):
            assert torch.allclose(value, plain.net.state_dict()[name], atol=1e-6), name  # as drawn without --init
        else:
            assert torch.allclose(value, before[name], atol=1e-6), name
    said = found.result["init"]
    assert (said["from"], said["fresh"], said["unused"]) == (
        "a",
        ["linear.bias", "linear.weight"],
        ["linear.bias", "linear.weight"],
    )
    assert said["of"] - said["loaded"] == 2 and 90 < said["share"] < 100
    assert "left fresh: linear.bias, linear.weight" in capfd.readouterr().err
    assert json.loads((tmp_path / "b" / "result.json").read_text())["init"] == said
    assert "init" not in plain.result


def test_the_weights_are_part_of_the_runs_identity(tmp_path):
    earlier(tmp_path / "a")
    earlier(tmp_path / "other", seed=1)
    first = begun(tmp_path / "a", tmp_path / "b")
    file = begun(tmp_path / "a" / "weights.safetensors", tmp_path / "b")  # the same weights, the same run
    assert file.result == first.result
    for init in (tmp_path / "other", None):
        with pytest.raises(RunError, match="init"):
            begun(init, tmp_path / "b")


def test_another_number_of_channels_leaves_the_stem_fresh(tmp_path):
    earlier(tmp_path / "a")
    colour = ImageDataset.from_arrays(np.zeros((8, 3, 8, 8), np.uint8), labels=np.arange(8) % 6, classes=6)
    found = begun(tmp_path / "a", tmp_path / "b", data=colour)
    assert found.result["init"]["fresh"] == ["conv1.weight"]  # the head has as many classes, so it is loaded too


def test_a_found_cell_goes_on_with_its_weights(tmp_path):
    """A cell network, its auxiliary head left behind, at another input and other classes."""
    earlier(tmp_path / "a", "darts-v2", **{key: CELLS[key] for key in ("recipe", "channels", "cells", "cutout", "pad")})
    found = begun(tmp_path / "a", tmp_path / "b", str(tmp_path / "a"), data=digits(side=12), recipe="darts-cifar",
                  channels=4, cells=4, cutout=2, pad=1, auxiliary=0.4)  # fmt: skip
    fresh = found.result["init"]["fresh"]
    assert fresh and all("auxiliary" in name or name.startswith("classifier") for name in fresh), fresh


def test_weights_of_something_else_are_refused(tmp_path):
    torch.save({"encoder.weight": torch.zeros(3, 3), "conv1.weight": torch.zeros(16, 1, 3, 3)}, tmp_path / "w.pth")
    with pytest.raises(SettingsError, match=r"w\.pth fits only 0 % .* has encoder\.weight, the network wants"):
        begun(tmp_path / "w.pth", tmp_path / "b")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match=r"empty has no weights\.safetensors"):
        begun(tmp_path / "empty", tmp_path / "b")
    with pytest.raises(TeacherError, match=r"--init .*nowhere\.pth: there is no such file"):
        begun(tmp_path / "nowhere.pth", tmp_path / "b")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(TeacherError, match=r"--init .*Python objects"):
        begun(tmp_path / "module.pth", tmp_path / "b")
    with pytest.raises(TeacherError, match="cifar-resnet8 comes without weights"):
        begun("pretrained", tmp_path / "b")


def test_pretrained_weights_of_a_zoo(tmp_path, monkeypatch):
    zoo = pytest.importorskip("torchvision.models")
    original = zoo.get_model
    asked = []

    def fetched(name, weights=None, **options):
        """Stands for the hub: weights that a seed makes."""
        asked.append(weights)
        if weights is None:
            return original(name, weights=None, **options)
        torch.manual_seed(5)
        return original(name, weights=None)

    monkeypatch.setattr(zoo, "get_model", fetched)
    rays = findings(class_names=["a", "b", "c", "d"])
    arch = "torchvision:squeezenet1_1"
    found = begun("pretrained@IMAGENET1K_V1", tmp_path / "b", arch, data=bigger(rays), recipe="chexpert", steps=1)
    assert [str(one) for one in asked if one is not None] == ["SqueezeNet1_1_Weights.IMAGENET1K_V1"]
    torch.manual_seed(5)
    published = original("squeezenet1_1", weights=None).state_dict()
    fresh = found.result["init"]["fresh"]
    assert fresh == ["classifier.1.bias", "classifier.1.weight", "features.0.weight"]  # grey, and four findings
    for name, value in found.net.named_parameters():
        assert name in fresh or torch.allclose(value, published[name], atol=1e-6), name

    def unreachable(name, weights=None, **options):
        if weights is not None:
            raise OSError("no route to host")
        return original(name, weights=None, **options)

    monkeypatch.setattr(zoo, "get_model", unreachable)
    with pytest.raises(TeacherError, match=r"no route to host.*--init FILE"):
        begun("pretrained", tmp_path / "c", arch, data=bigger(rays))


def test_pretrained_weights_of_timm(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    original = timm.create_model
    asked = []

    def fetched(name, pretrained=False, **options):
        """Stands for the hub."""
        asked.append((name, pretrained))
        if pretrained:
            torch.manual_seed(5)
        return original(name.partition(".")[0], pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", fetched)
    found = begun("pretrained@c3_in1k", tmp_path / "b", "timm:resnet10t", data=bigger(findings()))
    assert ("resnet10t.c3_in1k", True) in asked
    assert found.result["init"]["fresh"] == ["conv1.0.weight", "fc.bias", "fc.weight"]


def bigger(data: ImageDataset) -> ImageDataset:
    """The first eight images at 48 pixels."""
    pixels = F.interpolate(data.pixels(range(8)).float(), size=48).byte()
    return ImageDataset.from_arrays(
        pixels, labels=data.targets(range(8)).numpy(), task="multi", class_names=data.card.class_names
    )


def test_a_zoos_design_is_trained_read_back_and_evaluated(tmp_path):
    pytest.importorskip("torchvision")
    rays = bigger(findings())
    found = train("torchvision:resnet18", data=rays, recipe="chexpert", batch=4, epochs=1, out=tmp_path / "a", **CPU)
    spec = json.loads((tmp_path / "a" / "arch.json").read_text())["space"]
    assert spec == {"name": "fixed", "model": "torchvision:resnet18", "classes": 4, "shape": [1, 48, 48]}
    assert found.result["params"] == 11_172_292  # of which 4 x 513 are the head, and 64 x 49 the grey stem
    asked = teachers.load(str(tmp_path / "a"))
    assert torch.allclose(asked.logits(rays.pixels(range(8))), teachers.load(
        found.net, mean=asked.mean, std=asked.std, size=48).logits(rays.pixels(range(8))), atol=1e-5)  # fmt: skip
    assert evaluate(tmp_path / "a", data=rays, out=tmp_path / "e", **CPU)["images"] == 8


# -- recipes ---------------------------------------------------------------------------------------------------------


def test_the_published_recipes():
    """DARTS, appendices A.2 and A.3."""
    cifar, imagenet = RECIPES["darts-cifar"], RECIPES["darts-imagenet"]
    assert (cifar.epochs, cifar.batch, cifar.lr, cifar.momentum, cifar.weight_decay) == (600, 96, 0.025, 0.9, 3e-4)
    assert (cifar.channels, cifar.cells, cifar.auxiliary, cifar.drop_path) == (36, 20, 0.4, 0.2)
    assert (cifar.cutout, cifar.pad, cifar.flip, cifar.clip, cifar.nesterov) == (16, 4, True, 5.0, False)
    assert (imagenet.epochs, imagenet.batch, imagenet.lr, imagenet.decay) == (250, 128, 0.1, 0.97)
    assert (imagenet.channels, imagenet.cells, imagenet.auxiliary, imagenet.weight_decay) == (48, 14, 0.4, 3e-5)
    assert (imagenet.label_smoothing, imagenet.drop_path, imagenet.crop) == (0.1, 0.0, 224)


def test_the_recipes_of_unrealnas_and_chexpert():
    """UnrealNAS, §7.2, and Irvin et al., §4: what they change, and nothing else."""

    def changes(name: str, of: TrainingRecipe) -> dict:
        new, old = dataclasses.asdict(RECIPES[name]), dataclasses.asdict(of)
        return {key: value for key, value in new.items() if value != old[key]}

    assert changes("unrealnas-cifar", RECIPES["darts-cifar"]) == {"epochs": 500}
    imagenet = {"epochs": 200, "batch": 1024, "lr": 0.5}
    assert changes("unrealnas-imagenet", RECIPES["darts-imagenet"]) == imagenet
    assert RECIPES["unrealnas-imagenet"].decay == 0.97 and RECIPES["unrealnas-imagenet"].cells == 14
    rays = RECIPES["chexpert"]
    assert (rays.optimizer, rays.lr, rays.batch, rays.epochs, rays.weight_decay) == ("adam", 1e-4, 16, 3, 0.0)
    assert not (rays.flip or rays.pad or rays.cutout or rays.mixup or rays.clip)
    assert [learning_rate(rays, step, 100, 10) for step in (0, 50, 99)] == [1e-4] * 3
    adam = MODULE._optimizer(small(), rays)
    assert type(adam) is torch.optim.Adam and adam.defaults["betas"] == (0.9, 0.999)


def test_every_recipe_can_be_asked_for():
    asked = next(setting for setting in settings(train) if setting.name == "recipe")
    assert set(asked.options) == set(RECIPES)


def curve(scheduler, opt, epochs: int, epoch: int) -> list[float]:
    """What a scheduler of torch's, stepped once an epoch, gives for each step."""
    rates = []
    for _ in range(epochs):
        rates += [opt.param_groups[0]["lr"]] * epoch
        opt.step()
        scheduler.step()
    return rates


def test_schedules_against_torch():
    def fresh() -> torch.optim.Optimizer:
        return torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)

    sched = torch.optim.lr_scheduler
    for name, make, epochs, epoch in (
        ("cosine-epoch", lambda o: sched.CosineAnnealingLR(o, 12), 12, 5),
        ("exponential", lambda o: sched.ExponentialLR(o, 0.97), 12, 5),
        ("cosine", lambda o: sched.CosineAnnealingLR(o, 60), 60, 1),
        ("linear", lambda o: sched.LinearLR(o, 1.0, 0.0, 60), 60, 1),
        ("constant", lambda o: sched.ConstantLR(o, 1.0), 60, 1),
    ):
        recipe = TrainingRecipe(lr=0.1, schedule=name, decay=0.97)
        opt = fresh()
        expected = curve(make(opt), opt, epochs, epoch)
        assert [learning_rate(recipe, s, 60, epoch) for s in range(60)] == pytest.approx(expected), name


def test_warm_up_then_cosine():
    rates = [learning_rate(RECIPES["short"], s, 800, 10) for s in range(800)]
    assert rates[:30] == pytest.approx([0.1 * (s + 1) / 30 for s in range(30)])
    assert rates[30] == pytest.approx(0.1) and rates[415] == pytest.approx(0.05, rel=1e-3) and rates[-1] < 1e-5


def test_length_counts_whole_batches():
    assert length(TrainingRecipe(epochs=3, batch=16), 40) == (6, 2)
    assert length(TrainingRecipe(steps=7, batch=64), 40) == (7, 1)


def test_drop_path_rises_linearly_and_the_head_is_left_behind(tmp_path, monkeypatch):
    from phosphene.spaces.darts.space import DartsNetwork

    rates: list[float] = []
    own = DartsNetwork.set_drop_path
    monkeypatch.setattr(DartsNetwork, "set_drop_path", lambda net, rate: (rates.append(rate), own(net, rate)))
    found = cells(tmp_path / "a", epochs=4)
    assert rates == pytest.approx([0.4 * epoch / 4 for epoch in range(4) for _ in range(5)])
    assert not [key for key in load_file(tmp_path / "a" / "weights.safetensors") if "auxiliary" in key]
    assert found.result["params"] == sum(p.numel() for p in found.net.parameters())
    without = cells(tmp_path / "b", epochs=4, auxiliary=0.0)
    assert not same(found.net.state_dict(), without.net.state_dict())  # its loss did reach the cells
    assert found.result["params"] == without.result["params"]


# -- what is written -------------------------------------------------------------------------------------------------


def test_the_folder_holds_the_network(tmp_path):
    found = cells(tmp_path / "a", epochs=1)
    net, info = load_network(tmp_path / "a")
    assert (info["shape"], info["classes"], info["class_names"]) == ((1, 8, 8), 4, None)
    assert info["mean"] == pytest.approx(digits().card.statistics["mean"])
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(net(x), found.net(x)) and not net.training
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(5)) and {"loss", "lr", "phase"} <= lines[0].keys()
    assert "minutes" not in found.result and {"loss", "params", "macs"} <= found.result.keys()
    assert teachers.load(str(tmp_path / "a")).fingerprint == found.result["fingerprint"]
    again = train(str(tmp_path / "a"), data=digits(), recipe="short", steps=1, out=tmp_path / "b", **CPU)
    assert again.architecture.choices == found.architecture.choices  # a run folder names its architecture


def test_the_loss_falls(tmp_path):
    data = digits(soft=False)
    found = train("cifar-resnet8", data=data, steps=60, batch=40, **PLAIN, **CPU)
    first = json.loads((found.path / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert found.result["loss"] < first / 4  # forty images can be learned by heart
    assert found.path.parent.name == "runs" and found.path.name.startswith("train-")


def test_a_module_is_copied_and_needs_no_architecture(tmp_path, capfd):
    net = small()
    before = copy.deepcopy(net.state_dict())
    found = train(net, data=digits(), steps=2, out=tmp_path / "a", **CPU)
    assert same(before, net.state_dict()) and not same(before, found.net.state_dict())
    assert not (tmp_path / "a" / "arch.json").exists() and found.architecture is None
    again = train(net, data=digits(), steps=2, out=tmp_path / "a", **CPU)
    assert same(again.net.state_dict(), found.net.state_dict()) and again.result == found.result
    assert "is finished" in capfd.readouterr().err
    with pytest.raises(RunError, match="another run"):
        train(small(1), data=digits(), steps=2, out=tmp_path / "a", **CPU)


def test_larger_canvases_are_cropped(tmp_path):
    found = train("cifar-resnet8", data=digits(side=12), crop=8, steps=2, out=tmp_path / "a", **CPU)
    assert found.info["shape"] == [1, 8, 8]


# -- interruptions ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    cells(folder / "a")
    return files(folder / "a")


def test_same_seed_same_bytes(tmp_path, undisturbed):
    cells(tmp_path / "a")
    assert files(tmp_path / "a") == undisturbed
    other = cells(tmp_path / "b", seed=1)
    assert (other.path / "weights.safetensors").read_bytes() != undisturbed["weights.safetensors"]


@pytest.mark.parametrize("seconds", ["0", "1000"])
@pytest.mark.parametrize("step", [0, 7, 14])
def test_resumed_equals_undisturbed(tmp_path, monkeypatch, undisturbed, step, seconds):
    monkeypatch.setenv("PHOSPHENE_CHECKPOINT_SECONDS", seconds)

    def after_step(phase: str, at: int) -> None:
        if at == step:
            raise Fault

    monkeypatch.setattr(Run, "after_step", staticmethod(after_step))
    with pytest.raises(Fault):
        cells(tmp_path / "a")
    monkeypatch.setattr(Run, "after_step", None)
    cells(tmp_path / "a")
    assert files(tmp_path / "a") == undisturbed


def test_findings_begun_from_weights_resume_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("PHOSPHENE_CHECKPOINT_SECONDS", "0")
    flags = {"data": findings(), "init": str(earlier(tmp_path / "w")), "mixup": 0.5, "steps": 8, "batch": 8, **CPU}
    train("cifar-resnet8", out=tmp_path / "whole", **flags)

    def after_step(phase: str, at: int) -> None:
        if at == 5:
            raise Fault

    monkeypatch.setattr(Run, "after_step", staticmethod(after_step))
    with pytest.raises(Fault):
        train("cifar-resnet8", out=tmp_path / "a", **flags)
    monkeypatch.setattr(Run, "after_step", None)
    train("cifar-resnet8", out=tmp_path / "a", **flags)
    assert files(tmp_path / "a") == files(tmp_path / "whole")


@pytest.mark.parametrize("before", ["save", "finish"])
def test_stopped_while_writing(tmp_path, monkeypatch, undisturbed, before):
    def fault(*_, **__):
        raise Fault

    with monkeypatch.context() as patched:
        patched.setattr(*((trainee.tensors, "save") if before == "save" else (Run, "finish")), fault)
        with pytest.raises(Fault):
            cells(tmp_path / "a")
    cells(tmp_path / "a")
    assert files(tmp_path / "a") == undisturbed


def test_killed_for_real(tmp_path, undisturbed):
    here = [str(folder) for folder in Path(__file__).parents[:2]]
    code = f"import sys, time; sys.path[:0] = {here!r}; from pathlib import Path; import torch\n"
    code += "torch.set_num_threads(1)\nfrom phosphene.runtime.run import Run\n"
    code += "Run.after_step = staticmethod(lambda phase, step: time.sleep(0.3))\n"
    code += f"import test_train; test_train.cells(Path({str(tmp_path / 'a')!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PHOSPHENE_CHECKPOINT_SECONDS": "0"})
    checkpoint, deadline = tmp_path / "a" / "checkpoint", time.monotonic() + 60
    while time.monotonic() < deadline and not checkpoint.exists() and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and checkpoint.exists()
    cells(tmp_path / "a")
    assert files(tmp_path / "a") == undisturbed


def test_estimate_leaves_nothing(tmp_path):
    with pytest.raises(Estimate) as caught:
        cells(tmp_path / "a", estimate=True)
    needs = caught.value.needs
    assert needs["phases"]["train"]["steps"] == 15 and needs["disk_mib"] >= 0 and needs["memory_mib"] > 0
    assert not (tmp_path / "a").exists()


# -- two processes ---------------------------------------------------------------------------------------------------

RANKS = {"steps": 6, "batch": 16, "lr": 0.05, "mixup": 0.5, "pad": 1, "clip": 1.0}


def ranked(_rank: int, out: str) -> None:
    train(small(), data=digits(), out=Path(out), **RANKS, **CPU)


def test_two_ranks_are_one_process_that_accumulates_their_batches(tmp_path):
    on_two_ranks(ranked, str(tmp_path / "a"))

    data, recipe = digits(), effective("short", Changes(RANKS))
    nets = [small().train() for _ in range(2)]  # BatchNorm is per rank
    opts = [MODULE._optimizer(net, recipe) for net in nets]
    augment = Augment(None, recipe.pad, recipe.flip, 0, recipe.mixup)
    for step in range(6):
        for rank, net in enumerate(nets):
            where = Machine(torch.device("cpu"), rank=rank, world=2)
            batch = MODULE._draw(data, None, augment, recipe, 0, step, where)
            assert len(batch.inputs) == 8
            log = F.log_softmax(net(batch.inputs) / 3, 1)
            (9 * F.kl_div(log, batch.targets, reduction="batchmean")).backward()
        for a, b in zip(*(net.parameters() for net in nets), strict=True):
            a.grad = b.grad = (a.grad + b.grad) / 2
        for net, opt in zip(nets, opts, strict=True):
            norm = torch.cat([p.grad.flatten() for p in net.parameters()]).norm()
            opt.param_groups[0]["lr"] = learning_rate(recipe, step, 6, 2)
            scaled = [p.grad * min(1.0, 1.0 / norm) for p in net.parameters()]
            for p, g in zip(net.parameters(), scaled, strict=True):
                p.grad = g
            opt.step()
            opt.zero_grad()
    for name, value in load_file(tmp_path / "a" / "weights.safetensors").items():
        assert torch.allclose(value.float(), nets[0].state_dict()[name].float(), atol=1e-5), name


def test_a_batch_smaller_than_the_processes(monkeypatch):
    wide = dataclasses.replace(machine("cpu", "fp32"), world=4)
    monkeypatch.setattr(MODULE, "decide_machine", lambda *_: wide)
    with pytest.raises(SettingsError, match=r"--batch 3 .* 4 processes"):
        train(small(), data=digits(), batch=3, **CPU)


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 2, "steps": 2}, "--epochs and --steps"),
        ({"epochs": 0}, r"--epochs must be at least 1 \(got 0\)"),
        ({"lr": 0.0}, r"--lr must be above 0 \(got 0\)"),
        ({"mixup": -1.0}, r"--mixup must be at least 0 \(got -1\)"),
        ({"drop_path": 1.0}, r"--drop-path must be at least 0 and below 1 \(got 1\)"),
        ({"momentum": 0.0, "nesterov": True}, "--nesterov"),
        ({"recipe": "long"}, "--recipe long"),
        ({"channels": 8}, "--channels is for cell"),
        ({"auxiliary": 0.4}, "--auxiliary is for cell"),
        ({"crop": 99}, "--crop 99"),
        ({"data": None}, "--data is missing"),
        ({"data": digits(soft=False), "temperature": 4.0}, "--temperature 4.0"),
    ],
)
def test_settings_that_cannot_be_used(given, message):
    with pytest.raises(SettingsError, match=message):
        train("cifar-resnet8", **{"data": digits(), **given}, **CPU)


def test_data_that_does_not_fit():
    with pytest.raises(DatasetError, match="4 outputs, made has 6 classes"):
        train(small(), data=digits(soft=False, classes=6), steps=1, **CPU)
    with pytest.raises(DatasetError, match=r"targets from -1 to 1; targets must be in \[0, 1\], NaN"):
        train("cifar-resnet8", data=findings(np.linspace(-1, 1, 160).reshape(40, 4)), steps=1, **CPU)
    with pytest.raises(DatasetError, match="all targets of all images are unlabelled"):
        train("cifar-resnet8", data=findings(np.full((40, 4), np.nan)), steps=1, **CPU)
    asked = teachers.load(small(), mean=0.5, std=0.5, size=8)
    with pytest.raises(DatasetError, match=r"1x8x8 and 4 classes, made has 1x12x12"):
        train("cifar-resnet8", data=digits(side=12), teacher=asked, steps=1, **CPU)
    with pytest.raises(TeacherError, match="fails on a 1x9x9 image"):
        train(small(), data=digits(side=9), steps=1, **CPU)


def test_an_unknown_architecture():
    with pytest.raises(ArchitectureError, match="no-such-net"):
        train("no-such-net", data=digits(), **CPU)


def test_every_named_architecture_takes_the_cifar_recipe():
    """Built only: sizes as published, the head present in training and absent from the result."""
    named = [name for name in spaces.NAMED if spaces.architecture(name).space["name"] == "darts"]
    assert len(named) >= 3
    for name in named:
        chosen = effective("darts-cifar", Changes({}))
        design = trainee.design(spaces.architecture(name), 10, (3, 32, 32), chosen)
        assert (design.space["channels"], design.space["cells"], design.space["auxiliary"]) == (36, 20, True)


def test_models_on_bfloat16(tmp_path):
    found = train("cifar-resnet8", data=digits(), steps=2, out=tmp_path / "a", device="cpu", precision="bf16")
    assert all(p.dtype == torch.float32 for p in found.net.parameters()) and np.isfinite(found.result["loss"])
    assert models.MODELS.keys() >= {found.architecture.space["model"]}
