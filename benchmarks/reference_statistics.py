"""Reference statistics that the intervals over patients are compared with, in `quality_statistics.py` and in tests.

- `auroc_score` and `auroc_paired`: closed-form intervals of an AUROC and of the difference of two.
- `percentile_score` and `bca_score`: bootstrap intervals, plain and corrected for bias and skewness.
- `corrected_t`: a t-test for repeated train/test splits of one data set. The splits share patients, so their differences
  are no independent sample, and Student's t-test finds differences where there are none.

The AUROC of M positive and N negative scans is a mean over their pairs. A scan's placement is the share of the other
class it is ordered rightly against, ties counting half: DeLong, DeLong & Clarke-Pearson, 1988
(https://doi.org/10.2307/2531595), eq. 4 and 5; from midranks in O(n log n): Sun & Xu, 2014
(https://doi.org/10.1109/LSP.2014.2337313). DeLong takes scans as independent. Obuchowski, 1997
(https://doi.org/10.2307/2533958), first sums the centred placements over the scans of a patient, who may have scans of
both classes. With one scan a patient the two are equal, number for number: her factors I10 / (I10 - 1) and
I01 / (I01 - 1) count patients with positive and with negative scans, and become M / (M - 1) and N / (N - 1) there, while
the factor I / (I - 1) multiplies a sum that is zero.

Quantiles are of Student's t, with one degree of freedom fewer than the rarer class has patients (the lower bound of
Welch's). In y (N,) a positive scan is 1 and a negative one 0; s (N,) is any number that is higher for positives;
patient (N,) is compared for equality only.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import expit, logit, ndtr, ndtri
from scipy.stats import rankdata, t

from medssl.errors import UserError
from medssl.evals.metrics.metrics import Metric
from medssl.evals.stats.jackknife import leave_out
from medssl.evals.stats.resampling import FEW, expanded, positions, rarest, replicates
from medssl.evals.stats.score import Difference, Score

Floats = NDArray[np.float64]
DIGITS = 12  # differences are compared to so many: 0.8 - 0.7 and 0.9 - 0.8 are equal


@dataclass(frozen=True)
class _Parts:
    """AUROCs (R,), and each patient's contribution to their errors (R, patients), by positive and by negative scans."""

    auroc: Floats
    positive: Floats
    negative: Floats
    scans: int
    with_positive: int  # patients
    with_negative: int

    @property
    def rarer(self) -> int:
        """Number of patients of the rarer class."""
        return min(self.with_positive, self.with_negative)

    def combined(self, c: Floats) -> "_Parts":
        """Return the parts of the linear combinations c (Q, R) of the AUROCs."""
        return replace(self, auroc=c @ self.auroc, positive=c @ self.positive, negative=c @ self.negative)

    def covariance(self) -> Floats:
        """(R, R), nan where a class has fewer than two patients. Obuchowski's S10 / M + S01 / N + (S11 + S11^T) / MN."""
        if self.rarer < 2:
            return np.full((len(self.auroc),) * 2, np.nan)
        both = self.positive @ self.negative.T
        return (
            _bessel(self.with_positive) * self.positive @ self.positive.T
            + _bessel(self.with_negative) * self.negative @ self.negative.T
            + _bessel(self.positive.shape[1]) * (both + both.T)
        )


def _bessel(n: int) -> float:
    return n / (n - 1)


def _parts(y: ArrayLike, scores: ArrayLike, patient: ArrayLike) -> _Parts:
    y, s = np.asarray(y), np.asarray(scores, np.float64)
    if s.ndim != 2 or y.shape != s.shape[1:] or not y.size:
        raise ValueError(f"needs classes (N,) and scores (R, N), got {y.shape} and {s.shape}")
    if not np.isin(y, (0, 1)).all():
        raise ValueError("classes must be 0 or 1; for several classes use one against the rest")
    if not np.isfinite(s).all():
        raise ValueError("scores contain nan or infinity")
    at = positions(patient, len(y))
    is_positive = y.astype(bool)
    with_positive, with_negative = len(np.unique(at[is_positive])), len(np.unique(at[~is_positive]))
    patients = int(at.max()) + 1
    if not (with_positive and with_negative):
        nothing = np.full((len(s), patients), np.nan)
        return _Parts(nothing[:, 0], nothing, nothing, len(y), with_positive, with_negative)
    rank, found = rankdata(s, axis=1), []
    for own, sign in ((is_positive, 1), (~is_positive, -1)):
        # midranks among all minus midranks in the own class: the scans of the other class below, ties counting half
        below = (rank[:, own] - rankdata(s[:, own], axis=1)) / (~own).sum()
        mean = below.mean(1)
        error = sign * (below - mean[:, None]) / own.sum()
        found.append((mean, np.array([np.bincount(at[own], row, patients) for row in error], np.float64)))
    (auroc, positive), (_, negative) = found
    return _Parts(auroc, positive, negative, len(y), with_positive, with_negative)


