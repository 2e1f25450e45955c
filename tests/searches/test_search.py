"""Searches find what there is to find, keep the budget, repeat themselves by seed, and refuse what cannot work."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import phosphene
from phosphene import commands, spaces
from phosphene.core import Architecture, Choices, Decision
from phosphene.costs import budget as costs
from phosphene.costs.budget import Budget
from phosphene.data.augment import Augment, View
from phosphene.data.dataset import ImageDataset
from phosphene.errors import BudgetError, DatasetError, Estimate, PhospheneError, SettingsError
from phosphene.losses import soft_cross_entropy
from phosphene.runtime.machine import Machine
from phosphene.runtime.run import Run
from phosphene.searches import darts, notation
from phosphene.searches import outcome as found_files
from phosphene.searches import random as random_search
from phosphene.searches.darts import Darts
from phosphene.searches.settings import Setup, Shift, augmentation
from phosphene.searches.supernet.data import Parts
from phosphene.searches.supernet.evaluator import top1

CPU = Machine(torch.device("cpu"))
TINY = {"channels": 4, "cells": 3, "nodes": 2, "batch": 8, "steps": 4, "final_channels": 6, "final_cells": 3}
TINY |= {"device": "cpu", "precision": "fp32"}
SEARCHES = {name.removeprefix("search ") for name in commands.COMMANDS if name.startswith("search ")} - {"pareto"}
ELSEWHERE = ("evolution", "spos", "training-free")  # test_spos and test_training_free hold those to the same
MIXED = [name for name in sorted(SEARCHES) if name not in ELSEWHERE]
CELLS = {"space": "darts"}
SMALL = {"final_channels": 6, "final_cells": 3, "nodes": 2}


def of(algorithm: str) -> Callable[..., found_files.SearchResult]:
    """The command of a search."""
    return commands.function(f"search {algorithm}")


@pytest.fixture(autouse=True)
def without_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than the searches here; the tests named after pictures draw them."""
    if "pictures" not in request.node.name:
        monkeypatch.setattr(found_files, "draw_cells", lambda *_: None)
        monkeypatch.setattr(found_files, "plot", lambda *_: None)


def images(count: int = 40, shape: tuple[int, ...] = (1, 8, 8), classes: int = 3, soft: bool = False) -> ImageDataset:
    draws = np.random.default_rng(7)
    pixels = draws.integers(0, 256, (count, *shape), dtype=np.uint8)
    labels = np.arange(count) % classes
    if soft:
        return ImageDataset.from_arrays(pixels, logits=draws.normal(0, 3, (count, classes)), name="soft")
    return ImageDataset.from_arrays(pixels, labels=labels, classes=classes, name="hard")


# -- the algorithm, on a space of the test's own ---------------------------------------------------------------------


class Glasses:
    """Two decisions with different numbers of options, of which exactly one each lets the class through."""

    def __init__(self) -> None:
        self.spec = {"name": "glasses", "shape": [1, 8, 8]}
        self.decisions = (
            Decision("left", ("blind", "sees")),
            Decision("right", ("noise", "blind", "sees", "blind too")),
        )

    def supernet(self) -> nn.Module:
        return Eyes()

    def build(self, choices: Choices) -> nn.Module:
        raise AssertionError("a search builds no networks")

    def forced(self, made: Choices) -> Choices:
        return {}


class Eyes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 4)
        self.norm = nn.BatchNorm1d(64, affine=False)

    def forward(self, inputs: Tensor, gates: dict[str, Tensor]) -> Tensor:
        left, right = self.norm(inputs.flatten(1)).chunk(2, 1)
        blind, sees = gates["left"]
        seen = [sees * left + blind * 0.0]
        noise, one, sees, two = gates["right"]
        seen.append(sees * right + noise * right.flip(0) + (one + two) * 0.0)
        return self.head(torch.cat(seen, 1))


