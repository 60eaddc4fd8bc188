"""Bootstrap over patients: scans of one patient come and go together, and two models see the same resamples.

The resamples are a function of the number of patients, `n` and `seed` alone, so every metric and every row of a table
on one test set is judged on the same draws. Intervals are percentiles of the resamples (Efron & Tibshirani, An
Introduction to the Bootstrap, 1993, section 13.3).

y and p are of the kind of task that the metric says (`metrics`); patient is (N,) ids, compared for equality only.
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
FEW = 10  # patients of the rarest class; simulated 95 % intervals of an AUROC cover .93 at 10, .94 at 7, .91 at 4, .72 at 2
FEW_SEEDS = 10  # simulated 95 % intervals over seeds that differ cover .83 at 3, .88 at 5 and .92 at 10
PATIENTS, SEEDS, DRAWS = 1, 2, 5  # streams of random numbers; 3 and 4 are of `shift`

Case = tuple[Metric, Truth, Floats]  # a metric with y and p that it has checked


def score(
    metric: Metric,
    y: ArrayLike,
    p: ArrayLike,
    patient: ArrayLike,
    *,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Score:
    """`metric` of y and p with a patient-wise interval.

    Resamples in which the metric is undefined, because a class is missing, say, are left out; `how` counts them.
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
    """Like `score` for several metrics, by name, on the same resamples."""
    cases = [(m, *m.check(y, p)) for m in metrics]
    at = positions(patient, len(np.asarray(p)))
    found = replicates(cases, at, n, seed)
    return {
        c[0].name: _interval(c, c[0](*c[1:]), f, at, level, "percentile bootstrap")
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
    """The mean over seeds, or seeds by draws, of metric(p[s]), resampling patients and seeds together as `paired` does."""
    if not p:
        raise ValueError("needs the predictions of at least one seed")
    cases = [(metric, *metric.check(y, each)) for each in p]
    at = positions(patient, len(cases[0][2]))
    value = float(np.mean([metric(*c[1:]) for c in cases]))
    each = _grid(replicates(cases, at, n, seed), draws)
    return _over_seeds(cases[0], value, each, at, seed, level, "percentile bootstrap")[0]


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
    """metric(p_a) - metric(p_b) on the same scans, paired: both models are judged on each resample of patients."""
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
    """The score of `paired`: the mean over seeds of metric(p_a[s]) - metric(p_b[s]) with its interval."""
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
    """The mean over seeds of metric(p_a[s]) - metric(p_b[s]), resampling patients and seeds together.

    Seed s of one model is paired with seed s of the other; where they have nothing in common this costs nothing. Of S
    seeds S - 1 are drawn, which makes the variance between seeds unbiased (Rao & Wu, 1988,
    https://doi.org/10.1080/01621459.1988.10478591); drawing S would make it (S - 1)/S too small, a third at S = 3.

    draws: how often labels were drawn for each seed, the same draws for all; p_a and p_b then hold all draws of the first seed,
    then of the second. Seeds and draws are resampled independently of each other, for a draw is common to all seeds: as if they
    were one list, what they have in common would be divided by too much. What only one cell shows is counted up to three
    times (Owen, 2007, https://doi.org/10.1214/07-AOAS122), so the interval errs on the wide side.

    p inverts the interval: it is the smallest alpha whose 1 - alpha interval leaves out 0, so test and interval never
    disagree (Efron & Tibshirani, 1993, sections 13.3 and 15.4), but at least that of 2 in n + 1, as n resamples show no less.
    se is the standard deviation of the resamples.
    """
    if not p_a or len(p_a) != len(p_b):
        raise ValueError(f"seeds are paired: got {len(p_a)} of one model and {len(p_b)} of the other")
    cases = [(metric, *metric.check(y, p)) for pair in zip(p_a, p_b, strict=True) for p in pair]
    at = positions(patient, len(cases[0][2]))
    each = replicates(cases, at, n, seed)
    values = [metric(*c[1:]) for c in cases]
    value = float(np.mean(np.subtract(values[0::2], values[1::2])))
    each = _grid(each[0::2] - each[1::2], draws)
    found, drawn = _over_seeds(cases[0], value, each, at, seed, level, "paired percentile bootstrap")
    if np.isnan(found.low):
        return Difference(found, np.nan, np.nan)
    drawn = drawn[~np.isnan(drawn)]
    p = min(max(2 * min(share_up_to_0(drawn), share_up_to_0(-drawn)), 2 / (n + 1)), 1.0)
    return Difference(found, _of_expanded(p, rarest(cases[0], at)), float(drawn.std(ddof=1)))


def expanded(level: float, patients: int) -> float:
    """The level at which percentiles are read, for an interval that covers `level` of the time.

    Hesterberg, 2015 (https://doi.org/10.1080/00031305.2015.1089789), section 4.2: the normal quantile that percentiles amount to
    becomes that of Student's t, and the variance of resamples, (n - 1) / n too small, is made up for. `patients` are those of
    the `rarest` class, which is what is least known and bounds Welch's degrees of freedom; one counts as two.
    """
    patients = max(patients, 2)
    return float(1 - 2 * ndtr(-t.isf((1 - level) / 2, patients - 1) * np.sqrt(patients / (patients - 1))))


def rarest(case: Case, at: NDArray[np.int64]) -> int:
    """Patients in the rarest of the groups that the metric needs, such as classes; all, where it needs none."""
    metric, y, _ = case
    return min((len(np.unique(at[g])) for g in metric.check.groups(y)), default=int(at.max()) + 1)


def _of_expanded(p: float, patients: int) -> float:
    """The inverse: what p = 1 - level of percentiles is as the p of the expanded interval."""
    patients = max(patients, 2)
    return float(2 * t.sf(-ndtri(p / 2) * np.sqrt((patients - 1) / patients), patients - 1))


def share_up_to_0(x: Floats) -> float:
    """The largest q whose quantile is not above 0, by the linear interpolation of np.quantile."""
    x = np.sort(x)
    k = int(np.searchsorted(x, 0, side="right"))
    if k in (0, len(x)):
        return float(k > 0)
    return (k - 1 - x[k - 1] / (x[k] - x[k - 1])) / (len(x) - 1)


def _grid(values: Floats, draws: int) -> Floats:
    """(seeds * draws, n) -> (seeds, draws, n)."""
    if draws < 1 or len(values) % draws:
        raise ValueError(f"{len(values)} predictions are not so many seeds of {draws} draws each")
    return values.reshape(-1, draws, values.shape[-1])


def _over_seeds(
    case: Case, value: float, each: Floats, at: NDArray[np.int64], seed: int, level: float, words: str
) -> tuple[Score, Floats]:
    """Resamples (S, D, n) of every seed and draw -> the score of their mean, and its resamples (n,)."""
    S, D, n = each.shape
    for size, stream in ((S, SEEDS), (D, DRAWS)):
        if size == 1:
            each = each[0]
        else:
            drawn = _generator(seed, stream).integers(size, size=(size - 1, *[1] * (each.ndim - 2), n))
            each = np.take_along_axis(each, drawn, axis=0).mean(0)
    many = [f"{k} {what}" for k, what in ((S, "seeds"), (D, "draws of labels")) if k > 1]
    if many:
        words += f" over {', '.join(many)} and"
    found = _interval(case, value, each, at, level, words)
    few = [f"{k} {what}" for k, what in ((S, "seeds"), (D, "draws")) if 1 < k < FEW_SEEDS]
    more = f"; {' and '.join(few)} are few, so the true uncertainty is wider than shown" if few else ""
    return replace(found, how=found.how + more), each


def _generator(seed: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed_from(seed, stream)))


