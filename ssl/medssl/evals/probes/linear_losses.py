"""Losses of linear models as functions of scores z and intercepts c, which are linear in the weights.

Shapes: S sets of scans with n rows (padded), C problems on each. z (S, n, C, M) with M columns of weights; c (S, C, J) with J
intercepts. J = M, or M = 1 and the J intercepts share it. `target` and `weight` are (S, n, 1 or C, …); the weights of a
problem's rows sum to 1 and are 0 for padding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import softplus

Rows = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Loss(Protocol):
    """Values (S, C), and derivatives by z and c in their shapes."""

    def value(self, z: Tensor, c: Tensor) -> Tensor:
        """Return the values (S, C), infinite where c is not allowed."""

    def expand(self, z: Tensor, c: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Rows]:
        """Return the gradient, the Hessian's diagonal, and the Hessian product of (dz, dc), each as (by z, by c)."""

    def take(self, sets: Tensor, columns: Tensor) -> "Loss":
        """Return the loss of some sets and some problems, given by their positions."""


def _columns(x: Tensor, columns: Tensor) -> Tensor:
    return x if x.shape[2] == 1 else x[:, :, columns]


@dataclass(frozen=True)
class Logistic:
    """Binary cross-entropies of z + c with target (S, n, 1 or C, J), summed over J.

    With J > 1 this is the proportional-odds model of McCullagh, 1980 (https://doi.org/10.1111/j.2517-6161.1980.tb01109.x):
    P(level > k) = sigmoid(z + c_k), c decreasing. log P(level) is the sum of two logistic regressions, above the level's
    lower threshold and not above its upper one (the only two with weight in that row), and of log(1 - exp(c_k - c_{k-1})),
    which does not depend on scans: `between` (S, J - 1) is the share of scans at each level with two thresholds.
    """

    target: Tensor
    weight: Tensor
    between: Tensor | None = None

    def _barrier(self, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the value, and the first and second derivative by the distance of neighbouring thresholds."""
        assert self.between is not None
        share, d = self.between[:, None], c[..., :-1] - c[..., 1:]
        # beyond 300 the terms are negligible
        e = torch.expm1(d.clamp(max=300))
        value = torch.where(d > 0, -share * torch.log(-torch.expm1(-d)), torch.inf).sum(-1)
        return value, -share / e, share * (1 + e) / e**2

    def value(self, z: Tensor, c: Tensor) -> Tensor:
        """See `Loss`."""
        s = z + c[:, None]
        value = (self.weight * (softplus(s) - self.target * s)).sum((1, 3))
        return value if self.between is None else value + self._barrier(c)[0]

    def expand(self, z: Tensor, c: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Rows]:
        """See `Loss`."""
        p = torch.sigmoid(z + c[:, None])
        g, h = self.weight * (p - self.target), self.weight * p * (1 - p)
        slope, bend = (None, None) if self.between is None else self._barrier(c)[1:]

        def both(rows: Tensor, by_distance: Tensor | None, sign: int) -> tuple[Tensor, Tensor]:
            by_c = rows.sum(1)
            if by_distance is not None:
                by_c[..., :-1] += by_distance
                by_c[..., 1:] += sign * by_distance
            return (rows.sum(-1, keepdim=True) if z.shape[-1] < c.shape[-1] else rows), by_c

        def times(dz: Tensor, dc: Tensor) -> tuple[Tensor, Tensor]:
            return both(h * (dz + dc[:, None]), None if bend is None else bend * (dc[..., :-1] - dc[..., 1:]), -1)

        return both(g, slope, -1), both(h, bend, 1), times

    def take(self, sets: Tensor, columns: Tensor) -> "Logistic":
        """See `Loss`."""
        target, weight = (_columns(x[sets], columns) for x in (self.target, self.weight))
        return Logistic(target, weight, None if self.between is None else self.between[sets])


@dataclass(frozen=True)
class Softmax:
    """Cross-entropy of the logits (z + c) @ basis, basis (M, M + 1) orthonormal rows that sum to 0.

    A constant added to all logits changes only the ridge penalty, so it is 0 at the optimum: M columns are equivalent to
    M + 1 with the same penalty. target (S, n, 1, M + 1) is one-hot, weight (S, n, 1).
    """

    target: Tensor
    weight: Tensor
    basis: Tensor

    def value(self, z: Tensor, c: Tensor) -> Tensor:
        """See `Loss`."""
        s = (z + c[:, None]) @ self.basis
        return (self.weight * (torch.logsumexp(s, -1) - (self.target * s).sum(-1))).sum(1)

    def expand(self, z: Tensor, c: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Rows]:
        """See `Loss`."""
        p = torch.softmax((z + c[:, None]) @ self.basis, -1)
        w, back = self.weight[..., None], self.basis.T
        g = w * ((p - self.target) @ back)
        h = w * (p @ back**2 - (p @ back) ** 2)

        def times(dz: Tensor, dc: Tensor) -> tuple[Tensor, Tensor]:
            q = p * ((dz + dc[:, None]) @ self.basis)
            rows = w * ((q - p * q.sum(-1, keepdim=True)) @ back)
            return rows, rows.sum(1)

        return (g, g.sum(1)), (h, h.sum(1)), times

    def take(self, sets: Tensor, columns: Tensor) -> "Softmax":
        """See `Loss`."""
        return Softmax(self.target[sets], self.weight[sets], self.basis)


def contrasts(classes: int) -> Tensor:
    """Return Helmert contrasts: (classes - 1, classes) orthonormal rows that sum to 0, float64."""
    rows = torch.tril(torch.ones(classes - 1, classes, dtype=torch.float64))
    i = torch.arange(1, classes, dtype=torch.float64)
    rows[torch.arange(classes - 1), torch.arange(1, classes)] = -i
    return rows / (i * (i + 1)).sqrt()[:, None]