def patterns(count: int = 96) -> ImageDataset:
    """Four classes; the upper half of the image tells one bit of the class, the lower half the other."""
    labels = np.arange(count) % 4
    pixels = np.random.default_rng(1).integers(0, 60, (count, 1, 8, 8))
    pixels[:, :, :4, :4] += 150 * (labels % 2)[:, None, None, None]
    pixels[:, :, 4:, :4] += 150 * (labels // 2)[:, None, None, None]
    return ImageDataset.from_arrays(pixels.astype(np.uint8), labels=labels, classes=4)


@pytest.mark.parametrize("order", [1, 2])
def test_darts_finds_the_options_that_see(order: int) -> None:
    run = Run.scratch(CPU, 0)
    settings = Darts(batch=16, order=order, alpha_lr=0.05, lr=0.1)
    found = darts.search(Glasses(), patterns(), soft_cross_entropy, top1, Budget(), run, settings, steps=60)
    assert found == Architecture(Glasses().spec, {"left": 1, "right": 2})
    facts = json.loads((run.path / "supernet.json").read_text())
    assert facts["score"] > 0.9
    assert notation(Glasses(), found.choices) == "left=sees right=sees"


def test_alphas_start_at_zero_rest_through_the_warm_up_and_are_recorded_each_epoch() -> None:
    run = Run.scratch(CPU, 0)
    settings, setup = Darts(batch=16), Setup(warm_up=2)
    darts.search(Glasses(), patterns(), soft_cross_entropy, top1, Budget(), run, settings, setup, steps=15)
    run.finish({})
    history = np.load(run.path / "alphas.npy")
    assert history.shape == (6, 2, 4) and history.dtype == np.float32  # 5 epochs of 3 steps
    assert (history[:3] == 0).all()
    assert (history[3:, 1] != 0).all() and (history[3, 0, :2] != 0).all()
    assert (history[:, 0, 2:] == 0).all()  # the first decision has two options
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if "epoch" in line] == [1, 2, 3, 4, 5]
    assert ["valid_loss" in line for line in lines if "epoch" in line] == [False, False, True, True, True]


def test_alpha_is_stepped_by_adam_on_validation_images_before_the_weights_on_training_ones() -> None:
    """One step of search, written out: the authors' order of things, and the first step of Adam and SGD by hand."""
    run, data = Run.scratch(CPU, 3), patterns(64)
    seen: list[tuple[bool, Tensor]] = []

    class Watched(Eyes):
        def forward(self, inputs: Tensor, gates: dict[str, Tensor]) -> Tensor:
            seen.append((self.head.weight.requires_grad, gates["right"].detach().clone()))
            return super().forward(inputs, gates)

    space = Glasses()
    space.supernet = Watched  # type: ignore[method-assign]
    darts.search(space, data, soft_cross_entropy, top1, Budget(), run, Darts(batch=32, alpha_lr=0.1), steps=1)
    (alpha_pass, first), (weight_pass, second), *_ = seen
    assert not alpha_pass and weight_pass
    assert torch.equal(first, torch.full((4,), 0.25))
    moved = np.load(run.path / "alphas.npy")[1, 1]
    torch.testing.assert_close(torch.tensor(moved).abs(), torch.full((4,), 0.1), rtol=1e-2, atol=0)  # Adam's first step
    torch.testing.assert_close(second, torch.tensor(moved).softmax(0))


def test_temperature_and_soft_rows_reach_the_search() -> None:
    results = []
    for temperature in (1.0, 8.0):
        run = Run.scratch(CPU, 0)
        data = images(48, classes=4, soft=True)
        settings, parts = Darts(batch=12), Parts(temperature=temperature)
        darts.search(Glasses(), data, soft_cross_entropy, top1, Budget(), run, settings, parts=parts, steps=4)
        results.append(np.load(run.path / "alphas.npy"))
    assert not np.array_equal(*results)


# -- the commands, on the DARTS space ------------------------------------------------------------------------------


