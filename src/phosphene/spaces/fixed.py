"""A space that leaves nothing open: one network of `models`, torchvision or timm, as if a search had found it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .. import models
from ..core import Choices, Decision, Gates
from ..errors import ArchitectureError


class Gateless(nn.Module):
    """A network that takes gates and needs none."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Tensor, gates: Gates) -> Tensor:
        output: Tensor = self.net(inputs)
        return output


class FixedSpace:
    """A `model` that `models.build` knows, for inputs of `shape` (C, H, W); `classes` logits; no decisions.

    Raises:
        ArchitectureError: there is no such model.
    """

    decisions: tuple[Decision, ...] = ()

    def __init__(self, *, model: str, classes: int = 10, shape: Sequence[int] = (3, 32, 32)) -> None:
        models.check(model)
        self.spec: dict[str, Any] = {"name": "fixed", "model": model, "classes": int(classes), "shape": list(shape)}

    def supernet(self) -> nn.Module:
        """The network itself, with gates that it ignores."""
        return Gateless(self.build({}))

    def build(self, choices: Choices) -> nn.Module:
        """The network, with fresh weights."""
        if choices:
            raise ArchitectureError(f"{self.spec['model']} leaves nothing to choose; {sorted(choices)[0]!r} is given")
        return models.build(self.spec["model"], self.spec["classes"], self.spec["shape"][0])

    def forced(self, made: Choices) -> Choices:
        """Nothing."""
        return {}
