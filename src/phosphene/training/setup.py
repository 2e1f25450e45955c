"""The setup of a training run: the recipe and the architecture for the data, and the folder of the trained network."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import spaces
from ..core import Architecture
from ..data import targets
from ..data.dataset import ImageDataset
from ..errors import DatasetError, NotFinite, SettingsError
from ..runtime.run import Run
from ..storage import checksums, tensors, typed
from ..teachers import teacher as teachers
from ..teachers.teacher import Teacher
from .recipes import TrainingRecipe

__all__ = ["Trained", "build", "check", "check_output", "design", "find", "finish", "input_shape", "on_grid", "settle"]
__all__ += ["write"]


@dataclass(frozen=True)
class Trained:
    """A trained network in evaluation mode, and its input: `info` is network.json."""

    net: nn.Module
    info: dict[str, Any]
    path: Path
    result: dict[str, Any]
    architecture: Architecture | None = None

    def summary(self) -> dict[str, Any]:
        """What the command prints."""
        return {"run": str(self.path), **self.result}


def find(arch: Architecture | nn.Module | str | Path) -> Architecture | nn.Module:
    """An architecture or a network as it is, or the architecture that a text names."""
    return arch if isinstance(arch, Architecture | nn.Module) else spaces.architecture(str(arch))


def settle(
    recipe: TrainingRecipe, explicit: Collection[str], arch: Architecture | nn.Module, data: ImageDataset, soft: bool
) -> TrainingRecipe:
    """The recipe completed by the architecture and the data; `explicit`: the user's settings, which stay."""
    if isinstance(arch, nn.Module):
        able = {"auxiliary"} if getattr(arch, "auxiliary", None) is not None else set()
        able |= {"drop_path"} if hasattr(arch, "set_drop_path") else set()
    else:
        able = {"channels", "cells", "auxiliary", "drop_path"} & set(arch.space)
    for key, nothing in (("channels", None), ("cells", None), ("auxiliary", 0.0), ("drop_path", 0.0)):
        if key not in able:
            if key in explicit and getattr(recipe, key):
                raise SettingsError(f"--{key.replace('_', '-')} is for cell architectures; leave it out here")
            recipe = replace(recipe, **{key: nothing})  # type: ignore[arg-type]
    if not soft:
        if "temperature" in explicit and recipe.temperature != 1:
            raise SettingsError(
                f"--temperature {recipe.temperature}: {data.card.name} has labels, not logits; leave it out"
            )
        recipe = replace(recipe, temperature=1.0)
    return _views(recipe, explicit, data)