def test_the_command_writes_all_it_promises_and_pictures(tmp_path: Path) -> None:
    found = phosphene.search_darts(images(), out=tmp_path / "run", **TINY)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    wanted = {"arch.json", "genotype.txt", "cells.png", "alphas.npy", "alphas.png", "supernet.safetensors"}
    assert wanted | {"supernet.json", "result.json", "metrics.jsonl", "config.json"} <= names
    assert not [name for name in names if name.startswith(("checkpoint", "phase"))]
    assert (tmp_path / "run/cells.png").read_bytes()[:4] == (tmp_path / "run/alphas.png").read_bytes()[:4] == b"\x89PNG"
    architecture = Architecture.load(tmp_path / "run/arch.json")
    assert architecture == Architecture(found.space, found.choices)
    assert isinstance(found, Architecture)  # it can be trained as it is
    assert (architecture.space["channels"], architecture.space["cells"], architecture.space["stem"]) == (6, 3, "tiny")
    net = spaces.space(architecture.space).build(architecture.choices)
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert found.result["params"] == costs.params(net) and found.result["macs"] == costs.macs(net, (1, 8, 8))
    assert (tmp_path / "run/genotype.txt").read_text().strip() == found.result["genotype"]
    assert found.result["genotype"].startswith("Genotype(normal=[(")
    assert found.result["skips"]["normal"] == found.result["genotype"].split("reduce=")[0].count("skip_connect")
    assert 0 <= found.result["validation"] <= 1
    assert json.loads((tmp_path / "run/result.json").read_text()) == found.result
    json.dumps(found.summary())


def test_a_finished_run_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    first = phosphene.search_darts(images(), out=tmp_path / "run", **TINY)
    monkeypatch.setattr(darts, "search", lambda *_, **__: pytest.fail("searched again"))
    again = phosphene.search_darts(images(), out=tmp_path / "run", **TINY)
    assert again == first
    assert "finished" in capsys.readouterr().err
    with pytest.raises(PhospheneError, match="seed"):
        phosphene.search_darts(images(), out=tmp_path / "run", seed=1, **TINY)


@pytest.mark.parametrize("algorithm", MIXED)
def test_the_seed_decides_and_the_origin_does_not(algorithm: str, tmp_path: Path) -> None:
    """Same seed, same bytes: from memory, from a folder; another seed, another result."""
    search, settings = of(algorithm), {"final_cells": 3, "nodes": 3} if algorithm == "random" else {**TINY, **CELLS}
    data = images(soft=True)
    data.save(tmp_path / "data")
    search(data, out=tmp_path / "a", **settings)
    search(data, out=tmp_path / "b", **settings)
    search(ImageDataset.open(tmp_path / "data"), out=tmp_path / "c", **settings)
    search(data, out=tmp_path / "d", seed=5, **settings)
    names = ["arch.json", "result.json", *([] if algorithm == "random" else ["supernet.safetensors", "alphas.npy"])]
    for name in names:
        contents = [(tmp_path / run / name).read_bytes() for run in "abcd"]
        assert contents[0] == contents[1] == contents[2]
    assert contents[0] != contents[3] or algorithm == "random"
    assert any((tmp_path / "a" / name).read_bytes() != (tmp_path / "d" / name).read_bytes() for name in names)


@pytest.mark.parametrize("algorithm", MIXED)
@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
def test_budgets_are_kept(algorithm: str, at: float, tmp_path: Path) -> None:
    """Bounds and windows at the lower end, in the middle and at the upper end of what the space has."""
    settings = SMALL if algorithm == "random" else {**TINY, **CELLS, "steps": 2}
    final = spaces.space(random_search.random(images(), out=tmp_path / "free", **SMALL).space)
    budget = Budget.parse(params=">=1").of(final)
    assert budget.prices is not None
    (params, macs), (most_params, most_macs) = budget.prices.range()
    bound = params + at * (most_params - params)
    window = (macs + max(0.0, at - 0.1) * (most_macs - macs), macs + (at + 0.1) * (most_macs - macs))
    search = of(algorithm)
    for seed in range(5 if algorithm == "random" else 1):
        found = search(images(), params=f"{int(bound)}", out=tmp_path / f"p{seed}", seed=seed, **settings)
        assert found.result["params"] <= bound
        found = search(
            images(), macs=f"{int(window[0])}..{int(window[1])}", out=tmp_path / f"m{seed}", seed=seed, **settings
        )
        assert window[0] - 1 <= found.result["macs"] <= window[1]
        net = final.build(found.choices)
        assert (costs.params(net), costs.macs(net, (1, 8, 8))) == (found.result["params"], found.result["macs"])


