"""Check the axioms of a metric for a distance on given points, and measure how much each is violated.

For all x, y, z:  d(x, y) >= 0;  d(x, y) = 0 if and only if x = y;  d(x, y) = d(y, x);  d(x, z) <= d(x, y) + d(y, z).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medssl.errors import UserError
from medssl.evals.metrics.weighted import Floats


@dataclass(frozen=True)
class Axiom:
    """One axiom on the given points.

    Attributes:
        name: name of the axiom.
        unit: points, ordered pairs or ordered triples.
        checked, violations: number of units, and number of these that violate the axiom by more than rounding.
        worst: the largest violation, in units of the distance (of the Euclidean distance for different points at distance
            0); 0 when the axiom holds.
        at: the rows of the points of the worst violation; () when the axiom holds.
    """

    name: str
    unit: str
    checked: int
    violations: int
    worst: float
    at: tuple[int, ...]

    @property
    def holds(self) -> bool:
        """Return whether there is no violation."""
        return self.violations == 0

    def __str__(self) -> str:
        if self.holds:
            return f"{self.name}: holds on {self.checked:,} {self.unit}"
        share = f"{self.violations:,} of {self.checked:,} {self.unit}"
        return f"{self.name}: violated by {share}, worst {self.worst:.4g} at {self.at}"


@dataclass(frozen=True)
class Axioms:
    """The four axioms, the second in its two halves: d(x, x) = 0, and d(x, y) > 0 for points that differ."""

    non_negative: Axiom
    zero_to_itself: Axiom
    tells_apart: Axiom
    symmetric: Axiom
    triangle: Axiom

    @property
    def identity(self) -> bool:
        """Return whether the identity of indiscernibles holds, both halves."""
        return self.zero_to_itself.holds and self.tells_apart.holds

    @property
    def metric(self) -> bool:
        """Return whether all axioms hold."""
        return self.pseudometric and self.tells_apart.holds

    @property
    def pseudometric(self) -> bool:
        """Return whether all axioms hold, except that points which differ may be at distance 0."""
        return all(a.holds for a in (self.non_negative, self.zero_to_itself, self.symmetric, self.triangle))

    def __str__(self) -> str:
        kind = "a metric" if self.metric else "a pseudometric" if self.pseudometric else "no metric"
        violated = [str(a) for f in fields(self) if not (a := getattr(self, f.name)).holds]
        return "; ".join([f"on these points it is {kind}", *violated])

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON values of each axiom, with `metric` and `text`."""
        return asdict(self) | {"metric": self.metric, "text": str(self)}


def metric_axioms(distance: Callable[[Tensor, Tensor], Any], x: Any, tolerance: float = 1e-6) -> Axioms:
    """Check `distance` on N points.

    Args:
        distance: (N, D), (N, D) -> (N, N), as the modules of `losses.distances` and pytorch-metric-learning.
        x: (N, D), converted to a tensor of float64 unless it is a tensor already.
        tolerance: limit of rounding errors, as a share of the largest distance. Points that are closer than this have
            distance 0; points with any different coordinate differ.

    Raises:
        UserError: for distances that are not finite, or not one per pair.
    """
    points = x if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x, np.float64))
    d = torch.as_tensor(distance(points, points)).detach().double().cpu().numpy()
    rows = points.detach().double().cpu().numpy()
    n = len(rows)
    if d.shape != (n, n) or not np.isfinite(d).all():
        raise UserError(f"the distance of {n} points must be {n} x {n} finite numbers, got {d.shape}")
    slack = tolerance * float(np.abs(d).max())
    apart = ~np.eye(n, dtype=bool)
    gap = np.stack([np.sqrt(((rows - r) ** 2).sum(1)) for r in rows])
    differ = np.stack([(rows != r).any(1) for r in rows])
    lost = np.where(differ & (d <= slack), gap, 0)
    return Axioms(
        _axiom("non-negativity, d(x, y) >= 0", "pairs", -d, np.ones_like(apart), slack),
        _axiom("identity, d(x, x) = 0", "points", np.abs(d.diagonal()), np.ones(n, bool), slack),
        _axiom("identity, d(x, y) > 0 for x != y", "pairs", lost, differ, 0.0),
        _axiom("symmetry, d(x, y) = d(y, x)", "pairs", np.abs(d - d.T), apart, slack),
        _triangle(d, apart, slack),
    )


def _axiom(name: str, unit: str, excess: Floats, checked: np.ndarray, slack: float) -> Axiom:
    """Return an axiom from `excess`, the violation by each point or pair, where `checked`."""
    broken = checked & (excess > slack)
    at = np.unravel_index(int(np.where(broken, excess, -np.inf).argmax()), excess.shape)
    found = bool(broken.any())
    where = tuple(int(i) for i in at) if found else ()
    return Axiom(name, unit, int(checked.sum()), int(broken.sum()), float(excess[at]) if found else 0.0, where)


def _triangle(d: Floats, apart: np.ndarray, slack: float) -> Axiom:
    """Check ordered triples (x, y, z) of three different rows, one y at a time, so that memory stays n^2."""
    n = len(d)
    violations, worst = 0, 0.0
    at: tuple[int, ...] = ()
    for y in range(n):
        excess = np.where(apart & apart[:, y, None] & apart[None, y], d - (d[:, y, None] + d[None, y]), -np.inf)
        violations += int((excess > slack).sum())
        x, z = divmod(int(excess.argmax()), n)
        if excess[x, z] > max(slack, worst):
            worst, at = float(excess[x, z]), (x, y, z)
    return Axiom("triangle, d(x, z) <= d(x, y) + d(y, z)", "triples", n * (n - 1) * (n - 2), violations, worst, at)
