"""Cox regression on frozen features with a ridge penalty.

Cox, 1972 (https://doi.org/10.1111/j.2517-6161.1972.tb00899.x): C * (minus log partial likelihood) + |w|^2 / 2, on features
standardised on the training patients. Ties by Efron, 1977 (https://doi.org/10.1080/01621459.1977.10480613), or Breslow.

An observation is a patient with an outcome. Scans of one patient with the same time and event are averaged, because they
are one outcome. Scans of a patient with different times, such as the time since each scan, remain separate observations.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from medssl.errors import UserError
from medssl.evals.metrics.metrics import Floats
from medssl.evals.probes.linear_designs import Design
from medssl.evals.probes.linear_fit import finite
from medssl.evals.probes.model_selection import PENALTIES, PenalisedModel, Probe, Rows, fit_probes
from medssl.evals.probes.newton import minimise

TIES = ("efron", "breslow")


@dataclass(frozen=True)
class Cox:
    """The fits on one set of scans: a scan's log risk is (x - mean) * scale @ weights[at], 0 for the mean patient.

    mean, scale (D,), weights (P, D), gap and converged (P,): see `linear_fit.LinearModels`.
    """

    mean: Floats
    scale: Floats
    weights: Floats
    gap: Floats
    converged: NDArray[np.bool_]

    def predict(self, x: ArrayLike, at: int = 0) -> Floats:
        """Return log relative risks (N,) for features (N, D) with penalty number `at`."""
        (w,), (bias,) = self.linear(at)
        return np.asarray(x, np.float64) @ w + bias

    def linear(self, at: int = 0) -> tuple[Floats, Floats]:
        """See `model_selection.Model`: weight (1, D) and bias (1,)."""
        w = self.scale * self.weights[at]
        return w[None], -(self.mean @ w)[None]


@dataclass(frozen=True)
class Partial:
    """Minus the log partial likelihood per event, of P weight vectors: a `newton.Convex` of P problems in r coordinates.

    a (n, r), by decreasing time. Rows of equal time form a group: group (n,) of each row, end (G,) each group's last row.
    event (E,) rows. tied (E,): of m events in a group, number l = 0 … m - 1 removes l / m of the group's events from the risk
    set (Efron), or none (Breslow).
    """

    a: Tensor
    group: Tensor
    end: Tensor
    event: Tensor
    tied: Tensor
    columns: int

    @classmethod
    def of(cls, a: Tensor, y: NDArray[Any], ties: str, columns: int) -> "Partial":
        """Return the likelihood of rows a (n, r) with y (n, 2): time, event."""
        down = np.argsort(-y[:, 0], kind="stable")
        _, group = np.unique(-y[down, 0], return_inverse=True)
        event = np.flatnonzero(y[down, 1] == 1)
        many = np.bincount(group[event])
        first = np.append(0, np.cumsum(many))[:-1]
        place = np.arange(len(event)) - first[group[event]]
        tied = place / many[group[event]] * (ties == "efron")
        end = np.append(np.flatnonzero(np.diff(group)), len(group) - 1)
        order, *rest = (torch.from_numpy(v).to(a.device) for v in (down, group, end, event, tied))
        return cls(a[order], rest[0], rest[1], rest[2], rest[3], columns)

    def _at_risk(self, e: Tensor) -> Tensor:
        """Return sums over the risk set at each event, minus the tied share of events: rows (n, …) -> (E, …)."""
        group = self.group[self.event]
        died = torch.zeros(len(self.end), *e.shape[1:], dtype=e.dtype, device=e.device)
        died.index_add_(0, group, e[self.event])
        tied = self.tied.view(-1, *[1] * (e.ndim - 1))
        return e.cumsum(0)[self.end[group]] - tied * died[group]

    def _shares(self, u: Tensor) -> Tensor:
        """Return the transpose of `_at_risk`: events (E, …) -> rows (n, …)."""
        group = self.group[self.event]
        sums = torch.zeros(2, len(self.end), *u.shape[1:], dtype=u.dtype, device=u.device)
        sums[0].index_add_(0, group, u)
        sums[1].index_add_(0, group, self.tied[:, None] * u)
        out = sums[0].flip(0).cumsum(0).flip(0)[self.group]
        out[self.event] -= sums[1][group]
        return out

    def _risks(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log risks (n, P), risks divided by their maximum, and sums over the risk sets (E, P)."""
        eta = self.a @ x.T
        e = (eta - eta.amax(0)).exp()
        return eta, e, self._at_risk(e)

    def value(self, x: Tensor) -> Tensor:
        """See `newton.Convex`."""
        eta, _, total = self._risks(x)
        value = (total.log() + eta.amax(0) - eta[self.event]).sum(0) / len(self.event)
        return torch.where((total > 0).all(0), value, torch.inf)

    def expand(self, x: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """See `newton.Convex`; the diagonal omits the subtracted term."""
        _, e, total = self._risks(x)
        E = len(self.event)
        p = e * self._shares(1 / total) / E
        residual = p.clone()
        residual[self.event] -= 1 / E

        def hessian(v: Tensor) -> Tensor:
            d = self.a @ v.T
            return (self.a.T @ (p * d - e * self._shares(self._at_risk(e * d) / total**2) / E)).T

        return (self.a.T @ residual).T, ((self.a**2).T @ p).T.clamp(min=1e-12), hessian

    def dense(self, x: Tensor) -> Tensor:
        """See `newton.Convex`."""
        _, e, total = self._risks(x)
        E = len(self.event)
        p = e * self._shares(1 / total) / E
        out = []
        for k in range(self.columns):
            mean = self._at_risk(e[:, k, None] * self.a) / total[:, k, None]
            out.append((self.a * p[:, k, None]).T @ self.a - mean.T @ mean / E)
        return torch.stack(out)

    def narrow(self, active: Tensor) -> tuple["Partial", Tensor]:
        """See `newton.Convex`."""
        at = active.nonzero()[:, 0]
        return replace(self, columns=len(at)), at


def fit_cox(
    x: Floats,
    y: NDArray[Any],
    penalties: Floats,
    *,
    patient: NDArray[np.str_] | None = None,
    ties: str = "efron",
    device: str = "cpu",
) -> Cox:
    """Fit one model per C in `penalties` (P,), all at once, each to a gap of `newton.GAP`.

    x (N, D) and y (N, 2): time > 0, and event 1 or 0 for censored. patient (N,): see above; None keeps every scan.
    Raises UserError without an event, with fewer than two patients, and for constant features.
    """
    x, y = _observations(x, y, patient)
    if not (y[:, 1] == 1).any():
        raise UserError(
            f"cannot fit a Cox regression: none of {len(y)} training patients had the event; add some who had"
        )
    if len(y) < 2:
        raise UserError("cannot fit a Cox regression on one training patient; add others")
    design = Design.of(x, device)
    if not design.scale.any():
        raise UserError(f"the features of the {len(x)} training patients are constant; has the encoder collapsed?")
    P = len(penalties)
    problem = Partial.of(design.a, y, ties, P)
    decay = 1 / (torch.tensor(penalties, dtype=torch.float64, device=device) * len(problem.event))
    start = torch.zeros(P, design.a.shape[1], dtype=torch.float64, device=device)
    best = minimise(problem, start, decay, 0)
    weights = (best.x @ design.back.T).cpu().numpy()
    return Cox(design.mean, design.scale, weights, best.gap.cpu().numpy(), best.converged.cpu().numpy())


def partial_likelihood(y: NDArray[Any], risk: Floats, ties: str = "efron") -> float:
    """Return minus the log partial likelihood per event of log risks (n,), in nats. Raises UserError without an event."""
    if not (y[:, 1] == 1).any():
        raise UserError(f"none of the {len(y)} patients used to select the penalty had the event; add some who had")
    one = torch.ones(1, 1, dtype=torch.float64)
    return float(Partial.of(torch.from_numpy(risk)[:, None], y, ties, 1).value(one))


def cox_probes(
    train: tuple[ArrayLike, ArrayLike],
    val: tuple[ArrayLike, ArrayLike] | None,
    tests: Sequence[ArrayLike],
    *,
    subsets: Sequence[ArrayLike] | None = None,
    patient: ArrayLike | None = None,
    val_patient: ArrayLike | None = None,
    penalties: Sequence[float] = PENALTIES,
    ties: str = "efron",
    seed: int = 0,
    device: str = "cpu",
) -> list[Probe]:
    """Fit `linear.linear_probes` for survival: predictions are log risks (N,), one per scan; y (N, 2) is time and event.

    C has the lowest partial likelihood loss among the validation patients. Raises UserError as `fit_cox` does.
    """
    if ties not in TIES:
        raise ValueError(f"ties must be {' or '.join(TIES)}, not {ties}")
    x, y = _checked(train, "training")
    validation = _checked(val, "validation") if val is not None and len(val[1]) else None  # type: ignore[arg-type]
    who = None if patient is None else np.asarray(patient).astype(str)

    def fit(rows: Rows, C: float) -> Cox:
        return fit_cox(
            x[rows], y[rows], np.array([C]), patient=None if who is None else who[rows], ties=ties, device=device
        )

    def loss(y_some: NDArray[Any], risk: Floats, patients: NDArray[np.str_] | None) -> float:
        # the mean of risks is the risk of mean features, since risk is linear in them
        means, outcomes = _observations(risk[:, None], y_some, patients)
        return partial_likelihood(outcomes, means[:, 0], ties)

    model = PenalisedModel("Cox regression", "partial likelihood", "survival", lambda sets: CoxPath(sets, fit), loss)
    test_x = [finite(t, "test") for t in tests]
    return fit_probes(model, (x, y), validation, test_x, subsets, patient, val_patient, penalties, seed)


@dataclass(frozen=True)
class CoxPath:
    """The models of several sets of scans. A fit of one penalty is fast, so that all are exact."""

    sets: Sequence[Rows]
    fit: Callable[[Rows, float], Cox]

    def coarse(self, at: Sequence[int], C: float) -> list[Cox]:
        """See `model_selection.Path`."""
        return [self.fit(self.sets[i], C) for i in at]

    def exact(self, at: Sequence[int], C: Sequence[float]) -> list[Cox]:
        """See `model_selection.Path`."""
        return [self.fit(self.sets[i], c) for i, c in zip(at, C, strict=True)]


def _observations(x: Floats, y: NDArray[Any], patient: NDArray[np.str_] | None) -> tuple[Floats, NDArray[Any]]:
    """Return patients' mean features and outcomes."""
    if patient is None:
        return x, y
    _, who = np.unique(patient, return_inverse=True)
    outcomes, at = np.unique(np.column_stack([who, y]), axis=0, return_inverse=True)
    sums = np.zeros((len(outcomes), x.shape[1]))
    np.add.at(sums, at.ravel(), x)
    return sums / np.bincount(at.ravel())[:, None], outcomes[:, 1:]


def _checked(xy: tuple[ArrayLike, ArrayLike], which: str) -> tuple[Floats, NDArray[Any]]:
    x, y = finite(xy[0], which), np.asarray(xy[1], np.float64)
    if y.shape != (len(x), 2):
        raise ValueError(f"needs a time and an event of every {which} scan, got {y.shape} for {x.shape}")
    if (bad := ~(np.isfinite(y[:, 0]) & (y[:, 0] > 0) & np.isin(y[:, 1], (0, 1)))).any():
        raise UserError(
            f"{bad.sum()} of {len(y)} {which} scans lack a time above 0 or an event of 0 or 1; leave them out"
        )
    return x, y