def auroc_covariance(y: ArrayLike, scores: ArrayLike, patient: ArrayLike) -> tuple[Floats, Floats]:
    """Return the AUROCs (R,) of R models' scores (R, N) on the same scans, and the covariance (R, R) of their errors.

    nan where undefined: the AUROCs without both classes, the covariance unless each class has two patients. Raises
    ValueError for classes other than 0 and 1 and for scores that are not finite.
    """
    parts = _parts(y, scores, patient)
    return parts.auroc, parts.covariance()


def auroc_score(y: ArrayLike, s: ArrayLike, patient: ArrayLike, *, level: float = 0.95) -> Score:
    """Return the AUROC with its interval, symmetric on the scale of the log odds.

    An interval on the AUROC's own scale, as in pROC and others, covers too seldom with few patients or a high AUROC, because
    errors are skewed: with 35 patients at 95 %, .93 at an AUROC of .8 (log odds .95) and .85 at .95 (log odds .93), simulated
    as in `quality_statistics.py`. If the classes do not overlap, the variance is 0 and there is no interval. Raises ValueError
    as `auroc_covariance` does.
    """
    parts = _parts(y, np.asarray(s)[None], patient)
    value, se = float(parts.auroc[0]), float(np.sqrt(parts.covariance()[0, 0]))
    how, k = _how(parts, level, "logit interval"), _quantile(parts, level)
    if not se > 0:  # nan as well
        return Score(value, np.nan, np.nan, parts.scans, parts.positive.shape[1], f"no interval {_why(parts)}: {how}")
    ends = expit(logit(value) + np.array([-k, k]) * se / (value * (1 - value)))
    return Score(value, float(ends[0]), float(ends[1]), parts.scans, parts.positive.shape[1], how)


def auroc_paired(
    y: ArrayLike, s_a: ArrayLike, s_b: ArrayLike, patient: ArrayLike, *, level: float = 0.95
) -> Difference:
    """Return AUROC(s_a) - AUROC(s_b) on the same scans, its interval, and the p-value for no difference.

    Two models with the same order of all pairs differ by 0 with p = 1. Raises ValueError as `auroc_covariance` does.
    """
    parts = _parts(y, np.stack([np.asarray(s_a, np.float64), np.asarray(s_b, np.float64)]), patient)
    apart = parts.combined(np.array([[1.0, -1.0]]))
    value, se = float(apart.auroc[0]), float(np.sqrt(apart.covariance()[0, 0]))
    how, patients = _how(parts, level, "paired interval"), parts.positive.shape[1]
    if np.isnan(se) or (se == 0 and value != 0):
        nothing = Score(value, np.nan, np.nan, parts.scans, patients, f"no interval {_why(parts)}: {how}")
        return Difference(nothing, np.nan, np.nan)
    k = _quantile(parts, level)
    p = 2 * float(t.sf(abs(value) / se, parts.rarer - 1)) if se > 0 else 1.0
    return Difference(Score(value, value - k * se, value + k * se, parts.scans, patients, how), p, se)


def _quantile(parts: _Parts, level: float) -> float:
    return float(t.ppf((1 + level) / 2, parts.rarer - 1)) if parts.rarer > 1 else np.nan


def _how(parts: _Parts, level: float, words: str) -> str:
    patients = parts.positive.shape[1]
    name = "DeLong" if patients == parts.scans else "Obuchowski"
    how = f"{100 * level:g} % {name} {words} over {patients} patients, t with {max(parts.rarer - 1, 0)} degrees of freedom"
    if parts.rarer < FEW:
        how += f"; only {parts.rarer} patients in the rarer class, so the interval is rough"
    return how


def _why(parts: _Parts) -> str:
    if parts.rarer < 2:
        return f"from {parts.rarer} patients of the rarer class"
    return (
        "as all patients agree (the classes do not overlap, or all scores are tied), and a variance of 0 says nothing"
    )


def percentile_score(
    metric: Metric, y: ArrayLike, p: ArrayLike, patient: ArrayLike, *, n: int = 2000, seed: int = 0, level: float = 0.95
) -> Score:
    """Return `metric` with percentiles of resamples of the patients, expanded by Student's t, whatever its own interval is."""
    case, at = (metric, *metric.check(y, p)), positions(patient, len(np.asarray(p)))
    found = replicates([case], at, n, seed)[0]
    patients, wide = int(at.max()) + 1, expanded(level, rarest(case, at))
    ends = np.nanquantile(found, [(1 - wide) / 2, (1 + wide) / 2])
    how = f"{100 * level:g} % percentile bootstrap over {patients} patients, {n} resamples"
    return Score(metric(*case[1:]), float(ends[0]), float(ends[1]), len(at), patients, how)


