"""Weighted statistics of predictions, for R weightings of the scans at once.

Every function takes w (R, N), finite and not negative, and returns (R,), nan where undefined; inputs are not checked. An
integer weight is equivalent to repeating the scan.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
BINS = 15  # Guo et al., 2017
BLOCK = 1 << 20  # pairs of scans compared at once: 8 MB


def divide(a: Floats, b: Floats) -> Floats:
    """Return a / b, nan where b is 0."""
    return np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=b > 0)


def mean(x: Floats, w: Floats) -> Floats:
    """Return the weighted mean of x (N,)."""
    return divide(w @ x, w.sum(1))


def one_vs_rest(
    f: Callable[..., Floats], y: NDArray[np.int64], p: Floats, w: Floats, *more: NDArray[np.int64]
) -> Floats:
    """Return f of class 1 for two classes, else the unweighted mean over classes of f of each against the rest.

    f takes a mask of the positive scans, their p, their w, and each of `more` (N,).
    """
    K = p.shape[1]
    return np.mean([f(y == k, p[:, k], w, *more) for k in (range(K) if K > 2 else [1])], axis=0)


def over_labels(f: Callable[..., Floats], y: Floats, p: Floats, w: Floats, *more: NDArray[np.int64]) -> Floats:
    """Return the unweighted mean of f over the labels for which it is defined, each on the scans where it is known.

    f takes a mask of the positive scans, their p, their w, and each of `more` (N,) for them.
    """
    known = ~np.isnan(y)
    each = [f(y[k, i] == 1, p[k, i], w[:, k], *(m[k] for m in more)) for i, k in enumerate(known.T)]
    defined = ~np.isnan(each)
    return divide(np.where(defined, each, 0).sum(0), defined.sum(0).astype(np.float64))


def auroc(positive: NDArray[np.bool_], s: Floats, w: Floats) -> Floats:
    """Return the weight of (positive, negative) pairs in correct order, ties counting half, over the weight of all pairs."""
    up = np.argsort(s, kind="stable")
    pos, neg = up[positive[up]], up[~positive[up]]
    # [:, i]: the weight of the i lowest negatives
    below = np.zeros((len(w), len(neg) + 1))
    np.cumsum(w[:, neg], axis=1, out=below[:, 1:])
    w_pos = w[:, pos]
    lower, upto = (np.searchsorted(s[neg], s[pos], side) for side in ("left", "right"))
    pairs = np.einsum("rn,rn->r", w_pos, below[:, lower]) + np.einsum("rn,rn->r", w_pos, below[:, upto])
    return divide(pairs / 2, w_pos.sum(1) * below[:, -1])


def auprc(positive: NDArray[np.bool_], s: Floats, w: Floats) -> Floats:
    """Return average precision: sum over thresholds of (increase in recall) x precision; undefined without negatives too."""
    if not len(s):
        return np.full(len(w), np.nan)
    down = np.argsort(-s, kind="stable")
    # the last scan of each run of ties
    last = np.append(np.flatnonzero(np.diff(s[down])), len(s) - 1)
    w = w[:, down]
    hits, taken = np.cumsum(w * positive[down], axis=1)[:, last], np.cumsum(w, axis=1)[:, last]
    steps = np.diff(hits, axis=1, prepend=0)
    precision = np.divide(hits, taken, out=np.zeros_like(hits), where=taken > 0)
    total = hits[:, -1] * (taken[:, -1] > hits[:, -1])
    return divide((steps * precision).sum(1), total)


def accuracy(y: NDArray[np.int64], p: Floats, w: Floats) -> Floats:
    """Return the share of scans with a correct most probable class."""
    return mean((p.argmax(1) == y).astype(np.float64), w)


def balanced_accuracy(y: NDArray[np.int64], p: Floats, w: Floats) -> Floats:
    """Return the mean recall over classes."""
    is_class = (y[:, None] == np.arange(p.shape[1])).astype(np.float64)
    return divide(w @ (is_class * (p.argmax(1) == y)[:, None]), w @ is_class).mean(1)


def ece(y: NDArray[np.int64], p: Floats, w: Floats) -> Floats:
    """Return the weighted mean gap between accuracy and confidence, in bins of the most probable class's probability."""
    return divide(np.abs(w @ _gaps(y, p)).sum(1), w.sum(1))


def ece_bias(y: NDArray[np.int64], p: Floats, at: NDArray[np.int64]) -> float:
    """Return the expected ECE of calibrated probabilities, by which no ECE is too high by more; at (N,) are the patients.

    The gap of a bin is then normal about 0, with the variance of a sum over patients, and its mean absolute value is
    sqrt(2 / pi) of its standard deviation.
    """
    by_patient = np.zeros((int(at.max()) + 1, BINS))
    np.add.at(by_patient, at, _gaps(y, p))
    return float(np.sqrt(2 / np.pi * (by_patient**2).sum(0)).sum() / len(y))


