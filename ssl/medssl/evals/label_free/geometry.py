"""Label-free measures of the geometry of features: alignment, uniformity, intrinsic dimension, normality."""

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import pdist, squareform
from scipy.special import logsumexp

from medssl.evals.label_free.rank import finite
from medssl.evals.metrics.metrics import Floats
from medssl.rng import generator

DIRECTIONS = 128  # random directions of the sliced test; the default of LeJEPA is 100
KEPT = 0.9  # share of the distance ratios; Facco et al., 2017, exclude the largest tenth
# range and step of t: the weight is 1e-14 at 8, and a step of 1/8 suffices for projections up to 20 deviations apart
REACH, STEP = 8.0, 0.125


def sphere(x: Floats) -> Floats:
    """Scale rows along the last axis to length 1; zero rows stay zero."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True).clip(min=1e-30)


def spread(x: ArrayLike) -> float:
    """Return the mean over dimensions of the standard deviation of unit rows, times sqrt(D): 1 for even, 0 for collapsed.

    Chen & He, 2021 (https://arxiv.org/abs/2011.10566), section 4.1 and figure 2, where even is 1 / sqrt(D).
    """
    z = sphere(finite(x, 2))
    return float(z.std(0).mean() * math.sqrt(z.shape[1]))


def alignment(views: ArrayLike) -> float:
    """Return the mean squared distance on the unit sphere between two views of one scan: 0 if invariant, 2 if unrelated.

    Wang & Isola, 2020 (https://arxiv.org/abs/2005.10242), section 4.1.2 with alpha = 2, over all pairs of the V >= 2
    views (N, V, D) of each scan. An offset common to all features makes it small; `common` corrects for that.
    """
    return _pairs(sphere(_views(views))) / views_pairs(views)


def common(views: ArrayLike) -> float:
    """Return `alignment` relative to its value for views of two different scans: 0 if invariant, 1 if unrelated.

    views (N, V, D), N, V >= 2; nan if all features are equal.
    """
    z = sphere(_views(views))
    N, V, _ = z.shape
    within, everything = _pairs(z), _pairs(z.reshape(1, N * V, -1))
    across = (everything - within) / (N * V * (N * V - 1) / 2 - views_pairs(views))
    return float(within / views_pairs(views) / across) if across > 1e-14 else math.nan


def views_pairs(views: ArrayLike) -> int:
    """Return the number of pairs of views of one scan in (N, V, D)."""
    N, V = np.shape(views)[:2]
    return N * V * (V - 1) // 2


def _views(views: ArrayLike) -> Floats:
    x = finite(views, 3)
    if x.shape[1] < 2:
        raise ValueError(f"needs (N scans, V >= 2 views, D), got {x.shape}")
    return x


def _pairs(z: Floats) -> float:
    """Return the sum of squared distances over the pairs along axis 1, summed over axis 0."""
    V = z.shape[1]
    # the same distances without cancellation
    z = z - z.mean(1, keepdims=True)
    return float(V * np.square(z).sum())


def uniformity(x: ArrayLike) -> float:
    """Return the log of the mean over pairs of scans of exp(-2 squared distance on the unit sphere): 0 collapsed, -4 even.

    Wang & Isola, 2020, section 4.1.2 with t = 2. x (N, D).
    """
    d = pdist(sphere(finite(x, 2)), "sqeuclidean")
    return float(logsumexp(-2 * d) - math.log(len(d)))


def two_nn(x: ArrayLike) -> float:
    """Return the intrinsic dimension of features (N, D) from the distances to the two nearest other scans.

    Facco et al., 2017 (https://doi.org/10.1038/s41598-017-11873-y), "Methods": the slope through the origin of
    -log(1 - F) on log(r2 / r1), with F the empirical distribution of r2 / r1 without its largest tenth. Scans equal to
    another (r1 = 0) are excluded; nan if these are more than half. High dimensions are underestimated: at N = 500, about
    20 is the maximum.
    """
    distance = squareform(pdist(finite(x, 2)))
    np.fill_diagonal(distance, np.inf)
    near = np.partition(distance, 1, axis=1)[:, :2]
    near = near[near[:, 0] > 0]
    if len(near) < max(3, len(distance) / 2):
        return math.nan
    ratio = np.sort(np.log(near[:, 1] / near[:, 0]))
    kept = int(KEPT * len(ratio))
    y = -np.log1p(-np.arange(1, kept + 1) / len(ratio))
    square = float(ratio[:kept] @ ratio[:kept])
    return float(ratio[:kept] @ y) / square if square > 0 else math.nan


def sigreg(x: ArrayLike, seed: int = 0) -> float:
    """Return the distance of features (N, D) from an isotropic normal distribution, along 128 random directions; 0 is best.

    Balestriero & LeCun, 2025 (LeJEPA, https://arxiv.org/abs/2511.08544), SIGReg: the mean over directions a of the
    statistic of Epps & Pulley, 1983, of the projections x.a,

        integral over t of |mean_n exp(i t x_n.a) - exp(-t^2 / 2)|^2 exp(-t^2 / 2),

    here over the whole line, whereas the authors' code ends at |t| = 3. As a measure rather than a loss, it is computed on
    features centred and scaled to a mean variance of 1, and without the factor N, so that it does not grow with N; for
    normal features noise of 0.58 / N remains. nan if all features are equal.
    """
    z = finite(x, 2)
    z = z - z.mean(0)
    variance = float(np.square(z).mean())
    if variance <= 1e-24:
        return math.nan
    return float(epps_pulley(z / math.sqrt(variance) @ directions(z.shape[1], seed)).mean())


def epps_pulley(x: Floats) -> Floats:
    """Return the integral in `sigreg` for each column of x (N, K), by the trapezoid rule, which is exact up to rounding."""
    step = np.exp(1j * STEP * x)
    # exp(i t x)
    turn = np.ones_like(step)
    out = np.zeros(x.shape[1])
    for k in range(round(REACH / STEP) + 1):
        normal = math.exp(-((k * STEP) ** 2) / 2)
        error = turn.mean(0) - normal
        # both signs of t, except at 0
        out += (error.real**2 + error.imag**2) * normal * STEP * (2 if k else 1)
        turn *= step
    return out


@lru_cache(maxsize=4)
def directions(D: int, seed: int) -> NDArray[np.float64]:
    """Return random unit columns (D, DIRECTIONS)."""
    drawn = torch.randn(DIRECTIONS, D, generator=generator(seed, D), dtype=torch.float64).numpy()
    return np.ascontiguousarray(sphere(drawn).T)
