"""A space that leaves nothing open: a network of another space, with fewer channels, as `phosphene prune` found it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..core import Choices, Decision
from ..errors import ArchitectureError
from .fixed import Gateless
from .pruned_layers import Kept, cut


class PrunedSpace:
    """`of`, an architecture as JSON (space and choices), less the channels that `kept` does not name.

    Args:
        of: {"space": …, "choices": …} of the whole network.
        kept: layer -> sides -> channels, see `pruned_layers`.
        shape: (C, H, W) of the input; None: as in `of`.
        classes: number of logits; None: as in `of`.

    Raises:
        ArchitectureError: `of` is no architecture.
    """

    decisions: tuple[Decision, ...] = ()

    def __init__(
        self, *, of: dict[str, Any], kept: Kept, shape: Sequence[int] | None = None, classes: int | None = None
    ) -> None:
        from . import space

        if not isinstance(of, dict) or "space" not in of or not isinstance(kept, dict):
            raise ArchitectureError("a pruned network names the whole one (`of`) and the channels it keeps (`kept`)")
        own = dict(of["space"])
        own |= {} if shape is None else {"shape": list(shape)}
        own |= {} if classes is None else {"classes": int(classes)}
        self.whole, self.made = space(own), dict(of.get("choices", {}))
        found = {name: {side: list(channels) for side, channels in sides.items()} for name, sides in kept.items()}
        self.spec: dict[str, Any] = {
            "name": "pruned",
            "of": {"space": self.whole.spec, "choices": self.made},
            "kept": found,
            "shape": list(self.whole.spec["shape"]),
            "classes": int(self.whole.spec["classes"]),
        }

    def supernet(self) -> nn.Module:
        """The network itself, with gates that it ignores."""
        return Gateless(self.build({}))

    def build(self, choices: Choices) -> nn.Module:
        """The network, with fresh weights: those of the whole one, cut."""
        if choices:
            raise ArchitectureError(f"a pruned network leaves nothing to choose; {sorted(choices)[0]!r} is given")
        return cut(self.whole.build(self.made), self.spec["kept"])

    def forced(self, made: Choices) -> Choices:
        """Nothing."""
        return {}
