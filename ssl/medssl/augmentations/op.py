"""The contract of an augmentation, and helpers that ops share."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Protocol, Self

from torch import Tensor


class Op(Protocol):
    """One augmentation: a pure function of uniform random numbers, on a whole batch, in 2D and 3D.

    Parameters may stay on the CPU while x is on a GPU: rows are then selected without waiting for the device.

    Attributes:
        draws: uniform numbers needed per scan.
        moves: whether the op changes pixel positions. If so, label masks are transformed with the image.
        multiplied, raised: fields, numbers or pairs, that `scaled` multiplies by a strength, and that it raises to its power.
    """

    draws: ClassVar[int]
    moves: ClassVar[bool]
    multiplied: ClassVar[tuple[str, ...]] = ()
    raised: ClassVar[tuple[str, ...]] = ()

    def scaled(self, strength: float) -> Self:
        """Return the op with changes `strength` times as large; at 0 it changes nothing."""
        with_strength = {name: _each(getattr(self, name), lambda v: v * strength) for name in self.multiplied}
        with_strength |= {name: _each(getattr(self, name), lambda v: v**strength) for name in self.raised}
        return replace(self, **with_strength)  # type: ignore[type-var]

    def params(self, u: Tensor) -> Any:
        """u (B, draws) in [0, 1) -> parameters per scan."""

    def apply(self, x: Tensor, params: Any) -> Tensor:
        """x (B, C, *S) float32 in [0, 1] -> (B, C, *S')."""


def _each(value: Any, f: Callable[[float], float]) -> Any:
    return tuple(map(f, value)) if isinstance(value, tuple) else f(value)


def between(u: Tensor, low: float, high: float) -> Tensor:
    """Map u in [0, 1) to [low, high)."""
    return low + (high - low) * u


def apply_to_rows(x: Tensor, hit: Tensor, f: Callable[..., Tensor], *params: Tensor) -> Tensor:
    """Return x with f(x[hit], *params[hit]) in the rows where `hit` (B,) is true; x itself if it is true nowhere."""
    rows = hit.nonzero()[:, 0]
    if len(rows) == 0:
        return x
    if len(rows) == len(x):
        return f(x, *(p.to(x.device, non_blocking=True) for p in params))
    at = rows.to(x.device, non_blocking=True)
    return x.index_copy(0, at, f(x[at], *(p[rows].to(x.device, non_blocking=True) for p in params)))
