"""Pairs and triplets with margins; pairs, triplets and mining are pytorch-metric-learning's."""

import torch
from pytorch_metric_learning import losses, miners, reducers
from pytorch_metric_learning.distances.base_distance import BaseDistance
from pytorch_metric_learning.utils.loss_and_miner_utils import get_all_pairs_indices
from torch import Tensor

from medssl.losses.distances import EUCLIDEAN
from medssl.losses.distributed import full_precision, gather_rows

MINING = ("all", "easy", "semihard", "hard")


@full_precision
def contrastive(
    z_ND: Tensor, group_N: Tensor, positive_margin: float, negative_margin: float, distance: BaseDistance = EUCLIDEAN
) -> Tensor:
    """Hadsell et al., 2006, https://doi.org/10.1109/CVPR.2006.100, equation 4, with a margin for positives as well.

    With d the distance of rows, by default the Euclidean one of L2-normalised rows,

        mean over pairs of one group  of max(0, d - positive_margin)^2
      + mean over pairs of two groups of max(0, negative_margin - d)^2

    where both means are over the pairs that violate their margin (those that do not would only dilute the step; the
    average Musgrave et al., 2020, https://arxiv.org/abs/2003.08505, tuned with). A mean over no pairs is 0.

    z_ND: embeddings of this rank; group_N: int64, rows of one group belong together. Pairs span all ranks.
    """
    z, group = gather_rows(z_ND), gather_rows(group_N)
    anchors, positives, others, negatives = get_all_pairs_indices(group)
    d = distance(z, z)
    pull = (d[anchors, positives] - positive_margin).clamp(min=0).square()
    push = (negative_margin - d[others, negatives]).clamp(min=0).square()
    return sum((p.sum() / (p > 0).sum().clamp(min=1) for p in (pull, push)), start=z.sum() * 0)


@full_precision
def triplet(
    z_ND: Tensor, group_N: Tensor, margin: float, mining: str = "semihard", distance: BaseDistance = EUCLIDEAN
) -> Tensor:
    """Schroff et al., 2015, https://arxiv.org/abs/1503.03832, equation 3, over the triplets that `mining` keeps.

    With d the distance, by default the Euclidean one of L2-normalised rows, the mean over kept triplets (a, p, n) of

        max(0, d_ap - d_an + margin)

    mining: "all" triplets that violate the margin, of these the "semihard" (d_ap < d_an) or the "hard" (d_an <= d_ap)
    ones, or the "easy" ones that do not violate it (their loss is zero: a control). Triplets span all ranks. Without
    any, the loss is 0.
    """
    z, group = gather_rows(z_ND), gather_rows(group_N)
    kept = miners.TripletMarginMiner(margin, mining, distance=distance)(z, group)
    loss = losses.TripletMarginLoss(margin, distance=distance, reducer=reducers.MeanReducer())
    return loss(z, group, kept) + z.sum() * 0  # still a function of z when no triplet is kept


@full_precision
def lifted_structure(z_ND: Tensor, group_N: Tensor, margin: float, distance: BaseDistance = EUCLIDEAN) -> Tensor:
    """Oh Song et al., 2016, https://arxiv.org/abs/1511.06452, equation 4: each positive pair against all its negatives.

    The mean over pairs (i, j) of one group of max(0, J)^2 / 2 with

        J = log( sum over k of exp(margin - d_ik) + sum over l of exp(margin - d_jl) ) + d_ij

    where k and l are in other groups than i and j. Pairs span all ranks. Without positives or negatives the loss is 0.
    The two sums are taken once per row: pytorch-metric-learning keeps a mask of positive times negative pairs, which for
    two classes in a batch of 256 rows is a billion entries.
    """
    z, group = gather_rows(z_ND), gather_rows(group_N)
    same = group[:, None] == group
    i, j, others, _ = get_all_pairs_indices(group)
    if not len(i) or not len(others):
        return z.sum() * 0
    d = distance(z, z)
    push = (margin - d).masked_fill(same, -torch.inf).logsumexp(1)
    return ((torch.logaddexp(push[i], push[j]) + d[i, j]).clamp(min=0).square() / 2).mean()


@full_precision
def lmnn(z_ND: Tensor, group_N: Tensor, push: float, margin: float, distance: BaseDistance = EUCLIDEAN) -> Tensor:
    """Large margin nearest neighbours: Weinberger & Saul, 2009, equations 11 to 13, over the pairs of a batch.

    The mean over pairs (i, j) of one group, with l over the rows of other groups, of

        (1 - push) d_ij^2 + push * sum over l of max(0, margin + d_ij^2 - d_il^2)

    Their target neighbours are the nearest in input space; here all rows of the group are. Pairs span all ranks. Without
    positives the loss is 0.
    """
    z, group = gather_rows(z_ND), gather_rows(group_N)
    i, j, _, _ = get_all_pairs_indices(group)
    d = distance(z, z).square()
    near = d[i, j]
    closer = (margin + near[:, None] - d[i]).clamp(min=0) * (group[i, None] != group)
    return ((1 - push) * near + push * closer.sum(1)).sum() / max(1, len(i))
