"""Mutual information of the features of two views of a scan, in nats, on held-out patients.

a are an encoder's features of one view of each scan, b its features (or another encoder's) of another view. All values are
lower bounds, except `smile`, which is an estimate: dependence that the critic misses is not counted. More mutual information
does not mean better features (Tschannen et al., 2020, https://arxiv.org/abs/1907.13625).

The critic: patients are split at random into two quarters and a held-out half. On the first quarter, canonical correlation
analysis finds the most correlated pairs of directions (u_k, v_k) of a and b, after reduction to their leading principal
components. On the second, logistic regression separates pairs of one scan from pairs of two patients by

    s = c + sum_k w_k u_k v_k - x_k u_k^2 - y_k v_k^2

which is convex; the log density ratio of jointly normal a and b has this form. The bounds of `losses.mutual_information`
(Poole et al., 2019, https://arxiv.org/abs/1905.06922) are computed on the held-out half, so that overfitting lowers them in
expectation.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit

from medssl.errors import UserError
from medssl.evals.label_free.rank import finite
from medssl.evals.metrics.metrics import Floats
from medssl.evals.stats.resampling import expanded, positions, resamples
from medssl.evals.stats.score import Score
from medssl.rng import generator

PER_DIRECTION = 10  # scans per principal component: with fewer, canonical pairs are mostly noise
SHIFTS = 16  # pairs of two patients per pair of one scan when fitting the weights
RIDGE = 1e-3  # ridge penalty of the weights, so that the fit is well defined
CLIP = 5.0  # clipping of SMILE: Song & Ermon, 2020, https://arxiv.org/abs/1910.06222, compare 1, 5 and none
MOST = 2000  # maximum number of held-out scans
FEWEST = 40  # patients


class Information(NamedTuple):
    """Lower bounds in nats, and `smile`, an estimate. `infonce` is at most `ceiling`, the log of the number of held-out scans."""

    infonce: Score
    nwj: Score
    donsker_varadhan: Score
    smile: Score
    ceiling: float

    def as_dict(self) -> dict[str, Any]:
        """Return a dict for JSON."""
        names = {"infonce": "InfoNCE", "nwj": "NWJ", "donsker_varadhan": "Donsker-Varadhan", "smile": "SMILE"}
        return {name: getattr(self, k).as_dict() for k, name in names.items()} | {"ceiling": self.ceiling}


def mutual_information(
    a: ArrayLike, b: ArrayLike, patient: ArrayLike, *, n: int = 500, seed: int = 0, level: float = 0.95
) -> Information:
    """Return the mutual information of a (N, D) and b (N, E), frozen features of two views of N scans; patient (N,).

    Intervals resample the held-out patients with a fixed critic. n: number of resamples. seed: for splitting patients and
    resampling. Raises UserError with fewer than 40 patients, and if a or b is equal for all scans.
    """
    a, b = finite(a, 2), finite(b, 2)
    if len(a) != len(b):
        raise ValueError(f"needs two views of the same scans, got {len(a)} and {len(b)} of them")
    who = positions(patient, len(a))
    patients = int(who.max()) + 1
    if patients < FEWEST:
        raise UserError(f"mutual information needs {FEWEST} patients or more, and there are {patients}; add scans")
    order = torch.randperm(patients, generator=generator(seed, patients)).numpy()
    part = np.searchsorted([patients // 4, patients // 2], order.argsort(), side="right")[who]
    first, second, held = (np.flatnonzero(part == k) for k in range(3))
    critic = _Critic.fit(a, b, who, first, second)
    held = held[torch.randperm(len(held), generator=generator(seed, len(held))).numpy()[:MOST]]
    return bounds(critic.scores(a[held], b[held]), who[held], n=n, seed=seed, level=level)


def bounds(scores: ArrayLike, patient: ArrayLike, *, n: int = 500, seed: int = 0, level: float = 0.95) -> Information:
    """Return the bounds from a critic's scores (N, N) of views i and j of N scans that it was not fitted on; patient (N,).

    Pairs of two scans of one patient are excluded, as they belong to neither distribution.
    """
    s = finite(scores, 2)
    at = np.unique(positions(patient, len(s)), return_inverse=True)[1]
    patients = int(at.max()) + 1
    if patients < 2:
        raise UserError("mutual information needs held-out scans of two patients or more; add scans")
    values = _values(s, at, np.ones((1, len(s))))[:, 0]
    drawn = np.concatenate([_values(s, at, w[:, at]) for w in resamples(patients, n, seed, rows=64)], axis=1)
    wide = expanded(level, patients)
    how = (
        f"{100 * level:g} % percentile bootstrap over {patients} held-out patients, {n} resamples; the critic is fixed"
    )

    def score(value: float, found: Floats) -> Score:
        low, high = np.nanquantile(found, [(1 - wide) / 2, (1 + wide) / 2])
        return Score(float(value), float(low), float(high), len(s), patients, how)

    infonce, nwj, donsker_varadhan, smile = map(score, values, drawn)
    return Information(infonce, nwj, donsker_varadhan, smile, float(np.log(len(s))))


def _values(s: Floats, at: NDArray[np.int64], w: Floats) -> Floats:
    """Return InfoNCE, NWJ, Donsker-Varadhan and SMILE, (4, R), for R weightings w (R, N) of the scans.

    A scan is compared with itself once, however often it was drawn, and otherwise only with scans of other patients.
    """
    apart = at[:, None] != at
    # so that no exponential overflows
    top = s.max()
    lifted = np.exp(s - top) * apart
    clipped = np.exp(np.clip(s, -CLIP, CLIP)) * apart
    own, pairs = s.diagonal(), ((w @ apart) * w).sum(1)
    joint = w @ own / w.sum(1)
    # nan where only one patient was drawn
    with np.errstate(divide="ignore", invalid="ignore"):
        rest = np.log(w @ lifted.T) + top
        product = np.log(((w @ lifted) * w).sum(1) / pairs) + top
        smile = joint - np.log(((w @ clipped) * w).sum(1) / pairs)
    each = own + np.log(1 + w @ apart) - np.logaddexp(own, rest)
    infonce = (w * each).sum(1) / w.sum(1)
    return np.stack([infonce, 1 + joint - np.exp(np.minimum(product, 700)), joint - product, smile])


class _Critic(NamedTuple):
    """Means and canonical directions of both views, and the weights (3 r + 1) of the scores."""

    means: tuple[Floats, Floats]
    directions: tuple[Floats, Floats]
    weights: Floats

    @classmethod
    def fit(
        cls, a: Floats, b: Floats, who: NDArray[np.int64], first: NDArray[np.int64], second: NDArray[np.int64]
    ) -> "_Critic":
        """Fit the directions on the scans `first` and the weights on `second`."""
        (ma, wa), (mb, wb) = (_whitening(x[first], max(1, len(first) // PER_DIRECTION)) for x in (a, b))
        left, _, right = np.linalg.svd(((a[first] - ma) @ wa).T @ ((b[first] - mb) @ wb) / len(first))
        r = min(wa.shape[1], wb.shape[1])
        start = cls((ma, mb), (wa @ left[:, :r], wb @ right[:r].T), np.zeros(3 * r + 1))
        u, v = start.pairs(a[second], b[second])
        one, two = np.arange(len(second)), np.arange(len(second))
        shifted = [(one, np.roll(two, k)) for k in range(min(SHIFTS, len(second) - 1) + 1)]
        i, j = (np.concatenate(x) for x in zip(*shifted, strict=True))
        kept = (np.arange(len(i)) < len(second)) | (who[second][i] != who[second][j])
        x = _features(u[i[kept]], v[j[kept]])
        same = (np.arange(len(i)) < len(second))[kept]
        return start._replace(weights=_logistic(x, same))

    def pairs(self, a: Floats, b: Floats) -> tuple[Floats, Floats]:
        """Return the canonical coordinates (N, r) of each view."""
        (ma, mb), (da, db) = self.means, self.directions
        return (a - ma) @ da, (b - mb) @ db

    def scores(self, a: Floats, b: Floats) -> Floats:
        """Return the scores (N, N) of every a with every b."""
        (u, v), r = self.pairs(a, b), self.directions[0].shape[1]
        w, x, y = (self.weights[k * r : (k + 1) * r] for k in range(3))
        return self.weights[-1] + (u * w) @ v.T - (np.square(u) @ x)[:, None] - np.square(v) @ y


def _whitening(x: Floats, most: int) -> tuple[Floats, Floats]:
    """Return the mean (D,) and the map (D, r) to at most `most` leading principal components, scaled to variance 1."""
    mean = x.mean(0)
    _, s, axes = np.linalg.svd(x - mean, full_matrices=False)
    r = min(most, int((s > 1e-6 * s[0]).sum())) if s[0] > 1e-12 else 0
    if r == 0:
        raise UserError("the features are the same for all scans, so they carry no information; train the encoder")
    return mean, axes[:r].T / s[:r] * np.sqrt(len(x))


def _features(u: Floats, v: Floats) -> Floats:
    return np.concatenate([u * v, -np.square(u), -np.square(v), np.ones((len(u), 1))], axis=1)


def _logistic(x: Floats, same: NDArray[np.bool_]) -> Floats:
    """Fit weights (F,) that separate `same` pairs from others, with equal total weight, so that x w is a log density ratio."""
    each = np.where(same, 0.5 / same.sum(), 0.5 / (~same).sum())

    def loss(w: Floats) -> tuple[float, Floats]:
        z = x @ w
        value = each @ np.logaddexp(0, np.where(same, -z, z)) + RIDGE / 2 * (w[:-1] @ w[:-1])
        gradient = x.T @ (each * (expit(z) - same))
        gradient[:-1] += RIDGE * w[:-1]
        return float(value), gradient

    return np.asarray(minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B").x)
