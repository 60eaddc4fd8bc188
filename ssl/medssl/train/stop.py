"""Stopping: between two steps, with everything saved, when somebody asks for it; or where training broke."""

import signal
from types import FrameType, TracebackType
from typing import Any

import torch
from lightning_fabric import Fabric

from medssl.errors import Stopped, UserError

PREEMPTED = 75  # EX_TEMPFAIL: schedulers read it as "try again"


class TrainingStopped(UserError):
    """A run that cannot or shall not go on. `step`: the step whose batch broke it, counted from 0."""

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class StopRequest:
    """Inside the `with`, SIGINT, SIGTERM and SIGUSR1 only set `asked`; the loop looks at it after every step."""

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self.before: dict[int, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt  # asked twice: do not wait for the step
        self.asked = signal.Signals(number)

    def __enter__(self) -> "StopRequest":
        try:
            self.before = {s: signal.signal(s, self._note) for s in self.signals}
        except ValueError:  # not the main thread: signals are somebody else's
            self.before = {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for s, handler in self.before.items():
            signal.signal(s, handler)

    def wanted(self, fabric: Fabric) -> bool:
        """Whether any process was asked: they stop at the same step, or the others would wait for ever."""
        if fabric.world_size == 1:
            return self.asked is not None
        mine = torch.tensor(float(self.asked is not None), device=fabric.device)
        return float(torch.as_tensor(fabric.all_reduce(mine, reduce_op="sum"))) > 0

    def reason(self, where: str) -> Stopped:
        """What to raise after saving: code 1 for a person's Ctrl-C, 75 for a scheduler."""
        asked = self.asked or signal.SIGTERM
        code = 1 if asked == signal.SIGINT else PREEMPTED
        return Stopped(f"stopped by {asked.name}, saved {where}; run the same command again to go on", code)