def positions(patient: ArrayLike, scans: int) -> NDArray[np.int64]:
    """For each scan, the position of its patient among the distinct patients, sorted."""
    patient = np.asarray(patient)
    if patient.shape != (scans,):
        raise ValueError(f"needs one patient per scan: got {patient.shape} for {scans} scans")
    return np.unique(patient.astype(str), return_inverse=True)[1].reshape(-1)


def resamples(patients: int, n: int, seed: int, rows: int) -> Iterator[Floats]:
    """`n` bootstrap draws of `patients` from `patients`, as counts: chunks (<= rows, patients) float64."""
    rng = _generator(seed, PATIENTS)
    for start in range(0, n, rows):
        r = min(rows, n - start)
        drawn = rng.integers(patients, size=(r, patients)) + patients * np.arange(r)[:, None]
        yield np.bincount(drawn.ravel(), minlength=r * patients).reshape(r, patients).astype(np.float64)


def replicates(cases: Sequence[Case], at: NDArray[np.int64], n: int, seed: int) -> Floats:
    """(cases, n) values of each metric of its y and p on each resample of the patients at `at` (N,)."""
    if n < 100:
        raise ValueError(f"needs at least 100 resamples, got {n}")
    counts = resamples(int(at.max()) + 1, n, seed, rows=max(1, CHUNK // len(at)))
    return _values(cases, (c[:, at] for c in counts))


def jackknife(cases: Sequence[Case], at: NDArray[np.int64]) -> Floats:
    """(cases, patients) values of each metric without each patient in turn."""
    rows = max(1, CHUNK // len(at))
    ids = np.arange(int(at.max()) + 1)[:, None]
    return _values(cases, ((at != ids[i : i + rows]).astype(np.float64) for i in range(0, len(ids), rows)))


def _values(cases: Sequence[Case], weights: Iterable[Floats]) -> Floats:
    return np.concatenate([np.array([m.many(y, p, w) for m, y, p in cases]) for w in weights], axis=-1)


def _interval(case: Case, value: float, found: Floats, at: NDArray[np.int64], level: float, words: str) -> Score:
    """The score of `value` with the percentiles of its resamples `found`."""
    (metric, y, _), patients = case, int(at.max()) + 1
    defined = found[~np.isnan(found)]
    few = rarest(case, at)
    wide = expanded(level, few)
    joint = " " if words.endswith("and") else " over "
    how = f"{100 * level:g} % {words}{joint}{patients} patients, {len(found)} resamples"
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
