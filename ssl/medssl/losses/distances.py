"""Distances between embeddings, as modules of pytorch-metric-learning: distance(x (N, D), y (M, D)) -> (N, M).

Its losses and miners accept any of them. The named ones lie in [0, 2], so that a margin means much the same in each.
"""

import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.distances.base_distance import BaseDistance
from torch import Tensor, nn

from medssl.errors import UserError, nearest


class Lp(LpDistance):
    """The p-norm of x - y, both scaled to a p-norm of 1. Avoids x @ y.T, which loses small distances to rounding."""

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        """Return the distances (N, M)."""
        return torch.cdist(query_emb, ref_emb, p=self.p, compute_mode="donot_use_mm_for_euclid_dist")


class Cosine(BaseDistance):
    """1 - cos(x, y): half the squared Euclidean distance of unit vectors, hence not a metric."""

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        """Return the distances (N, M)."""
        return 1 - query_emb @ ref_emb.T


class Mahalanobis(BaseDistance):
    """||L (x - y)||, the distance for the matrix M = L^T L. L (K, D) is learned.

    With K below D, or M singular, it is a pseudometric: points that differ only in the null space are at distance 0.
    """

    def __init__(self, factor_KD: Tensor):
        super().__init__(normalize_embeddings=False)
        self.factor = nn.Parameter(factor_KD.clone())

    @classmethod
    def learned(cls, dim: int, rank: int) -> "Mahalanobis":
        """Build a trainable distance that starts as the Euclidean distance of the first `rank` of `dim` coordinates."""
        return cls(torch.eye(rank, dim))

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        """Return the distances (N, M)."""
        x, y = query_emb @ self.factor.T, ref_emb @ self.factor.T
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


EUCLIDEAN = Lp(p=2)
DISTANCES: dict[str, BaseDistance] = {"euclidean": EUCLIDEAN, "manhattan": Lp(p=1), "cosine": Cosine()}


def distance_named(name: str) -> BaseDistance:
    """Return the distance that the option method.distance names. Raises UserError for an unknown name."""
    if name not in DISTANCES:
        raise UserError(f"method.distance is {name!r}.{nearest(name, DISTANCES)}")
    return DISTANCES[name]
