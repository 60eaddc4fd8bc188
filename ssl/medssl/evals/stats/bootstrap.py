"""Bootstrap over patients: all scans of a patient are drawn together, and two models are compared on the same resamples.

Resamples depend only on the number of patients, `n` and `seed`, so all metrics and all rows of a table on one test set
share them. Intervals are percentiles of the resamples (Efron & Tibshirani, An Introduction to the Bootstrap, 1993,
section 13.3).

y and p are as the metric takes them (see `metrics`); patient (N,) are ids, compared for equality only.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import t

from medssl.evals.metrics.metrics import Floats, Metric, Truth
from medssl.evals.stats.score import Difference, Score
from medssl.rng import seed_from

CHUNK = 4_000_000  # weights held at once: 32 MB
# patients of the rarest class; simulated 95 % intervals of an AUROC cover .93 at 10, .94 at 7, .91 at 4, .72 at 2
FEW = 10
FEW_SEEDS = 10  # simulated 95 % intervals over differing seeds cover .83 at 3, .88 at 5 and .92 at 10
PATIENTS, SEEDS, DRAWS = 1, 2, 5  # random streams; `transfer_gap` has 3 and 4

Case = tuple[Metric, Truth, Floats]  # a metric with checked y and p


def score(
    metric: Metric, y: ArrayLike, p: ArrayLike, patient: ArrayLike, *, n: int = 2000, seed: int = 0, level: float = 0.95
) -> Score:
    """Return `metric` of y and p with an interval over patients.

    Resamples on which the metric is undefined, for example because a class is missing, are excluded; `how` counts them.
    """
    return scores([metric], y, p, patient, n=n, seed=seed, level=level)[metric.name]


def scores(
    metrics: Iterable[Metric],
    y: ArrayLike,
    p: ArrayLike,
    patient: ArrayLike,
    *,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Score]:
    """Return `score` of several metrics by name, on the same resamples."""
    cases = [(m, *m.check(y, p)) for m in metrics]
    at = positions(patient, len(np.asarray(p)))
    found = replicates(cases, at, n, seed)
    return {
        c[0].name: _interval(c, c[0](*c[1:]), f, at, level, "percentile bootstrap over")
        for c, f in zip(cases, found, strict=True)
    }


def score_seeds(
    metric: Metric,
    y: ArrayLike,
    p: Sequence[ArrayLike],
    patient: ArrayLike,
    *,
    draws: int = 1,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Score:
    """Return the mean of metric(p[s]) over seeds, or seeds by draws, resampling patients and seeds as `paired` does."""
    if not p:
        raise ValueError("needs the predictions of at least one seed")
    cases = [(metric, *metric.check(y, each)) for each in p]
    at = positions(patient, len(cases[0][2]))
    value = float(np.mean([metric(*c[1:]) for c in cases]))
    each = _grid(replicates(cases, at, n, seed), draws)
    return _over_seeds(cases[0], value, each, at, seed, level, "percentile bootstrap over")[0]


def difference(
    metric: Metric,
    y: ArrayLike,
    p_a: ArrayLike,
    p_b: ArrayLike,
    patient: ArrayLike,
    *,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Score:
    """Return metric(p_a) - metric(p_b) on the same scans, paired: both models are scored on each resample of patients."""
    return difference_seeds(metric, y, [p_a], [p_b], patient, n=n, seed=seed, level=level)


def difference_seeds(
    metric: Metric,
    y: ArrayLike,
    p_a: Sequence[ArrayLike],
    p_b: Sequence[ArrayLike],
    patient: ArrayLike,
    *,
    draws: int = 1,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Score:
    """Return the score of `paired`: the mean over seeds of metric(p_a[s]) - metric(p_b[s]) with its interval."""
    return paired(metric, y, p_a, p_b, patient, draws=draws, n=n, seed=seed, level=level).score


def paired(
    metric: Metric,
    y: ArrayLike,
    p_a: Sequence[ArrayLike],
    p_b: Sequence[ArrayLike],
    patient: ArrayLike,
    *,
    draws: int = 1,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Return the mean over seeds of metric(p_a[s]) - metric(p_b[s]), resampling patients and seeds together.

    Seed s of one model is paired with seed s of the other; this is harmless if they are independent. S - 1 of S seeds are
    drawn, which makes the variance between seeds unbiased (Rao & Wu, 1988,
    https://doi.org/10.1080/01621459.1988.10478591); with S draws it would be too small by a factor (S - 1)/S, a third at S = 3.

    draws: number of label subsets per seed, the same for all seeds; p_a and p_b then contain all draws of the first seed,
    then of the second. Seeds and draws are resampled independently, because a draw is common to all seeds; resampled as one
    list, the variance of the draws would be divided by too large a number. The residual is counted up to three times
    (Owen, 2007, https://doi.org/10.1214/07-AOAS122), so the interval is conservative.

    p inverts the interval: it is the smallest alpha for which the 1 - alpha interval excludes 0, so test and interval agree
    (Efron & Tibshirani, 1993, sections 13.3 and 15.4); it is at least 2 / (n + 1), the resolution of n resamples. se is the
    standard deviation of the resamples.
    """
    if not p_a or len(p_a) != len(p_b):
        raise ValueError(f"seeds are paired: got {len(p_a)} of one model and {len(p_b)} of the other")
    cases = [(metric, *metric.check(y, p)) for pair in zip(p_a, p_b, strict=True) for p in pair]
    at = positions(patient, len(cases[0][2]))
    each = replicates(cases, at, n, seed)
    values = [metric(*c[1:]) for c in cases]
    value = float(np.mean(np.subtract(values[0::2], values[1::2])))
    each = _grid(each[0::2] - each[1::2], draws)
    found, drawn = _over_seeds(cases[0], value, each, at, seed, level, "paired percentile bootstrap over")
    if np.isnan(found.low):
        return Difference(found, np.nan, np.nan)
    drawn = drawn[~np.isnan(drawn)]
    p = min(max(2 * min(share_up_to_0(drawn), share_up_to_0(-drawn)), 2 / (n + 1)), 1.0)
    return Difference(found, _of_expanded(p, rarest(cases[0], at)), float(drawn.std(ddof=1)))


