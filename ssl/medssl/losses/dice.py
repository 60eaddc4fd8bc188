"""Dice and cross-entropy for segmentation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from medssl.losses.distributed import full_precision, gather_rows

SMOOTH = 1e-5  # keeps the Dice of an absent class defined


@full_precision
def dice_cross_entropy(scores: Tensor, target: Tensor) -> Tensor:
    """Return soft Dice loss plus cross-entropy (Isensee et al., 2021, https://doi.org/10.1038/s41592-020-01008-z, methods).

    With p the softmax of scores (B, K, *S) and t the one-hot target (B, *S) int64, the Dice loss is the mean over all
    classes except 0, the background, of

        1 - (2 sum p t + e) / (sum p + sum t + e),   e = 1e-5,

    with sums over all pixels of the batch, on all ranks (Milletari et al., 2016, https://arxiv.org/abs/1606.04797, without
    squares). Per scan, any trace of a class that the scan does not contain would cost 1; over the batch it costs in
    proportion. The cross-entropy is the mean over pixels.
    """
    p = scores.softmax(1)
    t = F.one_hot(target, scores.shape[1]).movedim(-1, 1).to(p.dtype)
    axes = (0, *range(2, p.ndim))
    sums = torch.stack([(p * t).sum(axes), p.sum(axes) + t.sum(axes)])
    both, each = gather_rows(sums[None]).sum(0)
    dice = (2 * both + SMOOTH) / (each + SMOOTH)
    return (1 - dice[1:]).mean() + F.cross_entropy(scores, target)
