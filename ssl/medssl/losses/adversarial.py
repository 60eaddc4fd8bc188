"""Parts of games between networks that fit into one loss: telling two kinds of rows apart, and reversed gradients."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from medssl.losses.distributed import full_precision


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
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return -ctx.strength * grad, None


def reverse_gradient(x: Tensor, strength: float) -> Tensor:
    """Return x, whose gradient is multiplied by -strength on the way back.

    Ganin et al., 2016, https://arxiv.org/abs/1505.07818: what follows learns to lower its loss, what comes before to raise it.
    """
    return _Reversal.apply(x, strength)
