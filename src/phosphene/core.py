"""The vocabulary: gates, batches, decisions, architectures, spaces and searches.

Algorithms own the gates, spaces own the networks; neither depends on the other. At run time this file imports nothing
of the package but its errors and how its files are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Protocol, runtime_checkable

from annotated_types import Ge
from torch import Tensor, nn
from typing_extensions import TypedDict

from .errors import ArchitectureError
from .storage import checksums, typed

if TYPE_CHECKING:
    from .costs.budget import Budget
    from .data.dataset import ImageDataset
    from .runtime.run import Run


class Paths(NamedTuple):
    """Run only the options in `index`, mixed by `weight` ``(len(index),)``; an option is computed even at weight 0."""

    index: tuple[int, ...]  # type: ignore[assignment]  # hides tuple.index, which no gate needs
    weight: Tensor


Gate = int | Tensor | Paths
"""int: run that option. Tensor ``(options,)``: mix all options by these weights. Paths: mix some of them."""

Gates = Mapping[str, Gate]
"""One gate for each decision, by the decision's name."""

Choices = dict[str, int]
"""Gates that are all ints: decision name -> index of the option."""


class Batch(NamedTuple):
    """`inputs`: float ``(N, C, H, W)``, normalised. `targets`: float ``(N, K)`` in [0, 1]."""

    inputs: Tensor
    targets: Tensor


Objective = Callable[[Tensor, Batch], Tensor]
"""(output, batch) -> scalar loss; lower is better."""

Score = Callable[[Tensor, Batch], float]
"""(output, batch) -> score; higher is better."""


class Decision(NamedTuple):
    """A categorical choice of a space; options in `only_forced` are never chosen, only set by `SearchSpace.forced`."""

    name: str
    options: tuple[str, ...]
    only_forced: frozenset[str] = frozenset()

    @property
    def free(self) -> tuple[int, ...]:
        """Indices of the options that may be chosen."""
        return tuple(i for i, option in enumerate(self.options) if option not in self.only_forced)


class Written(TypedDict):
    """`arch.json`."""

    space: dict[str, Any]
    choices: dict[str, Annotated[int, Ge(0)]]


@dataclass(frozen=True)
class Architecture:
    """A space's spec and one choice for each of its decisions: JSON, and enough to rebuild the network."""

    space: dict[str, Any]
    choices: Choices

    def save(self, path: Path) -> None:
        """Write `arch.json`, and its checksum beside it."""
        typed.write_json(path, {"space": self.space, "choices": self.choices})
        checksums.record(path.parent, path.name)

    @classmethod
    def load(cls, path: Path) -> Architecture:
        """Read `arch.json`; raises `ArchitectureError` for anything else."""
        remedy = "write one with `phosphene search`"
        checksums.verify(path.parent, path.name, error=ArchitectureError, remedy=remedy)
        fields = typed.read(path, Written, ArchitectureError, remedy)
        return cls(fields["space"], fields["choices"])


@runtime_checkable
class SearchSpace(Protocol):
    """The interface between a space and the searches."""

    @property
    def spec(self) -> dict[str, Any]: ...
    @property
    def decisions(self) -> tuple[Decision, ...]: ...
    def supernet(self) -> nn.Module:
        """A network with every option; ``forward(inputs, gates)``."""
        ...

    def build(self, choices: Choices) -> nn.Module:
        """The network of these choices; ``forward(inputs)``."""
        ...

    def forced(self, made: Choices) -> Choices:
        """The further choices that the choices in `made` imply, without those of `made`."""
        ...


class Search(Protocol):
    """A search algorithm: a function from a space and data to an architecture."""

    def __call__(
        self,
        space: SearchSpace,
        data: ImageDataset,
        objective: Objective,
        score: Score,
        budget: Budget,
        run: Run,
        *,
        steps: int,
    ) -> Architecture: ...
