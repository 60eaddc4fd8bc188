"""Log-sum-exp over a matrix of similarities too large to keep: a few rows at a time, and again for the gradient."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

LARGE = 1 << 24
"""Similarities from which the losses use tiles: 64 MB in float32 for each of the copies that they would make."""
TILE = 1 << 21
"""Similarities in a tile: 8 MB in float32."""


class _RowLogSumExp(Function):
    """See `row_logsumexp`."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, y_MD: Tensor, left_out_NE: Tensor, temperature: float) -> Tensor:
        out_N = x_ND.new_empty(len(x_ND))
        step = max(1, TILE // len(y_MD))
        for at in range(0, len(x_ND), step):
            rows = slice(at, at + step)
            out_N[rows] = _tile(x_ND[rows], y_MD, left_out_NE[rows], temperature).logsumexp(1)
        ctx.save_for_backward(x_ND, y_MD, left_out_NE, out_N)
        ctx.temperature = temperature
        return out_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, y_MD, left_out_NE, out_N = ctx.saved_tensors
        into_x, into_y = torch.empty_like(x_ND), torch.zeros_like(y_MD)
        step = max(1, TILE // len(y_MD))
        with torch.autocast(x_ND.device.type, enabled=False):
            for at in range(0, len(x_ND), step):
                rows = slice(at, at + step)
                share = _tile(x_ND[rows], y_MD, left_out_NE[rows], ctx.temperature)
                share.sub_(out_N[rows, None]).exp_().mul_((grad_N[rows] / ctx.temperature)[:, None])
                torch.mm(share, y_MD, out=into_x[rows])
                into_y.addmm_(share.T, x_ND[rows])
        return into_x, into_y, None, None


def row_logsumexp(x_ND: Tensor, y_MD: Tensor, left_out_NE: Tensor, temperature: float) -> Tensor:
    """Return (N,) log sum over m of exp(x_n . y_m / temperature), without the E columns `left_out` (int64) of each row.

    Equal to the sum over the whole matrix, in value and gradient, to rounding; needs memory for `TILE` of its elements at a
    time. The gradient computes them again, for a fourth matrix product in place of three. Once differentiable.
    """
    return _RowLogSumExp.apply(x_ND, y_MD, left_out_NE, temperature)


def _tile(x_RD: Tensor, y_MD: Tensor, left_out_RE: Tensor, temperature: float) -> Tensor:
    return (x_RD @ y_MD.T).div_(temperature).scatter_(1, left_out_RE, float("-inf"))
