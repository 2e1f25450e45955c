"""The bundled teacher: what is shipped, and that it is what is said of it."""

from __future__ import annotations

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import phosphene
from phosphene.models.digits import digits

BUNDLED = Path(phosphene.__file__).parent / "bundled"
TOOL = Path(__file__).parents[1] / "tools" / "train_digits.py"


@pytest.fixture(scope="module")
def facts() -> dict:
    return json.loads((BUNDLED / "digits.json").read_text())


@pytest.fixture(scope="module")
def index() -> dict:
    return json.loads((BUNDLED / "digits_index.json").read_text())


@pytest.fixture(scope="module")
def test_half() -> dict:
    with np.load(BUNDLED / "digits_test.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def test_weights_load_and_reach_the_recorded_accuracy(facts: dict, test_half: dict) -> None:
    net = digits()
    net.load_state_dict(load_file(BUNDLED / "digits.safetensors"))
    inputs = torch.from_numpy(test_half["images"]).unsqueeze(1).float() / 255
    with torch.no_grad():
        guesses = net.eval()((inputs - facts["mean"][0]) / facts["std"][0]).argmax(1).numpy()
    accuracy = 100 * (guesses == test_half["labels"]).mean()
    assert accuracy == pytest.approx(facts["accuracy"], abs=0.12)  # one image on the edge, on another machine
    assert accuracy > 97
    assert len(guesses) == facts["test_images"] == 898


def test_halves_are_disjoint_complete_and_stratified(index: dict) -> None:
    labels = pytest.importorskip("sklearn.datasets").load_digits().target
    train, test = index["train"], index["test"]
    assert not set(train) & set(test)
    assert sorted(train + test) == list(range(1797))
    difference = np.bincount(labels[train]) - np.bincount(labels[test])
    assert abs(difference).max() <= 1


def test_only_the_test_half_is_shipped(index: dict, test_half: dict) -> None:
    source = pytest.importorskip("sklearn.datasets").load_digits()
    assert np.array_equal(test_half["images"], np.rint(source.images[index["test"]] * 255 / 16).astype(np.uint8))
    assert np.array_equal(test_half["labels"], source.target[index["test"]])
    shipped = {path.name for path in BUNDLED.iterdir() if path.is_file()}
    expected = {"digits.json", "digits.safetensors", "digits_index.json", "digits_test.npz", "ATTRIBUTION.md"}
    assert shipped == expected


def test_the_script_still_makes_the_shipped_halves(index: dict) -> None:
    pytest.importorskip("sklearn")
    spec = spec_from_file_location("train_digits", TOOL)
    tool = module_from_spec(spec)
    spec.loader.exec_module(tool)
    labels = tool.load_digits().target
    assert tool.halves(labels) == (index["train"], index["test"])


def test_files_are_small() -> None:
    assert (BUNDLED / "digits.safetensors").stat().st_size < 500_000
    assert sum(path.stat().st_size for path in BUNDLED.iterdir() if path.is_file()) < 600_000


def test_running_statistics_are_usable(facts: dict) -> None:
    """Synthesis is held to them: none may be missing, and dead channels must be few."""
    norms = [m for m in digits().modules() if isinstance(m, torch.nn.BatchNorm2d)]
    weights = load_file(BUNDLED / "digits.safetensors")
    variances = [tensor for name, tensor in weights.items() if name.endswith("running_var")]
    assert len(variances) == len(norms) == 4
    assert all((variance > 1e-4).float().mean() > 0.9 for variance in variances)