def test_random_draws_differ_and_have_no_side_effect() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    space = spaces.space({"name": "darts", "channels": 4, "cells": 3, "shape": [1, 8, 8], "classes": 3})
    draws = [
        random_search.search(space, images(), soft_cross_entropy, top1, Budget(), Run.scratch(CPU, seed)).choices
        for seed in range(12)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert len({json.dumps(draw) for draw in draws}) == 12
    assert {option for draw in draws for option in draw.values()} == set(range(8))


def test_canvases_are_cropped_to_the_teachers_input(tmp_path: Path) -> None:
    draws = np.random.default_rng(0).integers(0, 256, (40, 1, 12, 12), dtype=np.uint8)
    data = ImageDataset.from_arrays(draws, labels=np.arange(40) % 2, classes=2, teacher={"shape": [1, 8, 8]})
    found = phosphene.search_darts(data, out=tmp_path / "a", **TINY)
    assert found.space["shape"] == [1, 8, 8]
    found = phosphene.search_darts(data, out=tmp_path / "b", crop=10, **TINY)
    assert found.space["shape"] == [1, 10, 10]
    flat = ImageDataset.from_arrays(draws[:, :, :9], labels=np.arange(40) % 2, classes=2)
    found = phosphene.search_darts(flat, out=tmp_path / "c", **TINY)
    assert found.space["shape"] == [1, 9, 12]


def test_settings_decide_the_default_crop_and_flip() -> None:
    grey, colour = images(), images(shape=(3, 32, 32))

    def views(data: ImageDataset, setup: str = "real", crop: int | None = None, **shift: Any) -> object:
        return augmentation(data, crop, Shift(**shift), unreal=setup == "unreal")

    assert views(grey) == Augment(pad=1)
    assert views(colour) == Augment(pad=4, flip=True)
    assert views(colour, crop=24) == Augment(crop=24, flip=True)
    assert views(colour, pad=2, flip=False) == Augment(pad=2)
    assert views(colour, "unreal", pad=0, flip=False) == View()
    assert views(colour, "unreal", pad=0, flip=False, crop=24) == View(24)
    assert views(colour, "unreal", pad=0, flip=True) == Augment(flip=True)


def test_bfloat16_runs_and_second_order_too(tmp_path: Path) -> None:
    for order in (1, 2):
        found = phosphene.search_darts(images(), out=tmp_path / f"{order}", **dict(TINY, precision="bf16", order=order))
        history = np.load(found.path / "alphas.npy")
        assert np.isfinite(history).all() and (history[-1] != 0).any()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"batch": 21}, "--batch 21"),
        ({"batch": 0}, "--batch must be at least 1"),
        ({"order": 3}, "--order must be"),
        ({"lr": 0.0}, "--lr must be above 0"),
        ({"alpha_weight_decay": -1.0}, "--alpha-weight-decay must be at least 0"),
        ({"warm_up": 2}, "--warm-up 2"),
        ({"warm_up": -1}, "--warm-up must be at least 0"),
        ({"final_channels": 0}, "--final-channels must be at least 1"),
        ({"train_fraction": 1.0}, "--train-fraction"),
        ({"temperature": 0.0}, "--temperature"),
        ({"crop": 9}, "--crop 9"),
        ({"steps": 0}, "--steps"),
        ({"stem": "imagenet"}, "--stem imagenet"),
        ({"cells": 1}, "--cells 1"),
        ({"params": "lots"}, "--params"),
        ({"device": "toaster"}, "--device toaster"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_done(settings: dict, says: str, tmp_path: Path) -> None:
    with pytest.raises(PhospheneError, match=says):
        phosphene.search_darts(images(), out=tmp_path / "run", **{**TINY, **settings})
    assert not (tmp_path / "run").exists()


def test_impossible_budgets_and_missing_or_unfit_data(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="--params"):
        phosphene.search_darts(images(), out=tmp_path / "run", params="10", **TINY)
    with pytest.raises(SettingsError, match="--data"):
        phosphene.search_darts(**TINY)
    with pytest.raises(DatasetError, match="nowhere"):
        phosphene.search_darts(tmp_path / "nowhere", **TINY)
    assert not (tmp_path / "run").exists()


def test_estimate_measures_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Estimate) as caught:
        phosphene.search_darts(images(), out=tmp_path / "run", estimate=True, warm_up=200, **dict(TINY, steps=500))
    needs = caught.value.needs
    assert needs["phases"]["supernet"]["steps"] == 500
    assert needs["minutes"] > 0 and needs["disk_mib"] > 0 and math.isfinite(needs["memory_mib"])
    assert not (tmp_path / "run").exists() and not (tmp_path / "runs").exists()
