"""Measured latency: every block of a space is timed once per device, stored in a file, and summed per architecture.

    {"format": 1, "measured": {"cpu | AMD EPYC … | fp32 | batch 1 | 1 thread | torch 2.13.0": {BLOCK: nanoseconds}}}

A file can be used on another machine: without a device of that kind, the times measured on one are read. Complete
networks are in the file too: a few per space, for the time that a network takes beyond the sum of its blocks.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import nn
from typing_extensions import TypedDict

from ..core import Choices, SearchSpace
from ..errors import MissingExtra, SettingsError
from ..runtime.machine import Machine, describe, machine
from ..storage import typed
from ..storage.typed import write_json
from . import budget
from .budget import NANOSECONDS, Budget
from .tables import input_shape

On = Literal["cpu", "cuda", "onnx"]
TABLE = Path("latency.json")


class Stopwatch:
    """The clock of `tables`: reads times from the file, measures the missing ones and adds them to it.

    Args:
        on: "cpu" or "cuda" run torch; "onnx" runs ONNX Runtime on the CPU.
        table: the file.
        batch: images of a forward pass.
        precision: "fp32" or "bf16".

    Raises:
        SettingsError: the device is not there and nothing in the file was measured on one, the file is of another
            kind, or a setting is outside its range.
        MissingExtra: "onnx" without ONNX Runtime, where something is to be measured.
    """

    def __init__(self, on: str = "cpu", table: Path | str = TABLE, *, batch: int = 1, precision: str = "fp32") -> None:
        if on not in ("cpu", "cuda", "onnx"):
            raise SettingsError(f"--on {on} is not cpu, cuda or onnx")
        if batch < 1:
            raise SettingsError(f"--latency-batch {batch} is less than 1")
        if precision not in ("fp32", "bf16") or (on == "onnx" and precision != "fp32"):
            raise SettingsError(f"--latency-precision {precision} cannot be measured on {on}; take fp32")
        self.on, self.table, self.batch, self.precision = on, Path(table), batch, precision
        self.known = _read(self.table)
        self.condition = self._condition()

    def part(self, space: SearchSpace, key: Hashable) -> int:
        """Nanoseconds of one block."""
        makes: Any = space
        return self._of(f"{space.spec['name']} {json.dumps(key)}", lambda: makes.part(key))

    def network(self, space: SearchSpace, choices: Choices) -> int:
        """Nanoseconds of a complete network."""
        identity = hashlib.sha256(json.dumps(space.spec, sort_keys=True).encode()).hexdigest()[:8]
        code = " ".join(str(choices[decision.name]) for decision in space.decisions)
        return self._of(f"{space.spec['name']} {identity} {code}", lambda: (space.build(choices), input_shape(space)))

    def _of(self, what: str, make: Callable[[], tuple[nn.Module, Any]]) -> int:
        there = self.known.setdefault(self.condition, {})
        if what not in there:
            if not _present(self.on):
                raise SettingsError(f"{self.table} lacks {what!r}, and this machine has no {self.on}; measure it there")
            with torch.random.fork_rng(
                devices=[]
            ):  # initial weights do not matter for the time, and the random state must not advance
                module, shape = make()
            there[what] = round(NANOSECONDS * self._milliseconds(module, tuple(shape)))
            write_json(self.table, {"format": 1, "measured": self.known})
        return there[what]

    def _milliseconds(self, module: nn.Module, shape: tuple[int, ...]) -> float:
        if self.on == "onnx":
            return onnx_latency(module, shape, self.batch)
        return budget.latency(module, shape, machine(self.on, self.precision), self.batch)

    def _condition(self) -> str:
        """The times' key in the file: device, precision, batch, software; without such a device the file's only one."""
        settings = [self.precision, f"batch {self.batch}"]
        if _present(self.on):
            return " | ".join([self.on, device_name(self.on), *settings, *_software(self.on)])
        there = [line for line in self.known if line.split(" | ")[0] == self.on and line.split(" | ")[2:4] == settings]
        if len(there) == 1:
            return there[0]
        if self.on == "onnx" and not there:
            raise MissingExtra("onnxruntime", "onnx")
        what = "several devices" if there else "none"
        raise SettingsError(
            f"--on {self.on}: this machine has none, and {self.table} has times of {what} with "
            f"{', '.join(settings)}; measure there with `phosphene latency measure`, or take --on cpu"
        )


def bind(
    budget: Budget,
    space: SearchSpace,
    machine: Machine,
    *,
    on: str = "cpu",
    table: Path | str = TABLE,
    batch: int = 1,
    precision: str = "fp32",
) -> Budget:
    """The budget of this space, with times from the file or measured now; rank 0 measures for all.

    Raises:
        BudgetError: no architecture keeps the budget.
        SettingsError, MissingExtra: as `Stopwatch`.
    """
    if not budget.timed:
        return budget.of(space)
    if machine.rank:
        machine.barrier()
    bound = budget.of(space, Stopwatch(on, table, batch=batch, precision=precision))
    if not machine.rank:
        machine.barrier()
    return bound


def onnx_latency(module: nn.Module, shape: tuple[int, ...], batch: int = 1, repeats: int = 30) -> float:
    """Median milliseconds of a forward pass in ONNX Runtime on the CPU, with as many threads as torch has.

    Raises:
        MissingExtra: ONNX Runtime, or what exports to it, is not installed.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  what torch exports with
    except ImportError as error:
        raise MissingExtra(error.name or "onnxruntime", "onnx") from error
    inputs = torch.zeros(batch, *shape)
    if isinstance(module, nn.Identity):
        return 0.0  # the exporter removes it from the graph
    with torch.no_grad():
        program = torch.onnx.export(module.eval(), (inputs,), dynamo=True, verbose=False)
    assert program is not None
    graph = program.model_proto.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: inputs.numpy()}
    return budget.timed(lambda: session.run(None, feed), lambda: None, repeats)


def device_name(on: str) -> str:
    """The model of the processor that runs it."""
    if on == "cuda":
        return torch.cuda.get_device_name()
    return str(describe()["cpu"])


def _present(on: str) -> bool:
    """Whether it can be measured here."""
    if on == "onnx":
        return importlib.util.find_spec("onnxruntime") is not None
    return on != "cuda" or torch.cuda.is_available()


def _software(on: str) -> list[str]:
    """Threads and versions."""
    threads = torch.get_num_threads()
    count = [] if on == "cuda" else [f"{threads} thread{'s' if threads > 1 else ''}"]
    runtime = [f"onnxruntime {importlib.metadata.version('onnxruntime')}"] if on == "onnx" else []
    return [*count, *runtime, f"torch {torch.__version__}"]


class Measured(TypedDict):
    """A table of latencies: condition -> block -> nanoseconds."""

    format: Literal[1]
    measured: dict[str, dict[str, Annotated[int, Ge(0)]]]


def _read(path: Path) -> dict[str, dict[str, int]]:
    """Condition -> block -> nanoseconds; {} without a file."""
    if not path.exists():
        return {}
    return typed.read(path, Measured, SettingsError, "name another file as --latency-table")["measured"]
