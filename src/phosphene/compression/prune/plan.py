"""Settings of `phosphene prune` by method, and bounds: shares of the original's costs, and what exceeds them.

Pruning          bounds, images, training of the pruned network
├─ Criterion     channels by their weights: magnitude (Li et al. 2017), group-norm (Fang et al. 2023)
└─ Uniform       one share of the channels everywhere
   └─ MetaPruning    widths searched by evolution on a supernet (Liu et al. 2019)
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import torch
from torch import nn
from typing_extensions import TypedDict

from ...core import Architecture
from ...costs import budget as costs
from ...costs import latency
from ...costs.bounds import Timing
from ...costs.budget import Budget
from ...data.dataset import ImageDataset
from ...errors import BudgetError, DatasetError, SettingsError
from ...runtime.machine import Machine
from ...runtime.parallel import Jobs
from ...runtime.run import Run
from ...searches.evolution import Population
from ...searches.spos import PathSampling
from ...searches.supernet.score_cache import Calibrated, Ranked, cropped
from ...settings import OUTSIDE, Ge, Gt, RunSettings, Settings
from ...storage import typed
from ...storage.typed import write_json
from ...teachers.teacher import Teacher, TeacherInput, TestData
from ...training.recipes import Length, Mixup, Sgd, Temperature

SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")
Scope = Literal["layer", "network"]
TIMES = "latency.json"  # of both networks, beside the result


class SizeBounds(Settings, heading="Bounds of the compressed network"):
    macs: Annotated[str | None, "multiply-accumulates: at most 50% of the original's, 48%..50%, or 20M"] = None
    params: Annotated[str | None, "parameters: at most 50% of the original's, 48%..50%, or 2M"] = None
    latency: Annotated[str | None, "measured milliseconds of one image: at most 60% of the original's, or 5"] = None

    @property
    def texts(self) -> dict[str, str | None]:
        """The bounds by the names of `costs.LIMITS`."""
        return {"params": self.params, "macs": self.macs, "latency": self.latency}

    def absolute(self, original: dict[str, float]) -> dict[str, str | None]:
        """The bounds as numbers; raises `SettingsError` where there is none or one cannot be read."""
        numbers = {name: absolute(text, original.get(name, 0), f"--{name}") for name, text in self.texts.items()}
        if Budget.parse(**numbers).empty:
            raise SettingsError(
                "how small is missing: give --macs 50%, --params 40% or --latency 60%, or numbers like 20M"
            )
        return numbers

    def check_readable(self) -> None:
        """Raise `SettingsError` where there is no bound or one cannot be read, before anything is loaded."""
        self.absolute({"params": 10**9, "macs": 10**9, "latency": 1.0})


class Recovery(Length, Sgd, Mixup, Temperature, heading="Training of the pruned network"):
    batch: int = 256
    lr: Annotated[float | None, Gt(0), "highest learning rate; default 0.1, with kept weights 0.02"] = None  # type: ignore[assignment]
    weight_decay: float = 1e-4
    mixup: float | None = None  # type: ignore[assignment]  # unset: as `phosphene train` has it
    temperature: float | None = None  # type: ignore[assignment]  # likewise, also in the search

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is not None and self.steps is not None:
            raise SettingsError("--epochs and --steps are two ways to say one thing; give one of them")


class Images(Settings, heading="Images"):
    data: Annotated[ImageDataset | str | Path | None, OUTSIDE, "data set to compress with, e.g. synthesized"] = None


class Pruning(Images, SizeBounds, Timing, Recovery, TestData, TeacherInput, RunSettings, heading="Images"):
    rows: Annotated[Literal["auto", "stored", "teacher"], "soft labels; auto: stored ones, else the teacher's"] = "auto"


class Criterion(Pruning, heading="Channels"):
    scope: Annotated[Scope, "one share of every layer (layer), or all channels compared (network)"] = "layer"
    multiple: Annotated[int, Ge(1), "channels are kept in multiples of this; int8 is faster with 4 or 8"] = 1
    keep: Annotated[list[str] | None, "name of a layer that keeps all its outputs; repeatable"] = None


class Uniform(Pruning, heading="Widths"):
    network: Annotated[str | None, "network whose widths are chosen; default: the teacher's, if known"] = None


class Search(Population, Ranked, Calibrated, PathSampling, Jobs, heading="Search of the widths: a supernet, evolution"):
    supernet_epochs: Annotated[int, Ge(1), "epochs of the supernet"] = 32
    supernet_steps: Annotated[int | None, Ge(1), "steps of the supernet, instead of --supernet-epochs"] = None
    supernet_batch: Annotated[int, Ge(1), "images per step of the supernet"] = 256
    supernet_lr: Annotated[float, Gt(0), "learning rate of the supernet at the start, falling to 0"] = 0.1
    supernet_weight_decay: Annotated[float, Ge(0), "weight decay of the supernet"] = 1e-4
    held_out: int = 32
    population: int | None = 50


class MetaPruning(Search, Uniform):
    """MetaPruning."""


# -- the original network ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Original:
    """The original network, what it costs, the images, and the teacher of each batch (None: stored soft labels)."""

    teacher: Teacher
    design: Architecture | None
    images: ImageDataset
    online: Teacher | None
    figures: dict[str, float]

    @property
    def crop(self) -> int | None:
        """The side of the region that the networks see of larger images."""
        return cropped(self.images, self.teacher.shape)

    def check(self) -> None:
        """Raise `DatasetError` unless the images fit the network."""
        card, (channels, height, width) = self.images.card, self.teacher.shape
        inside = height == width <= min(card.shape[1:]) or tuple(card.shape[1:]) == (height, width)
        if card.shape[0] != channels or not inside or card.classes != self.teacher.classes:
            theirs = f"{'x'.join(map(str, self.teacher.shape))} and {self.teacher.classes} classes"
            ours = f"{'x'.join(map(str, card.shape))} and {card.classes}"
            raise DatasetError(f"{self.teacher.name} takes {theirs}, data set {card.name} has {ours}; give data for it")


def absolute(text: str | None, original: float, flag: str) -> str | None:
    """A bound with every share (50%) turned into a number: "48%..50%" of 40M is "19200000..20000000".

    Raises:
        SettingsError: a share is above 100.
    """
    if text is None:
        return None

    def number(match: re.Match[str]) -> str:
        share = float(match[1])
        if not 0 < share <= 100:
            raise SettingsError(f"{flag} {text}: a share is above 0 and at most 100% of the original network")
        value = original * share / 100
        return str(int(value)) if isinstance(original, int) else f"{value:.6f}"

    return SHARE.sub(number, str(text))


def hard(budget: Budget) -> None:
    """Raise `SettingsError` unless there is an upper bound to arrive at."""
    windows = [window for window in (budget.params, budget.macs, budget.latency) if window]
    if budget.soft or not any(window[1] < float("inf") for window in windows):
        raise SettingsError("this method goes down to a bound: give --macs 50% or 48%..50%; ~ is for metapruning")


def outside(budget: Budget, figures: dict[str, float]) -> tuple[float, str]:
    """(how far the worst figure is above its bound, as a share; the first bound whose lower end is missed, or "")."""
    windows = {name: getattr(budget, name) for name in costs.LIMITS if getattr(budget, name) is not None}
    over = max((figures[name] / window[1] - 1 for name, window in windows.items()), default=0.0)
    below = [name for name, window in windows.items() if figures[name] < window[0]]
    return over, below[0] if below else ""


def check_window(missed: str, figures: dict[str, float]) -> None:
    """Raise `BudgetError` where the lower end of a bound is missed, `missed` being its name."""
    if missed:
        raise BudgetError(f"--{missed}: the next smaller network has {figures[missed]:g}, below the window; widen it")


# -- measured times ---------------------------------------------------------------------------------------------------


class Times(TypedDict):
    """`latency.json`: milliseconds of the original network and of the pruned one."""

    whole_ms: float
    ms: NotRequired[float]


def milliseconds(net: nn.Module, shape: tuple[int, ...], timing: Timing, machine: Machine) -> float:
    """Time of a forward pass on `--on`."""
    batch = timing.latency_batch
    if timing.on == "onnx":
        return latency.onnx_latency(copy.deepcopy(net).cpu(), shape, batch)
    here = machine if timing.on == machine.device.type else Machine(torch.device(timing.on), channels_last=False)
    return costs.latency(copy.deepcopy(net), shape, here, batch)


def original_time(run: Run, teacher: Teacher, timing: Timing) -> float:
    """Milliseconds of the original network, measured once in this folder, so that a share of them stays the same."""

    def measured() -> dict[str, Any]:
        taken = round(milliseconds(teacher.net, teacher.shape, timing, run.machine), 6)
        return {"whole_ms": taken, "on": timing.on, "batch": timing.latency_batch}

    return float(once(run, TIMES, measured, Times)["whole_ms"])


def once(run: Run, name: str, make: Callable[[], dict[str, Any]], kind: type[Any] = dict[str, Any]) -> Any:
    """The contents of a file in the run's folder; the first process makes it where it is missing, the others wait.

    `kind`: what the file holds, see `storage.typed`.
    """
    file = run.path / name
    if run.machine.rank == 0 and not file.is_file():
        write_json(file, make())
    if not run.estimating:
        run.machine.barrier()
    return typed.read(file, kind)
