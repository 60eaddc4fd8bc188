"""The contract every method meets: one nn.Module that owns an encoder, its heads and its loss. The loop knows no more."""

from typing import Any, NamedTuple, TypedDict

from torch import Tensor, nn

from medssl.rng import Key


class Batch(TypedDict, total=False):
    """What a method is handed."""

    views: list[Tensor]  # `method.views` tensors (B, C, *spatial), float32, standardised
    key: Key  # for randomness inside the method: rng.uniform(batch["key"], view, slot, n)
    target: Tensor  # for tasks: (B,) int64 classes, or (B,) or (B, L) float32 numbers


class Clock(NamedTuple):
    """Where training stands. Schedules are pure functions of it, so they need no state."""

    step: int
    steps: int

    @property
    def frac(self) -> float:
        """Progress in [0, 1)."""
        return self.step / self.steps


class Method(nn.Module):
    """Subclass once, never twice: a variant is an argument or another file.

    `forward` returns {"loss": scalar, …}; other scalars are logged. "chance" is the loss of constant features, where that
    is a number: a loss that stays there is reported as collapse. State that outlives a step lives in buffers.
    """

    views: int = 1
    encoder: Any  # a module with channels, size, dim and what else the method needs: tokens, layers, …

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        raise NotImplementedError

    def after_step(self, clock: Clock) -> None:
        """Runs after the optimiser's step: teachers, queues, statistics."""
