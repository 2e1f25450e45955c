"""Sources of trained networks, and what each source knows of their input.

Tried in this order: a network in memory, `torchvision:NAME[@WEIGHTS]`, `timm:NAME`, `digits`, a name of `models`,
`FILE.py:FACTORY`, a run folder of `phosphene train`.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired

import torch
from annotated_types import Ge, Gt, Le, Len
from torch import nn
from typing_extensions import TypedDict

from .. import models, plugins, spaces
from ..core import Architecture
from ..errors import PhospheneError, SettingsError, TeacherError, is_memory
from ..limits import CLASSES, SIDE
from ..models import weights, zoo
from ..storage import checksums, typed

__all__ = ["SOURCES", "Source", "find", "pretrained", "read_input", "read_network"]

SOURCES = "digits, torchvision:NAME[@WEIGHTS], timm:NAME, a name of phosphene.models, FILE.py:FACTORY, or a run folder"


class NetworkInput(TypedDict):
    """`network.json`: the input and the classes of a trained network."""

    shape: Annotated[list[Annotated[int, Ge(1), Le(SIDE)]], Len(3, 3)]
    classes: Annotated[int, Ge(1), Le(CLASSES)]
    class_names: NotRequired[list[str] | None]
    mean: list[float]
    std: list[Annotated[float, Gt(0)]]


@dataclass(frozen=True)
class Source:
    """A source of a network and its input, before flags; `build(classes, channels)` makes the network."""

    name: str
    build: Callable[[int | None, int | None], nn.Module]
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    class_names: tuple[str, ...] | None = None
    trained: bool = True
    resizable: bool = True  # `build` uses the number of classes


def find(teacher: nn.Module | str | Path, has_checkpoint: bool, channels: int | None) -> Source:
    """The source of `teacher`; with a checkpoint the source's own weights are not loaded."""
    if isinstance(teacher, nn.Module):
        return _in_memory(teacher)
    text = str(teacher)
    kind, _, rest = text.partition(":")
    if kind == "torchvision" and rest:
        return _torchvision(rest, has_checkpoint)
    if kind == "timm" and rest:
        return _timm(rest, has_checkpoint)
    if text == "digits":
        return _digits()
    if text in models.MODELS:
        return _named(text, channels)
    if ".py:" in text:
        return _python(text)
    if Path(text).is_dir():
        return _run_folder(Path(text))
    raise TeacherError(
        f"{text[:200]!r} names no trained network; give {SOURCES}. Models: {', '.join(sorted(models.MODELS))}"
    )


def _in_memory(net: nn.Module) -> Source:
    known = getattr(net, "pretrained_cfg", None) or {}  # timm's networks carry theirs
    size = tuple(known["input_size"][1:]) if "input_size" in known else None
    return Source(
        type(net).__name__,
        lambda classes, channels: copy.deepcopy(net),
        size,
        known.get("mean"),
        known.get("std"),
        resizable=False,
    )


def _named(name: str, channels: int | None) -> Source:
    size, default, mean, std = models.expects(name, channels or 3)

    def build(classes: int | None, planes: int | None) -> nn.Module:
        return models.build(name, classes or default, planes or 3)

    return Source(name, build, size, mean, std, trained=False)


def _digits() -> Source:
    """The bundled teacher; its normalisation is stored beside its weights."""
    folder = Path(__file__).parents[1] / "bundled"
    info = json.loads((folder / "digits.json").read_text())

    def build(classes: int | None, channels: int | None) -> nn.Module:
        net = models.build("digits", 10, 1)
        weights.fit(net, weights.read(folder / "digits.safetensors"), "digits")
        return net

    names = tuple(map(str, range(10)))
    return Source("digits", build, (8, 8), tuple(info["mean"]), tuple(info["std"]), names, resizable=False)


def _torchvision(text: str, has_checkpoint: bool) -> Source:
    name, _, chosen = text.partition("@")
    designs = zoo.package("torchvision").models
    try:
        published = designs.get_model_weights(name)
        weights_of = published[chosen] if chosen else published.DEFAULT
    except ValueError as error:
        raise TeacherError(f"torchvision:{name}: no such network; `torchvision.models.list_models()`") from error
    except (KeyError, AttributeError) as error:
        there = ", ".join(published.__members__)
        raise TeacherError(f"torchvision:{text}: no weights of that name; there are: {there}") from error

    def build(classes: int | None, channels: int | None) -> nn.Module:
        if channels not in (None, 3):
            raise TeacherError(f"--channels {channels}: torchvision's networks take 3")
        if has_checkpoint:
            bare: nn.Module = designs.get_model(name, weights=None, **({"num_classes": classes} if classes else {}))
            return bare
        return _fetch(f"torchvision:{name}", lambda: designs.get_model(name, weights=weights_of))

    transform = weights_of.transforms()
    names = tuple(weights_of.meta.get("categories", ())) or None
    side = transform.crop_size[0]
    return Source(f"torchvision:{text}", build, (side, side), tuple(transform.mean), tuple(transform.std), names)


