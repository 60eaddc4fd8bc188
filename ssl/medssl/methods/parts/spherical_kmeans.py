"""K-means of unit vectors by their cosines."""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 1 << 14  # rows compared with all centroids at a time, which bounds the memory


def nearest(rows_ND: Tensor, centroids_KD: Tensor) -> tuple[Tensor, Tensor]:
    """Return the centroid (N,) int64 with the largest inner product with each row, and that product (N,)."""
    found = [(block @ centroids_KD.T).max(1) for block in rows_ND.split(BLOCK)]
    return torch.cat([f.indices for f in found]), torch.cat([f.values for f in found])


def spherical_kmeans(rows_ND: Tensor, centroids_KD: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Return centroids (K, D) of unit length and the nearest one (N,) int64 of each row, from a start and unit rows.

    An iteration assigns rows to the centroid with the largest cosine, and moves each to the mean direction of its rows
    (Dhillon & Modha, 2001). An empty cluster takes a part of the largest one, so with N >= K no cluster of the result is empty.
    """
    for _ in range(iterations):
        assigned, _ = _without_empty(rows_ND, centroids_KD)
        sums = torch.zeros_like(centroids_KD).index_add_(0, assigned, rows_ND)
        centroids_KD = F.normalize(sums, dim=1)
    return _without_empty(rows_ND, centroids_KD)[::-1]


def _without_empty(rows_ND: Tensor, centroids_KD: Tensor) -> tuple[Tensor, Tensor]:
    """Return the assignment (N,) and the centroids; those that had no rows split the largest clusters.

    The new centroid is the row farthest from the old one, and takes the rows of that cluster that are nearer to it.
    """
    assigned, product = nearest(rows_ND, centroids_KD)
    centroids_KD = centroids_KD.clone()
    for empty in (torch.bincount(assigned, minlength=len(centroids_KD)) == 0).nonzero()[:, 0].tolist():
        largest = torch.bincount(assigned, minlength=len(centroids_KD)).argmax()
        members = (assigned == largest).nonzero()[:, 0]
        members = members[product[members].argsort(stable=True)]  # the farthest first; the nearest stays
        far, others = members[0], members[1:-1]
        product_far = rows_ND[others] @ rows_ND[far]
        moved = torch.cat([far[None], others[product_far > product[others]]])
        assigned[moved], product[moved] = empty, rows_ND[moved] @ rows_ND[far]
        centroids_KD[empty] = rows_ND[far]
    return assigned, centroids_KD