def _views(recipe: TrainingRecipe, explicit: Collection[str], data: ImageDataset) -> TrainingRecipe:
    """The recipe with crop, flip and padding for these images."""
    height, width = data.card.shape[1:]
    if recipe.crop is not None and recipe.crop > min(height, width) + 2 * (recipe.pad or 0):
        if "crop" in explicit:
            raise SettingsError(f"--crop {recipe.crop} is larger than the images ({height}x{width}); lower it")
        recipe = replace(recipe, crop=None)
    recipe = replace(recipe, crop=recipe.crop or data.region)
    if recipe.flip is None:
        recipe = replace(recipe, flip=data.card.shape[0] == 3)  # grey images are digits and X-rays: they have a side
    if recipe.pad is None:
        full = recipe.crop is None or recipe.crop >= min(height, width)
        recipe = replace(recipe, pad=min(height, width) // 8 if full else 0)
    return recipe


def on_grid(recipe: TrainingRecipe, explicit: Collection[str], data: ImageDataset) -> TrainingRecipe:
    """The recipe with crops, padding and flips of the data's grid of crops.

    Raises:
        DatasetError: the data has no soft labels per crop.
        SettingsError: a flag contradicts the grid.
    """
    grid = data.grid
    if grid is None:
        raise DatasetError(f"{data.card.name} has no soft labels per crop; see `phosphene dataset label --crops`")
    wanted = {"crop": grid.height if grid.height == grid.width else None, "pad": grid.pad, "flip": grid.mirror}
    for key, value in wanted.items():
        if key in explicit and getattr(recipe, key) != value:
            raise SettingsError(
                f"--{key} {getattr(recipe, key)}: the crops of {data.card.name} have {value}; leave it out"
            )
    return replace(recipe, **wanted)  # type: ignore[arg-type]


def input_shape(data: ImageDataset, recipe: TrainingRecipe) -> tuple[int, int, int]:
    """The network's input: the crop, where there is one, else the image."""
    channels, height, width = data.card.shape
    return channels, recipe.crop or height, recipe.crop or width


def check(
    data: ImageDataset, shape: tuple[int, ...], teacher: Teacher | None, recipe: TrainingRecipe, ranks: int
) -> None:
    """Validate data, teacher and batch before any compute."""
    if recipe.batch < ranks:
        raise SettingsError(f"--batch {recipe.batch} is below the number of {ranks} processes; raise it")
    if teacher is None:
        targets.check(data)
    elif (teacher.shape, teacher.classes) != (shape, data.card.classes):
        theirs = f"{'x'.join(map(str, teacher.shape))} and {teacher.classes} classes"
        ours = f"{'x'.join(map(str, shape))} and {data.card.classes}"
        raise DatasetError(f"--teacher {teacher.name} wants {theirs}, {data.card.name} has {ours}; see --crop")


def check_output(net: nn.Module, shape: tuple[int, ...], data: ImageDataset) -> None:
    """Refuse a network whose outputs are not the data's classes."""
    outputs = teachers.outputs(net.eval(), shape, "the architecture")
    if not net(torch.zeros(1, *shape)).requires_grad:
        raise SettingsError("the architecture has no weights that can be trained; give another one")
    if outputs != data.card.classes:
        raise DatasetError(f"the architecture has {outputs} outputs, {data.card.name} has {data.card.classes} classes")


def design(arch: Architecture, classes: int, shape: tuple[int, ...], recipe: TrainingRecipe) -> Architecture:
    """The architecture at this input, these classes and this size."""
    head = {"auxiliary": recipe.auxiliary > 0, "drop_path": 0.0} if "auxiliary" in arch.space else {}
    return spaces.architecture(arch, classes=classes, shape=shape, channels=recipe.channels, cells=recipe.cells, **head)


def build(arch: Architecture | nn.Module, planned: Architecture | None) -> nn.Module:
    """The network at the start of training, initialized from torch's global random state."""
    if isinstance(arch, nn.Module):
        return copy.deepcopy(arch)
    assert planned is not None
    return spaces.network(planned)


def finish(net: nn.Module, planned: Architecture | None) -> tuple[nn.Module, Architecture | None]:
    """The trained network on the CPU, without auxiliary head and drop-path."""
    if planned is None:
        return net.to("cpu", memory_format=torch.contiguous_format), None  # type: ignore[call-overload]
    bare = spaces.architecture(planned, auxiliary=False if "auxiliary" in planned.space else None)
    with torch.random.fork_rng(devices=[]):
        final = spaces.space(bare.space).build(bare.choices)
    trained = net.state_dict()
    final.load_state_dict({name: trained[name] for name in final.state_dict()})
    return final, bare


@torch.no_grad()
def _check_finite(net: nn.Module, shape: tuple[int, ...]) -> None:
    logits = net.eval()(torch.zeros(1, *shape))
    if not bool(logits.isfinite().all()):
        raise NotFinite("the trained network's logits are NaN or infinite; lower --lr, and name another --out")


def write(
    run: Run, net: nn.Module, planned: Architecture | None, data: ImageDataset, shape: tuple[int, ...]
) -> dict[str, Any]:
    """arch.json, weights.safetensors, and network.json, which is returned; result.json comes after them.

    Raises `NotFinite` where the network has lost its numbers: weights as large as float32 can hold are still finite.
    """
    _check_finite(net, shape)
    mean, std = ([round(float(x), 7) for x in part] for part in data.normalisation)
    names = list(data.card.class_names) if data.card.class_names else None
    info = {"shape": list(shape), "classes": data.card.classes, "class_names": names, "mean": mean, "std": std}
    state = net.state_dict()
    run.disk(sum(t.numel() * t.element_size() for t in state.values()))
    if run.machine.rank > 0:
        return info
    if planned is not None:
        planned.save(run.path / "arch.json")
    typed.write_json(run.path / "network.json", info)
    checksums.record(run.path, "network.json")
    tensors.save(run.path / "weights.safetensors", state)
    return info
