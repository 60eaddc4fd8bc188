"""Resampling on a processor, where each output needs few inputs: interpolation, blurs and the places of a rotation."""

import math

import torch
from torch import Tensor


def interpolated(x: Tensor, axis: int, start: Tensor, extent: Tensor, n_out: int) -> Tensor:
    """Return x with the pixels [start, start + extent) of an axis, (B,) each, interpolated linearly at n_out >= extent places."""
    last = axis == x.ndim - 1
    if last:  # whole rows are gathered, so the axis must not be the last
        x, axis = x.transpose(-1, -2), axis - 1
    before, n, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    step = (extent / n_out)[:, None]
    centre = start[:, None] + (torch.arange(n_out) + 0.5) * step - 0.5
    first, final = start[:, None], (start + extent - 1)[:, None]
    centre = centre.maximum(first).minimum(final)
    low = centre.floor()
    share = centre - low
    left, right = low.long(), (low + 1).minimum(final).long()
    each = math.prod(before[1:])
    blocks = torch.arange(before[0] * each).view(before[0], each, 1) * n
    rows = x.reshape(-1, math.prod(after))
    a, b = (rows.index_select(0, (blocks + at[:, None]).flatten()) for at in (left, right))
    out = a.lerp_(b, share[:, None].expand(-1, each, -1).reshape(-1, 1)).view(*before, n_out, *after)
    return out.transpose(-1, -2) if last else out


def blurred(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Return x (B, C, *S) after the blurs of `gaussian_matrix` along each axis."""
    for axis in range(2, x.ndim):
        n = x.shape[axis]
        reach = min(radius, n - 1)
        taps = (-0.5 * (torch.arange(reach + 1) / sigma[:, None]) ** 2).exp()
        taps = taps / (2 * taps.sum(1, keepdim=True) - taps[:, :1])
        weights = [w.view(-1, *[1] * (x.ndim - 1)) for w in taps.unbind(1)]
        at = (n - 1) - (n - 1 - torch.arange(-reach, n + reach).abs()).abs()  # reflected without the edge
        padded = x.index_select(axis, at)
        x = padded.narrow(axis, reach, n) * weights[0]
        for k, w in enumerate(weights[1:], start=1):
            x.addcmul_(padded.narrow(axis, reach - k, n), w).addcmul_(padded.narrow(axis, reach + k, n), w)
    return x


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
