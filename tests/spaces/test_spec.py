"""Specs of spaces out of files: a wrong type or size is one line, before anything is built."""

from __future__ import annotations

import pytest
import torch

from phosphene import spaces
from phosphene.core import Architecture
from phosphene.errors import ArchitectureError
from phosphene.spaces import spec as specs

HUGE = 10**9
WRONG = [
    ("darts", {"channels": HUGE}, "channels should be a whole number up to"),
    ("darts", {"channels": 16.5}, "channels should be"),
    ("darts", {"channels": True}, "channels should be"),
    ("darts", {"cells": HUGE}, "cells should be"),
    ("darts", {"cells": 1000, "nodes": 100}, "cells times nodes"),
    ("darts", {"shape": [3, HUGE, 8]}, "shape should be"),
    ("darts", {"shape": "3x8x8"}, "shape should be"),
    ("darts", {"classes": HUGE}, "classes should be"),
    ("darts", {"classes": [10]}, "classes should be"),
    ("darts", {"auxiliary": "yes"}, "auxiliary should be true or false"),
    ("darts", {"drop_path": float("nan")}, "drop_path should be a finite number"),
    ("mbconv", {"first": 2**70}, "first should be"),
    ("shufflenet", {"depths": [1] * 10**6}, "depths should be"),
    ("macro", {"depths": [400, 400, 400]}, "together up to"),
    ("generator", {"scale": float("inf")}, "scale should be"),
    ("generator", {"latent": HUGE}, "latent should be"),
    ("width", {"scale": "wide"}, "scale should be"),
    ("fixed", {"model": 3}, "model should be a text"),
    ("fixed", {"model": "digits", "classes": None}, "cannot be made"),
    ("pruned", {"of": {"space": []}, "kept": {}}, "cannot be made|no space"),
    (
        "pruned",
        {"of": {"space": {"name": "fixed", "model": "digits"}}, "kept": {"0": {"outputs": [0.5]}}},
        "kept should",
    ),
    ("pruned", {"of": 3, "kept": {}}, "of should be an architecture"),
]


@pytest.mark.parametrize(("name", "settings", "says"), WRONG)
def test_settings_of_another_type_or_size(name, settings, says):
    with pytest.raises(ArchitectureError, match=says) as caught:
        spaces.space({"name": name, **settings})
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", [None, 3, [], "x" * 10_000, "a\nb"])
def test_names_of_no_space(name):
    with pytest.raises(ArchitectureError, match="no space is called") as caught:
        spaces.space({"name": name})
    assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value)


def test_a_pruned_network_of_pruned_networks_without_end():
    content: dict = {"name": "fixed", "model": "digits"}
    for _ in range(10_000):
        content = {"name": "pruned", "of": {"space": content, "choices": {}}, "kept": {}}
    with pytest.raises(ArchitectureError, match="recursion"):
        spaces.space(content)


def test_every_setting_of_every_space_is_known():
    import inspect

    for name, factory in spaces.SPACES.items():
        assert set(inspect.signature(factory).parameters) <= set(specs.SETTINGS), name


def test_a_network_larger_than_the_machine_is_refused_before_it_is_built(monkeypatch):
    small = spaces.architecture("darts-v2", channels=4, cells=3)
    monkeypatch.setattr(specs, "_memory", lambda: 1 << 14)
    with pytest.raises(ArchitectureError, match="the network's weights take"):
        spaces.network(small)
    monkeypatch.undo()
    wide = Architecture({**small.space, "channels": 1 << 16}, small.choices)
    with pytest.raises(ArchitectureError, match="lower its channels"):
        spaces.network(wide)


def test_looking_at_the_size_takes_nothing_from_the_random_state():
    design = spaces.architecture("darts-v2", channels=4, cells=3)
    torch.manual_seed(1)
    expected = spaces.space(design.space).build(design.choices).state_dict()
    torch.manual_seed(1)
    state = spaces.network(design).state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
