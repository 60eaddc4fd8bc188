"""Several processes of a run on this machine, with the variables of Fabric's launcher; forked, so that they start at once."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.spawn import ProcessContext, start_processes


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def entered(rank: int, go: Callable[..., None], world: int, port: int, args: tuple[Any, ...]) -> None:
    names = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    os.environ |= dict(zip(names, map(str, (rank, rank, world, "127.0.0.1", port)), strict=True))
    torch.set_num_threads(1)
    go(rank, *args)


def start(go: Callable[..., None], world: int, *args: Any) -> ProcessContext:
    """Start `go(rank, *args)` in `world` processes and return at once."""
    port = free_port()
    return start_processes(entered, (go, world, port, args), world, join=False, start_method="fork")


def run(go: Callable[..., None], world: int, *args: Any) -> None:
    """Run `go(rank, *args)` in `world` processes and wait for all. Raises if one of them does."""
    context = start(go, world, *args)
    while not context.join():
        pass
