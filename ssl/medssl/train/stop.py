"""Stopping between two steps: on a signal, with everything saved, or when training cannot continue."""

import signal
from types import FrameType, TracebackType
from typing import Any

import torch
from lightning_fabric import Fabric

from medssl.errors import PREEMPTED, Interrupted, UserError


class TrainingStopped(UserError):
    """A run that cannot continue or was ended by the monitor. `step`: the step of the cause, counted from 0."""

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class StopRequest:
    """Record SIGINT and the signals of schedulers inside the `with`; the loop checks after every step.

    A second Ctrl-C does not wait for the end of the step. Schedulers repeat their signals, to a process and to its parent, and
    the run saves all the same.
    """

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.before: dict[int, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    def __enter__(self) -> "StopRequest":
        try:
            self.before = {s: signal.signal(s, self._note) for s in self.signals}
        except ValueError:  # only the main thread may handle signals
            self.before = {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for s, handler in self.before.items():
            signal.signal(s, handler)

    def wanted(self, fabric: Fabric) -> bool:
        """Return whether any process got a signal: all must stop at the same step, or the others would wait for ever."""
        if fabric.world_size == 1:
            return self.received is not None
        mine = torch.tensor(float(self.received is not None), device=fabric.device)
        return float(torch.as_tensor(fabric.all_reduce(mine, reduce_op="sum"))) > 0

    def reason(self, where: str) -> Interrupted:
        """Return the error to raise after saving: exit code 1 for Ctrl-C, 75 for a scheduler's signal."""
        received = self.received or signal.SIGTERM
        code = 1 if received == signal.SIGINT else PREEMPTED
        return Interrupted(f"stopped by {received.name}, saved {where}; run the same command again to continue", code)
