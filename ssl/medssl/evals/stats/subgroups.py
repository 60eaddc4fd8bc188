"""One metric in every subgroup of patients or scans, and whether the subgroups differ by more than chance.

A subgroup that cannot be scored is listed with the reason.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medssl.evals.metrics.metrics import Metric, Truth
from medssl.evals.stats.bootstrap import score
from medssl.evals.stats.resampling import FEW, positions, replicates, share_up_to_0
from medssl.evals.stats.score import Difference, Score

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Subgroup:
    """One subgroup with n scans; `score` is None where it cannot be scored, and `why` is the reason."""

    name: str
    n: int
    patients: int
    score: Score | None
    why: str = ""


@dataclass(frozen=True)
class Subgroups:
    """All subgroups, and the gap between the `largest` and the `smallest` score; `gap` is None if undefined, for reason `why`."""

    groups: tuple[Subgroup, ...]
    largest: str
    smallest: str
    gap: Difference | None
    why: str = ""


def by_subgroup(
    metric: Metric,
    y: ArrayLike,
    p: ArrayLike,
    patient: ArrayLike,
    group: ArrayLike,
    *,
    least: int = FEW,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Subgroups:
    """Score `metric` of y and p in each group; group is (N,) words, None or "" where unknown.

    A subgroup is scored if it has `least` patients, and as many in each class where the metric needs classes. The unknown
    are scored but not part of the gap.

    The largest score minus the smallest is above 0 even if all subgroups are equal, and so are its resamples, so their
    percentiles would always show a gap. Its interval is therefore gap +- q, cut at 0, with q the `level` quantile of the
    range (largest minus smallest) of the groups' deviations, resampled value - value, over joint resamples of all
    patients: if no two deviations differ by more than q, the true gap is within q of the observed one. With two groups
    this is the symmetric bootstrap interval; with more it is conservative (Hall & Wilson, 1991,
    https://doi.org/10.2307/2532163, on resampling about the estimate). In simulations, 2 and 5 equal subgroups of 30
    patients show a gap at 95 % in 5.5 and 6 % of cohorts. The gap's p is for "all subgroups are equal" and is below
    1 - level if and only if the interval excludes 0; its se is that of the difference of the two named subgroups.
    """
    y, p = metric.check(y, p)
    patient, names = np.asarray(patient), _names(group, len(p))
    at = positions(patient, len(p))
    masks = {name: names == name for name in sorted(set(names), key=_order)}
    groups = []
    for name, rows in masks.items():
        why = _unfit(metric, y, rows, at, least)
        found = None if why else score(metric, y[rows], p[rows], patient[rows], n=n, seed=seed, level=level)
        if found is not None and np.isnan(found.value):
            found, why = None, f"{metric.name} is undefined here: {metric.check.missing}"
        groups.append(Subgroup(str(name), int(rows.sum()), len(np.unique(at[rows])), found, why))
    compared = {g.name: g.score.value for g in groups if g.score is not None and g.name != UNKNOWN}
    if len(compared) < 2:
        return Subgroups(tuple(groups), "", "", None, f"{len(compared)} subgroups to compare; a gap needs two")
    largest, smallest = max(compared, key=compared.__getitem__), min(compared, key=compared.__getitem__)

    def inside(rows: NDArray[np.bool_]) -> Metric:
        """The metric of those rows, on resamples of all rows."""
        return Metric(metric.name, lambda y, p, w: metric.many(y[rows], p[rows], w[:, rows]), metric.check)

    each = replicates([(inside(masks[name]), y, p) for name in compared], at, n, seed)
    defined = each[:, ~np.isnan(each).any(0)]
    how = f"{100 * level:g} % bootstrap interval about the range of {len(compared)} subgroups"
    how += f" over {at.max() + 1} patients, {n} resamples"
    if defined.shape[1] < n:
        how += f", {n - defined.shape[1]} of them left out because {metric.check.missing}"
    value = compared[largest] - compared[smallest]
    if defined.shape[1] < 2:
        nothing = Score(value, np.nan, np.nan, len(p), int(at.max()) + 1, f"no interval: {how}")
        return Subgroups(tuple(groups), largest, smallest, Difference(nothing, np.nan, np.nan))
    by_chance = np.ptp(defined - np.array(list(compared.values()))[:, None], axis=0)
    q = float(np.quantile(by_chance, level))
    gap = Score(value, max(0.0, value - q), value + q, len(p), int(at.max()) + 1, how)
    chance = max(share_up_to_0(value - by_chance), 1 / (n + 1))
    apart = defined[list(compared).index(largest)] - defined[list(compared).index(smallest)]
    return Subgroups(tuple(groups), largest, smallest, Difference(gap, chance, float(apart.std(ddof=1))))


def bands(value: ArrayLike, edges: Sequence[float], unit: str = "") -> NDArray[np.object_]:
    """Return words (N,) for numbers (N,) such as ages: "< 40", "40 to < 60", ">= 60" for edges 40 and 60; None for nan.

    Raises ValueError unless the edges increase.
    """
    if not len(edges) or (np.diff(edges) <= 0).any():
        raise ValueError(f"edges of bands must increase, got {list(edges)}")
    unit = f" {unit}" if unit else ""
    inner = [f"{a:g} to < {b:g}{unit}" for a, b in pairwise(edges)]
    words = np.array([f"< {edges[0]:g}{unit}", *inner, f">= {edges[-1]:g}{unit}", None], dtype=object)
    value = np.asarray(value, np.float64)
    return words[np.where(np.isnan(value), len(words) - 1, np.searchsorted(edges, value, side="right"))]


def _names(group: ArrayLike, scans: int) -> NDArray[np.str_]:
    group = np.asarray(group, dtype=object)
    if group.shape != (scans,):
        raise ValueError(f"needs one group per scan: got {group.shape} for {scans} scans")
    return np.array([UNKNOWN if g is None or g == "" or g != g else str(g) for g in group])


def _order(name: str) -> tuple[bool, bool, list[str | int]]:
    """Sort key: the unknown last, "< 40" first, numbers within words by size."""
    parts: list[str | int] = [int(t) if t.isdecimal() else t for t in re.split(r"([0-9]+)", name)]
    return name == UNKNOWN, not name.startswith("<"), parts


def _unfit(metric: Metric, y: Truth, rows: NDArray[np.bool_], at: NDArray[np.int64], least: int) -> str:
    """Return why a subgroup is not scored, or ""."""
    if (patients := len(np.unique(at[rows]))) < least:
        return f"{patients} patients, fewer than {least}"
    if (left_out := metric.check.left_out(y[rows])) != metric.check.left_out(y):
        return f"not comparable{left_out}"
    masks = metric.check.groups(y[rows])
    rarest = min((len(np.unique(at[rows][m])) for m in masks), default=patients)
    return f"{rarest} patients {metric.check.rare}, fewer than {least}" if rarest < least else ""
