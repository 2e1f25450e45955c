"""`phosphene proxies`: score architectures without training them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

from .. import spaces
from ..core import Batch
from ..data.dataset import ImageDataset
from ..drawing.figure_style import write_table
from ..errors import SettingsError
from ..losses import OBJECTIVES
from ..reporting.arch_show import title
from ..runtime.machine import machine as decide_machine
from ..settings import CellSizes, Device, Seed, check_file, command
from . import PROXIES, SIZES, check, score
from .inputs import LabelTeacher, ProxyImages, draw, expanded, prepared

USUAL = 64
"""images, as proxies are usually computed on"""


class ProxySettings(CellSizes, ProxyImages, LabelTeacher, Seed, Device):
    data: Annotated[ImageDataset | str | Path | None, "data set; the sizes need none"] = None
    proxy: Annotated[list[str] | None, lambda: PROXIES, "proxy or size to compute; repeatable; default: all"] = None
    out: Annotated[Path | None, "CSV file for the table"] = None

    def batch(self, data: ImageDataset) -> Batch:
        """The images that all networks are scored on."""
        images = min(USUAL, len(data)) if self.images is None else self.images
        return draw(data, images, self.seed, decide_machine(self.device, "fp32"), self.loaded())


@command
def proxies(
    archs: Annotated[list[str], "names, texts, arch.json files or run folders; a .txt file has one a line"],
    settings: ProxySettings,
) -> dict[str, Any]:
    """Score architectures without training: in seconds each, on any data set, higher is better.

    No proxy is better than its agreement with the truth: `phosphene study consistency` measures that, and size alone
    (params, macs, layers, depth) is hard to beat. Computed in float32 or float64 always.

    Example:
        phosphene proxies macro-best 00000000 --data d --proxy naswot --proxy macs
        phosphene proxies codes.txt --proxy params --proxy depth --out sizes.csv

    Raises:
        SettingsError: there is no such proxy, or the data are missing or too few.
        ArchitectureError: there is no such architecture.
        DatasetError: the data set cannot be read or has no labels.
    """
    if settings.out is not None:
        check_file("--out", settings.out, (".csv", ".txt"))
    names = list(dict.fromkeys(settings.proxy or (PROXIES if settings.data is not None else SIZES)))
    for name in names:
        check(name)
    batch, objective = None, OBJECTIVES["single"]
    size: dict[str, Any] = {"channels": settings.channels, "cells": settings.cells}
    if settings.data is not None:
        data = ImageDataset.open(settings.data)
        batch, objective = settings.batch(data), OBJECTIVES[data.card.task]
        size |= {"classes": data.card.classes, "shape": tuple(batch.inputs.shape[1:])}
    elif missing := [name for name in names if name not in SIZES]:
        raise SettingsError(f"--proxy {missing[0]} needs --data; without it there are {', '.join(SIZES)}")
    scores: dict[str, dict[str, float]] = {}
    for text in expanded(archs):
        architecture = prepared(text, **size)
        space, choices = spaces.space(architecture.space), architecture.choices
        each = {name: score(name, space, choices, batch, seed=settings.seed, objective=objective) for name in names}
        own = {name: int(value) if name in SIZES else value for name, value in each.items()}
        scores[_label(text, scores)] = own
    if settings.out is not None:
        _write(settings.out, names, scores)
    return {"proxies": scores}


def _label(text: str, taken: Collection[str]) -> str:
    """The label of an architecture: of a file or a folder its own name, else the text."""
    name = text if len(text) > 60 or "|" in text or not Path(text).exists() else title(text)
    return text if name in taken else name


def _write(path: Path, names: list[str], scores: dict[str, dict[str, float]]) -> None:
    write_table(path, ["architecture", *names], ([text, *each.values()] for text, each in scores.items()))
