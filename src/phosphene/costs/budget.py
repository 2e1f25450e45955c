"""The cost of a network (parameters, multiply-accumulates, latency) and budgets that every result keeps.

A budget's flag takes a bound (600M), a window (500M..600M), a soft target (~550M), or a bound and a soft target
(600M,~550M). Bounds are always kept; a soft target is a penalty in the searches that weigh costs.

MACs are multiply-accumulates of convolutions and linear layers (what the literature often calls FLOPs). They are
counted on the `meta` device: nothing is computed and the random state does not advance. The auxiliary head of a network
(its attribute `auxiliary`) exists for training only and is left out by default.
"""

from __future__ import annotations

import contextlib
import math
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core import Choices, SearchSpace
from ..errors import BudgetError, SettingsError, shown
from .tables import NOTHING, Clock, Prices, input_shape, prices

if TYPE_CHECKING:
    from ..runtime.machine import Machine

Cost = Callable[[Choices], float]
Window = tuple[float, float]
"""(least, most), both allowed."""


def params(net: nn.Module, auxiliary: bool = False) -> int:
    """Number of parameters; those of an auxiliary head only with `auxiliary`."""
    head = None if auxiliary else getattr(net, "auxiliary", None)
    total = sum(p.numel() for p in net.parameters())
    return total - (sum(p.numel() for p in head.parameters()) if isinstance(head, nn.Module) else 0)


class _WithHead(nn.Module):
    """A network that runs its auxiliary head too."""

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
    """Median milliseconds of a forward pass of `batch` inputs of `shape` (C, H, W) in evaluation mode.

    Passes shorter than a millisecond are timed in groups, queued back to back on the device.
    The network is moved to the machine's device and stays there.
    """
    net, inputs = machine.place(net), machine.place(torch.zeros(batch, *shape))
    with _evaluating(net), torch.inference_mode(), machine.autocast():
        return timed(lambda: net(inputs), machine.synchronize, repeats)


def timed(call: Callable[[], object], wait: Callable[[], None], repeats: int = 30) -> float:
    """Median milliseconds of a call over `repeats` groups of a millisecond or more; `wait` ends each group."""

    def lot(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        wait()
        return 1000 * (time.perf_counter() - start) / calls

    lot(2)  # warms up
    calls = max(1, min(200, math.ceil(1 / max(lot(3), 1e-6))))
    return statistics.median(lot(calls) for _ in range(repeats))


def count(net: nn.Module, shape: Sequence[int]) -> tuple[int, int]:
    """(parameters, MACs) for inputs of `shape` (C, H, W)."""
    return params(net), macs(net, shape)


def measure(space: SearchSpace, choices: Choices) -> tuple[int, int]:
    """(parameters, MACs) of the network of complete choices, built on `meta`; raises what `space.build` raises."""
    with torch.device("meta"):
        net = space.build(choices)
    return count(net, input_shape(space))


UNITS = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}
_NUMBER = r"(\d+(?:\.\d+)?(?:e\d+)?)\s*([kmg]?)"


def window(text: str | float | Sequence[float] | None, flag: str) -> Window | None:
    """The bounds in "3.5M" or "<=3.5M" (at most), ">=2M" (at least) or "3M..4M" (both); K, M and G are decimal.

    Raises:
        SettingsError: the text is none of these, its bounds are the wrong way round, or none is above 0.
    """
    if text is None:
        return None
    if isinstance(text, str):
        match = re.fullmatch(rf"(<=|>=)?\s*{_NUMBER}|{_NUMBER}\s*\.\.\s*{_NUMBER}", text.strip().lower())
        if not match:
            raise SettingsError(f"{flag} {text!r} cannot be read; write 3.5M, <=3.5M, >=2M or 3M..4M")
        sign, *numbers = match.groups()
        values = [float(n) * UNITS[u] for n, u in zip(numbers[::2], numbers[1::2], strict=True) if n is not None]
        low, high = values if len(values) == 2 else (values[0], math.inf) if sign == ">=" else (0.0, values[0])
        endless = sign == ">="
    else:
        try:
            low, high = (0.0, float(text)) if isinstance(text, (int, float)) else map(float, text)
        except (TypeError, ValueError, OverflowError) as error:
            raise SettingsError(f"{flag} {shown(text)} is no number, nor two") from error
        endless = not isinstance(text, (int, float))
    if not (low < math.inf and (high < math.inf or (endless and high == math.inf))):
        raise SettingsError(f"{flag} {shown(text, str)} is no finite number")
    if high <= 0:
        raise SettingsError(f"{flag} {shown(text, str)} leaves nothing; the upper end is above 0")
    if low > high:
        raise SettingsError(f"{flag} {text!r} has its bounds the wrong way round; put the smaller one first")
    return low, high


