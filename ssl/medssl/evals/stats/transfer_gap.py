"""The transfer gap: how much lower one model scores at another hospital, on different patients."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from medssl.evals.metrics.metrics import Metric
from medssl.evals.stats.bootstrap import FEW, expanded, positions, rarest, replicates
from medssl.evals.stats.score import Score
from medssl.rng import seed_from

HOME, AWAY = 3, 4  # random streams: the two sets are resampled independently


class ScoredSet(NamedTuple):
    """Labels and predictions as the metric takes them, and each scan's patient."""

    y: ArrayLike
    p: ArrayLike
    patient: ArrayLike


def transfer_gap(
    metric: Metric, home: ScoredSet, away: ScoredSet, *, n: int = 2000, seed: int = 0, level: float = 0.95
) -> Score:
    """Return metric(home) - metric(away) of one model, with the percentile interval of two independent bootstraps.

    The two sets have different patients, so nothing is paired and the variances add. `n` and `patients` of the score are
    the totals of both sets.
    """
    values, drawn, people, few, scans = [], [], [], [], 0
    for tested, stream in ((home, HOME), (away, AWAY)):
        case = (metric, *metric.check(tested.y, tested.p))
        at = positions(tested.patient, len(case[2]))
        values.append(metric(*case[1:]))
        drawn.append(replicates([case], at, n, seed_from(seed, stream))[0])
        scans += len(at)
        people.append(int(at.max()) + 1)
        few.append(rarest(case, at))
    lost = drawn[0] - drawn[1]
    lost = lost[~np.isnan(lost)]
    how = f"{100 * level:g} % percentile bootstrap over the patients of both sets, independently, {n} resamples"
    if len(lost) < n:
        how += f", {n - len(lost)} of them left out because {metric.check.missing}"
    if min(few) < FEW:
        how += (
            f"; only {min(few)} patients {metric.check.rare}".rstrip() + ", so the true uncertainty is wider than shown"
        )
    value = float(values[0] - values[1])
    if not len(lost) or min(people) < 2:
        return Score(value, np.nan, np.nan, scans, sum(people), f"no interval: {how}")
    wide = expanded(level, min(few))
    low, high = np.quantile(lost, [(1 - wide) / 2, (1 + wide) / 2])
    return Score(value, float(low), float(high), scans, sum(people), how)
