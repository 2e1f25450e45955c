"""Latencies are measured once, kept in a file, reused, and carried; what cannot be measured is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from phosphene import spaces
from phosphene.costs import budget as costs
from phosphene.costs import latency
from phosphene.costs.budget import Budget
from phosphene.costs.latency import Stopwatch, bind
from phosphene.errors import BudgetError, MissingExtra, SettingsError
from phosphene.runtime.machine import Machine
from phosphene.searches.latency import measure

CPU = Machine(torch.device("cpu"))
SPACE = spaces.space({"name": "macro", "channels": 4, "last": 16, "depths": [1, 2], "shape": [1, 8, 8]})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """A clock that takes a microsecond for each parameter, and notes what it was asked for."""
    calls: list[tuple[int, ...]] = []

    def fake(net, shape, machine, batch=1, repeats=30):
        calls.append((costs.params(net), *shape, batch))
        return costs.params(net) / 1000

    monkeypatch.setattr(costs, "latency", fake)
    return calls


def test_blocks_are_measured_once_and_stand_in_the_file(tmp_path: Path, measured: list) -> None:
    table = tmp_path / "table.json"
    before = torch.get_rng_state()
    budget = bind(Budget.parse(latency="~1"), SPACE, CPU, table=table, batch=3)
    assert torch.equal(torch.get_rng_state(), before)
    kinds = {key for d in SPACE.decisions for k in range(3) for key in SPACE.parts(d.name, k)}
    assert len(kinds) < len(measured) <= len(kinds) + 5 and all(call[-1] == 3 for call in measured)
    choices = {"stage1/layer1": 1, "stage2/layer1": 2, "stage2/layer2": 0}
    assert budget.costs(choices)["latency"] * 1e3 == pytest.approx(costs.measure(SPACE, choices)[0])
    content, count = table.read_text(), len(measured)
    again = bind(Budget.parse(latency="~1"), SPACE, CPU, table=table, batch=3)
    assert len(measured) == count and table.read_text() == content
    assert again.costs(choices) == budget.costs(choices)


def test_the_key_names_device_precision_batch_threads_versions_and_block(tmp_path: Path, measured: list) -> None:
    table = tmp_path / "table.json"
    for settings in ({"batch": 1}, {"batch": 2}, {"batch": 1, "precision": "bf16"}):
        bind(Budget.parse(latency="~1"), SPACE, CPU, table=table, **settings)
    found = json.loads(table.read_text())["measured"]
    assert len(found) == 3
    for condition in found:
        words = condition.split(" | ")
        assert words[:2] == ["cpu", latency.device_name("cpu")] and words[2] in ("fp32", "bf16")
        assert words[3] in ("batch 1", "batch 2") and words[4:] == ["1 thread", f"torch {torch.__version__}"]
    block = 'macro ["mb6_k5", 8, 16, 2, 8, 8]'  # with the size of its input
    assert all(block in rows for rows in found.values())


def test_another_input_is_measured_anew(tmp_path: Path, measured: list) -> None:
    larger = spaces.space(dict(SPACE.spec, shape=[1, 16, 16]))
    bind(Budget.parse(latency="~1"), SPACE, CPU, table=tmp_path / "t.json")
    count = len(measured)
    bind(Budget.parse(latency="~1"), larger, CPU, table=tmp_path / "t.json")
    assert len(measured) == 2 * count


def test_a_carried_file_serves_where_the_device_is_not(
    tmp_path: Path, measured: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    table = tmp_path / "t.json"
    bind(Budget.parse(latency="~1"), SPACE, CPU, table=table)
    rows = json.loads(table.read_text())
    (of, times), *_ = rows["measured"].items()
    card = of.replace("cpu | " + latency.device_name("cpu"), "cuda | Some card")
    table.write_text(json.dumps({"format": 1, "measured": {card: times}}))
    count = len(measured)
    bind(Budget.parse(latency="~1"), SPACE, CPU, table=table, on="cuda")
    assert len(measured) == count
    with pytest.raises(SettingsError, match=r"lacks.*measure it there"):
        bind(Budget.parse(latency="~1"), spaces.space(dict(SPACE.spec, shape=[1, 16, 16])), CPU, table=table, on="cuda")
    with pytest.raises(SettingsError, match=r"none with fp32, batch 2.*--on cpu"):
        Stopwatch("cuda", table, batch=2)
    table.write_text(json.dumps({"format": 1, "measured": {card: times, card.replace("Some", "Another"): times}}))
    with pytest.raises(SettingsError, match="several devices"):
        Stopwatch("cuda", table)


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"on": "tpu"}, "--on tpu"),
        ({"batch": 0}, "--latency-batch 0"),
        ({"precision": "fp16"}, "--latency-precision fp16"),
        ({"on": "onnx", "precision": "bf16"}, "--latency-precision bf16"),
    ],
)
def test_settings_outside_their_range_are_named(settings: dict, flag: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=flag):
        Stopwatch(table=tmp_path / "t.json", **settings)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    for content, says in [
        ("{}", "format is missing"),
        ('{"format": 2, "measured": {}}', "format"),
        ("[", "is damaged"),
        ("[" * 100_000, "is damaged"),
        ('{"format": 1, "measured": {"cpu": {"conv": -1}}}', "measured.cpu.conv"),
        ('{"format": 1, "measured": {"cpu": {"conv": "fast"}}}', r"measured\.cpu\.conv .*'fast'"),
    ]:
        (tmp_path / "t.json").write_text(content)
        with pytest.raises(SettingsError, match=rf"t\.json.*{says}.*--latency-table"):
            Stopwatch(table=tmp_path / "t.json")


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is not None, reason="ONNX Runtime is installed")
def test_without_onnx_runtime_the_extra_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingExtra, match=r"phosphene\[onnx\]"):
        Stopwatch("onnx", tmp_path / "t.json")
    with pytest.raises(MissingExtra, match=r"phosphene\[onnx\]"):
        latency.onnx_latency(torch.nn.ReLU(), (1, 4, 4))


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="needs the extra onnx")
def test_onnx_runtime_is_timed(tmp_path: Path) -> None:
    module, shape = SPACE.part(("mb3_k3", 4, 8, 2, 8, 8))
    assert latency.onnx_latency(module, shape, repeats=3) > 0


def test_without_latency_nothing_is_measured(tmp_path: Path, measured: list) -> None:
    bound = bind(Budget.parse("1M"), SPACE, CPU, table=tmp_path / "t.json", on="cuda")
    assert bound.fits({}) and not measured and not (tmp_path / "t.json").exists()


def test_impossible_latencies_are_refused(tmp_path: Path, measured: list) -> None:
    with pytest.raises(
        BudgetError, match=r"--latency 0\.0001 excludes every architecture .smallest .*largest.*raise it"
    ):
        bind(Budget.parse(latency="0.0001"), SPACE, CPU, table=tmp_path / "t.json")


def test_the_command_measures_a_space(tmp_path: Path, measured: list) -> None:
    found = measure("macro", side=8, channels=1, classes=3, table=tmp_path / "t.json")
    assert found["entries"] == len(measured) and 0 < found["smallest_ms"] < found["largest_ms"]
    assert found["measured"].startswith("cpu | ")


def test_real_times_of_little_and_much(tmp_path: Path) -> None:
    """Nothing faked: the longest path takes longer than the shortest."""
    space = spaces.space({"name": "macro", "channels": 8, "last": 16, "depths": [1, 1], "shape": [1, 32, 32]})
    budget = bind(Budget.parse(latency="~1"), space, CPU, table=tmp_path / "t.json")
    short, long = (dict.fromkeys((d.name for d in space.decisions), option) for option in (0, 2))
    assert budget.costs(short)["latency"] < budget.costs(long)["latency"]
