"""Association of a metadata field with a label, with an interval that contains 0 if there is none."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medssl.evals.explain.shortcuts import Codes, codes_of
from medssl.evals.metrics.weighted import Floats
from medssl.evals.stats.jackknife import CHUNK
from medssl.evals.stats.resampling import expanded, positions, resamples
from medssl.evals.stats.score import Score
from medssl.evals.task_types.task_types import task_type


def association(
    kind: str,
    field: ArrayLike,
    task: str,
    y: ArrayLike,
    patient: ArrayLike,
    *,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Score:
    """Return the association of a field (N,) with the labels y of a task, from 0 (none) to 1 (one determines the other).

    Cramér's V for a categorical field, the correlation ratio for a number. Both are the length of a vector: the deviations
    (p_fc - p_f p_c) / sqrt(p_f p_c) from independence, or the classes' standardised means times sqrt(p_c). For several findings,
    the root mean square.

    A length is never negative, and resampling increases it, so percentiles would always show an association. The interval is
    therefore value +- q, cut at 0 and 1, with q the `level` quantile of the length of the resampled minus the observed vector:
    the length of a true vector within q of the observed one differs by at most q. In simulated cohorts of 60 to 400 patients
    without an association it contains 0 in 92 to 98 %.
    """
    y, at = np.asarray(y), positions(patient, len(np.asarray(field)))
    parts = task_type(task).parts(y)
    departures = [_departures(kind, np.asarray(field)[k], truth) for k, truth in parts]

    def vector(w: Floats) -> Floats:
        return np.hstack([d(w[:, k]) for d, (k, _) in zip(departures, parts, strict=True)]) / np.sqrt(len(parts))

    seen = vector(np.ones((1, len(y))))
    counts = resamples(int(at.max()) + 1, n, seed, rows=max(1, CHUNK // max(len(at), seen.shape[1])))
    away = np.concatenate([np.linalg.norm(vector(c[:, at]) - seen, axis=1) for c in counts])
    value, q = float(np.linalg.norm(seen)), float(np.quantile(away, expanded(level, int(at.max()) + 1)))
    how = f"{100 * level:g} % bootstrap interval about the value over {at.max() + 1} patients, {n} resamples"
    return Score(value, max(0.0, value - q), min(1.0, value + q), len(y), int(at.max()) + 1, how)


def _departures(kind: str, field: NDArray[Any], truth: NDArray[Any]) -> Callable[[Floats], Floats]:
    """Return a function from weights (R, N) to vectors (R, C) with the association as length, 0 where undefined."""
    place = codes_of(truth)
    classes = int(place.max(initial=0)) + 1
    if kind == "regression":
        x = field.astype(np.float64) - field.mean()

        def numbers(w: Floats) -> Floats:
            total = w.sum(1, keepdims=True)
            share, sums = (_sums(v, place, classes) / np.maximum(total, 1) for v in (w, w * x))
            mean = sums.sum(1, keepdims=True)
            spread = np.sqrt(np.maximum((w @ x**2)[:, None] / np.maximum(total, 1) - mean**2, 0))
            return _over(sums - mean * share, np.sqrt(share) * spread)

        return numbers
    code = codes_of(field)
    values = int(code.max(initial=0)) + 1
    longest = max(1, min(values, classes) - 1)

    def words(w: Floats) -> Floats:
        cells = _sums(w, code * classes + place, values * classes).reshape(-1, values, classes)
        p = cells / np.maximum(cells.sum((1, 2), keepdims=True), 1)
        expected = p.sum(2, keepdims=True) * p.sum(1, keepdims=True)
        return _over(p - expected, np.sqrt(expected * longest)).reshape(len(w), -1)

    return words


def _sums(w: Floats, cell: Codes, cells: int) -> Floats:
    """Return sums of w (R, N) by cell (N,): (R, cells)."""
    out = np.zeros((len(w), cells))
    if len(cell):
        order = np.argsort(cell, kind="stable")
        starts = np.flatnonzero(np.diff(cell[order], prepend=-1))
        out[:, cell[order][starts]] = np.add.reduceat(w[:, order], starts, axis=1)
    return out


def _over(a: Floats, b: Floats) -> Floats:
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)
