"""The end of a run of several processes when one of them is gone or does not answer."""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
import torch.distributed as dist
from lightning_fabric import Fabric

from medssl.errors import UserError
from medssl.progress import say

BROKEN = ("gloo", "nccl", "connection closed by peer", "connection reset", "broken pipe", "socket")
"""Words in the errors of a collective operation whose other side is gone."""
PATIENCE = 50.0  # seconds without a sign of life from a process, after which the others end
TICKS = 25  # looks at the signs of life in that time
LEFT = b"left"  # the sign of a process that has finished


@contextmanager
def lost_process(fabric: Fabric, patience: float = PATIENCE) -> Iterator[None]:
    """Turn the error of a process that waits for one that is gone into a UserError; with one process do nothing.

    A process that hangs is not gone, and the others would wait for it. If none of its threads has run for `patience` seconds,
    because it was stopped or is stuck, it is killed and the others end with exit code 1 and one line. One that is slow has
    all the time it needs. Enter and leave the context in all processes of the run, which are on one machine.
    """
    if fabric.world_size == 1:
        yield
        return
    with _SignsOfLife(fabric, patience):
        try:
            yield
        except RuntimeError as e:
            words = str(e).lower()
            if not (isinstance(e, dist.DistError) or any(word in words for word in BROKEN)):
                raise
            raise UserError(
                f"process {fabric.global_rank} of {fabric.world_size} ends because another one of this run is gone: it was "
                "killed, or said why above; the same command goes on from the last checkpoint"
            ) from e


class Silence:
    """Tells which process has given no new sign for `most` calls of `first`.

    Calls are counted, not seconds, so that a job that a scheduler suspends as a whole and continues later goes on.
    """

    def __init__(self, world: int, most: int):
        self.most = most
        self.seen: list[bytes] = [b""] * world
        self.silent = [0] * world

    def first(self, signs: Sequence[bytes]) -> int | None:
        """Return the first process that is silent, None if there is none. signs: the latest of each."""
        for i, sign in enumerate(signs):
            self.silent[i] = self.silent[i] + 1 if sign == self.seen[i] and sign != LEFT else 0
            self.seen[i] = sign
        return next((i for i, n in enumerate(self.silent) if n >= self.most), None)


class _SignsOfLife:
    """Two threads of each process: one exchanges signs through a store that process 0 has, the other looks at them.

    If process 0 does not answer, the first thread waits for it. All are silent then, and 0 is the first.
    """

    def __init__(self, fabric: Fabric, patience: float):
        self.rank, self.world = fabric.global_rank, fabric.world_size
        self.every, self.silence = patience / TICKS, Silence(self.world, TICKS)
        self.signs = [b""] * self.world
        host, zero = os.environ["MASTER_ADDR"], fabric.is_global_zero
        server = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False) if zero else None
        port = fabric.broadcast(0 if server is None else server.port)
        self.store = dist.TCPStore(host, port, wait_for_workers=False) if server is None else server
        self.store.set(str(self.rank), "0")
        mine = torch.tensor(os.getpid(), device=fabric.device)
        self.pids = torch.as_tensor(fabric.all_gather(mine)).tolist()
        self.closing = threading.Event()
        self.exchanging = threading.Thread(target=self._exchange, daemon=True)

    def __enter__(self) -> None:
        self.exchanging.start()
        threading.Thread(target=self._look, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.exchanging.join(1)

    def _exchange(self) -> None:
        n, names = 0, [str(i) for i in range(self.world)]
        try:
            while not self.closing.wait(self.every / 2):
                n += 1
                self.store.set(names[self.rank], str(n))
                self.signs = self.store.multi_get(names)
            self.store.set(names[self.rank], LEFT.decode())
        except RuntimeError:  # process 0 is gone, which the next collective operation notices
            self.closing.set()

    def _look(self) -> None:
        while not self.closing.wait(self.every):
            if (lost := self.silence.first(self.signs)) is not None and lost != self.rank:
                say(
                    f"medssl: process {self.rank} of {self.world} ends because process {lost} does not answer; "
                    "the same command goes on from the last checkpoint"
                )
                with suppress(OSError):
                    os.kill(self.pids[lost], signal.SIGKILL)  # it would keep its memory
                os._exit(1)  # the main thread is waiting inside a library
