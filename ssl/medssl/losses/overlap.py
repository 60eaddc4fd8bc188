"""The losses of VoCo: predict by how much a crop overlaps each base crop, and keep base crops apart.

Wu et al., 2024, https://arxiv.org/abs/2402.17300, with the terms as in the authors' code (github.com/Luffy03/VoCo).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from medssl.losses.distributed import full_precision

EPSILON = 1e-6


@full_precision
def overlap_loss(similarity_BQK: Tensor, overlap_BQK: Tensor) -> Tensor:
    """Return how far similarities p of Q crops and K base crops, in [0, 1], are from their overlaps y, averaged over scans.

    For each scan, with sums over crops and base crops, and e = 1e-6, it is

        -(sum y log(1 - |y - p| + e)) / (sum y + e)  +  (sum of p^2 where y = 0) / (number of y = 0, + e)
    """
    near = (1 - (overlap_BQK - similarity_BQK).abs() + EPSILON).log()
    apart = (overlap_BQK == 0).to(similarity_BQK.dtype)
    found = -(overlap_BQK * near).sum((1, 2)) / (overlap_BQK.sum((1, 2)) + EPSILON)
    missed = (apart * similarity_BQK.square()).sum((1, 2)) / (apart.sum((1, 2)) + EPSILON)
    return (found + missed).mean()


@full_precision
def distinct_bases(bases_BKD: Tensor) -> Tensor:
    """Return the mean over scans and pairs i < j of their base crops of max(0, cosine)^2; no gradient flows to the j-th."""
    unit = F.normalize(bases_BKD, dim=2)
    cosine = (unit @ unit.detach().transpose(1, 2)).relu().square()
    count = cosine.shape[1]
    i, j = torch.triu_indices(count, count, offset=1, device=cosine.device)
    return cosine[:, i, j].mean()
