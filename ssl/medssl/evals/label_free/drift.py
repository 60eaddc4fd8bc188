"""Drift: have the features of new scans another distribution than those of reference scans? Tested by patient.

The null hypothesis is about a random scan of a random patient, so one random scan of each patient is compared, and a patient is
never in both groups. The test is then exact, however many scans the patients of either group have; the mean over all scans
of a patient would find more, but its distribution depends on their number.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist, pdist, squareform
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from medssl.evals.label_free.rank import finite
from medssl.evals.metrics.metrics import AUROC, Floats
from medssl.evals.stats.bootstrap import score
from medssl.evals.stats.resampling import positions
from medssl.evals.stats.score import Score
from medssl.rng import seed_from

COMPONENTS = 32  # principal components at most
SHARE = 0.99  # of the variance, that the components hold
PERMUTATIONS = 999
LEAST = 4  # patients of each group
NEIGHBOURS = 5
CHOSEN, PERMUTED, HALVED = 1, 2, 3  # random streams

Groups = NDArray[np.bool_]


@dataclass(frozen=True)
class Drift:
    """The difference of two groups of scans.

    Attributes:
        p: of the test of equal distributions, see `mmd_test`.
        permutations: how many it compared.
        told_apart: AUROC of telling new patients from the reference by their features, 0.5 without a difference; see
            `told_apart`.
        distance: (new scans,) how far each lies from the reference, see `distances`.
    """

    p: float
    permutations: int
    told_apart: Score
    distance: Floats


def drift(x: ArrayLike, new: ArrayLike, patient: ArrayLike, *, seed: int = 0) -> Drift:
    """Return the difference of new scans from reference scans.

    x: (N, D) features. new: (N,) True for new scans, False for the reference. patient: (N,) ids, compared for equality only.
    seed: for the scan of each patient, the permutations and the halves. Raises ValueError for values that are not finite, for
    a patient in both groups and for fewer than four patients of a group.
    """
    x, new = finite(x, 2), np.asarray(new, bool)
    at = positions(patient, len(x))
    share = np.bincount(at, new) / np.bincount(at)
    if not np.isin(share, (0, 1)).all():
        raise ValueError(f"{int((share % 1 > 0).sum())} patients are in both groups")
    of_patient = share == 1
    if min(of_patient.sum(), (~of_patient).sum()) < LEAST:
        raise ValueError(f"needs {LEAST} patients of each group, got {of_patient.sum()} and {(~of_patient).sum()}")
    order = _stream(seed, CHOSEN).permutation(len(x))
    one = order[np.unique(at[order], return_index=True)[1]]
    z = components(x, one)
    p = mmd_test(gaussian_kernel(z[one]), of_patient, PERMUTATIONS, seed)
    return Drift(p, PERMUTATIONS, told_apart(z[one], of_patient, seed), distances(z, at, new))


def components(x: Floats, one: NDArray[np.int64], most: int = COMPONENTS) -> Floats:
    """Return the first principal components (N, K) of x (N, D), each scaled to a variance of 1.

    They are those of the rows `one`, a scan of each patient of both groups: components of the reference alone would fit its own
    scans better than new ones, so that the groups could not be exchanged, and a permutation test would reject too often. K is
    at most `most`, and as many as hold `SHARE` of the variance.
    """
    x = x - x[one].mean(0)
    values, vectors = np.linalg.eigh(x[one].T @ x[one] / len(one))
    values, vectors = values[::-1].clip(min=0), vectors[:, ::-1]
    kept = min(most, int(np.searchsorted(np.cumsum(values), SHARE * values.sum())) + 1)
    return (x @ vectors[:, :kept]) / np.sqrt(values[:kept].clip(min=1e-12 * max(values[0], 1e-300)))


def gaussian_kernel(z: Floats) -> Floats:
    """Return exp(-d^2 / m), (P, P), for the distances d of the rows of z (P, K).

    m is the median of d^2 over pairs of different rows, the median heuristic of Gretton et al., 2012, section 8.
    """
    square = pdist(z, "sqeuclidean")
    return squareform(np.exp(-square / max(np.median(square), 1e-300))) + np.eye(len(z))


def mmd_test(kernel: Floats, new: Groups, n: int, seed: int) -> float:
    """Return the p-value of "both groups of patients have one distribution", by `n` permutations of the patients.

    The statistic is the unbiased squared maximum mean discrepancy: Gretton et al., 2012
    (https://jmlr.org/papers/v13/gretton12a.html), equation 3. p is (1 + number of permutations with a statistic as large) /
    (1 + n). kernel: (P, P); new: (P,) True for the patients of one group.
    """
    rng = _stream(seed, PERMUTED)
    groups = np.empty((len(new), n + 1))
    groups[:, 0] = new
    for i in range(1, n + 1):
        groups[:, i] = rng.permutation(new)
    found = _mmd2(kernel, groups)
    return float((1 + (found[1:] >= found[0] - 1e-12).sum()) / (1 + n))


def _mmd2(kernel: Floats, groups: Floats) -> Floats:
    """Return the statistic for each column of `groups` (P, n), 1 for one group and 0 for the other."""
    kernel = kernel - np.diag(np.diag(kernel))  # pairs of different patients alone
    m = groups[:, 0].sum()
    k = len(groups) - m
    of_one = kernel @ groups
    inside = (groups * of_one).sum(0)
    across = of_one.sum(0) - inside
    outside = kernel.sum() - inside - 2 * across
    return inside / (m * (m - 1)) + outside / (k * (k - 1)) - 2 * across / (m * k)


def told_apart(z: Floats, new: Groups, seed: int = 0) -> Score:
    """Return the AUROC of telling new patients from the others, with an interval over patients.

    Linear discriminant analysis with the shrinkage of Ledoit & Wolf, fitted on a random half of the patients of each group and
    scored on the other half: Lopez-Paz & Oquab, 2017 (https://arxiv.org/abs/1610.06545), with the AUROC in place of the
    accuracy. Folds that take turns would use all patients, but their scores are not independent: intervals then exclude 0.5
    without drift in 15 to 20 % of simulations. z: (P, K) features of one scan of each patient; new: (P,).
    """
    rng = _stream(seed, HALVED)
    train = np.empty(len(new), bool)
    for group in (new, ~new):
        train[group] = rng.permutation(np.arange(group.sum()) % 2 == 1)
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=[0.5, 0.5]).fit(z[train], new[train])
    test = ~train
    return score(AUROC, new[test].astype(np.int64), model.predict_proba(z[test]), np.arange(int(test.sum())), seed=seed)


def distances(z: Floats, at: NDArray[np.int64], new: Groups) -> Floats:
    """Return the mean distance of each new scan to the reference scans of the `NEIGHBOURS` patients nearest to it."""
    far = cdist(z[new], z[~new])
    order = np.argsort(at[~new], kind="stable")
    starts = np.flatnonzero(np.diff(at[~new][order], prepend=-1))
    nearest = np.minimum.reduceat(far[:, order], starts, axis=1)
    return np.sort(nearest, 1)[:, :NEIGHBOURS].mean(1)


def _stream(*keys: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed_from(*keys)))
