"""A watch over a loop's weights and images: a run that has lost its finite numbers stops and keeps the state before."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import NotFinite
from ..storage import finite

SHARE = 200  # a pass over all weights may take one part in this many of the time


class FiniteStates:
    """The modules, tensors, and dictionaries and lists of these that a loop saves, looked at now and then.

    Optimizers are not: what they have lost is in the weights one step later. Nor is what a loop begins with as NaN or
    infinite, like the curve of figures that are not measured yet.
    """

    def __init__(self, states: Mapping[str, Any], phase: str, done: int) -> None:
        self._states, self._phase, self._sound = states, phase, done
        self._due = 0.0  # on the clock
        self._unset = {name for name, tensor in finite.states(states) if not finite.is_finite(tensor)}

    def look(self, done: int) -> None:
        """Check the states after `done` steps if it is time to; raises `NotFinite`."""
        if time.monotonic() >= self._due:
            self.check(done)

    def check(self, done: int) -> None:
        """Check them now; raises `NotFinite`, which names the steps and the first tensor."""
        began = time.monotonic()
        tensors = {name: one for name, one in finite.states(self._states) if name not in self._unset}
        if not _all_finite(tensors) and (bad := finite.first_bad(tensors)):
            raise NotFinite(
                f"{self._phase}: after step {done} {bad} (finite after step {self._sound}); the state before is kept. "
                "Lower the learning rate, or check the data, and name another --out"
            )
        self._sound, now = done, time.monotonic()
        self._due = now + SHARE * (now - began)


def _all_finite(tensors: Mapping[str, torch.Tensor]) -> bool:
    """One number of each tensor and one wait a device; False may be a sum that overflowed."""
    sums: dict[torch.device, list[torch.Tensor]] = {}
    for tensor in tensors.values():
        if tensor.is_floating_point() and tensor.layout == torch.strided and not tensor.is_meta:
            sums.setdefault(tensor.device, []).append(tensor.detach().sum().float())
    return all(bool(torch.stack(each).isfinite().all()) for each in sums.values())
