"""Scores with a fact of the scan taken out of them: what is left when the scanner, the view or the age cannot help.

A fact is for `classification`, codes (N,) in [0, K), or for `regression`, numbers (N,). There are three ways to take it out.
The first changes the features, the others only what is compared, so that resampling patients stays a reweighting:

    regressed out  features less what least squares on training patients says of them from the fact (`ConfoundRegression`)
    within         the AUROC of those pairs of a positive and a negative scan that have the same fact (`auroc_within`)
    balanced       the AUROC of scans weighted so that the fact says nothing of the label (`auroc_balanced`)
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

KNOTS = 5  # of the spline of a number, at quantiles of the training scans; Harrell, 2015, advises three to five
BANDS = 5  # in which a number counts as the same, at quantiles of the training scans
Codes = NDArray[np.int64]
Design = Callable[[ArrayLike], Floats]
Columns = Callable[[NDArray[np.bool_], Floats, Floats, Codes], Floats]  # (positive, score, weights, fact) -> (R,)


def design(kind: str, train: ArrayLike) -> Design:
    """A fact as columns of a linear model, without the constant: (N,) -> (N, J) float64.

    An indicator of every value of the training scans but the lowest, or the cubic B-splines of a number, linear outside the
    range of the training scans. Raises ValueError for a fact that does not vary, or for values that are not in training.
    """
    train = np.asarray(train)
    seen = np.unique(train)
    if len(seen) < 2:
        raise ValueError("a fact that does not vary has no columns")
    if kind == "regression":
        knots = np.unique(np.quantile(train, np.linspace(0, 1, KNOTS)))[:, None]
        spline = SplineTransformer(degree=3, knots=knots, extrapolation="linear", include_bias=False)
        spline.fit(train[:, None].astype(np.float64))
        width = spline.n_features_out_
        return lambda fact: (
            spline.transform(np.asarray(fact, np.float64)[:, None]) if len(np.asarray(fact)) else np.zeros((0, width))
        )

    def columns(fact: ArrayLike) -> Floats:
        fact = np.asarray(fact)
        if not np.isin(fact, seen).all():
            raise ValueError("a value of the fact does not occur in training")
        return (fact[:, None] == seen[1:]).astype(np.float64)

    return columns


def edges(train: ArrayLike) -> list[float]:
    """Where the BANDS of a number part: quantiles of the training scans, fewer where many are equal."""
    return np.unique(np.quantile(np.asarray(train, np.float64), np.arange(1, BANDS) / BANDS)).tolist()


@dataclass(frozen=True)
class ConfoundRegression:
    """Features less what a linear model of the fact says of them, the model fitted on training scans alone.

    Fitted on all scans it would lower the score of honest features too (Snoek et al., 2019,
    https://doi.org/10.1016/j.neuroimage.2018.09.074). It takes no more than straight lines: a fact that is there in another
    way stays, and of the disease what goes with the fact leaves with it.
    """

    design: Design
    weights: Floats  # (1 + J, D)

    @classmethod
    def fit(cls, x: ArrayLike, fact: ArrayLike, kind: str) -> "ConfoundRegression":
        """Of the training scans x (N, D) and the fact (N,)."""
        columns = design(kind, fact)
        weights = np.linalg.lstsq(_with_constant(columns(fact)), np.asarray(x, np.float64), rcond=None)[0]
        return cls(columns, weights.astype(np.float64))

    def __call__(self, x: ArrayLike, fact: ArrayLike) -> Floats:
        """x (N, D) of any scans with their fact (N,) -> (N, D) float64."""
        return np.asarray(x, np.float64) - _with_constant(self.design(fact)) @ self.weights


def auroc_within(task: str, fact: ArrayLike, *, change: bool = False) -> Metric:
    """The AUROC of pairs of a positive and a negative scan with the same fact, codes (N,) of the scans it will be asked of.

    Each value of the fact counts by its pairs; one with a single class has none. A fact alone scores 0.5 here by construction.
    It is the covariate-adjusted AUROC (Janes & Pepe, 2009, https://doi.org/10.1093/biomet/asp002) with pairs for weights. Several
    classes or labels: the mean, as in the task's own AUROC. For `regression` it is the mean of Spearman's correlation within each
    value of the fact, by the weight of its scans.

    change: of AUROCs the difference to the task's own, on the same resamples, of labels the mean over those that have both.
    """
    if task == "regression":
        codes = codes_of(fact)
        return Metric(f"{SPEARMAN.name} within", lambda y, p, w: _spearman_within(y, p, w, codes), SPEARMAN.check)
    return _metric(task, fact, "within", _within, change)


def auroc_balanced(task: str, fact: ArrayLike, *, change: bool = False) -> Metric:
    """The AUROC in a population in which the fact, codes (N,), says nothing of the label.

    Every value of the fact keeps its weight, and its positives and negatives are weighted to be as frequent as in any other:
    weights P(label) P(fact) / P(label, fact), of each resample anew. A value with a single class cannot be balanced and is left
    out. Unlike `auroc_within` this has pairs of unequal fact, so what a model takes from the fact costs it here. change: as there.
    """
    return _metric(task, fact, "balanced", _balanced, change)


def _metric(task: str, fact: ArrayLike, name: str, g: Columns, change: bool) -> Metric:
    kind, codes = task_type(task), codes_of(fact)
    if not kind.scored_by_class:
        raise ValueError(f"{task} is not scored by AUROC")
    main = kind.metrics[0]

    def f(positive: NDArray[np.bool_], s: Floats, w: Floats, codes: Codes) -> Floats:
        return g(positive, s, w, codes) - (weighted.auroc(positive, s, w) if change else 0)

    def many(y: NDArray[Any], p: Floats, w: Floats) -> Floats:
        return kind.mean_over_classes(f, y, p, w, codes)

    return Metric(f"{main.name} {name}" + ", change" * change, many, main.check)


def _within(positive: NDArray[np.bool_], s: Floats, w: Floats, fact: Codes) -> Floats:
    right, pairs = np.zeros(len(w)), np.zeros(len(w))
    for value in np.unique(fact):
        rows = fact == value
        yes, part = positive[rows], w[:, rows]
        weight = part[:, yes].sum(1) * part[:, ~yes].sum(1)
        right += np.where(weight > 0, weighted.auroc(yes, s[rows], part), 0) * weight
        pairs += weight
    return weighted.divide(right, pairs)


def _spearman_within(y: Floats, p: Floats, w: Floats, fact: Codes) -> Floats:
    each = [
        (w[:, rows].sum(1), weighted.spearman(y[rows], p[rows], w[:, rows]))
        for rows in fact == np.unique(fact)[:, None]
    ]
    weights, found = (np.array(v) for v in zip(*each, strict=True))
    defined = ~np.isnan(found)
    return weighted.divide(np.where(defined, found * weights, 0).sum(0), (weights * defined).sum(0))


def _balanced(positive: NDArray[np.bool_], s: Floats, w: Floats, fact: Codes) -> Floats:
    factor = np.zeros_like(w)
    for value in np.unique(fact):
        yes, no = positive & (fact == value), ~positive & (fact == value)
        a, b = w[:, yes].sum(1), w[:, no].sum(1)
        both = np.where((a > 0) & (b > 0), a + b, 0)
        factor[:, yes], factor[:, no] = (np.where(both > 0, weighted.divide(both, c), 0)[:, None] for c in (a, b))
    return weighted.auroc(positive, s, w * factor)


def codes_of(fact: ArrayLike) -> Codes:
    """(N,) of values, or of rows of values (N, L), as numbers from 0."""
    fact = np.asarray(fact)
    return np.unique(fact, axis=0 if fact.ndim > 1 else None, return_inverse=True)[1].reshape(-1)


def _with_constant(columns: Floats) -> Floats:
    return np.hstack([np.ones((len(columns), 1)), columns])
