"""Pairs and triplets with margins; pairs, triplets and mining are pytorch-metric-learning's."""

import torch
import torch.nn.functional as F
from pytorch_metric_learning import distances, losses, miners, reducers
from pytorch_metric_learning.utils.loss_and_miner_utils import get_all_pairs_indices
from torch import Tensor

from medssl.objectives.ranks import all_rows, full_precision

MINING = ("all", "easy", "semihard", "hard")


@full_precision
def contrastive(z_ND: Tensor, group_N: Tensor, positive_margin: float, negative_margin: float) -> Tensor:
    """Hadsell et al., 2006, https://doi.org/10.1109/CVPR.2006.100, equation 4, with a margin for positives as well.

    With d the Euclidean distance of L2-normalised rows,

        mean over pairs of one group  of max(0, d - positive_margin)^2
      + mean over pairs of two groups of max(0, negative_margin - d)^2

    where both means are over the pairs that violate their margin (those that do not would only dilute the step; the
    average Musgrave et al., 2020, https://arxiv.org/abs/2003.08505, tuned with). A mean over no pairs is 0.

    z_ND: embeddings of this rank; group_N: int64, rows of one group belong together. Pairs span all ranks.
    """
    z, group = all_rows(F.normalize(z_ND, dim=1)), all_rows(group_N)
    anchors, positives, others, negatives = get_all_pairs_indices(group)
    d = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist")
    pull = (d[anchors, positives] - positive_margin).clamp(min=0).square()
    push = (negative_margin - d[others, negatives]).clamp(min=0).square()
    return sum((p.sum() / (p > 0).sum().clamp(min=1) for p in (pull, push)), start=z.sum() * 0)


@full_precision
def triplet(z_ND: Tensor, group_N: Tensor, margin: float, mining: str = "semihard") -> Tensor:
    """Schroff et al., 2015, https://arxiv.org/abs/1503.03832, equation 3, over the triplets that `mining` keeps.

    With d the Euclidean distance of L2-normalised rows, the mean over kept triplets (a, p, n) of

        max(0, d_ap - d_an + margin)

    mining: "all" triplets that violate the margin, of these the "semihard" (d_ap < d_an) or the "hard" (d_an <= d_ap)
    ones, or the "easy" ones that do not violate it (their loss is zero: a control). Triplets span all ranks. Without
    any, the loss is 0.
    """
    z, group = all_rows(F.normalize(z_ND, dim=1)), all_rows(group_N)
    distance = distances.LpDistance(normalize_embeddings=False)
    kept = miners.TripletMarginMiner(margin, mining, distance=distance)(z, group)
    loss = losses.TripletMarginLoss(margin, distance=distance, reducer=reducers.MeanReducer())
    return loss(z, group, kept) + z.sum() * 0  # still a function of z when no triplet is kept
