"""Losses of pairs and triplets with margins."""

import torch
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
    """Return the contrastive loss, Hadsell et al., 2006, https://doi.org/10.1109/CVPR.2006.100, equation 4.

    Positives have a margin too. With d the distance of rows, by default Euclidean between L2-normalised rows, it is the

        mean over pairs of one group  of max(0, d - positive_margin)^2
      + mean over pairs of two groups of max(0, negative_margin - d)^2

    with both means over the pairs that violate their margin, since the others would only dilute the step (the average that
    Musgrave et al., 2020, https://arxiv.org/abs/2003.08505, tuned with). A mean over no pairs is 0.

    z_ND: embeddings of this rank. group_N: int64, equal for rows that attract. Pairs span all ranks.
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
    """Return the triplet loss, Schroff et al., 2015, https://arxiv.org/abs/1503.03832, equation 3.

    With d the distance, by default Euclidean between L2-normalised rows, it is the mean over the mined triplets (a, p, n) of

        max(0, d_ap - d_an + margin)

    mining: "all" triplets that violate the margin; among them only the "semihard" (d_ap < d_an) or the "hard" ones
    (d_an <= d_ap); or the "easy" ones that do not violate it, whose loss is 0, as a control. Triplets span all ranks.
    Without any, the loss is 0. Memory grows with the square of the number of rows, and not with the number of triplets.
    """
    z, group = gather_rows(z_ND), gather_rows(group_N)
    if mining == "easy":
        return z.sum() * 0
    d, same = distance(z, z), group[:, None] == group
    count, total = _nearer_negatives(d, same, d if mining == "hard" else d + margin)
    if mining == "semihard":
        nearest, nearest_total = _nearer_negatives(d, same, d)
        count, total = count - nearest, total - nearest_total
    positive = same & ~torch.eye(len(d), dtype=torch.bool, device=d.device)
    excess = (count * (d.double() + margin) - total) * positive
    return excess.sum().to(z.dtype) / (count * positive).sum().clamp(min=1)


@full_precision
def lifted_structure(z_ND: Tensor, group_N: Tensor, margin: float, distance: BaseDistance = EUCLIDEAN) -> Tensor:
    """Return the lifted structure loss, Oh Song et al., 2016, https://arxiv.org/abs/1511.06452, equation 4.

    It compares each positive pair with all negatives of both its rows. It is the mean over pairs (i, j) of one group of
    max(0, J)^2 / 2 with

        J = log( sum over k of exp(margin - d_ik) + sum over l of exp(margin - d_jl) ) + d_ij

    where k and l belong to groups other than that of i and j. Pairs span all ranks. Without positives or negatives the loss
    is 0. The two sums are computed once per row: pytorch-metric-learning builds a mask of positive times negative pairs,
    which has a billion entries for two classes in a batch of 256 rows.
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
    """Return the loss of large margin nearest neighbours, Weinberger & Saul, 2009, equations 11 to 13, on a batch.

    It is the mean over pairs (i, j) of one group, with l over the rows of other groups, of

        (1 - push) d_ij^2 + push * sum over l of max(0, margin + d_ij^2 - d_il^2)

    Their target neighbours are the nearest in input space; here they are all rows of the group. Pairs span all ranks.
    Without positives the loss is 0. Memory grows with the square of the number of rows.
    """
    z, group = gather_rows(z_ND), gather_rows(group_N)
    d, same = distance(z, z).square(), group[:, None] == group
    count, total = _nearer_negatives(d, same, d + margin)
    positive = same & ~torch.eye(len(d), dtype=torch.bool, device=d.device)
    excess = count * (d.double() + margin) - total
    each = ((1 - push) * d + push * excess) * positive
    return each.sum().to(z.dtype) / positive.sum().clamp(min=1)


def _nearer_negatives(d: Tensor, same: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for each row i and each limit (i, j), how many rows l of other groups have d_il <= limit_ij, and their sum of d_il.

    d, limit: (N, N). same: (N, N) bool, True within a group. Returns (N, N) int64 and (N, N) float64. Negatives are sorted
    once per row, so that sums over triplets are differences of cumulative sums.
    """
    negatives = d.masked_fill(same, torch.inf).sort(1).values
    count = torch.searchsorted(negatives.detach(), limit.detach().contiguous(), right=True)
    finite = negatives.masked_fill(negatives.isinf(), 0).double()
    return count, torch.nn.functional.pad(finite.cumsum(1), (1, 0)).gather(1, count)
