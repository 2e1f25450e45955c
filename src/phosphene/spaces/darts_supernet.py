"""The DARTS supernet: every operation on every edge, mixed by gates that the algorithm owns (DARTS §2.1-2.2).

A cell has two inputs and `nodes` nodes; node i sums one mixed operation from each of the i + 2 states before it.
All cells of one type share their gates. BatchNorm is affine-free throughout, so that no scale can hide behind α.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Gate, Paths
from ..errors import ArchitectureError

OPTIONS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
NONE, MAX, AVG, SKIP, SEP3, SEP5, DIL3, DIL5 = range(8)
STEMS = ("cifar", "imagenet", "tiny")


def edges(nodes: int) -> list[tuple[int, int]]:
    """(node, source) of every edge of a cell; states 0 and 1 are the cell's inputs, `nodes` more follow."""
    return [(node, source) for node in range(2, nodes + 2) for source in range(node)]


def norm(channels: int) -> nn.BatchNorm2d:
    """The affine-free normalisation of everything inside the cells."""
    return nn.BatchNorm2d(channels, affine=False)


class Convolution(nn.Sequential):
    """ReLU, 1x1 convolution, BatchNorm: fits a state's channels to the cell."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.ReLU(), nn.Conv2d(inputs, outputs, 1, bias=False), norm(outputs))


class FactorizedReduction(nn.Module):
    """Halve the resolution with two 1x1 convolutions, the second one shifted by a pixel, so that every pixel is seen."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.even = nn.Conv2d(inputs, outputs // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(inputs, outputs - outputs // 2, 1, stride=2, bias=False)
        self.norm = norm(outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        x = F.relu(inputs)
        return self.norm(torch.cat([self.even(x), self.odd(shift(x))], 1))


def shift(x: Tensor) -> Tensor:
    """The map moved by one pixel; an odd side is padded, so that both halves of a reduction have equal sizes."""
    return F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))[:, :, 1:, 1:]


