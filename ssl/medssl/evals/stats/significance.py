"""Significance tests for families of comparisons and for several tasks.

- One test set: `bootstrap.paired`; several comparisons on it: `holm` over their p-values.
- Several tasks with one score per model and task: `wilcoxon` for two models, `ranking` for more.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from medssl.errors import UserError

Floats = NDArray[np.float64]
DIGITS = 12  # decimal places compared: 0.8 - 0.7 and 0.9 - 0.8 are equal


def holm(p: ArrayLike) -> Floats:
    """Adjust the p-values (m,) of one family of tests, so that the chance of any false rejection is at most alpha.

    Holm, 1979 (https://www.jstor.org/stable/4615733): the adjusted p of rank i is the maximum of (m - j + 1) p_j over
    j <= i, at most 1. nan values stay nan and are not counted. Raises ValueError outside [0, 1].
    """
    p = np.asarray(p, np.float64)
    tested = ~np.isnan(p)
    if p.ndim != 1 or ((p[tested] < 0) | (p[tested] > 1)).any():
        raise ValueError(f"needs p-values (m,) in [0, 1], got {p}")
    up = np.flatnonzero(tested)[np.argsort(p[tested], kind="stable")]
    adjusted = np.full(len(p), np.nan)
    adjusted[up] = np.minimum(np.maximum.accumulate(p[up] * np.arange(len(up), 0, -1)), 1)
    return adjusted


def wilcoxon(a: ArrayLike, b: ArrayLike, *, alpha: float = 0.05) -> float:
    """Return the two-sided p-value of the signed-rank test on two models' scores (T,) over T tasks (Demšar, 2006).

    Exact up to 50 tasks, or up to 13 if differences tie or are 0; otherwise the normal approximation (scipy). Zeros are
    split between the signs. Raises UserError for too few tasks to reach p < `alpha`, for models without any difference, and
    for scores that are not finite.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"needs two scores per task, got {a.shape} and {b.shape}")
    _enough(len(a), 1, alpha)
    d = (a - b).round(DIGITS)
    if not np.isfinite(d).all():
        raise UserError(
            f"{(~np.isfinite(d)).sum()} of the {len(d)} tasks have an undefined score; leave these tasks out"
        )
    if not d.any():
        raise UserError(f"the two models score the same on all {len(d)} tasks, so there is nothing to rank")
    return float(stats.wilcoxon(d, zero_method="zsplit").pvalue)


def _enough(tasks: int, pairs: int, alpha: float) -> None:
    """Raise UserError if no p < alpha is possible: the smallest p is 2 / 2^tasks, and Holm multiplies it by `pairs`."""
    least = int(np.floor(np.log2(2 * pairs / alpha))) + 1
    if tasks < least:
        raise UserError(
            f"{tasks} tasks are too few for p < {alpha:g} after {pairs} comparisons, as even a model that is better on all "
            f"of them has p = {min(1, pairs * 2.0 ** (1 - tasks)):.3g}; score the models on at least {least} tasks"
        )


@dataclass(frozen=True)
class Ranking:
    """Several models over several tasks, best first.

    ranks: mean rank over the tasks, 1 is best. friedman: p-value of "all models are equal". critical: Nemenyi's critical
    difference of two mean ranks. p: {(better, worse): Wilcoxon's p-value, adjusted by Holm}. cliques: maximal groups of
    models without a significant difference between any two, each in order of rank; groups of one are omitted.
    """

    names: tuple[str, ...]
    ranks: tuple[float, ...]
    tasks: int
    alpha: float
    friedman: float
    critical: float
    p: dict[tuple[str, str], float]
    cliques: tuple[tuple[str, ...], ...]


