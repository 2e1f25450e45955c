"""A function on two processes that share their gradients, as `torchrun` would start them."""

import os
import socket
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import multiprocessing


def on_two_ranks(function: Callable[..., None], *given: Any) -> None:
    """Call `function(rank, *given)` in two new processes and wait; a rank that fails raises what it raised."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    multiprocessing.spawn(_rank, (function, port, given), nprocs=2)


def _rank(rank: int, function: Callable[..., None], port: str, given: tuple[Any, ...]) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    function(rank, *given)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # the work is done: a thread of torch that still wants Python while it shuts down aborts the process
