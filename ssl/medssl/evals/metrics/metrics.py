"""Metrics of predictions, with weights for scans, so that resampling scans or patients is only a reweighting.

The type of task determines the labels `y` and the predictions `p` of N scans:

    classification  y (N,) integers in [0, K)            p (N, K) probabilities
    multilabel      y (N, L) 0, 1 or nan for unknown     p (N, L) probabilities
    ordinal         y (N,) integer levels in [0, K)      p (N, K) probabilities; the most probable level is the prediction
    regression      y (N,) numbers                       p (N,) numbers
    survival        y (N, 2) time, and event 1 or 0      p (N,) risks, higher for earlier events
    per_case        y (N,) anything, not used            p (N,) one number per case

`metric(y, p, w) -> float` with w (N,) non-negative weights or None; `metric.many(y, p, w_RN) -> (R,)` evaluates R
weightings at once. Without weight on some class, metrics of classification are nan, never an average over the other
classes. Multilabel metrics average over the labels that have both classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medssl.evals.metrics import weighted
from medssl.evals.metrics.weighted import Floats

Truth = NDArray[Any]


@dataclass(frozen=True)
class PredictionType:
    """The format of y and p. Calling it returns (y, p) in the dtypes of the metrics, or raises ValueError if they do not fit.

    Attributes:
        groups: y -> masks (N,) of the scans that a metric needs, such as each class; an interval needs some patients in each.
        rare: words for a group with few patients.
        missing: the reason in words why a metric is undefined on a resample.
        left_out: y -> words for labels that the metric excludes.
    """

    check: Callable[[ArrayLike, ArrayLike], tuple[Truth, Floats]]
    groups: Callable[[Truth], list[NDArray[np.bool_]]] = lambda y: []
    rare: str = ""
    missing: str = "it was undefined there"
    left_out: Callable[[Truth], str] = lambda y: ""

    def __call__(self, y: ArrayLike, p: ArrayLike) -> tuple[Truth, Floats]:
        """Return y and p, checked."""
        return self.check(y, p)


def _classes(y: ArrayLike, p: ArrayLike) -> tuple[Truth, Floats]:
    y, p = np.asarray(y), np.asarray(p, np.float64)
    if p.ndim != 2 or p.shape[1] < 2 or y.shape != p.shape[:1] or not len(y):
        raise ValueError(f"needs classes (N,) and probabilities (N, K >= 2), got {y.shape} and {p.shape}")
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= p.shape[1]:
        raise ValueError(f"classes must be integers in [0, {p.shape[1]}), got {y.dtype} in [{y.min()}, {y.max()}]")
    return y.astype(np.int64), _finite(p, "probabilities")


def _labels(y: ArrayLike, p: ArrayLike) -> tuple[Truth, Floats]:
    y, p = np.asarray(y, np.float64), np.asarray(p, np.float64)
    if y.ndim != 2 or y.shape != p.shape or not y.size:
        raise ValueError(f"needs labels (N, L) and probabilities (N, L), got {y.shape} and {p.shape}")
    if not (np.isnan(y) | (y == 0) | (y == 1)).all():
        raise ValueError("labels must be 0, 1 or nan for unknown")
    return y, _finite(p, "probabilities")


def _value(y: ArrayLike, p: ArrayLike) -> tuple[Truth, Floats]:
    y, p = np.asarray(y, np.float64), np.asarray(p, np.float64)
    if y.ndim != 1 or y.shape != p.shape or not len(y):
        raise ValueError(f"needs values (N,) and predictions (N,), got {y.shape} and {p.shape}")
    return _finite(y, "values"), _finite(p, "predictions")


def _survival(y: ArrayLike, p: ArrayLike) -> tuple[Truth, Floats]:
    y, p = np.asarray(y, np.float64), np.asarray(p, np.float64)
    if y.ndim != 2 or y.shape[1] != 2 or p.shape != y.shape[:1] or not len(y):
        raise ValueError(f"needs times and events (N, 2) and risks (N,), got {y.shape} and {p.shape}")
    if not np.isin(y[:, 1], (0, 1)).all():
        raise ValueError("events must be 1, or 0 for censored")
    return _finite(y, "times"), _finite(p, "risks")


def _cases(y: ArrayLike, p: ArrayLike) -> tuple[Truth, Floats]:
    y, p = np.asarray(y), np.asarray(p, np.float64)
    if p.ndim != 1 or y.shape[:1] != p.shape or not len(p):
        raise ValueError(f"needs one number for each case, got {p.shape} for {y.shape}")
    return y, _finite(p, "numbers of cases")


def _finite(x: Floats, what: str) -> Floats:
    if not np.isfinite(x).all():
        raise ValueError(f"{what} contain nan or infinity")
    return x


def _both(y: Floats) -> list[Floats]:
    return [column for column in y.T if {0, 1} <= set(column)]


def _without_both(y: Floats) -> str:
    n = y.shape[1] - len(_both(y))
    return f", {n} of {y.shape[1]} labels left out because they have one class" if n else ""


CLASS_PROBABILITIES = PredictionType(
    _classes, lambda y: [y == k for k in np.unique(y)], "in the rarest class", "a class was missing"
)
LABEL_PROBABILITIES = PredictionType(
    _labels,
    lambda y: [column == k for column in _both(y) for k in (0, 1)],
    "in the rarest class of a label",
    "no label had both classes",
    _without_both,
)
LEVEL_PROBABILITIES = PredictionType(_classes)
NUMBERS = PredictionType(_value)
RISKS = PredictionType(_survival, lambda y: [y[:, 1] == 1], "with an event", "no pair could be compared")
CASE_NUMBERS = PredictionType(_cases)

Group = tuple[NDArray[np.bool_], Floats]
"""A mask (N,) of scans, and a number (N,) of each scan that tells how alike a patient's scans are: its probability or risk."""
Parts = list[list[Group]]
"""The terms that a metric between 0 and 1 is the mean of, each with the groups of scans that it compares."""


