"""InfoNCE between two views: views of one scan attract, views of different scans repel."""

import torch
import torch.nn.functional as F
from torch import Tensor

from medssl.losses.distributed import full_precision, gather_rows, rank


@full_precision
def nt_xent(a_BD: Tensor, b_BD: Tensor, temperature: float) -> Tensor:
    """Return NT-Xent, Chen et al., 2020, https://arxiv.org/abs/2002.05709, equation 1.

    It is the mean over all 2B views i, with partner j and cosine similarity s, of

        -log( exp(s_ij / temperature) / sum over k != i of exp(s_ik / temperature) )

    a_BD, b_BD: the two views of the same B scans of this rank; negatives come from all ranks. For constant features the
    loss is ln(2B - 1), with B counted over all ranks.
    """
    a_BD, b_BD = F.normalize(a_BD, dim=1), F.normalize(b_BD, dim=1)
    a_GD, b_GD = gather_rows(a_BD), gather_rows(b_BD)  # G = B * ranks
    me = torch.arange(len(a_BD), device=a_BD.device) + rank() * len(a_BD)  # this rank's rows in G
    loss = a_BD.new_zeros(())
    for mine, partners, others in ((a_BD, b_GD, a_GD), (b_BD, a_GD, b_GD)):
        logits = mine @ torch.cat([partners, others]).T / temperature  # (B, 2G), the partner in column `me`
        logits = logits.scatter(1, (me + len(a_GD))[:, None], float("-inf"))  # excludes each view itself
        loss = loss + F.cross_entropy(logits, me) / 2
    return loss
