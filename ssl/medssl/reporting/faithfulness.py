"""How far a map of embeddings can be believed: which neighbours are true, which are torn apart, and where."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medssl.progress import Progress

K = 10  # neighbours that the three measures look at
BLOCK = 1 << 24  # distances held at once


@dataclass(frozen=True)
class Faithfulness:
    """Measures of one map, all in [0, 1] and best at 1.

    Attributes:
        trustworthiness: 1 where no neighbour in the map is a stranger among the features (Venna and Kaski, 2001, equation 1).
        continuity: 1 where no neighbour among the features has been torn away in the map (the same, with the roles exchanged).
        kept: the share of the k nearest neighbours among the features that are among the k nearest in the map.
        placed: (N,) float32, the smaller of the two first measures for each point alone; their means over points are the
            measures themselves.
        k: the number of neighbours.
    """

    trustworthiness: float
    continuity: float
    kept: float
    placed: NDArray[np.float32]
    k: int


def faithfulness(x: NDArray[Any], maps: Sequence[NDArray[Any]], k: int = K) -> list[Faithfulness]:
    """Measure each map (N, 2) of the features x (N, D), exactly, over all N points; Euclidean distances in both.

    k is lowered to (N - 1) / 2 if N is small. Time grows with N², memory with N. N is at least 3.
    """
    n = len(x)
    k = min(k, (n - 1) // 2)
    features, flat = _centred(x), [_centred(m) for m in maps]
    sums = np.zeros((len(maps), 3, n))
    step = max(1, BLOCK // n)
    with Progress("faithfulness", total=n, unit="scan") as bar:
        for start in range(0, n, step):
            rows = torch.arange(start, min(start + step, n))
            far = _distances(features, rows)
            near = far.topk(k, largest=False).indices
            for found, points in zip(sums, flat, strict=True):
                far_in_map = _distances(points, rows)
                near_in_map = far_in_map.topk(k, largest=False).indices
                found[0, rows] = _intrusion(far, near_in_map, k)
                found[1, rows] = _intrusion(far_in_map, near, k)
                found[2, rows] = (near[:, :, None] == near_in_map[:, None]).sum((1, 2)).numpy()
            bar.update(len(rows))
    scale = 2 / (k * (2 * n - 3 * k - 1))
    out = []
    for strangers, torn, same in sums:
        trust, continuity = 1 - scale * strangers, 1 - scale * torn
        placed = np.minimum(trust, continuity).astype(np.float32)
        out.append(
            Faithfulness(float(trust.mean()), float(continuity.mean()), float(same.mean() / k), placed.clip(0, 1), k)
        )
    return out


def _centred(x: NDArray[Any]) -> Tensor:
    """Return the rows in float64 around their mean, so that squared distances lose no digits."""
    found = torch.from_numpy(np.asarray(x, np.float64))
    return found - found.mean(0)


def _distances(x: Tensor, rows: Tensor) -> Tensor:
    """Return squared distances (len(rows), N) from `rows` to all; infinite to itself."""
    square = x.square().sum(1)
    out = torch.addmm(square[rows, None] + square, x[rows], x.T, alpha=-2)
    out[torch.arange(len(rows)), rows] = torch.inf
    return out


def _intrusion(far: Tensor, chosen: Tensor, k: int) -> NDArray[np.float64]:
    """Return per row by how much the ranks in `far` (B, N) of the columns `chosen` (B, k) exceed k, summed: (B,)."""
    total = torch.zeros(len(far), dtype=torch.float64)
    for at in chosen.T:
        rank = (far < far.gather(1, at[:, None])).sum(1) + 1
        total += (rank - k).clamp(min=0)
    return total.numpy()