def expanded(level: float, patients: int) -> float:
    """Return the level at which to read percentiles for an interval with coverage `level`.

    Hesterberg, 2015 (https://doi.org/10.1080/00031305.2015.1089789), section 4.2: the normal quantile behind percentiles is
    replaced by Student's t, and the variance of resamples, too small by (n - 1) / n, is corrected. `patients` are those of
    the `rarest` class, which bounds Welch's degrees of freedom; one counts as two.
    """
    patients = max(patients, 2)
    return float(1 - 2 * ndtr(-t.isf((1 - level) / 2, patients - 1) * np.sqrt(patients / (patients - 1))))


def rarest(case: Case, at: NDArray[np.int64]) -> int:
    """Return the number of patients in the rarest group that the metric needs, such as a class; all if it needs none."""
    metric, y, _ = case
    return min((len(np.unique(at[g])) for g in metric.check.groups(y)), default=int(at.max()) + 1)


def _of_expanded(p: float, patients: int) -> float:
    """Invert `expanded`: return the p of the expanded interval from p = 1 - level of percentiles."""
    patients = max(patients, 2)
    return float(2 * t.sf(-ndtri(p / 2) * np.sqrt((patients - 1) / patients), patients - 1))


def share_up_to_0(x: Floats) -> float:
    """Return the largest q with a quantile of at most 0, by the linear interpolation of np.quantile."""
    x = np.sort(x)
    k = int(np.searchsorted(x, 0, side="right"))
    if k in (0, len(x)):
        return float(k > 0)
    return (k - 1 - x[k - 1] / (x[k] - x[k - 1])) / (len(x) - 1)


def _grid(values: Floats, draws: int) -> Floats:
    """Reshape (seeds * draws, n) to (seeds, draws, n)."""
    if draws < 1 or len(values) % draws:
        raise ValueError(f"{len(values)} predictions cannot be divided into seeds of {draws} draws each")
    return values.reshape(-1, draws, values.shape[-1])


