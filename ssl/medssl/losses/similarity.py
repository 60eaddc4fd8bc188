"""Objectives on similarities: softmaxes over a batch's pairs, and pairs whose similarity is known or known to be or not.

The first three are pytorch-metric-learning's. What learns from rankings, a is more like b than like c, is `pairs.triplet`.
"""

import torch
import torch.nn.functional as F
from pytorch_metric_learning import distances, losses, miners, regularizers
from torch import Tensor

from medssl.losses.distributed import full_precision, gather_rows

SIMILARITIES = ("dot", "cosine")


@full_precision
def sup_con(z_ND: Tensor, group_N: Tensor, temperature: float) -> Tensor:
    """InfoNCE with several positives: Khosla et al., 2020, https://arxiv.org/abs/2004.11362, equation 2.

    With s the cosine similarity, the mean over rows i that have positives of

        - mean over p in the group of i, p != i, of log( exp(s_ip / temperature) / sum over a != i of exp(s_ia / temperature) )

    Rows span all ranks. Without a positive or without a negative pair the loss is 0. With one positive per row it is
    `infonce.nt_xent`.
    """
    return losses.SupConLoss(temperature)(gather_rows(z_ND), gather_rows(group_N))


@full_precision
def multi_similarity(
    z_ND: Tensor, group_N: Tensor, alpha: float, beta: float, base: float, epsilon: float | None = None
) -> Tensor:
    """Wang et al., 2019, https://arxiv.org/abs/1904.06627, equation 15, over the pairs that equations 10 and 11 keep.

    With s the cosine similarity, the mean over all rows i of

        1/alpha log(1 + sum over positives of exp(-alpha (s_ij - base)))
      + 1/beta  log(1 + sum over negatives of exp( beta (s_ij - base)))

    epsilon: a positive pair is kept when it is less similar than the most similar negative plus epsilon, a negative one
    when it is more similar than the least similar positive minus epsilon; None keeps all. Pairs span all ranks. The loss
    is 0 without positives or negatives, and where at most one pair of each is kept.
    """
    z, group = gather_rows(z_ND), gather_rows(group_N)
    kept = None if epsilon is None else miners.MultiSimilarityMiner(epsilon)(z, group)
    return losses.MultiSimilarityLoss(alpha, beta, base)(z, group, kept)


@full_precision
def n_pairs(z_ND: Tensor, group_N: Tensor, similarity: str = "dot", norm_weight: float = 0.0) -> Tensor:
    """Sohn, 2016, "Improved deep metric learning with multi-class N-pair loss objective", equation 8.

    One pair (a, p) of each group that has two rows, its first and its last; with s the inner product ("dot", as in the
    paper) or the cosine, the mean over groups i of

        log(1 + sum over other groups j of exp(s(a_i, p_j) - s(a_i, p_i)))   +   norm_weight * mean of |z|^2 over all rows

    Groups span all ranks; where views of a scan are neighbouring rows, the pairs are the same as in one process. Without
    a pair the loss is 0.
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
    """Mean over pairs of rows of (cos(z_i, z_j) - wanted_ij)^2.

    wanted_GG, counted_GG (bool): the similarity of each pair of all ranks' rows, and which pairs count; none with itself.
    """
    cos, counted = _pairs(z_ND, counted_GG)
    return ((cos - wanted_GG.to(cos.dtype)).square() * counted).sum() / counted.sum().clamp(min=1)


@full_precision
def similarity_classification(
    z_ND: Tensor, similar_GG: Tensor, counted_GG: Tensor, scale: Tensor | float, bias: Tensor | float
) -> Tensor:
    """Mean over pairs of rows of -log p, where p is the probability given to what the pair is, similar or not.

        P(i and j are similar) = sigmoid(scale cos(z_i, z_j) + bias)

    The loss of a pair of Zhai et al., 2023, https://arxiv.org/abs/2303.15343, section 3.2. similar_GG, counted_GG: bool,
    over the rows of all ranks; no row counts with itself.
    """
    cos, counted = _pairs(z_ND, counted_GG)
    each = F.binary_cross_entropy_with_logits(scale * cos + bias, similar_GG.to(cos.dtype), reduction="none")
    return (each * counted).sum() / counted.sum().clamp(min=1)


def _pairs(z_ND: Tensor, counted_GG: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines of all ranks' rows (G, G), and which count."""
    z = gather_rows(F.normalize(z_ND, dim=1))
    return z @ z.T, counted_GG & ~torch.eye(len(z), dtype=torch.bool, device=z.device)
