"""Scores controlled for a metadata field such as the scanner, the view or the age.

A field of kind `classification` has codes (N,) in [0, K), one of kind `regression` numbers (N,). There are three methods. The
first changes the features, the others only the comparison, so that resampling patients stays a reweighting:

    regressed out  the field's linear effect, fitted on training scans, is subtracted from the features (`ConfoundRegression`)
    within         the AUROC over pairs of a positive and a negative scan with equal values of the field (`auroc_within`)
    balanced       the AUROC with scans weighted so that field and label are independent (`auroc_balanced`)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.preprocessing import SplineTransformer

from medssl.evals.metrics import weighted
from medssl.evals.metrics.metrics import SPEARMAN, Metric
from medssl.evals.metrics.weighted import Floats
from medssl.evals.task_types.task_types import task_type

KNOTS = 5  # spline knots for a number, at quantiles of the training scans; Harrell, 2015, recommends three to five
BANDS = 5  # bands between quantiles of the training scans; numbers within one count as equal
Codes = NDArray[np.int64]
Design = Callable[[ArrayLike], Floats]
Columns = Callable[[NDArray[np.bool_], Floats, Floats, Codes], Floats]  # (positive, score, weights, field) -> (R,)


def design(kind: str, train: ArrayLike) -> Design:
    """Return a function from a field (N,) to columns of a linear model (N, J) float64, without the constant.

    Indicators of all values in training except the lowest, or cubic B-splines of a number, linear outside the range in
    training. Raises ValueError for a field that does not vary, and for values that do not occur in training.
    """
    train = np.asarray(train)
    seen = np.unique(train)
    if len(seen) < 2:
        raise ValueError("a field that does not vary has no columns")
    if kind == "regression":
        knots = np.unique(np.quantile(train, np.linspace(0, 1, KNOTS)))[:, None]
        spline = SplineTransformer(degree=3, knots=knots, extrapolation="linear", include_bias=False)
        spline.fit(train[:, None].astype(np.float64))
        width = spline.n_features_out_
        return lambda field: (
            spline.transform(np.asarray(field, np.float64)[:, None]) if len(np.asarray(field)) else np.zeros((0, width))
        )

    def columns(field: ArrayLike) -> Floats:
        field = np.asarray(field)
        if not np.isin(field, seen).all():
            raise ValueError("a value of the field does not occur in training")
        return (field[:, None] == seen[1:]).astype(np.float64)

    return columns


def edges(train: ArrayLike) -> list[float]:
    """Return the edges of the BANDS of a number: quantiles of the training scans, fewer if many are equal."""
    return np.unique(np.quantile(np.asarray(train, np.float64), np.arange(1, BANDS) / BANDS)).tolist()


@dataclass(frozen=True)
class ConfoundRegression:
    """Subtracts a linear model of the field, fitted on training scans alone, from features.

    Fitted on all scans it would also lower the score of features without confounding (Snoek et al., 2019,
    https://doi.org/10.1016/j.neuroimage.2018.09.074). It removes linear effects only: nonlinear traces of the field remain, and
    the part of the disease that is associated with the field is removed as well.

    weights: (1 + J, D).
    """

    design: Design
    weights: Floats

    @classmethod
    def fit(cls, x: ArrayLike, field: ArrayLike, kind: str) -> "ConfoundRegression":
        """Fit on the training scans x (N, D) and their field (N,)."""
        columns = design(kind, field)
        weights = np.linalg.lstsq(_with_constant(columns(field)), np.asarray(x, np.float64), rcond=None)[0]
        return cls(columns, weights.astype(np.float64))

    def __call__(self, x: ArrayLike, field: ArrayLike) -> Floats:
        """Return features x (N, D) of any scans with field (N,), corrected, float64."""
        return np.asarray(x, np.float64) - _with_constant(self.design(field)) @ self.weights


def auroc_within(task: str, field: ArrayLike, *, change: bool = False) -> Metric:
    """Return the AUROC over pairs of a positive and a negative scan with the same value of field, codes (N,).

    Each value is weighted by its pairs; one with a single class has none. The field alone scores 0.5 by construction. It is the
    covariate-adjusted AUROC (Janes & Pepe, 2009, https://doi.org/10.1093/biomet/asp002) weighted by pairs. For several classes
    or findings it is the mean, as in the task's own AUROC. For `regression` it is the mean Spearman correlation within each
    value, weighted by scans.

    change: return the difference to the task's own AUROC, for findings the mean over those where both are defined.
    """
    if task == "regression":
        codes = codes_of(field)
        return Metric(f"{SPEARMAN.name} within", lambda y, p, w: _spearman_within(y, p, w, codes), SPEARMAN.check)
    return _metric(task, field, "within", _within, change)


def auroc_balanced(task: str, field: ArrayLike, *, change: bool = False) -> Metric:
    """Return the AUROC in a population where field, codes (N,), and label are independent.

    Every value keeps its weight, and its positives and negatives are weighted to be as frequent as in the others: weights
    P(label) P(field) / P(label, field), recomputed for each resample. A value with a single class is excluded. Unlike
    `auroc_within` this includes pairs with unequal values, so a model that uses the field is penalised. change: see there.
    """
    return _metric(task, field, "balanced", _balanced, change)


def _metric(task: str, field: ArrayLike, name: str, g: Columns, change: bool) -> Metric:
    kind, codes = task_type(task), codes_of(field)
    if not kind.scored_by_class:
        raise ValueError(f"{task} is not scored by AUROC")
    main = kind.metrics[0]

    def f(positive: NDArray[np.bool_], s: Floats, w: Floats, codes: Codes) -> Floats:
        return g(positive, s, w, codes) - (weighted.auroc(positive, s, w) if change else 0)

    def many(y: NDArray[Any], p: Floats, w: Floats) -> Floats:
        return kind.mean_over_classes(f, y, p, w, codes)

    if change:
        return Metric(f"{main.name} {name}, change", many, main.check)
    return Metric(f"{main.name} {name}", many, main.check, parts=main.parts, exact=False)


def _within(positive: NDArray[np.bool_], s: Floats, w: Floats, field: Codes) -> Floats:
    right, pairs = np.zeros(len(w)), np.zeros(len(w))
    for value in np.unique(field):
        rows = field == value
        yes, part = positive[rows], w[:, rows]
        weight = part[:, yes].sum(1) * part[:, ~yes].sum(1)
        right += np.where(weight > 0, weighted.auroc(yes, s[rows], part), 0) * weight
        pairs += weight
    return weighted.divide(right, pairs)


def _spearman_within(y: Floats, p: Floats, w: Floats, field: Codes) -> Floats:
    each = [
        (w[:, rows].sum(1), weighted.spearman(y[rows], p[rows], w[:, rows]))
        for rows in field == np.unique(field)[:, None]
    ]
    weights, found = (np.array(v) for v in zip(*each, strict=True))
    defined = ~np.isnan(found)
    return weighted.divide(np.where(defined, found * weights, 0).sum(0), (weights * defined).sum(0))


def _balanced(positive: NDArray[np.bool_], s: Floats, w: Floats, field: Codes) -> Floats:
    factor = np.zeros_like(w)
    for value in np.unique(field):
        yes, no = positive & (field == value), ~positive & (field == value)
        a, b = w[:, yes].sum(1), w[:, no].sum(1)
        both = np.where((a > 0) & (b > 0), a + b, 0)
        factor[:, yes], factor[:, no] = (np.where(both > 0, weighted.divide(both, c), 0)[:, None] for c in (a, b))
    return weighted.auroc(positive, s, w * factor)


def codes_of(field: ArrayLike) -> Codes:
    """Return values (N,), or rows of values (N, L), as integers from 0."""
    field = np.asarray(field)
    return np.unique(field, axis=0 if field.ndim > 1 else None, return_inverse=True)[1].reshape(-1)


def _with_constant(columns: Floats) -> Floats:
    return np.hstack([np.ones((len(columns), 1)), columns])