def _timm(name: str, has_checkpoint: bool) -> Source:
    timm = zoo.package("timm")
    if not timm.is_model(name):
        raise TeacherError(f"timm:{name}: no such network; `timm.list_models()` names them")

    def build(classes: int | None, channels: int | None) -> nn.Module:
        chosen = {"num_classes": classes, "in_chans": channels}
        options: dict[str, Any] = {key: value for key, value in chosen.items() if value is not None}
        return _fetch(f"timm:{name}", lambda: timm.create_model(name, pretrained=not has_checkpoint, **options))

    known: Any = timm.get_pretrained_cfg(name)
    height, width = known.input_size[1:]
    return Source(f"timm:{name}", build, (height, width), tuple(known.mean), tuple(known.std))


def pretrained(model: str, chosen: str = "") -> nn.Module:
    """torchvision's or timm's own trained network of this name: the weights called `chosen`, or their default.

    Raises:
        TeacherError: `model` is not of theirs, there are no such weights, or they cannot be fetched.
    """
    if not zoo.is_zoo(model):
        raise TeacherError(f"{model} comes without weights; --init pretrained is for torchvision:NAME and timm:NAME")
    text = model if not chosen else f"{model}@{chosen}" if model.startswith("torchvision:") else f"{model}.{chosen}"
    with torch.random.fork_rng(devices=[]):
        return find(text, False, None).build(None, None)


def _fetch(name: str, make: Callable[[], nn.Module]) -> nn.Module:
    """`make()`, which may download: any error of a hub becomes a `TeacherError`."""
    try:
        return make()
    except PhospheneError:
        raise
    except Exception as error:  # hubs raise a dozen unrelated types
        if is_memory(error):
            raise
        first = (str(error).splitlines() or [""])[0]
        cause = f"{type(error).__name__}: {first}"
        remedy = "give --checkpoint FILE, or to train --init FILE"
        raise TeacherError(f"{name}: no weights could be fetched ({cause}); {remedy}") from error


def _python(text: str) -> Source:
    """`FILE.py:FACTORY`: executes the file; the factory may take `classes` and `channels`."""
    file, _, attribute = text.rpartition(":")
    path = Path(file)
    try:
        module = plugins.execute(path, "phosphene_teacher")
    except SettingsError as error:
        raise TeacherError(f"{text}: {error}") from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise TeacherError(f"{path} defines no function {attribute!r}")
    taken = _parameters(factory)

    def build(classes: int | None, channels: int | None) -> nn.Module:
        chosen = {"classes": classes, "channels": channels}
        with plugins.foreign(text, TeacherError):
            net = factory(**{k: v for k, v in chosen.items() if k in taken and v is not None})
        if not isinstance(net, nn.Module):
            raise TeacherError(f"{text} returns a {type(net).__name__}, not a torch.nn.Module")
        return net

    return Source(text, build, resizable="classes" in taken)


def _parameters(factory: Callable[..., object]) -> frozenset[str]:
    """Names of the arguments that a factory takes; none where it cannot tell, as some classes written in C."""
    try:
        return frozenset(inspect.signature(factory).parameters)
    except (TypeError, ValueError):
        return frozenset()


def _run_folder(folder: Path) -> Source:
    net, info = read_network(folder)
    names = tuple(info["class_names"]) if info.get("class_names") else None
    shape = info["shape"]
    return Source(
        folder.resolve().name,
        lambda classes, channels: net,
        (shape[1], shape[2]),
        tuple(info["mean"]),
        tuple(info["std"]),
        names,
        resizable=False,
    )


def read_network(folder: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a run folder of `phosphene train`, and its network.json: shape, classes, class_names, mean, std.

    Raises:
        TeacherError: the folder has no finished network, or its files do not fit each other.
    """
    folder = Path(folder)
    absent = [name for name in ("arch.json", "weights.safetensors", "network.json") if not (folder / name).is_file()]
    if absent:
        raise TeacherError(f"{folder} has no {', '.join(absent)}: not a finished run of `phosphene train`")
    info: dict[str, Any] = dict(read_input(folder))
    architecture = spaces.architecture(Architecture.load(folder / "arch.json"))
    with torch.random.fork_rng(devices=[]):
        net = spaces.network(architecture)
    weights.fit(net, weights.read(folder / "weights.safetensors"), str(folder / "weights.safetensors"))
    info |= {key: tuple(info[key]) for key in ("shape", "mean", "std")}
    return net.eval(), info


def read_input(folder: Path) -> NetworkInput:
    """The network.json of a run folder, as it is in the file; raises `TeacherError` where it is damaged."""
    path, remedy = folder / "network.json", "train again"
    checksums.verify(folder, path.name, error=TeacherError, remedy=remedy)
    info = typed.read(path, NetworkInput, TeacherError, remedy)
    channels, names = info["shape"][0], info.get("class_names")
    for key, values, wanted in (
        ("mean", info["mean"], channels),
        ("std", info["std"], channels),
        ("class_names", names, info["classes"]),
    ):
        if values is not None and len(values) != wanted:
            raise TeacherError(f"{path}: {key} has {len(values)} entries, where {wanted} are needed; {remedy}")
    return info
