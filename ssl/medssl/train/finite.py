"""Losses and gradients that are not finite: noticed at once on the CPU, and on a device whenever the loop reads from it."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.utils import get_total_norm

from medssl.losses.distributed import noting_values, whole
from medssl.methods.base import Method
from medssl.train.stop import TrainingStopped

NEVER = 1 << 52  # a step that no run reaches, exact in float64


class FiniteChecks:
    """Raises TrainingStopped for a run whose loss or gradient is not finite.

    at_once, for the CPU: in the step itself, before the update. Otherwise the first such step and its cause are kept on the
    device, because looking would make the CPU wait for it several times a step. `read` tells, and the loop calls it at every
    log interval, before the monitor and before every checkpoint. So what was saved and logged is always from before the
    first bad step, and a restart from the last checkpoint is exact; the updates after it are lost with the run.

    last: the file of the last checkpoint, for the message.
    """

    def __init__(self, method: Method, last: Path, at_once: bool):
        self.method, self.last, self.at_once = method, last, at_once
        self.losses: dict[str, Tensor] = {}  # by name of the loss: its first bad step
        self.grads: dict[tuple[str, ...], tuple[Tensor, Tensor]] = {}  # by parameters: that step, and their norms in it

    @contextmanager
    def of_losses(self, step: int) -> Iterator[None]:
        """Check the values that losses are given in the `with`, a forward pass of that step."""
        if not self.at_once:
            with noting_values(partial(self._note, step)):
                yield
            return
        try:
            yield
        except FloatingPointError as e:
            raise self._stopped(step, step, self._bad_gradient()) from e

    def norm(self, step: int) -> Tensor:
        """Return the norm of all gradients, the same on every rank, and check it."""
        grads = {n: p.grad for n, p in self.method.named_parameters() if p.grad is not None}
        norm = whole(get_total_norm(grads.values()))
        if self.at_once:
            if not torch.isfinite(norm):
                raise self._stopped(step, step, self._bad_gradient())
            return norm
        norms = torch.stack([whole(n) for n in torch._foreach_norm([*grads.values()])])
        bad = _step_if(~torch.isfinite(norm), step)
        first, kept = self.grads.get(tuple(grads), (torch.full_like(bad, NEVER), norms))
        self.grads[tuple(grads)] = torch.minimum(first, bad), torch.where(bad < first, norms, kept)
        return norm

    def read(
        self, fabric: Fabric, step: int, means: dict[str, Tensor] | None = None, norm: Tensor | None = None
    ) -> dict[str, float]:
        """Raise for what was bad in any step up to `step`, and return scalars as numbers: all with one wait for the device.

        means: averaged over ranks. norm: the same on all of them, returned as "grad_norm".
        """
        read, names = [], [*(means or {})]
        if means:
            read.append(torch.as_tensor(fabric.all_reduce(torch.stack([*means.values()]))))
        if norm is not None:
            read.append(norm[None])
            names.append("grad_norm")
        if bad := [*self.losses.values(), *(first for first, _ in self.grads.values())]:
            read.append(torch.as_tensor(fabric.all_reduce(torch.stack(bad), reduce_op="min")))
        values = torch.cat([v.double() for v in read]).cpu().tolist() if read else []
        causes: list[str | tuple[str, ...]] = [*self.losses, *self.grads]
        firsts = dict(zip(causes, map(int, values[len(names) :]), strict=True))
        if (first := min(firsts.values(), default=NEVER)) < NEVER:
            raise self._late(first, step, firsts)
        return dict(zip(names, values, strict=False))

    def _note(self, step: int, name: str, finite: Tensor) -> None:
        bad = _step_if(~finite, step)
        self.losses[name] = torch.minimum(self.losses[name], bad) if name in self.losses else bad

    def _bad_gradient(self) -> str:
        """Return the last parameter without a finite gradient, the nearest to the loss, or "" if there is none."""
        named = [(n, p.grad) for n, p in self.method.named_parameters() if p.grad is not None]
        return next((n for n, g in reversed(named) if not bool(torch.isfinite(whole(g)).all())), "")

    def _late(self, first: int, step: int, firsts: dict[str | tuple[str, ...], int]) -> TrainingStopped:
        for name, at in firsts.items():
            if at == first and isinstance(name, str):
                error = self._stopped(first, step, "")
                error.__cause__ = FloatingPointError(f"{name} was given values that are not finite")
                return error
        names = next(n for n, at in firsts.items() if at == first and not isinstance(n, str))
        finite = self.grads[names][1].isfinite().tolist()
        return self._stopped(
            first, step, next((n for n, f in zip(reversed(names), reversed(finite), strict=True) if not f), "")
        )

    def _stopped(self, first: int, step: int, parameter: str) -> TrainingStopped:
        good = f"The last good checkpoint is {self.last}. " if self.last.exists() else ""
        done = "nothing was updated" if self.at_once else f"noticed after step {step}; nothing was saved since"
        return TrainingStopped(
            f"step {first}: {f'the gradient of {parameter}' if parameter else 'the loss'} is not finite; {done}. {good}"
            "Lower lr or clip, use precision=32-true, or look for scans with extreme values",
            first,
        )


def _step_if(bad: Tensor, step: int) -> Tensor:
    """Return `step` where `bad` (a bool scalar) is true, else NEVER: int64, on the device of `bad`."""
    return torch.where(bad, step, NEVER)
