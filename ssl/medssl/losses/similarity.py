"""Losses on the similarities of a batch's pairs: softmaxes (pytorch-metric-learning's), regression and classification.

`pairs.triplet` learns from rankings instead: a is more similar to b than to c.
"""

import torch
import torch.nn.functional as F
from pytorch_metric_learning import distances, losses, miners, regularizers
from torch import Tensor

from medssl.losses.distributed import full_precision, gather_rows

SIMILARITIES = ("dot", "cosine")


@full_precision
def sup_con(z_ND: Tensor, group_N: Tensor, temperature: float) -> Tensor:
    """Return InfoNCE with several positives: Khosla et al., 2020, https://arxiv.org/abs/2004.11362, equation 2.

    With s the cosine similarity, it is the mean over rows i that have positives of

        - mean over p in the group of i, p != i, of log( exp(s_ip / temperature) / sum over a != i of exp(s_ia / temperature) )

    Rows span all ranks. Without positive or without negative pairs the loss is 0. With one positive per row it equals
    `infonce.nt_xent`.
    """
    return losses.SupConLoss(temperature)(gather_rows(z_ND), gather_rows(group_N))


@full_precision
def multi_similarity(
    z_ND: Tensor, group_N: Tensor, alpha: float, beta: float, base: float, epsilon: float | None = None
) -> Tensor:
    """Return equation 15 of Wang et al., 2019, https://arxiv.org/abs/1904.06627, on the pairs mined by equations 10 and 11.

    With s the cosine similarity, it is the mean over all rows i of

        1/alpha log(1 + sum over positives of exp(-alpha (s_ij - base)))
      + 1/beta  log(1 + sum over negatives of exp( beta (s_ij - base)))

    epsilon: a positive pair is kept if it is less similar than the most similar negative plus epsilon, a negative pair if
    it is more similar than the least similar positive minus epsilon; None keeps all. Pairs span all ranks. The loss is 0
    without positives or negatives, and if at most one pair of each is kept.
    """
    z, group = gather_rows(z_ND), gather_rows(group_N)
    kept = None if epsilon is None else miners.MultiSimilarityMiner(epsilon)(z, group)
    return losses.MultiSimilarityLoss(alpha, beta, base)(z, group, kept)


@full_precision
def n_pairs(z_ND: Tensor, group_N: Tensor, similarity: str = "dot", norm_weight: float = 0.0) -> Tensor:
    """Return equation 8 of Sohn, 2016, "Improved deep metric learning with multi-class N-pair loss objective".

    Each group of two rows or more gives one pair (a, p), its first and last row. With s the inner product ("dot", as in the
    paper) or the cosine, the loss is the mean over groups i of

        log(1 + sum over other groups j of exp(s(a_i, p_j) - s(a_i, p_i)))   +   norm_weight * mean of |z|^2 over all rows

    Groups span all ranks; if the views of each scan are adjacent rows, the pairs are the same as in one process. Without
    pairs the loss is 0.
    """
    z, group = gather_rows(z_ND), gather_rows(group_N)
    at = torch.arange(len(z), device=z.device)
    _, place = group.unique(return_inverse=True)
    ends = [
        at.new_zeros(int(place.max()) + 1).scatter_reduce(0, place, at, r, include_self=False) for r in ("amin", "amax")
    ]
    first, last = torch.stack(ends)[:, ends[0] < ends[1]]
    loss = losses.NPairsLoss(
        distance=distances.DotProductSimilarity(normalize_embeddings=similarity == "cosine"),
        embedding_regularizer=regularizers.LpRegularizer(power=2) if norm_weight else None,
        embedding_reg_weight=norm_weight,
    )
    return loss(z, group, (first, last, at[:0], at[:0])) if len(first) else z.sum() * 0


@full_precision
def similarity_regression(z_ND: Tensor, wanted_GG: Tensor, counted_GG: Tensor) -> Tensor:
    """Return the mean over pairs of rows of (cos(z_i, z_j) - wanted_ij)^2.

    wanted_GG: the target similarity of each pair of rows of all ranks. counted_GG: bool, the pairs to use. A row is never
    paired with itself.
    """
    cos, counted = _pairs(z_ND, counted_GG)
    return ((cos - wanted_GG.to(cos.dtype)).square() * counted).sum() / counted.sum().clamp(min=1)


@full_precision
def similarity_classification(
    z_ND: Tensor, similar_GG: Tensor, counted_GG: Tensor, scale: Tensor | float, bias: Tensor | float
) -> Tensor:
    """Return the mean over pairs of rows of -log p, with p the predicted probability that a pair is similar, or is not.

        P(i and j are similar) = sigmoid(scale cos(z_i, z_j) + bias)

    This is the pairwise loss of Zhai et al., 2023, https://arxiv.org/abs/2303.15343, section 3.2. similar_GG, counted_GG
    (the pairs to use): bool, over the rows of all ranks. A row is never paired with itself.
    """
    cos, counted = _pairs(z_ND, counted_GG)
    each = F.binary_cross_entropy_with_logits(scale * cos + bias, similar_GG.to(cos.dtype), reduction="none")
    return (each * counted).sum() / counted.sum().clamp(min=1)


def _pairs(z_ND: Tensor, counted_GG: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosines (G, G) of the rows of all ranks, and the pairs to use."""
    z = gather_rows(F.normalize(z_ND, dim=1))
    return z @ z.T, counted_GG & ~torch.eye(len(z), dtype=torch.bool, device=z.device)
