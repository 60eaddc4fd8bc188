"""Losses on the statistics of a batch's features: every feature varies, and no two of them say the same."""

import torch
import torch.nn.functional as F
from torch import Tensor

from medssl.losses.distributed import full_precision, gather_rows

VICREG_EPSILON = 1e-4  # under the root of the standard deviation, as in their code
BARLOW_EPSILON = 1e-5  # added to variances, as by the batch normalisation of their code


@full_precision
def vicreg(a_BD: Tensor, b_BD: Tensor, invariance: float, variance: float, covariance: float) -> Tensor:
    """Return VICReg, Bardes et al., 2022, https://arxiv.org/abs/2105.04906, with weights of its three terms.

    With s_j the standard deviation of feature j, sqrt(variance + 1e-4), and C the covariance matrix (both divide by the
    number of rows - 1), it is

        invariance * mean over rows and features of (a - b)^2
      + variance   * mean over both views and all features j of max(0, 1 - s_j)
      + covariance * sum over both views of 1/D * sum over i != j of C_ij^2

    As in their code, for which the paper gives its weights, the first term is a mean over features, where the paper has
    their sum, and the second is halved. Rows span all ranks. For constant features the loss is 0.99 * variance.
    """
    loss = a_BD.new_zeros(())
    a_GD, b_GD = gather_rows(a_BD), gather_rows(b_BD)
    for z_GD in (a_GD, b_GD):
        centred = z_GD - z_GD.mean(0)
        c_DD = centred.T @ centred / (len(centred) - 1)
        std = (c_DD.diagonal() + VICREG_EPSILON).sqrt()
        loss = loss + variance * F.relu(1 - std).mean() / 2 + covariance * _off_diagonal(c_DD) / len(c_DD)
    return loss + invariance * F.mse_loss(a_GD, b_GD)


@full_precision
def barlow_twins(a_BD: Tensor, b_BD: Tensor, redundancy: float) -> Tensor:
    """Return the loss of Barlow Twins, Zbontar et al., 2021, https://arxiv.org/abs/2103.03230.

    With C_ij the correlation over the rows of feature i of one view with feature j of the other (with 1e-5 added
    to each variance), it is

        sum over i of (1 - C_ii)^2 + redundancy * sum over i != j of C_ij^2

    Rows span all ranks. For constant features the loss is D.
    """
    a_GD, b_GD = (_standardised(gather_rows(z)) for z in (a_BD, b_BD))
    c_DD = a_GD.T @ b_GD / len(a_GD)
    return (1 - c_DD.diagonal()).square().sum() + redundancy * _off_diagonal(c_DD)


def _standardised(z_GD: Tensor) -> Tensor:
    """Return features of mean 0 and variance 1 over the rows."""
    centred = z_GD - z_GD.mean(0)
    return centred * (centred.square().mean(0) + BARLOW_EPSILON).rsqrt()


def _off_diagonal(m_DD: Tensor) -> Tensor:
    """Return the sum of the squares of all elements that are not on the diagonal."""
    return (m_DD - torch.diag(m_DD.diagonal())).square().sum()
