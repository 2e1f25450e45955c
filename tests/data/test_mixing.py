"""Several data sets in one batch, CutMix on rows, and averages of weights: each against what it says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from phosphene import distill, load_teacher, train
from phosphene.data.augment import Augment
from phosphene.data.concat import counts, join, next_batch
from phosphene.data.dataset import ImageDataset, batches
from phosphene.errors import DatasetError, SettingsError
from phosphene.runtime.run import Run
from phosphene.teachers.label import label
from phosphene.training.train import Average

CPU: dict[str, Any] = {"device": "cpu", "precision": "fp32"}
PLAIN: dict[str, Any] = {"pad": 0, "flip": False, "mixup": 0.0, "warmup": 0, "schedule": "constant", "batch": 8}


class Fault(Exception):
    """Injected."""


def small(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)
        )


def images(seed: int, count: int, side: int = 8, **fields: Any) -> ImageDataset:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 1, side, side), dtype=np.uint8)
    given = fields if {"labels", "logits"} & set(fields) else {"logits": 2 * rng.normal(size=(count, 4)), **fields}
    return ImageDataset.from_arrays(
        pixels, **{"classes": 4, "name": f"set{seed}", "mean": [0.4], "std": [0.3], **given}
    )


def teacher(seed: int = 5) -> Any:
    return load_teacher(small(seed), mean=0.4, std=0.3, size=8)


# -- data sets end to end --------------------------------------------------------------------------------------------


def test_images_and_rows_are_end_to_end() -> None:
    a, b = images(0, 7), images(1, 5)
    both = join([a, b])
    assert len(both) == 12 and both.soft and both.card.name == "set0 + set1"
    order = torch.tensor([11, 0, 7, 6, 3, 8, 8])
    for what in ("pixels", "targets"):
        wanted = torch.cat([getattr(one, what)(range(len(one))) for one in (a, b)])[order]
        assert torch.equal(getattr(both, what)(order), wanted), what
    assert both.labels.tolist() == [*a.labels, *b.labels]
    assert torch.equal(both.normalise(both.pixels([9])), b.normalise(b.pixels([2])))
    assert torch.equal(both.subset([11, 2]).targets([0, 1]), both.targets([11, 2]))
    assert join([b, a]).fingerprint != both.fingerprint and join(a) is a and join([a]) is a


def test_labels_join_as_labels_and_findings_as_findings() -> None:
    hard = join([images(0, 6, labels=np.arange(6) % 4), images(1, 4, labels=np.arange(4))])
    assert not hard.soft and hard.labels.tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2, 3]
    findings = np.array([[0, 1, np.nan, 0]] * 3, np.float32)
    several = join([images(k, 3, labels=findings, task="multi") for k in (0, 1)])
    assert several.targets([5]).isnan().tolist() == [[False, False, True, False]]
    mixed = join([images(0, 6), images(1, 4, labels=np.arange(4))])
    assert not mixed.labelled, "labels of one kind, or none"


def test_canvases_and_images_of_their_regions_are_mixed(tmp_path: Path) -> None:
    """What a pad-2 crop of the small ones would show: black borders."""
    canvas = label(images(0, 6, side=12), teacher=teacher(), out=tmp_path / "canvas", device="cpu")
    plain = label(images(1, 4), teacher=teacher(), out=tmp_path / "plain", device="cpu")
    both = join([plain, canvas])
    assert both.card.shape == (1, 12, 12) and both.seen == (1, 8, 8)
    assert torch.equal(both.pixels([1])[:, :, 2:10, 2:10], plain.pixels([1]))
    assert both.pixels([1])[0, 0, :2].sum() == 0 and torch.equal(both.pixels([4]), canvas.pixels([0]))
    found = train(small(), data=[plain, canvas], steps=2, batch=8, out=tmp_path / "a", **CPU)
    assert found.info["shape"] == [1, 8, 8]


def test_bytes_and_floats_are_mixed_on_one_scale() -> None:
    a = images(0, 3)
    floats = ImageDataset.from_arrays(
        a.pixels(range(3)).float() / 255, logits=np.eye(4)[:3], classes=4, mean=[0.4], std=[0.3]
    )
    both = join([a, floats])
    torch.testing.assert_close(both.normalise(both.pixels([1])), both.normalise(both.pixels([4])), rtol=0, atol=1e-5)
    with pytest.raises(DatasetError, match="store both as uint8"):
        join([a, ImageDataset.from_arrays(np.zeros((3, 1, 8, 8), np.float32), labels=[0] * 3, classes=4)])


def test_regions_of_one_grid_are_joined(tmp_path: Path) -> None:
    sets = [label(images(k, 5), teacher=teacher(), crops=2, out=tmp_path / f"{k}", device="cpu") for k in (0, 1)]
    both, region = join(sets), torch.tensor([3, 0, 2])
    wanted = torch.cat([sets[0].targets([4], 1.0, region[:1]), sets[1].targets([0, 3], 1.0, region[1:])])
    assert both.grid == sets[0].grid and torch.equal(both.targets([4, 5, 8], 1.0, region), wanted)
    train(small(), data=sets, rows="regions", steps=2, batch=4, out=tmp_path / "a", **CPU)
    other = label(images(2, 5), teacher=teacher(), crops=3, out=tmp_path / "other", device="cpu")
    assert join([sets[0], other]).grid is None


def test_shares_are_kept_in_every_batch() -> None:
    both = join([images(0, 30), images(1, 7)], "1,3")
    assert counts((1, 3), 8) == [2, 6] and counts((1, 1, 1), 8) == [3, 3, 2] and counts((2, 1), 8) == [5, 3]
    seen = [next_batch(both, 8, 0, step) for step in range(35)]
    assert all(int((one < 30).sum()) == 2 for one in seen)
    first = torch.cat(seen[:15])
    assert sorted(first[first < 30].tolist()) == list(range(30)), "every image once, then anew"
    last = torch.cat(seen)
    assert last[last >= 30].bincount()[30:].min() > 20, "35 times 6 of 7 images, as chance has it"
    plain = join([images(0, 30), images(1, 7)])
    assert torch.equal(next_batch(plain, 8, 0, 3), batches(37, 8, 0, 3))


def test_what_cannot_be_mixed_is_named(tmp_path: Path) -> None:
    a = images(0, 6)
    for other, what in (
        (images(1, 6, logits=np.eye(6), classes=6), "classes"),
        (images(1, 6, side=10), "network inputs of"),
        (images(1, 6, labels=np.ones((6, 4)), task="multi"), "task"),
    ):
        with pytest.raises(DatasetError, match=what):
            join([a, other])
    for shares, why in (("1", "each of 2"), ("1,0", "above 0"), ("a,b", "not numbers")):
        with pytest.raises(SettingsError, match=why):
            join([a, a], shares)
    with pytest.raises(SettingsError, match="leaves a data set no image"):
        train(small(), data=[a, a], shares="1,99", batch=8, steps=1, **CPU)
    with pytest.raises(DatasetError, match="labels of one kind"):
        train(small(), data=[a, images(1, 4, labels=np.arange(4))], batch=8, steps=1, **CPU)
    asked = train(small(), data=[a, images(1, 4, labels=np.arange(4))], teacher=teacher(), batch=8, steps=1, **CPU)
    assert asked.result["images"] == 10


# -- CutMix ----------------------------------------------------------------------------------------------------------


def test_a_rectangle_is_anothers_and_the_row_by_its_pixels() -> None:
    n = 40
    inputs = torch.arange(n).float().view(n, 1, 1, 1).expand(n, 2, 12, 10).contiguous()
    mixed, rows = Augment(cutmix=1.0).mix(inputs, torch.eye(n), torch.Generator().manual_seed(0))
    areas = []
    for i in range(n):
        owners, pixels = mixed[i, 0].unique(return_counts=True)
        shares = torch.zeros(n)
        shares[owners.long()] = pixels / 120
        assert torch.allclose(rows[i], shares, atol=1e-6) and torch.equal(mixed[i, 0], mixed[i, 1])
        foreign = (mixed[i, 0] != i).nonzero()
        if len(foreign):
            height, width = (foreign.max(0).values - foreign.min(0).values + 1).tolist()
            assert height * width == len(foreign), "a whole rectangle"
        areas.append(len(foreign))
    assert len(set(areas)) > 15 and max(areas) > 60


def test_cutmix_and_mixup_take_turns_by_chance() -> None:
    inputs, rows = torch.arange(16.0).view(16, 1, 1, 1).expand(16, 1, 8, 8).contiguous(), torch.eye(16)
    both = Augment(cutmix=1.0, mixup=1.0)
    whole = 0
    for seed in range(200):
        mixed, _ = both.mix(inputs, rows, torch.Generator().manual_seed(seed))
        whole += bool((mixed == mixed.round()).all())
    assert 75 < whole < 125
    alone = Augment(mixup=1.0).mix(inputs, rows, torch.Generator().manual_seed(1))
    assert torch.equal(alone[0], Augment(mixup=1.0, cutmix=0.0).mix(inputs, rows, torch.Generator().manual_seed(1))[0])
    with pytest.raises(SettingsError, match="--cutmix"):
        Augment(cutmix=-1.0)


def test_an_unlabelled_entry_stays_unlabelled() -> None:
    rows = torch.rand(8, 3)
    rows[0, 1] = float("nan")
    _, mixed = Augment(cutmix=1.0).mix(torch.rand(8, 1, 8, 8), rows, torch.Generator().manual_seed(0))
    assert mixed.isnan().any() and not mixed[:, 0].isnan().any()


# -- averages of weights ---------------------------------------------------------------------------------------------


def test_the_average_is_the_formula() -> None:
    torch.manual_seed(0)
    net = small()
    average = Average(net, 0.6)
    wanted = {name: value.clone().double() for name, value in net.state_dict().items()}
    for step in range(12):
        for value in net.state_dict().values():
            value.copy_(torch.randn_like(value) if value.is_floating_point() else value + 3)
        average.update(net, step)
        d = min(0.6, (1 + step) / (10 + step))
        for name, value in net.state_dict().items():
            wanted[name] = d * wanted[name] + (1 - d) * value if value.is_floating_point() else value.double()
    for name, value in average.net.state_dict().items():
        assert torch.allclose(value.double(), wanted[name], atol=1e-5), name


def test_training_ends_in_the_average_of_its_steps(tmp_path: Path) -> None:
    """The weights after each step are those of shorter runs, since nothing depends on the length."""
    data, flags = images(0, 24), {**PLAIN, **CPU}
    wanted = {name: value.double() for name, value in small().state_dict().items()}
    for step in range(4):
        after = train(small(), data=data, steps=step + 1, out=tmp_path / f"{step}", **flags).net.state_dict()
        d = min(0.5, (1 + step) / (10 + step))
        wanted = {name: d * wanted[name] + (1 - d) * value for name, value in after.items()}
    found = train(small(), data=data, steps=4, ema=0.5, out=tmp_path / "ema", **flags)
    for name, value in found.net.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value.double(), wanted[name], atol=1e-5), name
    assert found.result["evaluated"] == "moving average, 0.5"
    assert found.net.state_dict()["1.num_batches_tracked"] == 4
    with pytest.raises(SettingsError, match="--ema must be at least 0 and below 1"):
        train(small(), data=data, steps=1, ema=1.0, **CPU)


# -- all together ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "own",
    [{"ema": 0.9}, {"cutmix": 1.0, "mixup": 1.0}, {"shares": "1,2"}, {"ema": 0.5, "cutmix": 0.3, "shares": "2,1"}],
)
def test_stopping_changes_nothing(own: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHOSPHENE_CHECKPOINT_SECONDS", "0")
    flags: dict[str, Any] = {
        "method": "data",
        "data": [images(0, 20), images(1, 9)],
        "epochs": 3,
        "batch": 8,
        **own,
        **CPU,
    }
    wanted = distill(teacher(), small(), out=tmp_path / "wanted", **flags)

    def fail(phase: str, step: int) -> None:
        if step == 4:
            raise Fault

    monkeypatch.setattr(Run, "after_step", staticmethod(fail))
    with pytest.raises(Fault):
        distill(teacher(), small(), out=tmp_path / "stopped", **flags)
    monkeypatch.setattr(Run, "after_step", None)
    again = distill(teacher(), small(), out=tmp_path / "stopped", **flags)
    for name in ("weights.safetensors", "result.json", "metrics.jsonl", "network.json"):
        assert (tmp_path / "wanted" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes(), name
    assert wanted.result == again.result
    bare = distill(teacher(), small(), out=tmp_path / "bare", **{**flags, **dict.fromkeys(own)})
    assert bare.result["fingerprint"] != wanted.result["fingerprint"], "the option does something"


def test_shares_are_said_and_flags_of_data_belong_to_data(tmp_path: Path) -> None:
    sets = [images(0, 20), images(1, 9)]
    found = train(small(), data=sets, shares="3,1", steps=1, batch=8, out=tmp_path / "a", **CPU)
    assert found.result["shares"] == [6, 2] and found.result["images"] == 29
    settings = json.loads((tmp_path / "a/config.json").read_text())["settings"]
    assert settings["shares"] == [6, 2]
    for own in ({"ema": 0.9}, {"cutmix": 1.0}, {"mixup": 0.0}, {"shares": "1,1"}):
        with pytest.raises(SettingsError, match=f"--{next(iter(own))} is no setting of .*, but of data"):
            distill(teacher(), small(), method="dafl", **own, **CPU)


def test_the_command_line_takes_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from phosphene.cli import command

    for k in (0, 1):
        images(k, 12).save(tmp_path / f"{k}")
    text = f"cifar-resnet8 --data {tmp_path / '0'} --data {tmp_path / '1'} --shares 1,1 --steps 1 --batch 4 --json"
    command("train").main([*text.split(), "--out", str(tmp_path / "a"), "--device", "cpu"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["shares"] == [2, 2]


def test_no_data_set_at_all_is_said():
    with pytest.raises(SettingsError, match="--data is missing"):
        join(())
