"""Newton's method for many ridge-penalised convex problems at once, with a bound on the remaining gap.

Each problem is f(x) = data(x) + decay / 2 * |weights|^2; the last `free` coordinates of x are not penalised. All problems
take their steps together; solved ones leave the batch. Steps are found by conjugate gradients with a tolerance that tightens
near the optimum (truncated Newton: Dembo, Eisenstat & Steihaug, 1982, https://doi.org/10.1137/0719025), or by a Cholesky
factor of the Hessian once that is cheaper. Steps are halved until they lower f (Armijo).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

GAP = 1e-6  # relative gap in f below which a problem is solved
STEPS = 200  # maximum number of Newton steps; the hardest problem of benchmarks/speed_probe.py takes about 20
PRODUCTS = 2000  # maximum number of Hessian products in one step
DENSE = 5000  # maximum size of a dense Hessian
WORTH = 25  # with more products than size / WORTH, the dense Hessian is cheaper (measured at sizes 512 and 1024)
TOGETHER = 1 << 26  # numbers in Hessians held at once: 512 MB
HALVINGS = 50
ROUNDING = 500  # relative increase of f that counts as rounding, in units of the dtype's epsilon


class Convex(Protocol):
    """The data terms of Q problems in d coordinates each."""

    def value(self, x: Tensor) -> Tensor:
        """Return the values (Q,) at x (Q, d), infinite or nan outside the domain."""

    def expand(self, x: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Return, at x (Q, d), the gradient (Q, d), about the Hessian's diagonal (Q, d), and the Hessian product of v (Q, d)."""

    def dense(self, x: Tensor) -> Tensor:
        """Return the Hessians (Q, d, d) at x (Q, d)."""

    def narrow(self, active: Tensor) -> tuple["Convex", Tensor]:
        """Return a smaller batch with at least the problems of `active` (Q,) bool, and their positions in this one."""


@dataclass(frozen=True)
class Found:
    """x (Q, d); value (Q,) of f; gap (Q,), an upper bound on f minus its minimum, relative to f; converged (Q,) bool."""

    x: Tensor
    value: Tensor
    gap: Tensor
    converged: Tensor


def minimise(problem: Convex, x: Tensor, decay: Tensor, free: int, tolerance: float = GAP) -> Found:
    """Minimise from x (Q, d), with decay (Q,) > 0, to a gap of `tolerance` or for STEPS steps, in the dtype of x.

    The bound: f is decay-strongly convex in the weights and convex in the rest, so no point is lower than
    f - |g_weights|^2 / (2 decay) - |g_free|_1 * (largest distance of a free coordinate from its optimum, assumed to be 1).
    """
    x = x.clone()
    ridge = decay[:, None] * (torch.arange(x.shape[1], device=x.device) < x.shape[1] - free)
    value = problem.value(x) + (ridge * x * x).sum(1) / 2
    gap = torch.full_like(value, torch.inf)
    active = torch.ones_like(value, dtype=torch.bool)
    hard = torch.zeros_like(active)
    rounding = ROUNDING * torch.finfo(x.dtype).eps
    for step in range(STEPS + 1):
        part, at = problem.narrow(active)
        x0, f0, damp = x[at], value[at], ridge[at]
        g, diagonal, curvature = part.expand(x0)
        g = g + damp * x0
        gap[at] = _left(g, damp, free) / f0.abs().clamp(min=torch.finfo(f0.dtype).tiny)
        active = gap > tolerance
        live = active[at]
        if not live.any() or step == STEPS:
            break
        direct = live & hard[at]
        solve = g, diagonal + damp, curvature, damp, free, f0.abs(), tolerance, live & ~direct
        direction, products = _iterated(*solve)
        failed = _factored(part, x0, g, damp, direct, direction)
        hard[at] = (direct & ~failed) | (products > x.shape[1] / WORTH) & (x.shape[1] <= DENSE)
        length, open_ = torch.ones_like(f0), live
        fall = 1e-4 * (g * direction).sum(1)
        for _ in range(HALVINGS):
            trial = x0 + length[:, None] * direction
            f = part.value(trial) + (damp * trial * trial).sum(1) / 2
            open_ = live & ~(f <= f0 + length * fall + rounding * f0.abs())
            if not open_.any():
                break
            length = torch.where(open_, length / 2, length)
        moved = live & ~open_
        x[at[moved]], value[at[moved]] = trial[moved], f[moved]
    return Found(x, value, gap, gap <= tolerance)


def _left(g: Tensor, damp: Tensor, free: int) -> Tensor:
    """Return the bound (Q,) of `minimise` from gradients (Q, d); damp (Q, d) is the decay of each coordinate."""
    inner = g.shape[1] - free
    return (g[:, :inner].square() / (2 * damp[:, :inner])).sum(1) + g[:, inner:].abs().sum(1)


def _factored(part: Convex, x: Tensor, g: Tensor, damp: Tensor, direct: Tensor, out: Tensor) -> Tensor:
    """Write -Hessian^-1 g of the problems `direct` into `out`; return a mask of those that failed by rounding."""
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
    tolerance: float,
    live: Tensor,
) -> tuple[Tensor, Tensor]:
    """Approximate -Hessian^-1 g of the `live` problems (0 for the others) by conjugate gradients, scaled by the diagonal.

    Also return the number of products (Q,). A problem stops at a residual of a tenth of g, less near the optimum, or when
    the remaining gap is below a tenth of `tolerance`.
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
        live = live & (new > stop) & (_left(r, damp, free) > 0.1 * tolerance * value)
        if not live.any():
            break
        along = z + torch.where(live, new / norm, 0)[:, None] * along
        norm = torch.where(live, new, norm)
    return v, products
