"""What networks of chosen widths cost, from a formula: every layer is a constant times the widths of its streams.

The parts of a network are not additive, since a layer's cost is a product of two choices. But all costs grow with
every width, so that partial choices lie between their narrowest and their widest completion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..core import Choices
from ..prices import NOTHING, Costs
from .inputs import halved
from .width_designs import IMAGE, Block, Design


class Term(NamedTuple):
    """`params` and `macs` times the product of the widths of these streams."""

    params: int
    macs: int
    streams: tuple[str, ...]


def terms(design: Design, shape: Sequence[int], classes: int) -> list[Term]:
    """Everything that a network for inputs of `shape` (C, H, W) counts."""
    size, found = (shape[1], shape[2]), list[Term]()
    for block in design.blocks:
        found += _block(block, size, shape[0])
        size = halved(size, block.stride)
        if block.pool and min(size) > 1:
            size = halved(size, 2) if block.pool % 2 else (size[0] // 2, size[1] // 2)
    return [*found, Term(classes, classes, (design.last,)), Term(classes, 0, ())]


def _block(block: Block, size: tuple[int, int], channels: int) -> list[Term]:
    found = list[Term]()
    reached = size
    for conv in block.convs:
        reached = halved(reached, conv.stride)
        taps = conv.kernel**2 * (channels if conv.inputs == IMAGE else 1)
        streams = (conv.outputs,) if conv.depthwise or conv.inputs == IMAGE else (conv.inputs, conv.outputs)
        found += [Term(taps, taps * math.prod(reached), streams), Term(2, 0, (conv.outputs,))]
    if block.shortcut == "conv":
        found += [Term(1, math.prod(reached), (block.inputs, block.outputs)), Term(2, 0, (block.outputs,))]
    return found


class WidthPrices:
    """Costs of a space of widths: parameters and MACs, exact (`prices.Prices`).

    Args:
        rows: what the network counts.
        widths: of each stream's options; a stream that is not free has one.
        free: the streams that are decisions.
    """

    times = ""

    def __init__(self, rows: Sequence[Term], widths: Mapping[str, Sequence[int]], free: Sequence[str]) -> None:
        self.rows, self.widths, self.free = rows, widths, free

    def at(self, widths: Mapping[str, int]) -> tuple[int, ...]:
        """The costs of these widths of all streams."""
        products = [math.prod(widths[name] for name in row.streams) for row in self.rows]
        pairs = list(zip(self.rows, products, strict=True))
        return sum(row.params * n for row, n in pairs), sum(row.macs * n for row, n in pairs)

    def completed(self, made: Choices, last: bool) -> dict[str, int]:
        """The widths of all streams, those left open at their narrowest, or at their widest."""
        pick = max if last else min
        return {name: options[made[name]] if name in made else pick(options) for name, options in self.widths.items()}

    def of(self, choices: Choices) -> tuple[int, ...]:
        """The costs of complete choices."""
        return self.at(self.completed(choices, False))

    def allow(self, made: Choices, low: Costs, high: Costs) -> bool:
        """Whether some completion can lie in the window: exact for complete choices and for upper bounds alone.

        Else yes, where narrowest and widest completion leave it open: who goes on choosing hears the truth in time.
        """
        least, most = self.at(self.completed(made, False)), self.at(self.completed(made, True))
        return all(a <= h and b >= x for a, b, x, h in zip(least, most, low, high, strict=True))

    def range(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The smallest and the largest of each cost."""
        return self.at(self.completed({}, False)), self.at(self.completed({}, True))

    def expected(self, shares: Mapping[str, Tensor], made: Choices = NOTHING) -> Tensor:
        """The mean of each cost ``(2,)``, float64: streams are drawn independently, so products of means, exactly."""

        def moment(name: str, power: int) -> Tensor:
            options = torch.tensor(self.widths[name], dtype=torch.float64) ** power
            if name in self.free and name not in made:
                return shares[name].cpu().double() @ options
            return options[made.get(name, 0)]

        means: dict[tuple[str, int], Tensor] = {}
        total = torch.zeros(2, dtype=torch.float64)
        for row in self.rows:
            product = torch.ones((), dtype=torch.float64)
            for name in dict.fromkeys(row.streams):
                key = name, row.streams.count(name)
                means[key] = means[key] if key in means else moment(*key)
                product = product * means[key]
            total = total + product * torch.tensor([row.params, row.macs], dtype=torch.float64)
        return total
