"""Metrics of class probabilities with sample weights, so that resampling scans or patients is only a reweighting.

Every metric is `metric(y, p, w) -> float` with y (N,) integer classes in [0, K), p (N, K) probabilities and w (N,)
non-negative weights or None. `metric.many(y, p, w_RN) -> (R,)` evaluates R weightings at once and sorts once. A class
that carries no weight makes the class-wise metrics undefined: nan, never a silent average over the other classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
BINS = 15  # Guo et al., 2017


@dataclass(frozen=True)
class Metric:
    """A named metric. `many(y, p, w_RN)` trusts its input; calling the metric checks it and raises ValueError."""

    name: str
    many: Callable[[NDArray[np.int64], Floats, Floats], Floats]

    def __call__(self, y: ArrayLike, p: ArrayLike, w: ArrayLike | None = None) -> float:
        """y (N,), p (N, K), w (N,) -> the metric, nan where undefined."""
        y, p = checked(y, p)
        w = np.ones(len(y)) if w is None else np.asarray(w, np.float64)
        if w.shape != y.shape or not np.isfinite(w).all() or (w < 0).any():
            raise ValueError(f"weights must be ({len(y)},), finite and not negative, got shape {w.shape}")
        return float(self.many(y, p, w[None])[0])


def checked(y: ArrayLike, p: ArrayLike) -> tuple[NDArray[np.int64], Floats]:
    """`y` (N,) as int64 and `p` (N, K) as float64; ValueError when they do not fit each other."""
    y, p = np.asarray(y), np.asarray(p, np.float64)
    if p.ndim != 2 or p.shape[1] < 2 or y.shape != p.shape[:1] or not len(y):
        raise ValueError(f"needs classes (N,) and probabilities (N, K >= 2), got {y.shape} and {p.shape}")
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= p.shape[1]:
        raise ValueError(f"classes must be integers in [0, {p.shape[1]}), got {y.dtype} in [{y.min()}, {y.max()}]")
    if not np.isfinite(p).all():
        raise ValueError("probabilities hold nan or infinity")
    return y.astype(np.int64), p


def _divide(a: Floats, b: Floats) -> Floats:
    """a / b, nan where b is 0."""
    return np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=b > 0)


def _one_vs_rest(
    f: Callable[[NDArray[np.bool_], Floats, Floats], Floats], y: NDArray[np.int64], p: Floats, w: Floats
) -> Floats:
    """f(class 1) for two classes, else the unweighted mean over classes of f(class against the rest)."""
    K = p.shape[1]
    return np.mean([f(y == k, p[:, k], w) for k in (range(K) if K > 2 else [1])], axis=0)


def _auroc(positive: NDArray[np.bool_], s: Floats, w: Floats) -> Floats:
    """Weight of the pairs (positive, negative) in right order, ties counting half, over the weight of all pairs."""
    up = np.argsort(s, kind="stable")
    pos, neg = up[positive[up]], up[~positive[up]]
    below = np.zeros((len(w), len(neg) + 1))  # [:, i] the weight of the i lowest negatives
    np.cumsum(w[:, neg], axis=1, out=below[:, 1:])
    w_pos = w[:, pos]
    lower, upto = (np.searchsorted(s[neg], s[pos], side) for side in ("left", "right"))
    pairs = np.einsum("rn,rn->r", w_pos, below[:, lower]) + np.einsum("rn,rn->r", w_pos, below[:, upto])
    return _divide(pairs / 2, w_pos.sum(1) * below[:, -1])


def _auprc(positive: NDArray[np.bool_], s: Floats, w: Floats) -> Floats:
    """Average precision, the sum over thresholds of (recall step) x precision; undefined without negatives as well."""
    down = np.argsort(-s, kind="stable")
    last = np.append(np.flatnonzero(np.diff(s[down])), len(s) - 1)  # the last scan of each run of ties
    w = w[:, down]
    hits, taken = np.cumsum(w * positive[down], axis=1)[:, last], np.cumsum(w, axis=1)[:, last]
    steps = np.diff(hits, axis=1, prepend=0)
    precision = np.divide(hits, taken, out=np.zeros_like(hits), where=taken > 0)
    total = hits[:, -1] * (taken[:, -1] > hits[:, -1])
    return _divide((steps * precision).sum(1), total)


def _accuracy(y: NDArray[np.int64], p: Floats, w: Floats) -> Floats:
    return _divide(w @ (p.argmax(1) == y).astype(np.float64), w.sum(1))


def _balanced_accuracy(y: NDArray[np.int64], p: Floats, w: Floats) -> Floats:
    is_class = (y[:, None] == np.arange(p.shape[1])).astype(np.float64)
    return _divide(w @ (is_class * (p.argmax(1) == y)[:, None]), w @ is_class).mean(1)


def _ece(y: NDArray[np.int64], p: Floats, w: Floats) -> Floats:
    confidence = p.max(1)
    hit = (p.argmax(1) == y).astype(np.float64)
    # bins are ((m-1)/M, m/M]: an edge belongs to the bin below it
    at = np.clip(np.searchsorted(np.arange(1, BINS) / BINS, confidence, side="left"), 0, BINS - 1)
    in_bin = (at[:, None] == np.arange(BINS)).astype(np.float64)
    return _divide(np.abs(w @ (in_bin * (hit - confidence)[:, None])).sum(1), w.sum(1))


AUROC = Metric("AUROC", lambda y, p, w: _one_vs_rest(_auroc, y, p, w))
"""Area under the ROC curve of class 1, or for K > 2 the macro one-vs-rest mean."""
AUPRC = Metric("AUPRC", lambda y, p, w: _one_vs_rest(_auprc, y, p, w))
"""Average precision of class 1, or for K > 2 the macro mean."""
ACCURACY = Metric("accuracy", _accuracy)
"""Share of scans whose most probable class is right; for two classes the threshold is 0.5."""
BALANCED_ACCURACY = Metric("balanced accuracy", _balanced_accuracy)
"""Mean over classes of the recall."""
ECE = Metric("ECE", _ece)
"""Expected calibration error, Guo et al., 2017 (https://arxiv.org/abs/1706.04599), eq. 3, on the top class's
probability in 15 bins of equal width: sum over bins of |B|/n * |accuracy(B) - confidence(B)|. Biased upwards."""

METRICS = {m.name: m for m in (AUROC, AUPRC, ACCURACY, BALANCED_ACCURACY, ECE)}
