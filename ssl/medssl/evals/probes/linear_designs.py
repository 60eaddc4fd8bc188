"""Frozen features of sets of scans in rotated coordinates, and many linear models on them as one convex batch.

Every set is standardised by itself and rotated to the eigenvectors of its covariance. A rotation does not change a
ridge-penalised objective, at most min(N, D) coordinates remain, and the Hessian is nearly diagonal while probabilities are
near the prior: conjugate gradients need tens of products instead of thousands.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medssl.evals.metrics.metrics import Floats
from medssl.evals.probes.linear_losses import Loss

SLACK = 1.25  # sets are stacked, with padding, if their sizes differ by less than this factor
STACKED = 1 << 26  # maximum count of numbers in one stack: 512 MB


@dataclass(frozen=True)
class Design:
    """One set of scans.

    a (n, r): coordinates, r = min(n, D), as made float64. back (D, r): maps weights of coordinates to weights of standardised
    features; orthonormal columns. mean, scale (D,): standardised features are (x - mean) * scale.
    """

    a: Tensor
    back: Tensor
    mean: Floats
    scale: Floats

    def to(self, dtype: torch.dtype) -> "Design":
        """Return the design with coordinates of this dtype."""
        return replace(self, a=self.a.to(dtype), back=self.back.to(dtype))

    @classmethod
    def of(cls, x: Floats, device: str = "cpu", blocks: Sequence[int] = ()) -> "Design":
        """Return the design of features x (n, D), for `blocks` see `standardiser`."""
        mean, scale = standardiser(x, blocks)
        t = torch.from_numpy((x - mean) * scale).to(device)
        if len(t) < t.shape[1]:
            q, r = torch.linalg.qr(t.T)
            v = torch.linalg.eigh(r @ r.T)[1]
            return cls(r.T @ v, q @ v, mean, scale)
        v = torch.linalg.eigh(t.T @ t)[1]
        return cls(t @ v, v, mean, scale)


def standardiser(x: Floats, blocks: Sequence[int] = ()) -> tuple[Floats, Floats]:
    """Return the mean and 1 / standard deviation of each column, with 0 for a column constant up to float32 rounding.

    blocks: widths of features that stand side by side; the columns are scaled further, so that every block has the same
    total variance and all blocks together that of standardised columns. Else a penalty would hardly act on the widest one.
    """
    mean, std = x.mean(0), x.std(0)
    alive = std > 1e-6 * np.abs(mean)
    scale = np.divide(1, std, out=np.zeros_like(std), where=alive)
    if blocks:
        width = np.array(blocks)
        scale *= np.repeat(np.sqrt(x.shape[1] / (len(width) * width)), width)
    return mean, scale


def stacks(sizes: Sequence[tuple[int, int]], kinds: Sequence[Any]) -> list[list[int]]:
    """Return the positions of designs (n, r) that are solved together: of one kind and of similar size."""
    found: list[list[int]] = []
    for i in sorted(range(len(sizes)), key=lambda i: (kinds[i], sizes[i])):
        n, r = sizes[i]
        same = found and kinds[found[-1][0]] == kinds[i] and n <= SLACK * sizes[found[-1][0]][0]
        if same and (len(found[-1]) + 1) * n * r <= STACKED:
            found[-1].append(i)
        else:
            found.append([i])
    return found


def pad(parts: Sequence[Tensor]) -> Tensor:
    """Stack tensors of equal rank along a new first axis, padded with zeros to the largest."""
    shape = [max(p.shape[i] for p in parts) for i in range(parts[0].ndim)]
    out = torch.zeros(len(parts), *shape, dtype=parts[0].dtype, device=parts[0].device)
    for o, p in zip(out, parts, strict=True):
        o[tuple(slice(n) for n in p.shape)] = p
    return out


@dataclass(frozen=True)
class Batch:
    """S sets times C problems as a `newton.Convex` of Q = S * C problems with d = r * M + J coordinates: weights, intercepts.

    a (S, n, r), zero where padded. columns: C. outputs: M. intercepts: J.
    """

    a: Tensor
    loss: Loss
    columns: int
    outputs: int
    intercepts: int

    @property
    def size(self) -> int:
        """The number of coordinates of one problem."""
        return self.a.shape[2] * self.outputs + self.intercepts

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Split x (Q, d) into weights (S, r, C, M) and intercepts (S, C, J)."""
        S, _, r = self.a.shape
        x = x.view(S, self.columns, self.size)
        weights = x[..., : r * self.outputs].reshape(S, self.columns, r, self.outputs)
        return weights.transpose(1, 2), x[..., r * self.outputs :]

    def _join(self, by_rows: Tensor, by_c: Tensor, a: Tensor) -> Tensor:
        """Return derivatives by x (Q, d) from derivatives by z (S, n, C, M) and by c."""
        S, _, r = a.shape
        # three times as fast as the other order
        weights = by_rows.flatten(2).transpose(1, 2) @ a
        weights = weights.view(S, self.columns, self.outputs, r).transpose(2, 3)
        return torch.cat([weights.flatten(2), by_c], 2).flatten(0, 1)

    def _scores(self, weights: Tensor) -> Tensor:
        S, n, _ = self.a.shape
        return (self.a @ weights.flatten(2)).view(S, n, self.columns, self.outputs)

    def value(self, x: Tensor) -> Tensor:
        """See `newton.Convex`."""
        weights, c = self.split(x)
        return self.loss.value(self._scores(weights), c).flatten()

    def expand(self, x: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """See `newton.Convex`."""
        weights, c = self.split(x)
        gradient, diagonal, times = self.loss.expand(self._scores(weights), c)

        def hessian(v: Tensor) -> Tensor:
            dw, dc = self.split(v)
            return self._join(*times(self._scores(dw), dc), self.a)

        curvature = self._join(*diagonal, self.a * self.a)
        return self._join(*gradient, self.a), curvature.clamp(min=1e-12), hessian

    def dense(self, x: Tensor) -> Tensor:
        """See `newton.Convex`. Hessian products of the loss with unit vectors give the Hessian of each row by z and c."""
        weights, c = self.split(x)
        z = self._scores(weights)
        times = self.loss.expand(z, c)[2]
        (S, _, r), M, J, d = self.a.shape, self.outputs, self.intercepts, self.size
        out = torch.zeros(S, self.columns, d, d, dtype=x.dtype, device=x.device)
        inner = out[..., : r * M, : r * M].unflatten(3, (r, M)).unflatten(2, (r, M))  # (S, C, r, M, r, M)
        for m in range(M):
            h = times(torch.eye(M, dtype=x.dtype, device=x.device)[m].expand_as(z), torch.zeros_like(c))[0]
            for k in range(m + 1):
                for column in range(self.columns):
                    block = (self.a * h[:, :, column, k, None]).transpose(1, 2) @ self.a
                    inner[:, column, :, m, :, k] = inner[:, column, :, k, :, m] = block
        for j in range(J):
            unit = torch.eye(J, dtype=x.dtype, device=x.device)[j].expand_as(c)
            side = self._join(*times(torch.zeros_like(z), unit), self.a).view(S, self.columns, d)
            out[..., r * M + j, :] = out[..., :, r * M + j] = side
        return out.flatten(0, 1)

    def narrow(self, active: Tensor) -> tuple["Batch", Tensor]:
        """See `newton.Convex`."""
        grid = active.view(len(self.a), self.columns)
        if grid.any(1).all() and grid.any(0).all():
            return self, torch.arange(len(active), device=active.device)
        sets, columns = grid.any(1).nonzero()[:, 0], grid.any(0).nonzero()[:, 0]
        a = self.a if len(sets) == len(self.a) else self.a[sets[0] : sets[0] + 1] if len(sets) == 1 else self.a[sets]
        part = replace(self, a=a, loss=self.loss.take(sets, columns), columns=len(columns))
        return part, (sets[:, None] * self.columns + columns).flatten()
