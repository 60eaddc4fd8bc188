"""The kNN probe: weighted votes of the most similar training scans, never of the same patient.

Wu et al., 2018 (https://arxiv.org/abs/1805.01978), section 3.4: cosine similarity s, weight exp(s / T), T = 0.07.
"""

from typing import Any

import faiss
import numpy as np
from numpy.typing import ArrayLike, NDArray

from medssl.errors import UserError
from medssl.evals.metrics.weighted import Floats

SLACK = 1e-5  # float32 inner products of unit vectors are right to about this
BATCH = 1 << 22  # float64 numbers gathered at once: 32 MB


def knn_probe(
    x_train: ArrayLike,
    y_train: ArrayLike,
    patient_train: ArrayLike,
    x_test: ArrayLike,
    patient_test: ArrayLike,
    classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Floats:
    """(N, D) training features with classes and patients -> (M, classes) probabilities of the M test features, float64.

    Each test scan asks its k most similar training scans of other patients, or all of them where there are fewer; with
    none at all every class is equally probable. Equal similarities go to the lower row. Raises UserError for features
    that are not finite.
    """
    y_train = np.asarray(y_train)
    rows, votes = _votes(x_train, y_train, patient_train, x_test, patient_test, k, temperature)
    if y_train.ndim != 1 or y_train.min() < 0 or y_train.max() >= classes:
        raise ValueError(f"needs one class in [0, {classes}) per training scan, got {y_train.shape}")
    p = np.zeros((len(rows), classes))
    for c in range(classes):
        p[:, c] = (votes * (y_train[rows] == c)).sum(1)
    total = p.sum(1, keepdims=True)
    return np.divide(p, total, out=np.full_like(p, 1 / classes), where=total > 0)


def knn_labels(
    x_train: ArrayLike,
    y_train: ArrayLike,
    patient_train: ArrayLike,
    x_test: ArrayLike,
    patient_test: ArrayLike,
    k: int = 20,
    temperature: float = 0.07,
) -> Floats:
    """Like `knn_probe` for several labels at once: y_train (N, L) of 0, 1 or nan (unknown) -> (M, L) probabilities.

    Of the k neighbours those vote on a label whose own is known. Where none is, the answer is the label's share among
    the training scans of other patients, and 0.5 where it is known of nobody else.
    """
    y_train = np.asarray(y_train, np.float64)
    if y_train.ndim != 2 or not np.isin(y_train[~np.isnan(y_train)], (0, 1)).all():
        raise ValueError(f"needs labels (N, L) of 0, 1 or nan, got {y_train.shape}")
    return np.nan_to_num(_mean(x_train, y_train, patient_train, x_test, patient_test, k, temperature), nan=0.5)


def knn_value(
    x_train: ArrayLike,
    y_train: ArrayLike,
    patient_train: ArrayLike,
    x_test: ArrayLike,
    patient_test: ArrayLike,
    k: int = 20,
    temperature: float = 0.07,
) -> Floats:
    """Like `knn_probe` for a number: y_train (N,) finite -> (M,) the neighbours' mean, weighted by their votes.

    Raises UserError when a test scan has no training scan of another patient to ask.
    """
    y_train = np.asarray(y_train, np.float64)
    if y_train.ndim != 1 or not np.isfinite(y_train).all():
        raise ValueError(f"needs one finite number per training scan, got {y_train.shape}")
    p = _mean(x_train, y_train[:, None], patient_train, x_test, patient_test, k, temperature)[:, 0]
    if np.isnan(p).any():
        raise UserError(
            f"{np.isnan(p).sum()} test scans have no training scan of another patient; kNN needs two patients"
        )
    return p


def _votes(
    x_train: ArrayLike,
    y_train: NDArray[Any],
    patient_train: ArrayLike,
    x_test: ArrayLike,
    patient_test: ArrayLike,
    k: int,
    temperature: float,
) -> tuple[NDArray[np.int64], Floats]:
    """The neighbours of each test scan and the weights of their votes, (M, k); no neighbour is row -1, of weight 0."""
    x_train, x_test = unit(x_train), unit(x_test)
    if len(y_train) != len(x_train):
        raise ValueError(f"needs one answer per training scan, got {len(y_train)} for {len(x_train)}")
    rows, similarity = neighbours(x_train, patient_train, x_test, patient_test, k)
    return rows, np.where(rows >= 0, np.exp((similarity - 1) / temperature), 0)


def _mean(
    x_train: ArrayLike,
    y_train: Floats,
    patient_train: ArrayLike,
    x_test: ArrayLike,
    patient_test: ArrayLike,
    k: int,
    temperature: float,
) -> Floats:
    """y_train (N, L) with nan for unknown -> (M, L): the weighted mean over neighbours whose answer is known.

    Where no neighbour's is, the mean over all other patients' training scans; nan where nobody else's is known.
    """
    rows, votes = _votes(x_train, y_train, patient_train, x_test, patient_test, k, temperature)
    known, filled = ~np.isnan(y_train), np.nan_to_num(y_train)
    names, at = np.unique(np.asarray(patient_train).astype(str), return_inverse=True)
    own = np.zeros((2, len(names) + 1, y_train.shape[1]))  # the last one: of patients who have no training scan
    np.add.at(own[0], at, filled)
    np.add.at(own[1], at, known)
    place = {name: i for i, name in enumerate(names.tolist())}
    mine = [place.get(p, -1) for p in np.asarray(patient_test).astype(str).tolist()]
    total, count = own.sum(1)[:, None] - own[:, mine]  # (M, L) each
    prior = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    p = np.empty_like(prior)
    for label in range(y_train.shape[1]):
        w = votes * known[rows, label]
        weight = w.sum(1)
        p[:, label] = np.divide((w * filled[rows, label]).sum(1), weight, out=prior[:, label].copy(), where=weight > 0)
    return p


def unit(x: ArrayLike) -> NDArray[np.float32]:
    """Rows (N, D) scaled to length 1, float32; zero rows stay zero."""
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise UserError(f"the features {x.shape} must be finite and (scans, dim); was the encoder's loss finite?")
    return (x / np.linalg.norm(x, axis=1, keepdims=True).clip(min=1e-30)).astype(np.float32)


def neighbours(
    x_train: NDArray[np.float32], patient_train: ArrayLike, x_test: NDArray[np.float32], patient_test: ArrayLike, k: int
) -> tuple[NDArray[np.int64], Floats]:
    """The k nearest training rows of other patients and their similarities, (M, k), nearest first, -1 where none is.

    Both sets are unit rows. Candidates come from float32 search, are compared in float64, and the search is widened
    until no row outside it could belong among the k: the answer does not depend on batch, threads or ties.
    """
    patient_train, patient_test = np.asarray(patient_train).astype(str), np.asarray(patient_test).astype(str)
    N, M = len(x_train), len(x_test)
    if patient_train.shape != (N,) or patient_test.shape != (M,):
        raise ValueError(f"needs one patient per scan: {patient_train.shape} for {N}, {patient_test.shape} for {M}")
    index = faiss.IndexFlatIP(x_train.shape[1])
    index.add(np.ascontiguousarray(x_train))
    names, counts = np.unique(patient_train, return_counts=True)
    own = dict(zip(names.tolist(), counts.tolist(), strict=True))  # how many rows a test patient has to skip
    wide = np.array([min(N, k + 1 + own.get(p, 0)) for p in patient_test.tolist()], np.int64)
    rows, similarity = np.full((M, k), -1, np.int64), np.full((M, k), -np.inf)
    open_ = np.arange(M)
    while len(open_):
        width = wide[open_].min()
        now = open_[wide[open_] == width][: max(1, BATCH // int(width * x_train.shape[1]))]
        rough, found = index.search(np.ascontiguousarray(x_test[now]), int(width))
        exact = _products(x_test[now], x_train, found)
        exact[patient_train[found] == patient_test[now, None]] = -np.inf
        order = np.lexsort((found, -exact), axis=1)[:, :k]
        best = np.take_along_axis(exact, order, 1)
        settled = (width == N) | ((order.shape[1] == k) & (best[:, -1] > rough[:, -1] + SLACK))
        done, got = now[settled], order.shape[1]
        similarity[done, :got] = best[settled]
        rows[done, :got] = np.where(best > -np.inf, np.take_along_axis(found, order, 1), -1)[settled]
        wide[now[~settled]] = min(N, 2 * int(width))
        open_ = np.setdiff1d(open_, done)
    return rows, similarity


def _products(a: NDArray[np.float32], b: NDArray[np.float32], at: NDArray[np.int64]) -> Floats:
    """a[i] . b[at[i, j]] in float64, each sum in the same order wherever it stands: equal rows give equal bits."""
    return (a[:, None].astype(np.float64) * b[at]).sum(-1)
