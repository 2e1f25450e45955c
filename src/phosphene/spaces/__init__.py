"""Search spaces: tables of spaces and of published architectures, and the lookup of architectures by name or file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from .. import plugins
from ..core import Architecture, SearchSpace
from ..errors import ArchitectureError, SettingsError, shown
from ..models import MODELS
from ..models.zoo import is_zoo
from . import nasbench201
from .blocks import chain, macro, mbconv, shufflenet
from .darts import genotype
from .darts.space import DartsSpace
from .fixed import FixedSpace, PrunedSpace
from .generator import space as generator
from .spec import check, check_size
from .width import space as width

__all__ = ["NAMED", "SPACES", "architecture", "known", "network", "published", "space"]

SPACES: dict[str, Callable[..., SearchSpace]] = {
    "darts": DartsSpace,
    "fixed": FixedSpace,
    "generator": generator.GeneratorSpace,
    "macro": macro.MacroSpace,
    "mbconv": mbconv.MBConvSpace,
    "nasbench201": nasbench201.NasBench201Space,
    "pruned": PrunedSpace,
    "shufflenet": shufflenet.ShuffleNetSpace,
    "width": width.WidthSpace,
}
"""name -> space; the other keys of a spec are the arguments of its constructor"""


def known() -> dict[str, Callable[..., SearchSpace]]:
    """Every space by name: `SPACES` and the registered ones (docs/extending.md).

    Raises:
        SettingsError: a name is taken, or the code that registers spaces fails.
    """
    plugins.load()
    if taken := sorted(SPACES.keys() & plugins.SPACES.keys()):
        raise SettingsError(f"register_space({taken[0]!r}): the package has a space of this name; take another name")
    return {**SPACES, **plugins.SPACES}


def space(spec: dict[str, Any]) -> SearchSpace:
    """The space of a spec, as `Architecture.space` keeps it.

    Raises:
        ArchitectureError: the spec names no space, or has settings that its space does not take.
    """
    available = known()
    settings = dict(spec)
    name = settings.pop("name", None)
    if not isinstance(name, str) or name not in available:
        own = f"; one of your own is registered by the file that {plugins.CODE} names"
        raise ArchitectureError(f"no space is called {shown(name)}; there are: {', '.join(available)}{own}")
    takes = inspect.signature(available[name]).parameters
    if extra := sorted(settings.keys() - takes):
        raise ArchitectureError(f"a {name} space has no setting {shown(extra[0])}; it has: {', '.join(takes)}")
    if name in SPACES:
        check(name, settings)
    with plugins.foreign(f"a {name} space", ArchitectureError):
        try:
            built = available[name](**settings)
            made = built.spec.get("name")
        except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError, RecursionError) as error:
            why = shown(error, str)
            raise ArchitectureError(f"a {name} space cannot be made of {shown(settings)}: {why}") from error
    if made != name:
        raise ArchitectureError(f"the spec of a {name} space is named {made!r}; call it {name!r}")
    return built


def network(architecture: Architecture) -> nn.Module:
    """The network of an architecture with fresh weights, drawn from torch's global random state.

    Raises:
        ArchitectureError: the architecture does not fit its space, or the machine's memory.
    """
    built = space(architecture.space)
    check_size(lambda: built.build(architecture.choices))
    return built.build(architecture.choices)


def published(stem: str) -> dict[str, int]:
    """Channels and cells of the published final networks of the DARTS space (DARTS §3.2-3.3)."""
    return {"channels": 48, "cells": 14} if stem == "imagenet" else {"channels": 36, "cells": 20}


def _darts(text: str, *, classes: int, shape: Sequence[int], **settings: Any) -> Architecture:
    """The final network of a genotype; defaults are the published channels and cells."""
    parsed = genotype.parse(text)
    stem = DartsSpace(shape=shape, stem=settings.pop("stem", None) or "auto").spec["stem"]
    fixed = {"name": "darts", "nodes": parsed.nodes, "stem": stem, "shape": shape, "classes": classes}
    darts: Any = space({**published(stem), **settings, **fixed})
    return Architecture(darts.spec, darts.choices(parsed))


def _written(name: str, text: str, **settings: Any) -> Architecture:
    """The architecture of a text in the notation of the space `name`; `settings` override the space's defaults."""
    own: dict[str, Any] = dict(mbconv.widths(text)) if name == "mbconv" else {}
    own |= {"network": width.network_of(text)} if name == "width" else {}
    owner: Any = space({"name": name, **own, **settings})
    return Architecture(owner.spec, owner.choices(text))