def _one_vs_rest(y: Truth, p: Floats) -> Parts:
    classes = range(p.shape[1]) if p.shape[1] > 2 else [1]
    return [[(y == k, p[:, k]), (y != k, p[:, k])] for k in classes]


def _each_label(y: Truth, p: Floats) -> Parts:
    return [[(y[:, i] == k, p[:, i]) for k in (0, 1)] for i in range(y.shape[1]) if {0, 1} <= set(y[:, i])]


def _each_class(y: Truth, p: Floats) -> Parts:
    return [[(y == k, p[:, k])] for k in range(p.shape[1])]


def _all_scans(y: Truth, p: Floats) -> Parts:
    return [[(np.full(len(y), True), p[np.arange(len(y)), y])]]


def _with_event(y: Truth, p: Floats) -> Parts:
    return [[(y[:, 1] == 1, p)]]


def _share(y: Truth, p: Floats) -> Parts:
    return [[(np.full(len(p), True), p)]] if np.isin(p, (0, 1)).all() else []


@dataclass(frozen=True)
class Metric:
    """A named metric. `many(y, p, w_RN)` does not check its input; calling the metric does, and raises ValueError.

    check: the type of y and p. sign: 1 where higher is better, -1 where lower is. parts: for a metric between 0 and 1, its
    terms, from which its interval is computed; none for other metrics. exact: whether a term of 1 or 0 means that as many
    patients as its smallest group has were all right or all wrong, as for shares and for the AUROC, whose disjoint pairs are
    independent. bias: y, p, patients (N,) -> the most by which the metric can be too high on average.
    robust: whether a value still says something where the metric is undefined on many resamples.
    """

    name: str
    many: Callable[[Truth, Floats, Floats], Floats]
    check: PredictionType = CLASS_PROBABILITIES
    sign: int = 1
    parts: Callable[[Truth, Floats], Parts] = lambda y, p: []
    exact: bool = True
    bias: Callable[[Truth, Floats, NDArray[np.int64]], float] | None = None
    robust: bool = True

    def __call__(self, y: ArrayLike, p: ArrayLike, w: ArrayLike | None = None) -> float:
        """Return the metric of y and p with weights w (N,), nan where undefined."""
        y, p = self.check(y, p)
        w = np.ones(len(y)) if w is None else np.asarray(w, np.float64)
        if w.shape != (len(y),) or not np.isfinite(w).all() or (w < 0).any():
            raise ValueError(f"weights must be ({len(y)},), finite and not negative, got shape {w.shape}")
        return float(self.many(y, p, w[None])[0])


