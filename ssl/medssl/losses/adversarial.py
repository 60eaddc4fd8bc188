"""Parts of games that fit into one loss: telling two kinds of rows apart, reversed gradients, an adversary that is solved."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from medssl.losses.distributed import full_precision, gather_rows

ROWS_PER_FREEDOM = 8  # rows of a batch for each degree of freedom of a ridge regression
EPSILON = 1e-6  # under standard deviations


@full_precision
def tell_apart(first_B: Tensor, second_B: Tensor) -> Tensor:
    """Return the loss of a discriminator with logits of "first", for rows of the first and of the second kind.

    It is the mean of -log sigmoid(first) plus the mean of -log(1 - sigmoid(second)), the negative of the value function of
    Goodfellow et al., 2014, https://arxiv.org/abs/1406.2661, equation 1. It is 2 ln 2 for logits of 0. With its arguments
    swapped it is the loss of those who try to be taken for the other kind.
    """
    return F.softplus(-first_B).mean() + F.softplus(second_B).mean()


class _Reversal(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * grad, None


def reverse_gradient(x: Tensor, strength: float) -> Tensor:
    """Return x, whose gradient is multiplied by -strength on the way back.

    Ganin et al., 2016, https://arxiv.org/abs/1505.07818: what follows learns to lower its loss, what comes before to raise it.
    """
    return _Reversal.apply(x, strength)


@full_precision
def ridge_error(x_BD: Tensor, y_BM: Tensor, known_B: Tensor) -> Tensor:
    """Return the share of the variance of y that a ridge regression on the same rows leaves unexplained, from 0 to 1.

    With x standardised and y centred over the known rows of all ranks, and a penalty `a`,

        W = (x'x + a)^-1 x'y,    |y - x W|^2 / |y|^2

    `a` is chosen so that the fit has a degree of freedom for every 8 rows, or nearly all if x has fewer columns than that:
    an unpenalised fit of a batch smaller than D would explain everything. No gradient flows through W, which is the
    minimum, so x gets that of an adversary with these weights. 1 if y does not vary or fewer than two rows are known.
    """
    known = gather_rows(known_B.int()).bool()
    x_ND, y_NM = gather_rows(x_BD)[known], gather_rows(y_BM.to(x_BD.dtype))[known]
    if len(x_ND) < 2 or not bool((y_NM != y_NM[0]).any()):
        return x_BD.sum() * 0 + 1
    x_ND, y_NM = x_ND - x_ND.mean(0), y_NM - y_NM.mean(0)
    x_ND = x_ND / (x_ND.square().mean(0) + EPSILON).sqrt()
    with torch.no_grad():
        left, sizes, right = torch.linalg.svd(x_ND, full_matrices=False)
        a = _penalty(sizes.square(), len(x_ND) / ROWS_PER_FREEDOM)
        weight = right.T @ ((sizes / (sizes.square() + a))[:, None] * (left.T @ y_NM))
    return (y_NM - x_ND @ weight).square().sum() / y_NM.square().sum()


def _penalty(eigenvalues: Tensor, freedom: float) -> Tensor:
    """Return the penalty a, between 1e-4 and 1e4 of the largest eigenvalue, with sum of e / (e + a) nearest to `freedom`."""
    low, high = eigenvalues.max() * 1e-4 + EPSILON, eigenvalues.max() * 1e4 + EPSILON
    for _ in range(50):
        a = (low * high).sqrt()
        low, high = (a, high) if (eigenvalues / (eigenvalues + a)).sum() > freedom else (low, a)
    return (low * high).sqrt()
