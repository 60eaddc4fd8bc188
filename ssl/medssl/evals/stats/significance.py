"""Tests for what the patient bootstrap does not cover: families of comparisons, and several tasks.

- One test set: `bootstrap.paired`. Several comparisons on it: `holm` over their p-values.
- Several tasks, one score per model and task: `wilcoxon` for two models, `ranking` for more.
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
DIGITS = 12  # scores are compared to so many: 0.8 - 0.7 and 0.9 - 0.8 are one difference


def holm(p: ArrayLike) -> Floats:
    """p-values (m,) of one family of tests, adjusted: reject those below alpha, and the chance of any false one is alpha.

    Holm, 1979 (https://www.jstor.org/stable/4615733); adjusted p of rank i is the largest (m - j + 1) p_j of j <= i, at
    most 1. A nan is no test: it stays nan and does not count. Raises ValueError outside [0, 1].
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
    """Two-sided p-value of the signed-rank test on two models' scores (T,) over T tasks, as Demšar, 2006, recommends.

    Exact up to 50 tasks, and 13 where differences tie or are 0; else the normal approximation (scipy). Zeros are split
    between the signs. Raises UserError with too few tasks for any p below `alpha`, without a difference, and for
    scores that are not finite.
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
    """The smallest p-value, of a model that wins every task, is 2 / 2^tasks; Holm multiplies it by `pairs`."""
    least = int(np.floor(np.log2(2 * pairs / alpha))) + 1
    if tasks < least:
        raise UserError(
            f"{tasks} tasks are too few for p < {alpha:g} after {pairs} comparisons, as even a model that is better on all "
            f"of them has p = {min(1, pairs * 2.0 ** (1 - tasks)):.3g}; score the models on at least {least} tasks"
        )


@dataclass(frozen=True)
class Ranking:
    """Several models over several tasks, best first.

    ranks: mean rank over the tasks, 1 is best. friedman: p-value of "all are alike". critical: Nemenyi's critical
    difference of two mean ranks. p: {(better, worse): Holm's adjusted p-value of Wilcoxon's test}. cliques: the largest
    groups of models no two of which can be told apart, each in order of rank; groups of one are left out.
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
    """Models' scores {name: (T,)} over the same T tasks -> their order and who can be told apart. Demšar, 2006.

    https://www.jmlr.org/papers/v7/demsar06a.html: Friedman's test in the form of Iman & Davenport (section 3.2.2), and
    Nemenyi's critical difference. Cliques are not from the latter but from Wilcoxon's signed-rank tests of all pairs after
    Holm: with mean ranks, whether A beats B depends on which other models are in the pool, and a few poor ones can turn
    the answer (Benavoli, Corani & Mangili, 2016, https://jmlr.org/papers/v17/benavoli16a.html). sign: -1 where lower
    scores are better. Raises UserError for fewer than three models, too few tasks for any pair to be told apart, scores
    that are not finite, and models that score the same everywhere.
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
    """Nemenyi's: mean ranks that differ by less cannot be told apart. Demšar, 2006, section 3.2.2: q sqrt(k(k + 1) / 6T)."""
    q = float(stats.studentized_range.ppf(1 - alpha, models, np.inf)) / np.sqrt(2)
    return float(q * np.sqrt(models * (models + 1) / (6 * tasks)))


def _iman_davenport(table: Floats) -> float:
    """p-value from scores (k, T): F = (T - 1) X / (T (k - 1) - X) of Friedman's X, which scipy corrects for ties."""
    k, T = table.shape
    x = float(stats.friedmanchisquare(*table).statistic)
    room = T * (k - 1) - x
    least = math.factorial(k) ** (1.0 - T)  # all tasks order the models alike: F is infinite, and this is exact
    return max(least, float(stats.f.sf((T - 1) * x / room, k - 1, (k - 1) * (T - 1)))) if room > 1e-9 * T else least


def _cliques(alike: dict[int, set[int]], clique: set[int], candidates: set[int], done: set[int]) -> Iterator[set[int]]:
    """All maximal sets of models that are pairwise alike: Bron & Kerbosch, 1973."""
    if not candidates and not done:
        yield clique
    for i in sorted(candidates):
        yield from _cliques(alike, clique | {i}, candidates & alike[i], done & alike[i])
        candidates, done = candidates - {i}, done | {i}
