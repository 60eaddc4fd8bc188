"""The kNN probe: weighted votes of the most similar training scans of other patients.

Wu et al., 2018 (https://arxiv.org/abs/1805.01978), section 3.4: cosine similarity s, weight exp(s / T), T = 0.07.
"""

import faiss
import numpy as np
from numpy.typing import ArrayLike, NDArray

from medssl.errors import UserError
from medssl.evals.metrics.weighted import Floats
from medssl.evals.task_types.base import Votes
from medssl.evals.task_types.task_types import task_type

SLACK = 1e-5  # accuracy of float32 inner products of unit vectors
BATCH = 1 << 22  # float64 numbers gathered at once: 32 MB


def knn_probe(
    x_train: ArrayLike,
    y_train: ArrayLike,
    patient_train: ArrayLike,
    x_test: ArrayLike,
    patient_test: ArrayLike,
    classes: int | None = None,
    k: int = 20,
    temperature: float = 0.07,
    *,
    task: str = "classification",
) -> Floats:
    """Return predictions for M test features from labelled training features (N, D), float64.

    Each test scan gets the votes of its k most similar training scans of other patients, or of all where there are fewer.
    Equal similarities go to the lower row. Predictions are as the metrics of the task take them:

        classification, ordinal  each class's share of the votes; with no neighbour all classes are equally probable
        multilabel               the share of the neighbours with the finding among those where it is known; where it is known
                                 for none, its share among the training scans of other patients, and 0.5 without these
        regression               the weighted mean of the neighbours

    Args:
        classes: number of classes or levels; needed for these tasks alone.

    Raises UserError for features that are not finite, for a task without a kNN probe, and in regression for a test scan
    without a training scan of another patient.
    """
    x_train, x_test, y = unit(x_train), unit(x_test), np.asarray(y_train)
    if len(y) != len(x_train):
        raise ValueError(f"needs one label per training scan, got {len(y)} for {len(x_train)}")
    rows, similarity = neighbours(x_train, patient_train, x_test, patient_test, k)
    weights = np.where(rows >= 0, np.exp((similarity - 1) / temperature), 0)
    patients = (np.asarray(p).astype(str) for p in (patient_train, patient_test))
    return task_type(task).vote(Votes(rows, weights, *patients), y, classes)


def unit(x: ArrayLike) -> NDArray[np.float32]:
    """Return rows (N, D) scaled to length 1, float32; zero rows stay zero. Raises UserError unless x is finite."""
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise UserError(f"the features {x.shape} must be finite and (scans, dim); was the encoder's loss finite?")
    return (x / np.linalg.norm(x, axis=1, keepdims=True).clip(min=1e-30)).astype(np.float32)


def neighbours(
    x_train: NDArray[np.float32], patient_train: ArrayLike, x_test: NDArray[np.float32], patient_test: ArrayLike, k: int
) -> tuple[NDArray[np.int64], Floats]:
    """Return the k nearest training rows of other patients and their similarities, (M, k), nearest first, -1 where missing.

    Both sets are unit rows. Candidates from a float32 search are compared in float64, and the search is widened until no
    other row could be among the k, so the result does not depend on batch, threads or ties.
    """
    patient_train, patient_test = np.asarray(patient_train).astype(str), np.asarray(patient_test).astype(str)
    N, M = len(x_train), len(x_test)
    if patient_train.shape != (N,) or patient_test.shape != (M,):
        raise ValueError(f"needs one patient per scan: {patient_train.shape} for {N}, {patient_test.shape} for {M}")
    index = faiss.IndexFlatIP(x_train.shape[1])
    index.add(np.ascontiguousarray(x_train))
    names, counts = np.unique(patient_train, return_counts=True)
    # rows that the search must skip for each patient
    own = dict(zip(names.tolist(), counts.tolist(), strict=True))
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
    """Return a[i] . b[at[i, j]] in float64, each summed in the same order, so that equal rows give equal bits."""
    return (a[:, None].astype(np.float64) * b[at]).sum(-1)
