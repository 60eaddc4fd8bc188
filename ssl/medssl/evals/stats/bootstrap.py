"""Scores and paired differences with intervals over patients: all scans of a patient stay together.

- Metrics between 0 and 1 with `parts` (AUROC, AUPRC, accuracy, sensitivity, concordance, …): Wilson's interval with the variance
  of a jackknife over patients, and exact bounds for scores of 1 and 0 (`jackknife`).
- Other metrics: percentiles of bootstrap resamples of the patients (Efron & Tibshirani, An Introduction to the Bootstrap, 1993,
  section 13.3), expanded by Student's t; the ECE: a jackknife that allows for its bias.
- Differences: paired, difference +- Student's t times the standard error of the jackknife.

Seeds and draws of labels add their own variance. A group that a metric needs, such as a class, of fewer than two patients
has no interval. Resamples depend only on the number of patients, `n` and `seed`, so all metrics and all rows of a table on one
test set share them.

y and p are as the metric takes them (see `metrics`); patient (N,) are ids, compared for equality only. n: resamples of a
bootstrap, and the largest number of blocks of patients that a jackknife leaves out in turn; seed: of both.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from medssl.evals.metrics.metrics import Metric
from medssl.evals.stats.intervals import Sample
from medssl.evals.stats.resampling import positions
from medssl.evals.stats.score import Difference, Score


def score(
    metric: Metric, y: ArrayLike, p: ArrayLike, patient: ArrayLike, *, n: int = 2000, seed: int = 0, level: float = 0.95
) -> Score:
    """Return `metric` of y and p with an interval over patients.

    Where the metric is bootstrapped, resamples on which it is undefined are excluded; `how` counts them.
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
    found = Sample(at, n, seed, level).scores([[c] for c in cases])
    return {c[0].name: each for c, each in zip(cases, found, strict=True)}


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
    """Return the mean of metric(p[s]) over seeds, or seeds by draws, with an interval over patients, seeds and draws."""
    if not p:
        raise ValueError("needs the predictions of at least one seed")
    cases = [(metric, *metric.check(y, each)) for each in p]
    return Sample(positions(patient, len(cases[0][2])), n, seed, level, draws).scores([cases])[0]


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
    """Return metric(p_a) - metric(p_b) on the same scans, paired: patients are left out of both."""
    return differences([metric], y, p_a, p_b, patient, n=n, seed=seed, level=level)[metric.name]


def differences(
    metrics: Iterable[Metric],
    y: ArrayLike,
    p_a: ArrayLike,
    p_b: ArrayLike,
    patient: ArrayLike,
    *,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Score]:
    """Return `difference` of several metrics by name, without the same patients in turn."""
    pairs = [([(m, *m.check(y, p_a))], [(m, *m.check(y, p_b))]) for m in metrics]
    found = Sample(positions(patient, len(np.asarray(p_a))), n, seed, level).differences(pairs)
    return {a[0][0].name: each.score for (a, _), each in zip(pairs, found, strict=True)}


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
    """Return the mean over seeds of metric(p_a[s]) - metric(p_b[s]), its interval, its p-value and its standard error.

    Seed s of one model is paired with seed s of the other; this is harmless if they are independent. The variance between S
    seeds has S - 1 degrees of freedom, which makes the interval wide for two or three seeds: of seeds that few, little is known.

    draws: number of label subsets per seed, the same for all seeds; p_a and p_b then contain all draws of the first seed,
    then of the second. Seeds and draws add a variance each, because a draw is common to all seeds; the residual is counted
    twice, so the interval is conservative.

    p inverts the interval: it is the smallest alpha for which the 1 - alpha interval excludes 0. It is Student's t-test where
    the metric is a mean and every patient has one scan, and DeLong's test with Student's t for the AUROC.
    """
    if not p_a or len(p_a) != len(p_b):
        raise ValueError(f"seeds are paired: got {len(p_a)} of one model and {len(p_b)} of the other")
    a, b = ([(metric, *metric.check(y, p)) for p in each] for each in (p_a, p_b))
    return Sample(positions(patient, len(a[0][2])), n, seed, level, draws).differences([(a, b)])[0]
