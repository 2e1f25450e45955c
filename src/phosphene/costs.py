"""What a network costs: parameters, multiply-accumulates, latency; and budgets that a result always keeps.

MACs are multiply-accumulates of convolutions and linear layers (what the literature often calls FLOPs). They are
counted on the `meta` device: nothing is computed, and nothing is taken from the random state. The auxiliary head of a
network (its attribute `auxiliary`) exists for training only and is left out unless asked for.
"""

from __future__ import annotations

import contextlib
import math
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .core import Choices, SearchSpace
from .errors import BudgetError, SettingsError
from .prices import Pair, Prices, prices

if TYPE_CHECKING:
    from .hardware import Machine

Cost = Callable[[Choices], float]
Window = tuple[float, float]
"""(least, most), both allowed."""


def params(net: nn.Module, auxiliary: bool = False) -> int:
    """Number of parameters; those of an auxiliary head only where asked."""
    head = None if auxiliary else getattr(net, "auxiliary", None)
    total = sum(p.numel() for p in net.parameters())
    return total - (sum(p.numel() for p in head.parameters()) if isinstance(head, nn.Module) else 0)


class _WithHead(nn.Module):
    """A network with its auxiliary head at work."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Tensor) -> Any:
        return self.net.forward_auxiliary(inputs)  # type: ignore[operator]


@torch.no_grad()
def macs(net: nn.Module, shape: Sequence[int], auxiliary: bool = False) -> int:
    """Multiply-accumulates of convolutions and linear layers for one input of `shape` (C, H, W), counted on `meta`."""
    from torch.utils.flop_counter import FlopCounterMode

    if auxiliary and getattr(net, "auxiliary", None) is not None:
        net = _WithHead(net)
    states = {name: t.to("meta") for name, t in (*net.named_parameters(), *net.named_buffers())}
    with _evaluating(net), FlopCounterMode(display=False) as counter:
        torch.func.functional_call(net, states, (torch.zeros(1, *shape, device="meta"),))
    counted = counter.get_flop_counts().get("Global", {})
    aten = torch.ops.aten
    return sum(int(counted.get(op, 0)) for op in (aten.convolution, aten.addmm, aten.mm)) // 2  # two FLOPs are one MAC


@contextlib.contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    """Evaluation mode, and every module's own mode again afterwards."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def latency(net: nn.Module, shape: Sequence[int], machine: Machine, batch: int = 1, repeats: int = 30) -> float:
    """Median milliseconds of one forward pass of `batch` inputs of `shape` (C, H, W) in evaluation mode.

    The network is moved to the machine's device and stays there.
    """
    net, inputs, taken = machine.place(net), machine.place(torch.zeros(batch, *shape)), []
    with _evaluating(net), torch.inference_mode(), machine.autocast():
        for _ in range(3 + repeats):  # the first three warm up
            start = time.perf_counter()
            net(inputs)
            machine.synchronize()
            taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken[3:])


def count(net: nn.Module, shape: Sequence[int]) -> tuple[int, int]:
    """(parameters, MACs) for inputs of `shape` (C, H, W)."""
    return params(net), macs(net, shape)


def measure(space: SearchSpace, choices: Choices) -> tuple[int, int]:
    """(parameters, MACs) of the network of complete choices, built on `meta`; raises what `space.build` raises."""
    with torch.device("meta"):
        net = space.build(choices)
    return count(net, space.spec["shape"])


UNITS = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}
_NUMBER = r"(\d+(?:\.\d+)?(?:e\d+)?)\s*([kmg]?)"


def window(text: str | float | Sequence[float] | None, flag: str) -> Window | None:
    """The bounds in "3.5M" or "<=3.5M" (at most), ">=2M" (at least) or "3M..4M" (both); K, M and G are decimal.

    Raises:
        SettingsError: the text is none of these, or its bounds are the wrong way round.
    """
    if text is None:
        return None
    if isinstance(text, str):
        found = re.fullmatch(rf"(<=|>=)?\s*{_NUMBER}|{_NUMBER}\s*\.\.\s*{_NUMBER}", text.strip().lower())
        if not found:
            raise SettingsError(f"{flag} {text!r} cannot be read; write 3.5M, <=3.5M, >=2M or 3M..4M")
        sign, *numbers = found.groups()
        values = [float(n) * UNITS[u] for n, u in zip(numbers[::2], numbers[1::2], strict=True) if n is not None]
        low, high = values if len(values) == 2 else (values[0], math.inf) if sign == ">=" else (0.0, values[0])
    else:
        low, high = (0.0, float(text)) if isinstance(text, (int, float)) else map(float, text)
    if low > high:
        raise SettingsError(f"{flag} {text!r} has its bounds the wrong way round; put the smaller one first")
    return low, high


def short(value: float) -> str:
    """112400000 -> "112.4M"."""
    for unit in ("g", "m", "k"):
        if value >= UNITS[unit]:
            return f"{value / UNITS[unit]:.4g}{unit.upper()}"
    return f"{value:.4g}"


@dataclass(frozen=True)
class Budget:
    """Windows of parameters and MACs that an architecture must keep; `of(space)` binds them to a space.

    ``Budget.parse(params="<=3.5M").of(space).fits(made)``. Without windows everything fits and nothing is tabulated.
    """

    params: Window | None = None
    macs: Window | None = None
    prices: Prices | None = field(default=None, repr=False, compare=False)

    @classmethod
    def parse(cls, params: str | None = None, macs: str | None = None) -> Budget:
        """From the values of `--params` and `--macs`; raises `SettingsError`."""
        return cls(window(params, "--params"), window(macs, "--macs"))

    def of(self, space: SearchSpace) -> Budget:
        """The budget of this space: tabulates its costs, once.

        Raises:
            BudgetError: no architecture of the space keeps the budget.
        """
        if self.params is None and self.macs is None:
            return self
        bound = replace(self, prices=prices(space, count))
        if not bound.fits({}):
            raise BudgetError(bound._impossible())
        return bound

    def fits(self, made: Choices) -> bool:
        """Whether some completion of the choices made so far keeps the budget; of complete choices, whether they do."""
        if self.params is None and self.macs is None:
            return True
        if self.prices is None:
            raise ValueError("a budget with bounds must be bound to a space first: budget.of(space)")
        return self.prices.allow(made, *self._corners())

    def _corners(self) -> tuple[Pair, Pair]:
        p, m = self.params or (0.0, math.inf), self.macs or (0.0, math.inf)
        return (p[0], m[0]), (p[1], m[1])

    def _impossible(self) -> str:
        """Which bound excludes everything, and what would not."""
        assert self.prices is not None
        given = [("--params", self.params), ("--macs", self.macs)]
        least, most = self.prices.range()
        for (flag, bounds), small, large in zip(given, least, most, strict=True):
            there = f"(smallest {short(small)}, largest {short(large)})"
            if bounds and bounds[1] < small:
                return f"{flag} {_text(bounds)} excludes every architecture {there}; raise it"
            if bounds and bounds[0] > large:
                return f"{flag} {_text(bounds)} excludes every architecture {there}; lower it"
        flags = " with ".join(f"{flag} {_text(bounds)}" for flag, bounds in given if bounds)
        ranges = " and ".join(
            f"{flag[2:]} from {short(a)} to {short(b)}"
            for (flag, bounds), a, b in zip(given, least, most, strict=True)
            if bounds
        )
        return f"{flags} lies between the architectures there are ({ranges}); widen it"


def _text(bounds: Window) -> str:
    low, high = bounds
    return f">={short(low)}" if high == math.inf else f"{short(low)}..{short(high)}" if low else short(high)
