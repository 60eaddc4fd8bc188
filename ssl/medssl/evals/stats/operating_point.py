"""Operating point, predictive values at a given prevalence, and net benefit.

The threshold is chosen on validation scans, applied to the test scans and fixed in every resample; chosen on the test scans it
would be too optimistic. y is (N,) 0 or 1 and s (N,) a score of class 1, such as p[:, 1]; a scan is positive if
s >= threshold.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medssl.errors import UserError
from medssl.evals.metrics.metrics import CLASS_PROBABILITIES, Floats, Metric, Parts, Truth
from medssl.evals.metrics.weighted import divide
from medssl.evals.stats.bootstrap import differences, scores
from medssl.evals.stats.score import Score

DECISIONS = replace(CLASS_PROBABILITIES, missing="a class or a decision was missing")


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and its performance on the test scans.

    scores: sensitivity, specificity, PPV and NPV at the test's own prevalence, then "PPV at 5 %" and so on.
    how: the choice of the threshold in words.
    """

    threshold: float
    scores: dict[str, Score]
    how: str


@dataclass(frozen=True)
class NetBenefit:
    """Net benefit of the model and of treating all, and their difference; treating none has net benefit 0."""

    threshold: float
    model: Score
    treat_all: Score
    gain: Score

    def as_dict(self) -> dict[str, Any]:
        """Return a dict for JSON."""
        return {k: v.as_dict() if isinstance(v, Score) else v for k, v in vars(self).items()}


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
    """Choose the threshold with `specificity` on `val` (y, s) and score it on `test` (y, s) of `patient`.

    Intervals are over the test patients at this threshold; they do not include the uncertainty of the threshold.
    `prevalences` are shares of positives in (0, 1), for which PPV and NPV follow from sensitivity and specificity by Bayes'
    rule. Raises UserError as `threshold_at` does, and for prevalences outside (0, 1).
    """
    threshold = threshold_at(*val, specificity)
    y, _ = _binary(*val)
    reached = float((np.asarray(val[1])[~y] < threshold).mean())
    how = f"threshold {threshold:.4g}, the lowest with specificity {specificity:g} on {len(y)} validation scans"
    how += f" ({(~y).sum()} negative, {reached:.3f} of them below it)"
    if reached == 1:
        how += "; it is above all of them, so its specificity on other scans is unknown"
    metrics = [SENSITIVITY, SPECIFICITY, PPV, NPV, *(m for share in prevalences for m in at_prevalence(share))]
    y_test, s_test = _binary(*test)
    p = decisions(s_test, threshold)
    found = scores(metrics, y_test.astype(np.int64), p, patient, n=n, seed=seed, level=level)
    return OperatingPoint(threshold, found, how)


def threshold_at(y: ArrayLike, s: ArrayLike, specificity: float) -> float:
    """Return the lowest of the scores with at least the share `specificity` of the negatives below it.

    Raises UserError for a specificity outside (0, 1), for scans of one class, and if too many negatives share the highest
    score.
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
    """Return 0, 1 where s (N,) >= threshold, else 1, 0: (N, 2), the predictions that the metrics of this file take."""
    return np.eye(2)[(np.asarray(s, np.float64) >= threshold).astype(np.int64)]


def at_prevalence(prevalence: float) -> tuple[Metric, Metric]:
    """Return PPV and NPV at a prevalence, from sensitivity and specificity by Bayes' rule."""
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
    """Return the net benefit of treating if p[:, 1] >= threshold: TP / N - FP / N * threshold / (1 - threshold).

    Vickers & Elkin, 2006 (https://doi.org/10.1177/0272989X06295361). The threshold is the probability of disease at which
    benefit and harm of treatment are equal, so p must be calibrated probabilities (N, 2).
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
    """Return the `net_benefit` of p (N, 2) and of treating all at each threshold, on the same resamples."""
    metrics = [net_benefit(t) for t in thresholds]
    everybody = np.tile([0.0, 1.0], (len(np.asarray(y)), 1))
    model, treat_all = (scores(metrics, y, q, patient, n=n, seed=seed, level=level) for q in (p, everybody))
    gains = differences(metrics, y, p, everybody, patient, n=n, seed=seed, level=level)
    return [
        NetBenefit(t, model[m.name], treat_all[m.name], gains[m.name]) for t, m in zip(thresholds, metrics, strict=True)
    ]


def _binary(y: ArrayLike, s: ArrayLike) -> tuple[NDArray[np.bool_], Floats]:
    y, s = np.asarray(y), np.asarray(s, np.float64)
    if s.ndim != 1 or y.shape != s.shape or not len(y):
        raise ValueError(f"needs classes (N,) and scores (N,), got {y.shape} and {s.shape}")
    if not np.isin(y, (0, 1)).all() or not np.isfinite(s).all():
        raise ValueError("classes must be 0 or 1, and scores finite")
    return y == 1, s


def _decided(k: int) -> Callable[[Truth, Floats], Parts]:
    return lambda y, p: [[((p[:, 1] > p[:, 0]) == k, p[:, 1])]]


def _counts(y: Truth, p: Floats, w: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Return the weights (R,) of true positives, false negatives, false positives and true negatives."""
    called = p[:, 1] > p[:, 0]
    tp, fn, fp, tn = ((w @ (a & b).astype(np.float64)) for a in (y == 1, y == 0) for b in (called, ~called))
    return tp, fn, fp, tn


def _rates(y: Truth, p: Floats, w: Floats) -> tuple[Floats, Floats]:
    tp, fn, fp, tn = _counts(y, p, w)
    return divide(tp, tp + fn), divide(tn, tn + fp)


def _predictive(y: Truth, p: Floats, w: Floats) -> tuple[Floats, Floats]:
    tp, fn, fp, tn = _counts(y, p, w)
    return divide(tp, tp + fp), divide(tn, tn + fn)


SENSITIVITY = Metric(
    "sensitivity", lambda y, p, w: _rates(y, p, w)[0], DECISIONS, parts=lambda y, p: [[(y == 1, p[:, 1])]]
)
"""Share of positives classified as positive."""
SPECIFICITY = Metric(
    "specificity", lambda y, p, w: _rates(y, p, w)[1], DECISIONS, parts=lambda y, p: [[(y == 0, p[:, 1])]]
)
"""Share of negatives classified as negative."""
PPV = Metric("PPV", lambda y, p, w: _predictive(y, p, w)[0], DECISIONS, parts=_decided(1))
"""Share of positives among scans classified as positive, at the test set's prevalence."""
NPV = Metric("NPV", lambda y, p, w: _predictive(y, p, w)[1], DECISIONS, parts=_decided(0))
"""Share of negatives among scans classified as negative, at the test set's prevalence."""
