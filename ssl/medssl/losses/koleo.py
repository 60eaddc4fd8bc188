"""KoLeo: no two scans have the same features."""

import torch
import torch.nn.functional as F
from torch import Tensor

from medssl.losses.distributed import full_precision, gather_rows

EPSILON = 1e-8  # of DINOv2's code: added to distances under the logarithm


@full_precision
def koleo(x_BD: Tensor) -> Tensor:
    """Return the estimate of negative entropy of Sablayrolles et al., 2019, https://arxiv.org/abs/1806.03198, equation 2.

    It is the mean over rows i of -log(d_i + 1e-8), with d_i the distance from row i to its nearest other row, all scaled to
    length 1, as DINOv2 uses it (Oquab et al., 2023, https://arxiv.org/abs/2304.07193, section 4). Rows span all ranks, and
    there must be two at least.
    """
    z_GD = F.normalize(gather_rows(x_BD), dim=1)
    with torch.no_grad():
        nearest = (z_GD @ z_GD.T).fill_diagonal_(-2).argmax(1)
    return -((z_GD - z_GD[nearest]).norm(dim=1) + EPSILON).log().mean()