def bca_score(
    metric: Metric, y: ArrayLike, p: ArrayLike, patient: ArrayLike, *, n: int = 2000, seed: int = 0, level: float = 0.95
) -> Score:
    """`percentile_score` with percentiles corrected for bias and skewness (Efron, 1987,
    https://doi.org/10.1080/01621459.1987.10478410), for as many more evaluations as there are patients."""
    plain = percentile_score(metric, y, p, patient, n=n, seed=seed, level=level)
    case, at = (metric, *metric.check(y, p)), positions(patient, len(np.asarray(p)))
    found = replicates([case], at, n, seed)[0]
    found = found[~np.isnan(found)]
    left = leave_out([case], at, np.arange(plain.patients))[1][0]
    ends = bca_quantiles(plain.value, found, left, expanded(level, rarest(case, at)))
    if ends is None:
        return replace(plain, how=plain.how.replace("bootstrap", "bootstrap (BCa is undefined here)", 1))
    low, high = np.quantile(found, ends)
    return replace(plain, low=float(low), high=float(high), how=plain.how.replace("percentile", "BCa", 1))


def bca_quantiles(value: float, found: Floats, left: Floats, level: float) -> Floats | None:
    """Return the quantiles (2,) of the resamples `found` at the ends of the BCa interval of `value`.

    Efron & Tibshirani, 1993, eqs. 14.10, 14.14 and 14.15, with half of the ties in the bias (as SciPy) and the
    acceleration from `left`, the values without each patient. None if undefined: a value beyond all resamples, or a metric
    that needs every patient or depends on none.
    """
    below = ((found < value).mean() + (found <= value).mean()) / 2
    u = left.mean() - left
    if not 0 < below < 1 or np.isnan(u).any() or not u.any():
        return None
    acceleration = (u**3).sum() / (6 * (u**2).sum() ** 1.5)
    z0 = ndtri(below)
    z = z0 + ndtri([(1 - level) / 2, (1 + level) / 2])
    return ndtr(z0 + z / (1 - acceleration * z)) if (acceleration * z < 1).all() else None


def corrected_t(
    differences: ArrayLike, train: ArrayLike, test: ArrayLike, *, scans: int, level: float = 0.95
) -> Difference:
    """Return the mean of differences (n,) of two models over n train/test splits of the same patients, with interval and p.

    Nadeau & Bengio, 2003 (https://doi.org/10.1023/A:1024068626366), section 5: the variance of the mean is
    (1/n + test/train) times the sample variance, and t has n - 1 degrees of freedom. It compares methods trained on
    `train` patients, not two trained models. For r times k-fold cross-validation test/train is 1/(k - 1) (Bouckaert
    & Frank, 2004). The correction assumes a correlation of test/(train + test) between splits, because they share test
    patients, and ignores that they share training patients. In simulations (`quality_statistics.py`) its false positive rate
    at 5 % was 5 to 6 %, but 6 to 9 % where models depend strongly on the training patients (20 features from 104 patients).

    train, test: patients in the parts of a split, one number or (n,). scans: of all patients together. Raises UserError for
    fewer than two splits, for differences that are not finite, and for differences that are all equal.
    """
    d = np.asarray(differences, np.float64)
    train, test = (np.broadcast_to(np.asarray(x, np.float64), d.shape) for x in (train, test))
    if d.ndim != 1 or not (train > 0).all() or not (test > 0).all():
        raise ValueError(f"needs differences (n,) and patients above 0 in both parts, got {d.shape}")
    n, patients = len(d), round(float(np.mean(train + test))) if len(d) else 0
    if n < 2:
        raise UserError(
            f"a corrected resampled t-test needs at least 2 splits and got {n}; score the two on more splits"
        )
    if not np.isfinite(d).all():
        raise UserError(
            f"{(~np.isfinite(d)).sum()} of the {n} splits have no difference, because a score is undefined there; "
            "leave these splits out, or split so that each test part holds all classes"
        )
    if np.ptp(d.round(DIGITS)) == 0:
        raise UserError(
            f"the differences of all {n} splits are equal ({d[0]:.6g}), so their variance is unknown; check that the "
            "splits differ, or compare the two on one test set, paired"
        )
    se = float(np.sqrt((1 / n + np.mean(test / train)) * d.var(ddof=1)))
    value, k = float(d.mean()), float(stats.t.ppf((1 + level) / 2, n - 1))
    how = (
        f"{100 * level:g} % corrected resampled t over {n} splits of {patients} patients, "
        f"{round(float(train.mean()))} to train and {round(float(test.mean()))} to test"
    )
    p = 2 * float(stats.t.sf(abs(value) / se, n - 1))
    return Difference(Score(value, value - k * se, value + k * se, scans, patients, how), p, se)
