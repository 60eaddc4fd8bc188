"""Resampling on a processor, where each output needs few inputs: interpolation, blurs and the places of a rotation."""

import math

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


def weighted(x: Tensor, axis: int, at: Tensor, weights: Tensor) -> Tensor:
    """Return x (B, C, *S) with n_out places along an axis in place of its n, each a weighted sum of K of them.

    at: (B or 1, n_out, K) int64 places. weights: (B or 1, n_out, K). The sums are bags of embeddings, which torch reads once and
    writes once.
    """
    last = axis == x.ndim - 1
    if last:  # whole rows are added up, so the axis must not be the last
        x, axis = x.transpose(-1, -2), axis - 1
    before, n, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    each, (_, n_out, K) = math.prod(before[1:]), at.shape
    blocks = torch.arange(before[0] * each).view(before[0], each, 1, 1) * n
    bags = (blocks + at[:, None]).flatten(0, 2)
    shares = weights[:, None].expand(before[0], each, n_out, K).reshape(bags.shape)
    rows = x.reshape(-1, math.prod(after))
    out = embedding_bag(bags, rows, per_sample_weights=shares, mode="sum").view(*before, n_out, *after)
    return out.transpose(-1, -2) if last else out


def interpolated(x: Tensor, axis: int, start: Tensor, extent: Tensor, n_out: int) -> Tensor:
    """Return x with the pixels [start, start + extent) of an axis, (B,) each, interpolated linearly at n_out >= extent places."""
    step = (extent / n_out)[:, None]
    first, final = start[:, None], (start + extent - 1)[:, None]
    centre = (first + (torch.arange(n_out) + 0.5) * step - 0.5).maximum(first).minimum(final)
    low = centre.floor()
    share = centre - low
    return weighted(x, axis, torch.stack([low, (low + 1).minimum(final)], 2).long(), torch.stack([1 - share, share], 2))


def blurred(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Return x (B, C, *S) after the blurs of `gaussian_matrix` along each axis."""
    for axis in range(2, x.ndim):
        n = x.shape[axis]
        reach = min(radius, n - 1)
        offsets = torch.arange(-reach, reach + 1)
        taps = (-0.5 * (offsets / sigma[:, None]) ** 2).exp()
        taps = taps / taps.sum(1, keepdim=True)
        at = torch.arange(n)[:, None] + offsets
        at = (n - 1) - (n - 1 - at.abs()).abs()  # reflected without the edge
        x = weighted(x, axis, at[None], taps[:, None].expand(-1, n, -1))
    return x.contiguous()


def places(turn: Tensor, x: Tensor) -> Tensor:
    """Return the places (B, *S, D) at which `turn` (B, D, D) samples x (B, C, *S), as F.affine_grid does, in a third of its time.

    Each coordinate is a sum of one term per axis, so most of it is one addition per pixel.
    """
    sizes, D = x.shape[2:], x.ndim - 2
    out = x.new_empty(len(x), *sizes, D)
    for row in range(D):
        terms = []
        for k, n in enumerate(reversed(sizes)):
            at = (2 * torch.arange(n, device=x.device, dtype=x.dtype) + 1) / n - 1
            shape = [len(x), *[1] * D]
            shape[D - k] = n
            terms.append((turn[:, row, k, None] * at).view(shape))
        torch.add(sum(terms[1:-1], start=terms[0]), terms[-1], out=out[..., row])
    return out
