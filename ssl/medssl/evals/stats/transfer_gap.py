"""The transfer gap: how much lower one model scores at another hospital, on different patients."""

import math
from typing import NamedTuple

from numpy.typing import ArrayLike

from medssl.evals.metrics.metrics import Metric
from medssl.evals.stats.bootstrap import score
from medssl.evals.stats.score import Score
from medssl.rng import seed_from

HOME, AWAY = 3, 4  # random streams: where the metric is bootstrapped, the two sets are resampled independently


class ScoredSet(NamedTuple):
    """Labels and predictions as the metric takes them, and each scan's patient."""

    y: ArrayLike
    p: ArrayLike
    patient: ArrayLike


def transfer_gap(
    metric: Metric, home: ScoredSet, away: ScoredSet, *, n: int = 2000, seed: int = 0, level: float = 0.95
) -> Score:
    """Return metric(home) - metric(away) of one model, with an interval from the intervals of the two scores.

    The two sets have different patients, so nothing is paired: the distances from the values to the ends of their intervals
    add as squares (Zou & Donner, 2008, https://doi.org/10.1002/sim.3095). `n` and `patients` of the score are the totals of
    both sets.
    """
    a, b = (
        score(metric, *tested, n=n, seed=seed_from(seed, stream), level=level)
        for tested, stream in ((home, HOME), (away, AWAY))
    )
    value, scans, patients = a.value - b.value, a.n + b.n, a.patients + b.patients
    how = f"{100 * level:g} % interval from those of both sets, which share no patient: {a.how}; {b.how}"
    below, above = math.hypot(a.value - a.low, b.high - b.value), math.hypot(a.high - a.value, b.value - b.low)
    if math.isnan(below + above):
        return Score(
            value, math.nan, math.nan, scans, patients, f"no interval, because a set has none: {a.how}; {b.how}"
        )
    return Score(value, value - below, value + above, scans, patients, how)
