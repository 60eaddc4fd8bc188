"""Calibration of probabilities: reliability curve, calibration in the large, calibration slope, temperature scaling.

The expected calibration error is `metrics.ECE`. Probabilities are (N, K) and classes (N,) in [0, K), as in `metrics`.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import expit, log_softmax, softmax

from medssl.errors import UserError
from medssl.evals.metrics.metrics import CLASS_PROBABILITIES, ECE, MEAN, Floats, Metric, Truth
from medssl.evals.metrics.weighted import BINS, mean
from medssl.evals.stats.bootstrap import differences, score, scores
from medssl.evals.stats.score import Score

EPS = np.finfo(np.float64).tiny  # lower bound of probabilities in logarithms
COLDEST, HOTTEST = 0.01, 100.0  # range of temperatures
TOLERANCE = 1e-9  # for the derivative of the mean cross-entropy by 1 / temperature, in nats
STEPS, HALVINGS = 50, 30  # limits of Newton's method


@dataclass(frozen=True)
class Bin:
    """The scans with a probability in (low, high]: the mean probability, and the observed share of events."""

    low: float
    high: float
    predicted: Score
    observed: Score


@dataclass(frozen=True)
class Temperature:
    """The divisor of the logits, and the mean cross-entropy (nats) on the scans it was fitted on, before and after."""

    value: float
    before: float
    after: float
    how: str


@dataclass(frozen=True)
class Calibration:
    """Calibration of the test set before and after temperature scaling.

    p: (N, K) scaled probabilities. before, after: scores by name. change: after minus before, paired.
    """

    temperature: Temperature
    p: Floats
    before: dict[str, Score]
    after: dict[str, Score]
    change: dict[str, Score]


def reliability(
    event: ArrayLike,
    probability: ArrayLike,
    patient: ArrayLike,
    bins: int = BINS,
    *,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Bin]:
    """Return the reliability curve of probabilities (N,) of events (N,) 0 or 1, in bins of equal width without empty ones.

    Each bin's scores are over its own patients. For one class pass y == k and p[:, k]; for the curve with the ECE as mean
    gap, p.argmax(1) == y and p.max(1). Raises ValueError for other values.
    """
    event, probability, patient = (
        np.asarray(event, np.float64),
        np.asarray(probability, np.float64),
        np.asarray(patient),
    )
    if event.ndim != 1 or not event.shape == probability.shape == patient.shape:
        raise ValueError(f"needs events, probabilities and patients (N,), got {event.shape} and {probability.shape}")
    if not np.isin(event, (0, 1)).all() or not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("events must be 0 or 1 and probabilities lie in [0, 1]")
    # as in the ECE, an edge is in the bin below it
    at = np.searchsorted(np.arange(1, bins) / bins, probability, side="left")
    found = []
    for b in np.unique(at):
        each = (
            score(MEAN, event[at == b], x[at == b], patient[at == b], n=n, seed=seed, level=level)
            for x in (probability, event)
        )
        found.append(Bin(float(b / bins), float((b + 1) / bins), *each))
    return found


def fit_temperature(y: ArrayLike, p: ArrayLike) -> Temperature:
    """Return the temperature in [0.01, 100] that minimises the mean cross-entropy of softmax(log p / temperature).

    Guo et al., 2017 (https://arxiv.org/abs/1706.04599), section 4.2; to be fitted on validation scans. The loss is convex
    in 1 / temperature, so its derivative has one root, found to TOLERANCE. `how` records an optimum at an end of the range:
    it is 0 if all scans are classified correctly and infinity if the probabilities mislead. Raises UserError without scans.
    """
    if not np.size(y):
        raise UserError("no validation scans to fit a temperature on; give the store a validation split")
    y, p = CLASS_PROBABILITIES(y, p)
    z = np.log(np.maximum(p, EPS))
    right = z[np.arange(len(y)), y]

    def slope(cold: float) -> float:
        return float(((softmax(cold * z, axis=1) * z).sum(1) - right).mean())

    def loss(cold: float) -> float:
        return float(-log_softmax(cold * z, axis=1)[np.arange(len(y)), y].mean())

    how = f"temperature by cross-entropy on {len(y)} scans"
    low, high = 1 / HOTTEST, 1 / COLDEST
    if slope(low) >= 0 or slope(high) <= 0:
        cold = low if slope(low) >= 0 else high
        how += ", at the end of the range tried"
    else:
        cold = brentq(slope, low, high, xtol=1e-15, rtol=4 * np.finfo(np.float64).eps)
        if abs(slope(cold)) > TOLERANCE:
            how += ", not converged"
    return Temperature(1 / cold, loss(1.0), loss(cold), how)


def scaled(p: ArrayLike, temperature: float) -> Floats:
    """Return softmax(log p / temperature), (N, K); the most probable class does not change."""
    return softmax(np.log(np.maximum(np.asarray(p, np.float64), EPS)) / temperature, axis=1)


def calibrate(
    val: tuple[ArrayLike, ArrayLike],
    test: tuple[ArrayLike, ArrayLike],
    patient: ArrayLike,
    *,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Calibration:
    """Fit a temperature on `val` (y, p) and score `test` (y, p) of `patient` with and without it.

    Scores are ECE and NLL, and for two classes calibration in the large and slope. Raises UserError without validation scans.
    """
    temperature = fit_temperature(*val)
    y, p = test
    after = scaled(p, temperature.value)
    metrics = [ECE, NLL, *([IN_THE_LARGE, SLOPE] if after.shape[1] == 2 else [])]
    raw, cooled = (scores(metrics, y, q, patient, n=n, seed=seed, level=level) for q in (p, after))
    change = differences((ECE, NLL), y, after, p, patient, n=n, seed=seed, level=level)
    return Calibration(temperature, after, raw, cooled, change)


def _two_classes(y: ArrayLike, p: ArrayLike) -> tuple[Truth, Floats]:
    y, p = CLASS_PROBABILITIES(y, p)
    if p.shape[1] != 2:
        raise ValueError(f"needs probabilities of two classes (N, 2), got {p.shape}")
    return y, p


def _nll(y: Truth, p: Floats, w: Floats) -> Floats:
    return mean(-np.log(np.maximum(p[np.arange(len(y)), y], EPS)), w)


def _logit(p: Floats) -> Floats:
    q = np.log(np.maximum(p, EPS))
    return q[:, 1] - q[:, 0]


def _in_the_large(y: Truth, p: Floats, w: Floats) -> Floats:
    positive = w @ (y == 1).astype(np.float64)
    defined = (positive > 0) & (positive < w.sum(1))
    found = np.full(len(w), np.nan)
    found[defined] = _logistic(np.ones((len(y), 1)), _logit(p), y, w[defined])[:, 0]
    return found


def _slope(y: Truth, p: Floats, w: Floats) -> Floats:
    x = _logit(p)
    of = [(w > 0) & (y == k) for k in (0, 1)]
    low, high = ([f(np.where(k, x, -end), axis=1) for k in of] for f, end in ((np.min, -np.inf), (np.max, np.inf)))
    # if the classes do not overlap, the slope is infinite
    defined = (low[0] < high[1]) & (low[1] < high[0])
    unit = x.std() or 1.0
    design = np.stack([np.ones(len(x)), (x - x.mean()) / unit], axis=1)
    found = np.full(len(w), np.nan)
    found[defined] = _logistic(design, np.zeros(len(x)), y, w[defined])[:, 1] / unit
    return found


def _logistic(design: Floats, offset: Floats, y: Truth, w: Floats) -> Floats:
    """Return coefficients (R, q) of weighted logistic regressions on design (N, q), by Newton's method; nan if it fails."""
    R, q = len(w), design.shape[1]
    products = (design[:, :, None] * design[:, None]).reshape(len(design), -1)
    total = w.sum(1, keepdims=True)

    def loss(at: Floats) -> Floats:
        z = at @ design.T + offset
        return np.einsum("rn,rn->r", w, np.logaddexp(0, z) - y * z)[:, None]

    found = np.zeros((R, q))
    now = loss(found)
    for _ in range(STEPS):
        p = expit(found @ design.T + offset)
        slope = (w * (y - p)) @ design
        settled = np.abs(slope).max(1, keepdims=True) <= TOLERANCE * total
        if settled.all():
            break
        curvature = ((w * p * (1 - p)) @ products).reshape(R, q, q) + 1e-12 * total[:, None] * np.eye(q)
        step = np.where(settled, 0, np.linalg.solve(curvature, slope[..., None])[..., 0])
        for _ in range(HALVINGS):
            there = loss(found + step)
            if not (worse := there > now * (1 + 1e-12)).any():
                break
            step = np.where(worse, step / 2, step)
        found, now = found + step, there
    return np.where(settled, found, np.nan)


NLL = Metric("NLL", _nll, sign=-1)
"""Mean of -log p[y], in nats."""
BINARY = replace(CLASS_PROBABILITIES, check=_two_classes, missing="a class was missing or the classes did not overlap")
IN_THE_LARGE = Metric("calibration in the large", _in_the_large, BINARY)
"""Intercept of a logistic regression of the class on the logit of p[:, 1] with slope 1: 0 if probabilities are correct on
average, negative if they are too high (Van Calster et al., 2019, https://doi.org/10.1186/s12916-019-1466-7)."""
SLOPE = Metric("calibration slope", _slope, BINARY, robust=False)
"""Slope of the same regression if it is free (Cox, 1958, https://doi.org/10.1093/biomet/45.3-4.562): 1 is ideal, lower values
mean that probabilities are too extreme. Neither is better if higher. Undefined where the classes nearly separate, so that
it would rest on few scans."""
