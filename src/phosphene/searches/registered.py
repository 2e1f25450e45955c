"""The command of a registered search: the flags that every search has, and those of its own (docs/extending.md).

The search itself is a `core.Search`; here it gets a run folder, a budget, two spaces and the files of the others.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from .. import plugins, settings
from ..core import Architecture, SearchSpace
from ..data.dataset import ImageDataset
from ..errors import SettingsError, shown
from ..runtime.machine import machine as decide_machine
from ..training.recipes import Crop
from .outcome import SearchResult, search_images
from .settings import Data, SearchSettings, augmentation, open_data
from .sizes import Sizes, pair, settled


class Registered(Sizes, Crop, SearchSettings):
    """Search space, supernet and final network."""


def command(name: str) -> Callable[..., SearchResult]:
    """The command of the search that was registered under this name.

    Raises:
        SettingsError: a setting of its own is called like one that every search has.
    """
    algorithm = plugins.SEARCHES[name]
    with plugins.foreign(f"the signature of search {name}"):
        types = settings.hints(algorithm)
    own = {p.name: p for p in inspect.signature(algorithm).parameters.values() if p.kind is p.KEYWORD_ONLY}
    shared = {"data", *(setting.name for setting in settings.of_class(Registered))}
    if taken := sorted(own.keys() & shared):
        raise SettingsError(f"register_search({name!r}): every search has a setting {taken[0]!r}; rename yours")
    defaults = {key: p.default for key, p in own.items() if p.default is not p.empty}

    def search(data: Any = None, *, settings: Registered, **values: Any) -> SearchResult:
        return _search(name, data, settings, {**defaults, **values})

    search.__name__ = search.__qualname__ = name
    search.__doc__ = _documented(name, inspect.getdoc(algorithm) or f"Search by {algorithm.__name__}.")
    own_types = {key: hint for key, hint in types.items() if key in own}
    search.__annotations__ = {"data": Data, "settings": Registered, **own_types}
    first, last, *_ = inspect.signature(search).parameters.values()
    search.__signature__ = inspect.Signature([first, last, *own.values()])  # type: ignore[attr-defined]
    return settings.command(search)


def _documented(name: str, text: str) -> str:
    """The search's docstring, with an example where it has none."""
    example = f"Example:\n    phosphene search {name} --data d --space darts --out found"
    return text if "Example:" in text else f"{text}\n\n{example}"


def _search(
    name: str, data: ImageDataset | str | Path | None, settings: Registered, own: dict[str, Any]
) -> SearchResult:
    """`own`: the values of the search's own keyword arguments."""
    images, settings = open_data(data), settled(settings)
    augment = augmentation(images, settings.crop)
    machine = decide_machine(settings.device, settings.precision)
    identity = settings.identity(*(("network",) if settings.network is None else ())) | own
    algorithm = partial(_checked, name, own)
    return search_images(name, algorithm, images, augment, settings, identity, pair(settings, images, augment), machine)


def _checked(name: str, own: dict[str, Any], space: SearchSpace, *given: Any, **named: Any) -> Architecture:
    """The architecture that the search returns; raises `SettingsError` where it fails, or returns anything else."""
    with plugins.foreign(f"search {name}"):
        found: Architecture = plugins.SEARCHES[name](space, *given, **named, **own)
    choices = getattr(found, "choices", None)
    if not isinstance(choices, Mapping):
        raise SettingsError(f"search {name} returns {shown(found)}, not an Architecture")
    for decision in space.decisions:
        choice = choices.get(decision.name)
        if not isinstance(choice, int) or not 0 <= choice < len(decision.options):
            count = f"0 to {len(decision.options) - 1}"
            raise SettingsError(f"search {name} returns {shown(choice)} for {decision.name}, which should be {count}")
    return found