def _gaps(y: NDArray[np.int64], p: Floats) -> Floats:
    """Return (N, BINS): whether a scan's most probable class is right, minus its probability, in the scan's bin; else 0."""
    confidence = p.max(1)
    hit = (p.argmax(1) == y).astype(np.float64)
    # bins are ((m-1)/M, m/M]: an edge belongs to the bin below it
    at = np.clip(np.searchsorted(np.arange(1, BINS) / BINS, confidence, side="left"), 0, BINS - 1)
    return (at[:, None] == np.arange(BINS)) * (hit - confidence)[:, None]


def quadratic_kappa(y: NDArray[np.int64], p: Floats, w: Floats) -> Floats:
    """Return 1 - observed / expected squared distance between the true and the most probable level."""
    levels = np.arange(p.shape[1])
    top = p.argmax(1)
    true, predicted = (w @ (v[:, None] == levels).astype(np.float64) for v in (y, top))
    apart = (levels[:, None] - levels) ** 2.0
    # exactly 0 where there is only one level and it is always predicted, as no term is negative
    expected = np.einsum("ri,ij,rj->r", true, apart, predicted)
    return 1 - divide((w @ (y - top) ** 2.0) * w.sum(1), expected)


def level_error(y: NDArray[np.int64], p: Floats, w: Floats) -> Floats:
    """Return the mean absolute distance between the true and the most probable level."""
    return mean(np.abs(y - p.argmax(1)).astype(np.float64), w)


def r2(y: Floats, p: Floats, w: Floats) -> Floats:
    """Return 1 - squared error / squared distance from the mean."""
    apart = y - divide(w @ y, w.sum(1))[:, None]
    total = np.einsum("rn,rn->r", w, apart**2)
    return 1 - divide(w @ (y - p) ** 2, np.where(_varies(y, w), total, 0))


def spearman(y: Floats, p: Floats, w: Floats) -> Floats:
    """Return the correlation of midranks: ties share the mean of their ranks."""
    a, b = (_centred(_midranks(x, w), w) for x in (y, p))
    ab, aa, bb = (np.einsum("rn,rn->r", u, w * v) for u, v in ((a, b), (a, a), (b, b)))
    return divide(ab, np.where(_varies(y, w) & _varies(p, w), np.sqrt(aa * bb), 0))


def concordance(y: Floats, risk: Floats, w: Floats) -> Floats:
    """Return the weight of comparable pairs in correct order, ties of risk counting half, over that of all comparable pairs.

    y (N, 2): time and event. A pair is comparable when the scan with the shorter time has the event; at equal times, when
    one has the event and the other is censored and so lived longer.
    """
    # by time; at equal times events first
    order = np.lexsort((1 - y[:, 1], y[:, 0]))
    y, risk, w = y[order], risk[order], w[:, order]
    # ends of runs of equal time and event
    runs = np.append(np.flatnonzero((np.diff(y, axis=0) != 0).any(1)) + 1, len(y))
    events = np.flatnonzero(y[:, 1] == 1)
    # an event is comparable with all scans from here on
    after = runs[np.searchsorted(runs, events, side="right")]
    # [:, i]: the weight of scans i, i + 1, ...
    rest = np.zeros((len(w), len(y) + 1))
    rest[:, :-1] = np.cumsum(w[:, ::-1], axis=1)[:, ::-1]
    right = np.zeros(len(w))
    step = max(1, BLOCK // len(y))
    for some in range(0, len(events), step):
        i, first = events[some : some + step], after[some : some + step]
        j = np.arange(first[0], len(y))
        wins = (np.sign(risk[i, None] - risk[j]) + 1) / 2 * (j >= first[:, None])
        right += np.einsum("ri,ri->r", w[:, i], w[:, j] @ wins.T)
    return divide(right, np.einsum("ri,ri->r", w[:, events], rest[:, after]))


def _varies(x: Floats, w: Floats) -> NDArray[np.bool_]:
    """Return whether x has two different values among the scans with weight."""
    return np.where(w > 0, x, -np.inf).max(1) > np.where(w > 0, x, np.inf).min(1)


def _midranks(x: Floats, w: Floats) -> Floats:
    """Return (R, N): the weight below each scan plus half the weight of its ties, which is its midrank minus 1/2."""
    _, tie = np.unique(x, return_inverse=True)
    order = np.argsort(tie, kind="stable")
    starts = np.flatnonzero(np.diff(tie[order], prepend=-1))
    group = np.add.reduceat(w[:, order], starts, axis=1)
    return (np.cumsum(group, axis=1) - group / 2)[:, tie]


def _centred(x: Floats, w: Floats) -> Floats:
    return x - divide(np.einsum("rn,rn->r", w, x), w.sum(1))[:, None]