class Stage(nn.Module):
    """ReLU, depthwise convolution, pointwise convolution, BatchNorm."""

    def __init__(self, channels: int, kernel: int, stride: int, dilation: int) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.depthwise = nn.Conv2d(channels, channels, kernel, stride, padding, dilation, channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = norm(channels)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.norm(self.pointwise(self.depthwise(F.relu(inputs))))


class Pool(nn.Module):
    """3x3 pooling and BatchNorm; it depends on the state alone, so one serves every edge that leaves the state."""

    def __init__(self, channels: int, stride: int, kind: str) -> None:
        super().__init__()
        self.stride, self.kind = stride, kind
        self.norm = norm(channels)

    def pool(self, x: Tensor) -> Tensor:
        """The pooled map before BatchNorm."""
        if self.kind == "max":
            return F.max_pool2d(x, 3, self.stride, 1)
        return F.avg_pool2d(x, 3, self.stride, 1, count_include_pad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.norm(self.pool(inputs))


class Edge(nn.ModuleDict):
    """The operations with weights of their own on one edge; a skip has some only where it must halve the resolution."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        if stride == 2:
            self["skip_connect"] = FactorizedReduction(channels, channels)
        for size in (3, 5):
            self[f"sep_conv_{size}x{size}"] = nn.Sequential(
                Stage(channels, size, stride, 1), Stage(channels, size, 1, 1)
            )
        for size in (3, 5):
            self[f"dil_conv_{size}x{size}"] = Stage(channels, size, stride, 2)


Terms = list[tuple[int, Tensor | None]]
"""(option, weight) of what one edge computes; weight None means 1."""


def terms(gate: Gate) -> Terms:
    """What a gate asks an edge to compute, "none" left out."""
    if isinstance(gate, int):
        listed: Terms = [(gate, None)]
    elif isinstance(gate, Paths):
        listed = [(option, gate.weight[k]) for k, option in enumerate(gate.index)]
    else:
        listed = list(enumerate(gate.unbind()))
    if any(not 0 <= option < len(OPTIONS) for option, _ in listed):
        raise ArchitectureError(f"gate {gate!r} names an option outside 0..{len(OPTIONS) - 1}; see DartsSupernet")
    return [(option, weight) for option, weight in listed if option != NONE]


class Cell(nn.Module):
    """One cell; ``forward(s0, s1, gates)`` with gates by edge name "node<-source"; gives ``nodes * channels`` maps."""

    def __init__(self, inputs: tuple[int, int], channels: int, nodes: int, reduce: bool, reduced: bool) -> None:
        super().__init__()
        self.nodes, self.channels, self.reduce = nodes, channels, reduce
        self.first = (FactorizedReduction if reduced else Convolution)(inputs[0], channels)
        self.second = Convolution(inputs[1], channels)
        self.edges = nn.ModuleDict(
            {f"{node}<-{source}": Edge(channels, self.stride(source)) for node, source in edges(nodes)}
        )
        self.pools = nn.ModuleList(
            nn.ModuleDict({f"{kind}_pool_3x3": Pool(channels, self.stride(source), kind) for kind in ("max", "avg")})
            for source in range(nodes + 1)
        )

    def stride(self, source: int) -> int:
        """Only the cell's inputs are halved, and only in a reduction cell."""
        return 2 if self.reduce and source < 2 else 1

    def forward(self, s0: Tensor, s1: Tensor, gates: Mapping[str, Gate]) -> Tensor:
        states = [self.first(s0), self.second(s1)]
        for node in range(2, self.nodes + 2):
            parts = []
            for source in range(node):
                name = f"{node}<-{source}"
                for option, weight in terms(gates[name]):
                    part = self.operation(name, source, option)(states[source])
                    parts.append(part if weight is None else weight * part)
            states.append(sum(parts[1:], parts[0]) if parts else self.nothing(states[1]))
        return torch.cat(states[2:], 1)

    def operation(self, name: str, source: int, option: int) -> nn.Module:
        """The module of one option on one edge."""
        if option in (MAX, AVG):
            return self.pools[source][OPTIONS[option]]
        if option == SKIP and self.stride(source) == 1:
            return nn.Identity()
        return self.edges[name][OPTIONS[option]]

    def nothing(self, x: Tensor) -> Tensor:
        """A node that nothing reaches."""
        step = self.stride(1)
        return torch.zeros_like(x[:, :, ::step, ::step])


def stem_layers(kind: str, inputs: int, channels: int) -> nn.ModuleList:
    """Layers before the cells; the outputs of its two parts are the first cell's inputs (of one part: both)."""

    def layer(a: int, b: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b)]

    if kind == "imagenet":
        first = nn.Sequential(*layer(inputs, channels // 2, 2), nn.ReLU(), *layer(channels // 2, channels, 2))
        return nn.ModuleList([first, nn.Sequential(nn.ReLU(), *layer(channels, channels, 2))])
    if kind not in STEMS:
        raise ArchitectureError(f"stem {kind!r} is unknown; choose one of {', '.join(STEMS)}")
    return nn.ModuleList([nn.Sequential(*layer(inputs, 3 * channels if kind == "cifar" else channels, 1))])


class DartsSupernet(nn.Module):
    """Every option on every edge of a stack of cells, with reduction cells at one third and two thirds of the depth.

    Args:
        channels: maps of a node in the first cell; doubled by each reduction.
        cells: number of cells.
        nodes: nodes of a cell (4 in the paper: 14 edges a cell, 28 decisions).
        stem: "cifar" (3x3 to 3 * channels), "imagenet" (down to an eighth) or "tiny" (3x3 to channels).
        shape: (C, H, W) of the input.
        classes: number of logits.

    ``forward(inputs, gates)``: inputs ``(N, C, H, W)``; gates by decision, "normal/2<-0" to "reduce/5<-4", over
    `OPTIONS`; gives logits ``(N, classes)``. What no gate asks for is not computed.

    Raises:
        ArchitectureError: an unknown stem, a missing gate or an option that does not exist.
    """

    def __init__(
        self, *, channels: int, cells: int, nodes: int, stem: str, shape: Sequence[int], classes: int
    ) -> None:
        super().__init__()
        self.nodes = nodes
        self.stem = stem_layers(stem, shape[0], channels)
        width = channels if stem != "cifar" else 3 * channels
        before, last, reduced = width, width, stem == "imagenet"
        self.cells = nn.ModuleList()
        for depth in range(cells):
            reduce = depth in (cells // 3, 2 * cells // 3)
            channels *= 2 if reduce else 1
            self.cells.append(Cell((before, last), channels, nodes, reduce, reduced))
            before, last, reduced = last, nodes * channels, reduce
        self.classifier = nn.Linear(last, classes)

    def forward(self, inputs: Tensor, gates: Mapping[str, Gate]) -> Tensor:
        own = {kind: self.gates_of(kind, gates) for kind in ("normal", "reduce")}
        s0 = s1 = self.stem[0](inputs)
        if len(self.stem) == 2:
            s1 = self.stem[1](s0)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, own["reduce" if cell.reduce else "normal"])
        return self.classifier(s1.mean((2, 3)))

    def gates_of(self, kind: str, gates: Mapping[str, Gate]) -> dict[str, Gate]:
        """The gates of one type of cell by edge."""
        try:
            return {f"{i}<-{j}": gates[f"{kind}/{i}<-{j}"] for i, j in edges(self.nodes)}
        except KeyError as error:
            raise ArchitectureError(f"no gate for decision {error}; the supernet needs all of them") from error
