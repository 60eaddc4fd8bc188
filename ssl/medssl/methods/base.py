"""The contract every method meets: one nn.Module that owns an encoder, its heads and its loss. The loop knows no more."""

from typing import Any, NamedTuple, TypedDict

from torch import Tensor, nn

from medssl.rng import Key


class Batch(TypedDict, total=False):
    """What a method is handed."""

    views: list[Tensor]  # `method.views` tensors (B, C, *spatial), float32, standardised
    key: Key  # for randomness inside the method: rng.uniform(batch["key"], view, slot, n)
    target: Tensor  # what `method.target` asks for: (B,) int64 classes or groups, or (B,) or (B, L) float32 numbers


class Clock(NamedTuple):
    """Where training stands. Schedules are pure functions of it, so they need no state."""

    step: int
    steps: int

    @property
    def frac(self) -> float:
        """Progress in [0, 1)."""
        return self.step / self.steps

    def part(self, parts: int, until: float = 1.0) -> int:
        """Which of equal parts of the run this is, from 0 on; they end at the share `until` of it, after which it is `parts`."""
        return parts if self.frac >= until else min(int(self.frac / until * parts), parts - 1)


class Method(nn.Module):
    """Subclass once, never twice: a variant is an argument or another file.

    `forward` returns {"loss": scalar, …}; other scalars are logged. "chance" is the loss of constant features, where that
    is a number: a loss that stays there is reported as collapse. "error" is what falls as it learns where the loss itself
    says nothing, as an energy. State that outlives a step lives in buffers.

    views: how many of each scan. target: what batch["target"] holds, "" for nothing, "patient" or "study" for groups (B,)
    int64, or "label": the labels asked for, those that are unknown as `kind.known` tells. parts: how many trainings follow
    each other in equal parts of the run, each with parameters of its own. A constructor with a parameter `kind` is given
    the objectives.kinds.Kind of the label asked for, or None when it has that default and none is.
    """

    views: int = 1
    target: str = ""
    parts: int = 1
    encoder: Any  # a module with channels, size, dim and what else the method needs: tokens, layers, …

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        raise NotImplementedError

    def after_step(self, clock: Clock) -> None:
        """Runs after the optimiser's step: teachers, queues, statistics."""