NOTATIONS = {
    "generator": generator.GENOTYPE,
    "macro": macro.CODE,
    "mbconv": mbconv.BLOCKS,
    "nasbench201": nasbench201.CELL,
    "shufflenet": shufflenet.LIST,
    "width": width.LIST,
}
"""space -> pattern of its architectures' text form; genotypes begin with "Genotype(" """

NAMED: dict[str, Callable[..., Architecture]] = {
    "darts-v1": partial(_darts, genotype.PUBLISHED["darts-v1"]),
    "darts-v2": partial(_darts, genotype.PUBLISHED["darts-v2"]),
    "sgas-cri1": partial(_darts, genotype.PUBLISHED["sgas-cri1"], auxiliary_norm=True),
    **{name: partial(_written, "generator", text) for name, text in generator.PUBLISHED.items()},
    **{name: partial(_written, "generator", name, design=name) for name in generator.DESIGNED},
    **{name: partial(_written, "macro", text) for name, text in macro.PUBLISHED.items()},
    **{name: partial(_written, "mbconv", text, **ends) for name, (text, ends) in mbconv.PUBLISHED.items()},
    **{name: partial(_written, "nasbench201", text) for name, text in nasbench201.PUBLISHED.items()},
    **{name: partial(_written, "shufflenet", text) for name, text in shufflenet.PUBLISHED.items()},
    **{name: partial(_written, "width", text) for name, text in width.PUBLISHED.items()},
}
"""published name -> factory(classes=, shape=, **settings of the space)"""


def architecture(
    text: str | Path | Architecture, *, classes: int | None = None, shape: Sequence[int] | None = None, **settings: Any
) -> Architecture:
    """The architecture of a published name, a model, an arch.json, a run folder, or a text that fits `NOTATIONS`.

    A model is one of `models.MODELS`, ``torchvision:NAME`` or ``timm:NAME``.

    `classes`, `shape` and the settings of the space that are not None replace those of a file; a name has 10 classes,
    inputs of (3, 32, 32) and its published channels and cells where they are None.

    Raises:
        ArchitectureError: there is no such architecture, or it does not take these settings.
    """
    settings = {key: value for key, value in settings.items() if value is not None}
    if isinstance(text, Architecture):
        return _changed(text, classes, shape, settings)
    name = str(text).strip()
    here: dict[str, Any] = {"classes": 10 if classes is None else classes, "shape": tuple(shape or (3, 32, 32))}
    published_name = name.lower().replace("_", "-")  # DARTS_V2 as the authors write it
    if published_name in NAMED:
        return NAMED[published_name](**here, **settings)
    if name.startswith("Genotype("):
        return _darts(name, **here, **settings)
    known()  # registers the notations of user-defined spaces
    for kind, notation in {**NOTATIONS, **plugins.NOTATIONS}.items():
        if notation.fullmatch(name):
            return _written(kind, name, **here, **settings)
    if name in MODELS or is_zoo(name):
        return Architecture(space({"name": "fixed", "model": name, **here, **settings}).spec, {})
    path = Path(name)
    try:
        path = path / "arch.json" if path.is_dir() else path
        there = path.is_file()
    except OSError:  # longer than a file's name can be
        there = False
    if not there:
        names = ", ".join([*NAMED, *MODELS, "torchvision:NAME", "timm:NAME"])
        raise ArchitectureError(f"{name[:80]!r} is no file, no run folder with an arch.json, no name; names: {names}")
    return _changed(Architecture.load(path), classes, shape, settings)


def _changed(
    architecture: Architecture, classes: int | None, shape: Sequence[int] | None, settings: dict[str, Any]
) -> Architecture:
    """The same choices in a space with other settings; checked without building a network."""
    spec = {**architecture.space, **settings}
    if classes is not None:
        spec["classes"] = classes
    if shape is not None:
        spec["shape"] = list(shape)
        if "stem" not in settings and "stem" in spec and list(shape) != list(architecture.space.get("shape", shape)):
            spec["stem"] = "auto"
    changed = space(spec)
    if not isinstance(changed, FixedSpace):
        chain.check(spec["name"], changed.decisions, architecture.choices)
    return Architecture(changed.spec, architecture.choices)
