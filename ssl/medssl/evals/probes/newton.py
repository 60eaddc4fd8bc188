"""Many ridge-penalised convex problems at once: Newton's method, and a bound on what is left.

Each problem is f(x) = data(x) + decay / 2 * |weights|^2, where the last `free` coordinates of x are not penalised. All
problems take their steps together; those that are done leave the batch. A step is found by conjugate gradients, no more
precisely than it deserves (Dembo, Eisenstat & Steihaug, 1982, https://doi.org/10.1137/0719025); where that took so many
products with the Hessian that its Cholesky factor is cheaper, by that. Steps are halved until they lower f (Armijo).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

GAP = 1e-6  # of f, what convexity leaves to gain when a problem counts as solved
STEPS = 200  # Newton steps at most; the hardest problem of benchmarks/speed_probe.py takes about 20
PRODUCTS = 2000  # products with the Hessian in one step at most
DENSE = 5000  # coordinates of the largest Hessian that is made
WORTH = (
    25  # coordinates a product: with more products than size / WORTH, the Hessian is cheaper (measured at 512 and 1024)
)
TOGETHER = 1 << 26  # numbers in Hessians held at once: 512 MB
HALVINGS = 50
ROUNDING = 1e-13  # of f: a step that raises it by less is no worse


class Convex(Protocol):
    """The data terms of Q problems in d coordinates each."""

    def value(self, x: Tensor) -> Tensor:
        """x (Q, d) -> (Q,); infinite or nan where x is outside the domain."""

    def expand(self, x: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """At x (Q, d): gradient (Q, d), about the Hessian's diagonal (Q, d), and v (Q, d) -> Hessian times v (Q, d)."""

    def dense(self, x: Tensor) -> Tensor:
        """The Hessians (Q, d, d) at x (Q, d)."""

    def narrow(self, active: Tensor) -> tuple["Convex", Tensor]:
        """A smaller batch that holds at least the problems of `active` (Q,) bool, and their places in this one."""


@dataclass(frozen=True)
class Found:
    """x (Q, d); value (Q,) of f; gap (Q,), a bound on f minus its minimum, relative to f; `converged` (Q,) bool."""

    x: Tensor
    value: Tensor
    gap: Tensor
    converged: Tensor


def minimise(problem: Convex, x: Tensor, decay: Tensor, free: int) -> Found:
    """From x (Q, d), float64, with decay (Q,) > 0. It stops at a gap of GAP or after STEPS steps.

    The bound: f is decay-strongly convex in the weights and convex in the rest, so no point is lower than
    f - |g_weights|^2 / (2 decay) - |g_free|_1 * (the largest distance of a free coordinate from its optimum, taken as 1).
    """
    x = x.clone()
    ridge = decay[:, None] * (torch.arange(x.shape[1], device=x.device) < x.shape[1] - free)
    value = problem.value(x) + (ridge * x * x).sum(1) / 2
    gap = torch.full_like(value, torch.inf)
    active = torch.ones_like(value, dtype=torch.bool)
    hard = torch.zeros_like(active)
    for step in range(STEPS + 1):
        part, at = problem.narrow(active)
        x0, f0, damp = x[at], value[at], ridge[at]
        g, diagonal, curvature = part.expand(x0)
        g = g + damp * x0
        gap[at] = _left(g, damp, free) / f0.abs().clamp(min=torch.finfo(f0.dtype).tiny)
        active = gap > GAP
        live = active[at]
        if not live.any() or step == STEPS:
            break
        direct = live & hard[at]
        direction, products = _iterated(g, diagonal + damp, curvature, damp, free, f0.abs(), live & ~direct)
        failed = _factored(part, x0, g, damp, direct, direction)
        hard[at] = (direct & ~failed) | (products > x.shape[1] / WORTH) & (x.shape[1] <= DENSE)
        length, open_ = torch.ones_like(f0), live
        fall = 1e-4 * (g * direction).sum(1)
        for _ in range(HALVINGS):
            trial = x0 + length[:, None] * direction
            f = part.value(trial) + (damp * trial * trial).sum(1) / 2
            open_ = live & ~(f <= f0 + length * fall + ROUNDING * f0.abs())
            if not open_.any():
                break
            length = torch.where(open_, length / 2, length)
        moved = live & ~open_
        x[at[moved]], value[at[moved]] = trial[moved], f[moved]
    return Found(x, value, gap, gap <= GAP)


def _left(g: Tensor, damp: Tensor, free: int) -> Tensor:
    """The bound (Q,) of `minimise`, from gradients (Q, d); damp (Q, d) is the decay of each coordinate."""
    inner = g.shape[1] - free
    return (g[:, :inner].square() / (2 * damp[:, :inner])).sum(1) + g[:, inner:].abs().sum(1)


def _factored(part: Convex, x: Tensor, g: Tensor, damp: Tensor, direct: Tensor, out: Tensor) -> Tensor:
    """Writes -Hessian^-1 g of the problems `direct` into `out`; where that fails by rounding, a mask says so."""
    failed = torch.zeros_like(direct)
    chunk = max(1, TOGETHER // x.shape[1] ** 2)
    for group in direct.nonzero()[:, 0].split(chunk) if direct.any() else ():
        wanted = torch.zeros_like(direct)
        wanted[group] = True
        some, at = part.narrow(wanted)
        hessian = some.dense(x[at])
        hessian.diagonal(dim1=1, dim2=2).add_(damp[at])
        factor, info = torch.linalg.cholesky_ex(hessian)
        step = -torch.cholesky_solve(g[at][..., None], factor)[..., 0]
        good = (info == 0) & wanted[at]
        out[at[good]] = step[good]
        failed[at[wanted[at] & ~good]] = True
    return failed


def _iterated(
    g: Tensor,
    diagonal: Tensor,
    curvature: Callable[[Tensor], Tensor],
    damp: Tensor,
    free: int,
    value: Tensor,
    live: Tensor,
) -> tuple[Tensor, Tensor]:
    """About -Hessian^-1 g of the `live` problems (0 for the others), by conjugate gradients in units of the diagonal.

    Also the number of products that each took (Q,). A problem stops at a residual of a tenth of g, of less near the
    optimum, or when what would be left is enough.
    """
    v, r = torch.zeros_like(g), -g
    z = r / diagonal
    along, norm = z, (r * z).sum(1)
    stop = norm * (norm / value).sqrt().clamp(max=0.01)
    products = torch.zeros_like(norm)
    for _ in range(PRODUCTS if live.any() else 0):
        products += live
        hv = curvature(along) + damp * along
        length = torch.where(live, norm / (along * hv).sum(1), 0)[:, None]
        v, r = v + length * along, r - length * hv
        z = r / diagonal
        new = (r * z).sum(1)
        live = live & (new > stop) & (_left(r, damp, free) > 0.1 * GAP * value)
        if not live.any():
            break
        along = z + torch.where(live, new / norm, 0)[:, None] * along
        norm = torch.where(live, new, norm)
    return v, products
