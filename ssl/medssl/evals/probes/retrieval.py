"""Retrieval: the share of relevant scans among the nearest to a query, and their order.

Precision at 1, R-precision and MAP@R as in Musgrave et al., 2020 (https://arxiv.org/abs/2003.08505), section 3.2. A query
has R relevant scans: those of other patients with its class, or with a finding in common. Among the R nearest scans of other
patients, rel(i) is 1 if the i-th is relevant, and P(i) is the share of relevant scans among the first i:

    P@1 = rel(1)        R-precision = P(R)        MAP@R = 1/R * sum over i <= R of P(i) rel(i)
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medssl.errors import UserError
from medssl.evals.metrics.weighted import Floats
from medssl.evals.probes.knn import unit

BLOCK = 1 << 22  # float64 similarities held at once: 32 MB, and a few times as much while sorting


@dataclass(frozen=True)
class Retrieval:
    """Results for each query with relevant scans, to be averaged with an interval over patients.

    Attributes:
        rows: (Q,) int64, the queries.
        lone: (M - Q,) int64, queries excluded because no other patient's scan in the gallery is relevant, R = 0.
        relevant: (Q,) int64, R.
        p_at_1, r_precision, map_at_r: (Q,) float64 in [0, 1].
    """

    rows: NDArray[np.int64]
    lone: NDArray[np.int64]
    relevant: NDArray[np.int64]
    p_at_1: Floats
    r_precision: Floats
    map_at_r: Floats


def retrieve(
    x: ArrayLike, y: ArrayLike, patient: ArrayLike, gallery: tuple[ArrayLike, ArrayLike, ArrayLike] | None = None
) -> Retrieval:
    """Search the gallery for each of M queries by cosine similarity, excluding the query's own patient.

    Exact, in float64: faiss with float32 does not help where R is a large part of the gallery. Equal similarities go to the
    lower row of the gallery, and equal scans have equal similarities. Memory: a block of queries times the gallery.

    Args:
        x: (M, D) features of the queries.
        y: (M,) integer classes, relevant scans have the same; or (M, L) labels 0, 1 or nan for unknown, relevant scans
            share at least one label that is 1. A query without such a label has R = 0.
        patient: (M,) ids.
        gallery: x, y and patient of the scans to search; None for the queries themselves.

    Raises:
        UserError: for features that are not finite, for labels that are not classes, and if all queries have R = 0.
    """
    q, q_y, q_who = _checked(x, y, patient)
    g, g_y, g_who = (q, q_y, q_who) if gallery is None else _checked(*gallery)
    if q.shape[1] != g.shape[1] or q_y.shape[1:] != g_y.shape[1:]:
        raise ValueError(f"queries {q.shape} {q_y.shape} and gallery {g.shape} {g_y.shape} do not fit each other")
    # adding 0 turns -0 into 0
    distinct, copy = np.unique(g + np.float32(0), axis=0, return_inverse=True)
    distinct, copy = distinct.T.astype(np.float64), copy.ravel()
    who = np.unique(np.concatenate([q_who, g_who]), return_inverse=True)[1].ravel()
    q_at, g_at = who[: len(q)], who[len(q) :]
    relevant, found = np.zeros(len(q), np.int64), np.zeros((3, len(q)))
    step = max(1, BLOCK // len(g))
    for start in range(0, len(q), step):
        now = slice(start, start + step)
        others = q_at[now, None] != g_at
        alike = others & (q_y[now] @ g_y.T > 0 if q_y.ndim == 2 else q_y[now, None] == g_y)
        similarity = np.where(others, (q[now].astype(np.float64) @ distinct)[:, copy], -np.inf)
        relevant[now] = alike.sum(1)
        for i in np.flatnonzero(relevant[now]):
            found[:, start + i] = _found(alike[i][_nearest(similarity[i], relevant[start + i])])
    rows = np.flatnonzero(relevant)
    if not len(rows):
        raise UserError("no scan has a relevant scan of another patient; nothing can be retrieved")
    return Retrieval(rows, np.flatnonzero(relevant == 0), relevant[rows], *found[:, rows])


def _nearest(similarity: Floats, r: int) -> NDArray[np.int64]:
    """Return the r rows with the largest similarity (N,), largest first; ties go to the lower row."""
    least = np.partition(similarity, len(similarity) - r)[len(similarity) - r]
    rows = np.flatnonzero(similarity >= least)
    return rows[np.argsort(-similarity[rows], kind="stable")[:r]]


def _found(hit: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Return P@1, R-precision and MAP@R; hit (R,): mask of the relevant scans among the R nearest."""
    precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
    return hit[0], precision[-1], (precision * hit).sum() / len(hit)


def _checked(
    x: ArrayLike, y: ArrayLike, patient: ArrayLike
) -> tuple[NDArray[np.float32], NDArray[np.int64] | NDArray[np.float32], NDArray[np.str_]]:
    """Return unit rows, classes (N,) or labels equal to 1 (N, L) as float32, and ids."""
    features, kinds, who = unit(x), np.asarray(y), np.asarray(patient).astype(str)
    if kinds.ndim == 2:
        kinds = (kinds == 1).astype(np.float32)
    elif kinds.ndim != 1 or not np.issubdtype(kinds.dtype, np.integer):
        raise UserError(
            f"scans are retrieved by a class or by findings, and the labels are {kinds.dtype}; choose a class"
        )
    if kinds.shape[:1] != features.shape[:1] or who.shape != features.shape[:1]:
        raise ValueError(f"needs one kind and one patient per scan: {kinds.shape}, {who.shape} for {features.shape}")
    return features, kinds, who
