"""Objectives that compare a prediction with a target row by row: distillation and reconstruction."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from medssl.losses.distributed import full_precision, rank_weight
from medssl.rng import Key, uniform_field


@full_precision
def cosine_distance(prediction_BD: Tensor, target_BD: Tensor) -> Tensor:
    """Mean over rows of 2 - 2 cos(prediction, target): Grill et al., 2020, https://arxiv.org/abs/2006.07733, equation 2.

    No gradient flows to the target.
    """
    return 2 - 2 * F.cosine_similarity(prediction_BD, target_BD.detach(), dim=1).mean()


@full_precision
def masked_patch_error(prediction_BNP: Tensor, target_BNP: Tensor, hidden_BM: Tensor) -> Tensor:
    """Mean squared error on hidden patches, each target patch standardised by its own mean and variance.

    He et al., 2021, https://arxiv.org/abs/2111.06377, section 4.1 ("reconstruction target"). hidden_BM: int64 indices of
    the patches that the encoder did not see; P is the number of values in a patch. The 1e-6 is their code's.
    """
    mean, variance = target_BNP.mean(-1, keepdim=True), target_BNP.var(-1, keepdim=True)
    error = (prediction_BNP - (target_BNP - mean) / (variance + 1e-6).sqrt()).square().mean(-1)
    return error.gather(1, hidden_BM).mean()


def jacobian_norm(layer: Callable[[Tensor], Tensor], x: Tensor, key: Key, slot: int) -> Tensor:
    """An unbiased estimate of |d layer(x) / dx|^2 per input, mean over rows: that of |J^T v|^2, with v random signs (Hutchinson).

    Layers need second derivatives, since it is differentiable. No gradient flows to x (B, …).
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        code = layer(x)
        signs = (uniform_field(key, 0, slot, tuple(code.shape[1:])) < 0.5) * 2.0 - 1
        (pulled,) = torch.autograd.grad((code * signs).sum(), x, create_graph=True)
    return squared_error(pulled, torch.zeros_like(pulled))


@full_precision
def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over all elements of (prediction - target)^2; the target is taken as it is, without gradient."""
    return F.mse_loss(prediction, target.detach())


@full_precision
def masked_squared_error(prediction: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """Mean of (prediction - target)^2 over what `hidden` (bool, broadcast) marks on all ranks; no gradient to the target."""
    hidden = hidden.expand_as(target)
    count = hidden.sum()
    return ((prediction - target.detach()).square() * hidden).sum() / count.clamp(min=1) * rank_weight(count)
