"""What the teacher's BatchNorm layers say about a batch: logits and statistics distances in one pass (DFNAS eq. 5)."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import TeacherError
from ..hardware import Machine


class _HasNet(Protocol):
    @property
    def net(self) -> nn.Module: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...


class Probe:
    """A private copy of a teacher that tells its logits and how far its BatchNorm inputs are from the training data's.

    The caller's network is never changed. Raises `TeacherError` for a BatchNorm layer without running statistics.
    """

    def __init__(self, teacher: _HasNet, machine: Machine) -> None:
        self._machine = machine
        self._net = machine.place(deepcopy(teacher.net).eval().requires_grad_(False))
        self._seen: list[tuple[str, Tensor]] = []
        for name, module in self._net.named_modules():
            if isinstance(module, _BatchNorm):
                if module.running_mean is None or module.running_var is None:
                    raise TeacherError(f"BatchNorm layer {name} has no running statistics; train the teacher with track_running_stats=True")
                module.register_forward_pre_hook(self._watch(name, module))
        with torch.no_grad():
            self(torch.zeros(2, *teacher.shape, device=machine.device))
        self.layers = self._names
        """The layers' names, one for each distance, in order of execution."""

    def _watch(self, name: str, layer: _BatchNorm) -> Any:
        def measure(_: nn.Module, args: tuple[Tensor]) -> None:
            x = args[0].float()
            axes = [axis for axis in range(x.dim()) if axis != 1]
            variance, mean = torch.var_mean(x, dim=axes, correction=0)
            assert layer.running_mean is not None and layer.running_var is not None
            distance = (mean - layer.running_mean).norm() + (variance - layer.running_var).norm()  # eq. 5
            self._seen.append((name, distance))

        return measure

    def __call__(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised `inputs` ``(N, C, H, W)`` -> logits ``(N, K)`` and one distance a layer ``(L,)``, both float32."""
        self._seen = []
        with self._machine.autocast():
            logits = self._net(self._machine.place(inputs))
        self._names = tuple(name for name, _ in self._seen)
        distances = [distance for _, distance in self._seen]
        self._seen = []
        return logits.float(), torch.stack(distances) if distances else logits.new_zeros(0, dtype=torch.float32)
