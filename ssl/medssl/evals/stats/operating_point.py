"""What a score means in use: at a threshold fixed beforehand, at a clinic's prevalence, and as net benefit.

A threshold that is chosen on the test makes the test look better than the clinic will. Here it is chosen on validation,
applied to the test and held fixed in every resample. y is (N,) 0 or 1 and s (N,) a score of class 1, such as p[:, 1];
a scan is called positive when s >= threshold.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medssl.errors import UserError
from medssl.evals.metrics.metrics import CLASS_PROBABILITIES, Floats, Metric, Truth
from medssl.evals.metrics.weighted import divide
from medssl.evals.stats.bootstrap import difference, scores
from medssl.evals.stats.score import Score

DECISIONS = replace(CLASS_PROBABILITIES, missing="a class or a decision was missing")


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and what it does on the test.

    scores: sensitivity, specificity, PPV and NPV as they are among the test's scans, then "PPV at 5 %" and the like.
    how: a sentence on how the threshold was chosen.
    """

    threshold: float
    scores: dict[str, Score]
    how: str


@dataclass(frozen=True)
class NetBenefit:
    """Net benefit of the model and of treating everybody, and the first less the second; that of treating nobody is 0."""

    threshold: float
    model: Score
    treat_all: Score
    gain: Score


def operating_point(
    val: tuple[ArrayLike, ArrayLike],
    test: tuple[ArrayLike, ArrayLike],
    patient: ArrayLike,
    specificity: float = 0.9,
    prevalences: Iterable[float] = (),
    *,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> OperatingPoint:
    """The threshold of that specificity on `val` (y, s), judged on `test` (y, s) of `patient`.

    The intervals are of the test's patients, at this threshold; they do not hold how far another validation set would
    have moved it. `prevalences` are shares of positives in (0, 1) for which PPV and NPV follow from sensitivity and
    specificity by Bayes' rule. Raises UserError as `threshold_at` does, and for prevalences outside (0, 1).
    """
    threshold = threshold_at(*val, specificity)
    y, _ = _binary(*val)
    reached = float((np.asarray(val[1])[~y] < threshold).mean())
    how = f"threshold {threshold:.4g}, the lowest with specificity {specificity:g} on {len(y)} validation scans"
    how += f" ({(~y).sum()} negative, {reached:.3f} of them below it)"
    if reached == 1:
        how += "; it lies above all of them, so how specific it is elsewhere is not known"
    metrics = [SENSITIVITY, SPECIFICITY, PPV, NPV, *(m for share in prevalences for m in at_prevalence(share))]
    y_test, s_test = _binary(*test)
    p = decisions(s_test, threshold)
    found = scores(metrics, y_test.astype(np.int64), p, patient, n=n, seed=seed, level=level)
    return OperatingPoint(threshold, found, how)


def threshold_at(y: ArrayLike, s: ArrayLike, specificity: float) -> float:
    """The lowest of the scores at which at least the share `specificity` of the negatives lies below.

    Raises UserError for a specificity outside (0, 1), scans of one class, and when no score is high enough because too
    many negatives share the highest.
    """
    y, s = _binary(y, s)
    if not 0 < specificity < 1:
        raise UserError(f"specificity must lie between 0 and 1, got {specificity:g}")
    if y.all() or not y.any():
        raise UserError(f"all {len(y)} validation scans have one class; a threshold needs both: validate on more scans")
    negative, candidates = np.sort(s[~y]), np.unique(s)
    enough = np.searchsorted(negative, candidates, side="left") / len(negative) >= specificity
    if not enough.any():
        tied = int((negative == candidates[-1]).sum())
        raise UserError(
            f"specificity {specificity:g} cannot be reached on validation: {tied} of {len(negative)} negative scans"
            " share the highest score; ask for less or use a score with fewer ties"
        )
    return float(candidates[enough.argmax()])


def decisions(s: ArrayLike, threshold: float) -> Floats:
    """(N, 2): 0, 1 where s (N,) >= threshold, else 1, 0. What the metrics of this file judge; to be paired as well."""
    return np.eye(2)[(np.asarray(s, np.float64) >= threshold).astype(np.int64)]


def at_prevalence(prevalence: float) -> tuple[Metric, Metric]:
    """PPV and NPV where that share of scans is positive: sensitivity and specificity with Bayes' rule."""
    if not 0 < prevalence < 1:
        raise UserError(f"a prevalence must lie between 0 and 1, got {prevalence:g}")

    def ppv(y: Truth, p: Floats, w: Floats) -> Floats:
        found, spared = _rates(y, p, w)
        return divide(found * prevalence, found * prevalence + (1 - spared) * (1 - prevalence))

    def npv(y: Truth, p: Floats, w: Floats) -> Floats:
        found, spared = _rates(y, p, w)
        return divide(spared * (1 - prevalence), spared * (1 - prevalence) + (1 - found) * prevalence)

    share = f"at {100 * prevalence:g} %"
    return Metric(f"PPV {share}", ppv, DECISIONS), Metric(f"NPV {share}", npv, DECISIONS)


def net_benefit(threshold: float) -> Metric:
    """Net benefit of acting on p[:, 1] >= threshold: TP / N - FP / N * threshold / (1 - threshold).

    Vickers & Elkin, 2006 (https://doi.org/10.1177/0272989X06295361). The threshold is the probability of disease at
    which treating does as much good as harm, so p must be calibrated probabilities (N, 2).
    """
    if not 0 < threshold < 1:
        raise UserError(f"a threshold of net benefit must lie between 0 and 1, got {threshold:g}")

    def many(y: Truth, p: Floats, w: Floats) -> Floats:
        treated = p[:, 1] >= threshold
        return divide(w @ (treated * np.where(y == 1, 1, -threshold / (1 - threshold))), w.sum(1))

    return Metric(f"net benefit at {threshold:g}", many)


def decision_curve(
    y: ArrayLike,
    p: ArrayLike,
    patient: ArrayLike,
    thresholds: Sequence[float],
    *,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> list[NetBenefit]:
    """`net_benefit` of p (N, 2) at each threshold, beside treating all; one set of resamples for everything."""
    metrics = [net_benefit(t) for t in thresholds]
    everybody = np.tile([0.0, 1.0], (len(np.asarray(y)), 1))
    model, treat_all = (scores(metrics, y, q, patient, n=n, seed=seed, level=level) for q in (p, everybody))
    gains = [difference(m, y, p, everybody, patient, n=n, seed=seed, level=level) for m in metrics]
    return [
        NetBenefit(t, model[m.name], treat_all[m.name], gain)
        for t, m, gain in zip(thresholds, metrics, gains, strict=True)
    ]


def _binary(y: ArrayLike, s: ArrayLike) -> tuple[NDArray[np.bool_], Floats]:
    y, s = np.asarray(y), np.asarray(s, np.float64)
    if s.ndim != 1 or y.shape != s.shape or not len(y):
        raise ValueError(f"needs classes (N,) and scores (N,), got {y.shape} and {s.shape}")
    if not np.isin(y, (0, 1)).all() or not np.isfinite(s).all():
        raise ValueError("classes must be 0 or 1, and scores finite")
    return y == 1, s


def _counts(y: Truth, p: Floats, w: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Weights (R,) of the true positives, false negatives, false positives and true negatives."""
    called = p[:, 1] > p[:, 0]
    tp, fn, fp, tn = ((w @ (a & b).astype(np.float64)) for a in (y == 1, y == 0) for b in (called, ~called))
    return tp, fn, fp, tn


def _rates(y: Truth, p: Floats, w: Floats) -> tuple[Floats, Floats]:
    tp, fn, fp, tn = _counts(y, p, w)
    return divide(tp, tp + fn), divide(tn, tn + fp)


def _predictive(y: Truth, p: Floats, w: Floats) -> tuple[Floats, Floats]:
    tp, fn, fp, tn = _counts(y, p, w)
    return divide(tp, tp + fp), divide(tn, tn + fn)


SENSITIVITY = Metric("sensitivity", lambda y, p, w: _rates(y, p, w)[0], DECISIONS)
"""Share of the positives that are called positive."""
SPECIFICITY = Metric("specificity", lambda y, p, w: _rates(y, p, w)[1], DECISIONS)
"""Share of the negatives that are called negative."""
PPV = Metric("PPV", lambda y, p, w: _predictive(y, p, w)[0], DECISIONS)
"""Share of positives among those called positive, at the test's prevalence."""
NPV = Metric("NPV", lambda y, p, w: _predictive(y, p, w)[1], DECISIONS)
"""Share of negatives among those called negative, at the test's prevalence."""