AUROC = Metric("AUROC", lambda y, p, w: weighted.one_vs_rest(weighted.auroc, y, p, w), parts=_one_vs_rest)
"""Area under the ROC curve of class 1, or for K > 2 the macro one-vs-rest mean."""
AUPRC = Metric("AUPRC", lambda y, p, w: weighted.one_vs_rest(weighted.auprc, y, p, w), parts=_one_vs_rest, exact=False)
"""Average precision of class 1, or for K > 2 the macro mean."""
ACCURACY = Metric("accuracy", weighted.accuracy, parts=_all_scans)
"""Share of scans whose most probable class is correct; for two classes the threshold is 0.5."""
BALANCED_ACCURACY = Metric("balanced accuracy", weighted.balanced_accuracy, parts=_each_class)
"""Mean recall over classes."""
ECE = Metric("ECE", weighted.ece, sign=-1, bias=weighted.ece_bias)
"""Expected calibration error, Guo et al., 2017 (https://arxiv.org/abs/1706.04599), eq. 3, on the top class's
probability in 15 bins of equal width: sum over bins of |B|/n * |accuracy(B) - confidence(B)|. Biased upwards; its interval
allows for it."""

MACRO_AUROC = Metric(
    "macro AUROC",
    lambda y, p, w: weighted.over_labels(weighted.auroc, y, p, w),
    LABEL_PROBABILITIES,
    parts=_each_label,
)
"""Mean area under the ROC curve over labels, each on the scans where the label is known."""
MACRO_AUPRC = Metric(
    "macro AUPRC",
    lambda y, p, w: weighted.over_labels(weighted.auprc, y, p, w),
    LABEL_PROBABILITIES,
    parts=_each_label,
    exact=False,
)
"""Mean average precision over labels, each on the scans where the label is known."""

QUADRATIC_KAPPA = Metric("quadratic kappa", weighted.quadratic_kappa, LEVEL_PROBABILITIES)
"""Cohen's kappa with squared distances between levels (Cohen, 1968, https://doi.org/10.1037/h0026256)."""
LEVEL_ERROR = Metric("MAE in levels", weighted.level_error, LEVEL_PROBABILITIES, sign=-1)
"""Mean absolute distance between the true and the predicted level."""

MAE = Metric("MAE", lambda y, p, w: weighted.mean(np.abs(y - p), w), NUMBERS, sign=-1)
"""Mean absolute error, in the unit of y."""
R2 = Metric("R2", weighted.r2, NUMBERS)
"""Coefficient of determination: 0 for predicting the mean of the same scans, negative for worse."""
SPEARMAN = Metric("Spearman", weighted.spearman, NUMBERS)
"""Rank correlation with midranks for ties."""

CONCORDANCE = Metric("concordance", weighted.concordance, RISKS, parts=_with_event, exact=False)
"""Harrell's C (Harrell et al., 1982, https://doi.org/10.1001/jama.1982.03320430047030): among pairs with a known order of
events despite censoring, the share with risks in that order, ties of risk counting half."""

MEAN = Metric("mean", lambda y, p, w: weighted.mean(p, w), CASE_NUMBERS, parts=_share)
"""Mean of a number per case, such as Dice or average precision; a share, if all are 0 or 1."""
