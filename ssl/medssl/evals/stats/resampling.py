"""Resamples of patients, and what reading their percentiles takes.

Resamples depend only on the number of patients, `n` and `seed`, so all metrics and all rows of a table on one test set share
them.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr
from scipy.stats import t

from medssl.evals.metrics.metrics import Floats
from medssl.evals.stats.jackknife import CHUNK, Case, values
from medssl.rng import seed_from

FEW = (
    10  # patients of the rarest class; below, 95 % intervals of percentiles cover .91 at 4 and .72 at 2 in simulations
)
PATIENTS = 1  # random stream; `transfer_gap` has 3 and 4


def positions(patient: ArrayLike, scans: int) -> NDArray[np.int64]:
    """Return the position of each scan's patient among the distinct patients, sorted."""
    patient = np.asarray(patient)
    if patient.shape != (scans,):
        raise ValueError(f"needs one patient per scan: got {patient.shape} for {scans} scans")
    return np.unique(patient.astype(str), return_inverse=True)[1].reshape(-1)


def resamples(patients: int, n: int, seed: int, rows: int) -> Iterator[Floats]:
    """Yield `n` bootstrap resamples of the patients as counts, in chunks (<= rows, patients) float64."""
    rng = np.random.Generator(np.random.Philox(seed_from(seed, PATIENTS)))
    for start in range(0, n, rows):
        r = min(rows, n - start)
        drawn = rng.integers(patients, size=(r, patients)) + patients * np.arange(r)[:, None]
        yield np.bincount(drawn.ravel(), minlength=r * patients).reshape(r, patients).astype(np.float64)


def replicates(cases: Sequence[Case], at: NDArray[np.int64], n: int, seed: int) -> Floats:
    """Return the value of each case on each resample, (cases, n); at (N,) is each scan's patient."""
    if n < 100:
        raise ValueError(f"needs at least 100 resamples, got {n}")
    counts = resamples(int(at.max()) + 1, n, seed, rows=max(1, CHUNK // len(at)))
    return values(cases, (c[:, at] for c in counts))


def expanded(level: float, patients: int) -> float:
    """Return the level at which to read percentiles for an interval with coverage `level`.

    Hesterberg, 2015 (https://doi.org/10.1080/00031305.2015.1089789), section 4.2: the normal quantile behind percentiles is
    replaced by Student's t, and the variance of resamples, too small by (n - 1) / n, is corrected. `patients` are those of
    the `rarest` class, which bounds Welch's degrees of freedom; one counts as two.
    """
    patients = max(patients, 2)
    return float(1 - 2 * ndtr(-t.isf((1 - level) / 2, patients - 1) * np.sqrt(patients / (patients - 1))))


def groups_of(case: Case) -> list[NDArray[np.bool_]]:
    """Return masks (N,) of the groups of scans that the metric needs, such as each class; none if it needs none."""
    metric, y, p = case
    return [mask for groups in metric.parts(y, p) for mask, _ in groups] or metric.check.groups(y)


def rarest(case: Case, at: NDArray[np.int64]) -> int:
    """Return the number of patients in the rarest group that the metric needs, such as a class; all if it needs none."""
    return min((len(np.unique(at[g])) for g in groups_of(case)), default=int(at.max()) + 1)


def share_up_to_0(x: Floats) -> float:
    """Return the largest q with a quantile of at most 0, by the linear interpolation of np.quantile."""
    x = np.sort(x)
    k = int(np.searchsorted(x, 0, side="right"))
    if k in (0, len(x)):
        return float(k > 0)
    return (k - 1 - x[k - 1] / (x[k] - x[k - 1])) / (len(x) - 1)