def ranking(scores: Mapping[str, ArrayLike], *, sign: int = 1, alpha: float = 0.05) -> Ranking:
    """Rank models by their scores {name: (T,)} over the same T tasks (Demšar, 2006).

    https://www.jmlr.org/papers/v7/demsar06a.html: Friedman's test in the form of Iman & Davenport (section 3.2.2), and
    Nemenyi's critical difference. Cliques come not from the latter but from Wilcoxon's signed-rank tests of all pairs after
    Holm: with mean ranks, whether A beats B depends on the other models, and a few poor ones can reverse the result
    (Benavoli, Corani & Mangili, 2016, https://jmlr.org/papers/v17/benavoli16a.html). sign: -1 where lower scores are
    better. Raises UserError for fewer than three models, too few tasks for any pair to be significant, scores that are not
    finite, and models with the same scores everywhere.
    """
    table = np.array([np.asarray(s, np.float64) for s in scores.values()]).round(DIGITS)  # (k, T)
    if sign not in (1, -1) or table.ndim != 2:
        raise ValueError(f"needs one score per model and task and a sign of 1 or -1, got {table.shape} and {sign}")
    (k, T), names = table.shape, list(scores)
    if k < 3:
        raise UserError(f"a ranking needs at least 3 models and got {k}; compare two models with Wilcoxon's test")
    _enough(T, k * (k - 1) // 2, alpha)
    if not np.isfinite(table).all():
        raise UserError(
            f"{(~np.isfinite(table)).any(0).sum()} of the {T} tasks have an undefined score; leave these tasks out"
        )
    if not np.ptp(table, axis=0).any():
        raise UserError(f"all {k} models score the same on all {T} tasks, so there is nothing to rank")
    rank = stats.rankdata(-sign * table, axis=0).mean(1)
    order = [int(i) for i in np.argsort(rank, kind="stable")]
    pairs = list(combinations(order, 2))
    raw = [1.0 if (table[i] == table[j]).all() else wilcoxon(table[i], table[j], alpha=alpha) for i, j in pairs]
    adjusted = dict(zip(pairs, holm(raw).tolist(), strict=True))
    alike = {i: {j for pair in pairs if i in pair and adjusted[pair] >= alpha for j in pair if j != i} for i in order}
    groups = [sorted(c, key=order.index) for c in _cliques(alike, set(), set(order), set()) if len(c) > 1]
    return Ranking(
        names=tuple(names[i] for i in order),
        ranks=tuple(float(rank[i]) for i in order),
        tasks=T,
        alpha=alpha,
        friedman=_iman_davenport(table),
        critical=critical_difference(k, T, alpha),
        p={(names[i], names[j]): value for (i, j), value in adjusted.items()},
        cliques=tuple(tuple(names[i] for i in g) for g in sorted(groups, key=lambda g: [order.index(i) for i in g])),
    )


def critical_difference(models: int, tasks: int, alpha: float = 0.05) -> float:
    """Return Nemenyi's critical difference of mean ranks, q sqrt(k(k + 1) / 6T) (Demšar, 2006, section 3.2.2)."""
    q = float(stats.studentized_range.ppf(1 - alpha, models, np.inf)) / np.sqrt(2)
    return float(q * np.sqrt(models * (models + 1) / (6 * tasks)))


def _iman_davenport(table: Floats) -> float:
    """p-value from scores (k, T): F = (T - 1) X / (T (k - 1) - X) with Friedman's X, which scipy corrects for ties."""
    k, T = table.shape
    x = float(stats.friedmanchisquare(*table).statistic)
    room = T * (k - 1) - x
    # the exact p when all tasks rank the models the same, where F is infinite
    least = math.factorial(k) ** (1.0 - T)
    return max(least, float(stats.f.sf((T - 1) * x / room, k - 1, (k - 1) * (T - 1)))) if room > 1e-9 * T else least


def _cliques(alike: dict[int, set[int]], clique: set[int], candidates: set[int], done: set[int]) -> Iterator[set[int]]:
    """Yield all maximal sets of models that are pairwise not significantly different (Bron & Kerbosch, 1973)."""
    if not candidates and not done:
        yield clique
    for i in sorted(candidates):
        yield from _cliques(alike, clique | {i}, candidates & alike[i], done & alike[i])
        candidates, done = candidates - {i}, done | {i}
