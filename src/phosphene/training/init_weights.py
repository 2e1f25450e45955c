"""Initial weights: load tensors that match in name and shape; leave the rest randomly initialized."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Architecture
from ..errors import SettingsError
from ..models import weights
from ..runtime.progress import say
from ..teachers.loaders import pretrained

__all__ = ["Start", "load", "read"]

LEAST = 0.1  # share of the network's parameters below which the weights are of another architecture


@dataclass(frozen=True)
class Start:
    """Initial weights: named tensors and the name of their source."""

    name: str
    tensors: dict[str, Tensor]

    @property
    def digest(self) -> str:
        """sha256 of the tensors: part of the identity of the run that starts from them."""
        return weights.digest(self.tensors)


def read(init: str, arch: Architecture | nn.Module) -> Start:
    """The weights that ``--init`` names.

    Args:
        init: a run folder of `phosphene train`, a file of weights, or ``pretrained[@WEIGHTS]`` for those that
            torchvision or timm publish with `arch`.
        arch: the architecture to train; only ``pretrained`` needs its name.

    Raises:
        TeacherError: there are no such weights, they cannot be fetched, or hold more than tensors.
        SettingsError: the folder has no weights.
    """
    word, _, chosen = init.partition("@")
    if word == "pretrained" and not Path(init).exists():
        model = (
            "a network in memory" if isinstance(arch, nn.Module) else str(arch.space.get("model", "a searched cell"))
        )
        return Start(init, pretrained(model, chosen).state_dict())
    path = Path(init)
    if path.is_dir():
        path = path / "weights.safetensors"
        if not path.is_file():
            raise SettingsError(f"--init {init} has no weights.safetensors: not a finished run of `phosphene train`")
    tensors = weights.read(path, "--init")
    weights.check(tensors, f"--init {path}")
    return Start(Path(init).resolve().name, tensors)


@torch.no_grad()
def load(net: nn.Module, start: Start) -> dict[str, Any]:
    """Copy the tensors of the same name and shape into `net`, and report which were copied and which not.

    A head for another number of classes and a first convolution for another number of channels keep their fresh
    weights, since their shapes differ; a head with as many outputs is loaded like the rest.

    Returns:
        JSON: `from`, `digest`, `loaded` and `of` (tensors), `share` (percent of the parameters, but for those of an
        auxiliary head, which saved networks never have), `fresh` and `unused` (names).

    Raises:
        SettingsError: less than a tenth of the parameters is there.
    """
    own = net.state_dict()
    fits = {key for key, value in own.items() if key in start.tensors and start.tensors[key].shape == value.shape}
    sizes = {key: value.numel() for key, value in net.named_parameters() if not key.startswith("auxiliary.")}
    share = sum(size for key, size in sizes.items() if key in fits) / max(1, sum(sizes.values()))
    fresh, unused = ([key for key in sorted(keys) if key not in fits and _counts(key)] for keys in (own, start.tensors))
    if share < LEAST:
        raise SettingsError(
            f"--init {start.name} fits only {100 * share:.0f} % of the network's parameters; it has {_few(unused)}, "
            f"the network wants {_few(fresh)}: give weights of the same architecture"
        )
    net.load_state_dict({key: start.tensors[key] for key in fits}, strict=False)
    say(f"--init {start.name}: {100 * share:.1f} % of the parameters loaded; left fresh: {_few(fresh)}")
    return {
        "from": start.name,
        "digest": start.digest[:16],
        "loaded": len(fits),
        "of": len(own),
        "share": round(100 * share, 2),
        "fresh": fresh,
        "unused": unused,
    }


def _counts(key: str) -> bool:
    """Whether a tensor is a weight rather than a counter of batches."""
    return key.rsplit(".", 1)[-1] not in weights.COUNTERS


def _few(names: list[str]) -> str:
    return (", ".join(names[:6]) or "nothing") + (f" and {len(names) - 6} more" if len(names) > 6 else "")
