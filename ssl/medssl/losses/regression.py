"""Losses that compare predictions with targets element by element: distillation and reconstruction."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from medssl.losses.distributed import full_precision, rank_weight
from medssl.rng import Key, uniform_field


@full_precision
def cosine_distance(prediction_BD: Tensor, target_BD: Tensor) -> Tensor:
    """Return the mean over rows of 2 - 2 cos(prediction, target).

    Grill et al., 2020, https://arxiv.org/abs/2006.07733, equation 2. No gradient flows to the target.
    """
    return 2 - 2 * F.cosine_similarity(prediction_BD, target_BD.detach(), dim=1).mean()


@full_precision
def masked_patch_error(prediction_BNP: Tensor, target_BNP: Tensor, hidden_BM: Tensor) -> Tensor:
    """Return the mean squared error on hidden patches, with each target patch standardised by its own mean and variance.

    He et al., 2021, https://arxiv.org/abs/2111.06377, section 4.1 ("reconstruction target"). hidden_BM: int64 indices of
    the patches hidden from the encoder; P is the number of values in a patch. The 1e-6 is from their code.
    """
    mean, variance = target_BNP.mean(-1, keepdim=True), target_BNP.var(-1, keepdim=True)
    error = (prediction_BNP - (target_BNP - mean) / (variance + 1e-6).sqrt()).square().mean(-1)
    return error.gather(1, hidden_BM).mean()


def jacobian_norm(layer: Callable[[Tensor], Tensor], x: Tensor, key: Key, slot: int) -> Tensor:
    """Return an unbiased estimate of |J|^2, J = d layer(x) / dx, per input, as a mean over rows.

    Hutchinson's estimator: |J^T v|^2 with random signs v. It is differentiable, so the layer needs second derivatives. No
    gradient flows to x (B, …).
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        code = layer(x)
        signs = (uniform_field(key, 0, slot, tuple(code.shape[1:])) < 0.5) * 2.0 - 1
        (pulled,) = torch.autograd.grad((code * signs).sum(), x, create_graph=True)
    return squared_error(pulled, torch.zeros_like(pulled))


@full_precision
def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean over all elements of (prediction - target)^2; no gradient flows to the target."""
    return F.mse_loss(prediction, target.detach())


@full_precision
def masked_squared_error(prediction: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """Return the mean of (prediction - target)^2 where `hidden` (bool, broadcast), over all ranks; the target has no gradient."""
    return _masked_mean((prediction - target.detach()).square(), hidden)


@full_precision
def masked_absolute_error(prediction: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """Return the mean of |prediction - target| where `hidden` (bool, broadcast), over all ranks; the target has no gradient."""
    return _masked_mean((prediction - target.detach()).abs(), hidden)


def _masked_mean(error: Tensor, hidden: Tensor) -> Tensor:
    hidden = hidden.expand_as(error)
    count = hidden.sum()
    return (error * hidden).sum() / count.clamp(min=1) * rank_weight(count)


@full_precision
def smooth_absolute_error(prediction: Tensor, target: Tensor, beta: float) -> Tensor:
    """Return the mean over all elements of d^2 / (2 beta) for d = |prediction - target| up to beta, and of d - beta / 2 above.

    Girshick, 2015, https://arxiv.org/abs/1504.08083, with beta as in data2vec. No gradient flows to the target.
    """
    return F.smooth_l1_loss(prediction, target.detach(), beta=beta)