def _over_seeds(
    case: Case, value: float, each: Floats, at: NDArray[np.int64], seed: int, level: float, words: str
) -> tuple[Score, Floats]:
    """Return the score of the mean over seeds and draws, and its resamples (n,), from the resamples `each` (S, D, n)."""
    S, D, n = each.shape
    for size, stream in ((S, SEEDS), (D, DRAWS)):
        if size == 1:
            each = each[0]
        else:
            drawn = _generator(seed, stream).integers(size, size=(size - 1, *[1] * (each.ndim - 2), n))
            each = np.take_along_axis(each, drawn, axis=0).mean(0)
    many = [f"{k} {what}" for k, what in ((S, "seeds"), (D, "draws of labels")) if k > 1]
    if many:
        words += f" {', '.join(many)} and"
    found = _interval(case, value, each, at, level, words)
    few = [f"{k} {what}" for k, what in ((S, "seeds"), (D, "draws")) if 1 < k < FEW_SEEDS]
    more = f"; {' and '.join(few)} are few, so the true uncertainty is wider than shown" if few else ""
    return replace(found, how=found.how + more), each


def _generator(seed: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed_from(seed, stream)))


def positions(patient: ArrayLike, scans: int) -> NDArray[np.int64]:
    """Return the position of each scan's patient among the distinct patients, sorted."""
    patient = np.asarray(patient)
    if patient.shape != (scans,):
        raise ValueError(f"needs one patient per scan: got {patient.shape} for {scans} scans")
    return np.unique(patient.astype(str), return_inverse=True)[1].reshape(-1)


def resamples(patients: int, n: int, seed: int, rows: int) -> Iterator[Floats]:
    """Yield `n` bootstrap resamples of the patients as counts, in chunks (<= rows, patients) float64."""
    rng = _generator(seed, PATIENTS)
    for start in range(0, n, rows):
        r = min(rows, n - start)
        drawn = rng.integers(patients, size=(r, patients)) + patients * np.arange(r)[:, None]
        yield np.bincount(drawn.ravel(), minlength=r * patients).reshape(r, patients).astype(np.float64)


def replicates(cases: Sequence[Case], at: NDArray[np.int64], n: int, seed: int) -> Floats:
    """Return the value of each case on each resample, (cases, n); at (N,) is each scan's patient."""
    if n < 100:
        raise ValueError(f"needs at least 100 resamples, got {n}")
    counts = resamples(int(at.max()) + 1, n, seed, rows=max(1, CHUNK // len(at)))
    return _values(cases, (c[:, at] for c in counts))


def jackknife(cases: Sequence[Case], at: NDArray[np.int64]) -> Floats:
    """Return the value of each case without each patient in turn, (cases, patients)."""
    rows = max(1, CHUNK // len(at))
    ids = np.arange(int(at.max()) + 1)[:, None]
    return _values(cases, ((at != ids[i : i + rows]).astype(np.float64) for i in range(0, len(ids), rows)))


def _values(cases: Sequence[Case], weights: Iterable[Floats]) -> Floats:
    return np.concatenate([np.array([m.many(y, p, w) for m, y, p in cases]) for w in weights], axis=-1)


def _interval(case: Case, value: float, found: Floats, at: NDArray[np.int64], level: float, words: str) -> Score:
    """Return `value` with the percentiles of its resamples `found` (n,)."""
    (metric, y, _), patients = case, int(at.max()) + 1
    defined = found[~np.isnan(found)]
    few = rarest(case, at)
    wide = expanded(level, few)
    how = f"{100 * level:g} % {words} {patients} patients, {len(found)} resamples"
    if len(defined) < len(found):
        how += f", {len(found) - len(defined)} of them left out because {metric.check.missing}"
    how += metric.check.left_out(y)
    if patients < 2 or not len(defined):
        return Score(value, np.nan, np.nan, len(at), patients, f"no interval from {patients} patients: {how}")
    if few < FEW:
        how += f"; only {few} patients {metric.check.rare}".rstrip()
        how += ", so the true uncertainty is wider than shown"
    low, high = np.quantile(defined, [(1 - wide) / 2, (1 + wide) / 2])
    if low == high and few >= FEW:
        how += "; every resample agrees, so the true uncertainty is wider than shown"
    return Score(value, float(low), float(high), len(at), patients, how)