def short(value: float) -> str:
    """112400000 -> "112.4M"."""
    for unit in ("g", "m", "k"):
        if value >= UNITS[unit]:
            return f"{value / UNITS[unit]:.4g}{unit.upper()}"
    return f"{value:.4g}"


LIMITS = ("params", "macs", "latency")
"""The costs that a budget may bound, in the order of `tables.Prices`; the flags have the same names."""
NANOSECONDS = 1e6  # per millisecond, the unit of --latency


def limits(text: str | float | Sequence[float] | None, flag: str) -> tuple[Window | None, float | None]:
    """(bounds, soft target) of a flag's value: "3.5M" as `window` reads it, "~3M", or both: "3.5M,~3M".

    Raises:
        SettingsError: the text is none of these.
    """
    if not isinstance(text, str):
        return window(text, flag), None
    parts = [part.strip() for part in text.split(",")]
    soft, hard = [p[1:] for p in parts if p[:1] == "~"], [p for p in parts if p[:1] != "~"]
    if len(soft) > 1 or len(hard) > 1:
        raise SettingsError(f"{flag} {text!r} cannot be read; write one bound and one soft target: 3.5M,~3M")
    aims = [window(aim, flag) for aim in soft]
    if any(aim is None or aim[0] or not aim[1] for aim in aims):
        raise SettingsError(f"{flag} {text!r} cannot be read; a soft target is one number above 0: ~3M")
    return window(hard[0], flag) if hard else None, aims[0][1] if aims and aims[0] else None


