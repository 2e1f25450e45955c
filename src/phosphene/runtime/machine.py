"""Device, precision, memory layout, allocator, threads and ranks: decided once, passed down."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import PhospheneError, RunError, SettingsError, is_memory, shown
from . import environment, start

Placed = TypeVar("Placed", nn.Module, Tensor)
Function = TypeVar("Function")
Gathered = TypeVar("Gathered")


@dataclass(frozen=True)
class Machine:
    """Where and how the arithmetic happens. `rank` of `world` processes share the work of a step."""

    device: torch.device
    precision: str = "fp32"
    channels_last: bool = True
    rank: int = 0
    world: int = 1
    compile: bool = False

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """bfloat16 autocast, or nothing in fp32."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def place(self, thing: Placed) -> Placed:
        """The same module or tensor on the device, and in channels_last where it has four dimensions."""
        if isinstance(thing, nn.Module):
            thing = thing.to(self.device)
            return thing.to(memory_format=torch.channels_last) if self.channels_last else thing  # type: ignore[call-overload]
        moved = thing.to(self.device, non_blocking=True)
        four = self.channels_last and moved.ndim == 4
        return moved.contiguous(memory_format=torch.channels_last) if four else moved

    def compiled(self, function: Function) -> Function:
        """`function` through torch.compile with `--compile`; a module is compiled in place."""
        if not self.compile:
            return function
        if isinstance(function, nn.Module):
            function.compile()
            return function
        return torch.compile(function)  # type: ignore[call-overload,no-any-return]

    def average(self, tensors: Iterable[Tensor | None]) -> None:
        """Replace each tensor by its mean over the ranks, in place; one flat all-reduce for each type.

        Every explicitly taken gradient passes through here (weights, α, second order): data parallelism without a
        wrapper that sees only `.grad`.
        """
        if self.world == 1:
            return
        kinds: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            if tensor is not None:
                kinds.setdefault(tensor.dtype, []).append(tensor)
        for group in kinds.values():
            flat = torch.cat([t.detach().reshape(-1) for t in group])
            with _together():
                dist.all_reduce(flat)
            flat /= self.world
            for tensor, mean in zip(group, flat.split([t.numel() for t in group]), strict=True):
                tensor.copy_(mean.view_as(tensor))

    def agree(self, module: nn.Module) -> None:
        """Give every rank rank 0's parameters and buffers."""
        if self.world > 1:
            with _together():
                for tensor in [*module.parameters(), *module.buffers()]:
                    dist.broadcast(tensor.detach(), 0)

    def share(self, total: int) -> range:
        """This rank's contiguous slice of ``range(total)``; the slices of all ranks partition it."""
        return range(total * self.rank // self.world, total * (self.rank + 1) // self.world)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank (a collective: every rank must call it)."""
        if self.world == 1:
            return flag
        votes = torch.tensor(float(flag))
        votes = votes.to(self.device) if self.device.type == "cuda" else votes
        with _together():
            dist.all_reduce(votes)
        return bool(votes.item() > 0)

    def first(self, work: Callable[[], object]) -> None:
        """The first process does the work, the others wait; an error of ours that it raises, all of them raise."""
        problem: list[PhospheneError | None] = [None]
        if self.rank == 0:
            try:
                work()
            except PhospheneError as error:
                problem = [error]
        if self.world > 1:
            with _together():
                dist.broadcast_object_list(problem)
        if problem[0] is not None:
            raise problem[0]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            with _together():
                dist.barrier()

    def gathered(self, value: Gathered) -> list[Gathered]:
        """The value of every rank, in their order (a collective: every rank must call it)."""
        everyone: list[Any] = [value] * self.world
        if self.world > 1:
            with _together():
                dist.all_gather_object(everyone, value)
        return everyone

    def synchronize(self) -> None:
        """Wait for the device's queue, before a clock is read."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass
class Preferences:
    """What holds for a whole process rather than for one call: `--threads` and `--compile`."""

    threads: int | None = None
    compile: bool = False


PREFERENCES = Preferences()


def machine(device: str = "auto", precision: str = "auto") -> Machine:
    """Decide where and how to compute: auto = CUDA, then MPS, then CPU; bf16 where the hardware has it.

    Thread count and torch.compile follow `PREFERENCES`.

    Raises:
        SettingsError: the device is not there, or device or precision is not one of those named.
    """
    rank, world = environment.ranks()
    chosen = _device(device)
    _tune_allocator()
    if PREFERENCES.threads is not None:
        torch.set_num_threads(PREFERENCES.threads)
    if chosen.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    if world > 1:
        _join(chosen)
    return Machine(chosen, _precision(precision, chosen), True, rank, world, PREFERENCES.compile)


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """Inside, processes wait for each other; raises `RunError` where gloo or NCCL notice that one is gone."""
    try:
        yield
    except RuntimeError as error:
        if is_memory(error):
            raise
        why = (str(error).splitlines() or [type(error).__name__])[0]
        again = "start all of them again, and they go on"
        raise RunError(f"another process of this run was lost ({shown(why, str)}); {again}") from error


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """One torch thread inside: for work that is spread over processes already."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _device(name: str) -> torch.device:
    if name == "auto":
        mps = torch.backends.mps.is_available()
        name = f"cuda:{environment.local_rank()}" if torch.cuda.is_available() else "mps" if mps else "cpu"
    kind = name.split(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise SettingsError(f"--device {name} is not auto, cpu, cuda, cuda:N or mps")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[kind]
    if not there:
        raise SettingsError(f"--device {name}: this machine has none; use --device auto or cpu")
    try:
        chosen = torch.device(name)
    except RuntimeError as error:
        raise SettingsError(f"--device {name} is not auto, cpu, cuda, cuda:N or mps") from error
    if kind != "cuda" and chosen.index:
        raise SettingsError(f"--device {name}: this machine has one {kind}; use --device {kind}")
    if kind == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise SettingsError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices, from cuda:0")
    return chosen


def _precision(name: str, device: torch.device) -> str:
    if name not in ("auto", "fp32", "bf16"):
        raise SettingsError(f"--precision {name} is not auto, fp32 or bf16")
    if name != "auto":
        return name
    fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else device.type == "cpu" and _cpu_has_bf16()
    return "bf16" if fast else "fp32"


@cache
def _cpu_has_bf16() -> bool:
    """AVX512-BF16 or AMX: elsewhere bfloat16 is emulated and slower than float32."""
    try:
        with open("/proc/cpuinfo") as info:
            flags = next((line for line in info if line.startswith("flags")), "")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


@cache
def _tune_allocator() -> None:
    """Keep freed memory: glibc hands large tensors back to the kernel after every operation, which costs 1.7x."""
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL("libc.so.6").mallopt
    m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3
    mallopt(m_mmap_threshold, 1 << 30)
    mallopt(m_trim_threshold, 2**31 - 1)
    mallopt(m_top_pad, 64 << 20)


def _join(device: torch.device) -> None:
    if dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        with start.Waiting():  # for the other processes, minutes if need be
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (RuntimeError, ValueError, OSError) as error:  # no MASTER_ADDR, or nobody there
        count = environment.ranks()[1]
        raise SettingsError(
            f"WORLD_SIZE={count}: its processes do not meet ({error}); start them by torchrun"
        ) from error
    atexit.register(_leave)


def _leave() -> None:
    """End its threads before Python ends: one that still wants Python then aborts a process whose work is done."""
    if dist.is_initialized():
        dist.destroy_process_group()


def describe() -> dict[str, object]:
    """What a recorded figure must say of the machine it was measured on."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as info:
        model = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), model)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "gpu": gpu,
        "torch": torch.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
    }
