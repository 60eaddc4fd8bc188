"""Percentile bootstrap over patients: scans of one patient come and go together, and two models see the same resamples.

The resamples are a function of the number of patients, `n` and `seed` alone, so every metric and every row of a table
on one test set is judged on the same draws. Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medssl.evals.metrics import Floats, Metric, checked
from medssl.evals.score import Score
from medssl.rng import seed_from

CHUNK = 4_000_000  # weights held at once: 32 MB
FEW = 10  # patients of the rarest class; simulated 95 % intervals of an AUROC cover .93 at 10, .88 at 7, .72 at 2
FEW_SEEDS = 10  # simulated 95 % intervals over seeds that differ cover .83 at 3, .88 at 5 and .92 at 10
PATIENTS, SEEDS = 1, 2  # streams of random numbers


def score(
    metric: Metric, y: ArrayLike, p: ArrayLike, patient: ArrayLike, *, n: int = 2000, seed: int = 0, level: float = 0.95
) -> Score:
    """`metric` of y (N,) and p (N, K) with a patient-wise interval. patient: (N,) ids, compared for equality only.

    Resamples in which the metric is undefined, because a class is missing, are left out; `how` counts them.
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
    metrics = list(metrics)
    y, p = checked(y, p)
    at = _patients(patient, y)
    replicates = _replicates(metrics, y, [p], at, n, seed)[:, 0]
    return {
        m.name: _interval(m(y, p), r, y, at, level, "percentile bootstrap")
        for m, r in zip(metrics, replicates, strict=True)
    }


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
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Score:
    """The mean over seeds of metric(p_a[s]) - metric(p_b[s]), resampling patients and seeds together.

    Seed s of one model is paired with seed s of the other; where they have nothing in common this costs nothing. Of S
    seeds S - 1 are drawn, which makes the variance between seeds unbiased (Rao & Wu, 1988,
    https://doi.org/10.1080/01621459.1988.10478591); drawing S would make it (S - 1)/S too small, a third at S = 3.
    """
    if not p_a or len(p_a) != len(p_b):
        raise ValueError(f"seeds are paired: got {len(p_a)} of one model and {len(p_b)} of the other")
    S = len(p_a)
    pairs = [(checked(y, a)[1], checked(y, b)[1]) for a, b in zip(p_a, p_b, strict=True)]
    y, _ = checked(y, p_a[0])
    at = _patients(patient, y)
    each = _replicates([metric], y, [p for pair in pairs for p in pair], at, n, seed)[0]
    each = each[0::2] - each[1::2]  # (S, n)
    value = float(np.mean([metric(y, a) - metric(y, b) for a, b in pairs]))
    if S == 1:
        return _interval(value, each[0], y, at, level, "paired percentile bootstrap")
    drawn = _generator(seed, SEEDS).integers(S, size=(n, S - 1))
    replicates = np.take_along_axis(each.T, drawn, axis=1).mean(1)
    result = _interval(value, replicates, y, at, level, f"paired percentile bootstrap over {S} seeds and")
    few = f"; {S} seeds are few, so the true uncertainty is wider than shown"
    return replace(result, how=result.how + few) if S < FEW_SEEDS else result


def _generator(seed: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed_from(seed, stream)))


def _patients(patient: ArrayLike, y: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each scan, the position of its patient among the distinct patients, sorted."""
    patient = np.asarray(patient)
    if patient.shape != y.shape:
        raise ValueError(f"needs one patient per scan: got {patient.shape} for {y.shape}")
    return np.unique(patient.astype(str), return_inverse=True)[1].reshape(-1)


def resamples(patients: int, n: int, seed: int, rows: int) -> Iterator[Floats]:
    """`n` bootstrap draws of `patients` from `patients`, as counts: chunks (<= rows, patients) float64."""
    rng = _generator(seed, PATIENTS)
    for start in range(0, n, rows):
        r = min(rows, n - start)
        drawn = rng.integers(patients, size=(r, patients)) + patients * np.arange(r)[:, None]
        yield np.bincount(drawn.ravel(), minlength=r * patients).reshape(r, patients).astype(np.float64)


def _replicates(
    metrics: Sequence[Metric], y: NDArray[np.int64], ps: Sequence[Floats], at: NDArray[np.int64], n: int, seed: int
) -> Floats:
    """(metrics, models, n) values of each metric of each model on each resample."""
    if n < 100:
        raise ValueError(f"needs at least 100 resamples, got {n}")
    chunks = resamples(int(at.max()) + 1, n, seed, rows=max(1, CHUNK // len(y)))
    values = [[[m.many(y, p, w) for p in ps] for m in metrics] for w in (c[:, at] for c in chunks)]
    return np.concatenate([np.array(v) for v in values], axis=-1)


def _interval(
    value: float, replicates: Floats, y: NDArray[np.int64], at: NDArray[np.int64], level: float, words: str
) -> Score:
    patients = int(at.max()) + 1
    rarest = min(len(np.unique(at[y == k])) for k in np.unique(y))
    defined = replicates[~np.isnan(replicates)]
    joint = " " if words.endswith("and") else " over "
    how = f"{100 * level:g} % {words}{joint}{patients} patients, {len(replicates)} resamples"
    if len(defined) < len(replicates):
        how += f", {len(replicates) - len(defined)} of them left out because a class was missing"
    if patients < 2 or not len(defined):
        return Score(value, np.nan, np.nan, len(at), patients, f"no interval from {patients} patients: {how}")
    if rarest < FEW:
        how += f"; only {rarest} patients in the rarest class, so the true uncertainty is wider than shown"
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    if low == high and rarest >= FEW:
        how += "; every resample agrees, so the true uncertainty is wider than shown"
    return Score(value, float(low), float(high), len(at), patients, how)