@dataclass(frozen=True)
class Budget:
    """Windows of parameters, MACs and latency that an architecture must keep; `of(space)` binds them to a space.

    ``Budget.parse(params="<=3.5M").of(space).fits(choices)``. Without windows everything fits and nothing is tabulated.

    `latency`: in milliseconds. `soft`: (name in `LIMITS`, value) of costs to be near; missing one is allowed.
    """

    params: Window | None = None
    macs: Window | None = None
    prices: Prices | None = field(default=None, repr=False, compare=False)
    latency: Window | None = None
    soft: tuple[tuple[str, float], ...] = ()

    @classmethod
    def parse(cls, params: str | None = None, macs: str | None = None, latency: str | float | None = None) -> Budget:
        """From the values of `--params`, `--macs` and `--latency`; raises `SettingsError`."""
        parsed = {name: limits(text, f"--{name}") for name, text in zip(LIMITS, (params, macs, latency), strict=True)}
        soft = tuple((name, aim) for name, (_, aim) in parsed.items() if aim is not None)
        return cls(parsed["params"][0], parsed["macs"][0], latency=parsed["latency"][0], soft=soft)

    @property
    def timed(self) -> bool:
        """Whether it bounds or aims at a latency."""
        return self.latency is not None or "latency" in dict(self.soft)

    @property
    def times(self) -> str:
        """A digest of the measured latencies; "" without any."""
        return self._bound().times if self.timed else ""

    @property
    def empty(self) -> bool:
        """Whether it has neither bounds nor soft targets."""
        return not self.soft and not any(self._windows())

    @property
    def aims(self) -> dict[str, float]:
        """name -> target value: the soft targets, else the largest values within the bounds."""
        most = {name: bounds[1] for name, bounds in zip(LIMITS, self._windows(), strict=True) if bounds}
        return dict(self.soft) or {name: value for name, value in most.items() if math.isfinite(value)}

    def of(self, space: SearchSpace, clock: Clock | None = None) -> Budget:
        """The budget of this space: tabulates its costs, once.

        Args:
            clock: measures its parts; needed where latency is bounded (`latency.Stopwatch`).

        Raises:
            BudgetError: no architecture of the space keeps the budget.
        """
        if self.empty:
            return self
        if self.timed and clock is None:
            raise ValueError("a budget of latency needs a clock: latency.bind(budget, space, on=…)")
        bound = replace(self, prices=prices(space, count, clock if self.timed else None))
        if not bound.fits({}):
            raise BudgetError(bound._impossible())
        return bound

    def fits(self, partial: Choices) -> bool:
        """Whether some completion of the choices in `partial` keeps the budget; complete choices: whether they do."""
        if not any(self._windows()):
            return True
        low, high = zip(*self._corners(), strict=True)
        return self._bound().allow(partial, low, high)

    def costs(self, choices: Choices) -> dict[str, float]:
        """Parameters, MACs and, where the budget is one of latency, milliseconds of complete choices."""
        return self._named(self._bound().of(choices))

    def expected(self, shares: Mapping[str, Tensor], partial: Choices = NOTHING) -> dict[str, Tensor]:
        """The mean of each cost over architectures sampled by `shares`, differentiable with respect to them.

        Args:
            shares: for each decision the probabilities ``(options,)`` of its options; those that may not be chosen
                have 0.
            partial: fixed choices, whatever their shares.

        Returns:
            float64 scalars on the CPU, in the units of `costs`.
        """
        return self._named(self._bound().expected(shares, partial).unbind())

    def _bound(self) -> Prices:
        if self.prices is None:
            raise ValueError("a budget must be bound to a space first: budget.of(space)")
        return self.prices

    def _named(self, values: Iterable[Any]) -> dict[str, Any]:
        """By name, latency in milliseconds."""
        named = dict(zip(LIMITS, values, strict=False))
        return named | {"latency": named["latency"] / NANOSECONDS} if "latency" in named else named

    def _windows(self) -> tuple[Window | None, ...]:
        return self.params, self.macs, self.latency

    def _corners(self) -> list[Window]:
        """(least, most) of each cost of `prices`."""
        open_ = (0.0, math.inf)
        low, high = self.latency or open_
        timed = [(low * NANOSECONDS, high * NANOSECONDS)] if self.timed else []
        return [self.params or open_, self.macs or open_, *timed]

    def _impossible(self) -> str:
        """The error message of a budget that excludes every architecture: which bound, and the range of costs."""
        least, most = (self._named(costs) for costs in self._bound().range())
        bounded = [(name, bounds) for name, bounds in zip(LIMITS, self._windows(), strict=True) if bounds]
        for name, bounds in bounded:
            there = f"(smallest {short(least[name])}, largest {short(most[name])})"
            if bounds[1] < least[name]:
                return f"--{name} {_text(bounds)} excludes every architecture {there}; raise it"
            if bounds[0] > most[name]:
                return f"--{name} {_text(bounds)} excludes every architecture {there}; lower it"
        flags = " with ".join(f"--{name} {_text(bounds)}" for name, bounds in bounded)
        ranges = " and ".join(f"{name} from {short(least[name])} to {short(most[name])}" for name, _ in bounded)
        return f"{flags} lies between the architectures there are ({ranges}); widen it"


def _text(bounds: Window) -> str:
    low, high = bounds
    return f">={short(low)}" if high == math.inf else f"{short(low)}..{short(high)}" if low else short(high)
