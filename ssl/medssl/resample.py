"""Crop and resize as one matrix per axis: separable, antialiased, batched, in any number of dimensions."""

import math

import torch
from torch import Tensor


def axis_weights(start: Tensor, extent: Tensor, n_in: int, n_out: int, longest: float | None = None) -> Tensor:
    """Return (B, n_out, n_in) weights that map the box [start, start + extent) of an axis to n_out samples.

    Linear interpolation at pixel centres, with a triangle as wide as the step when shrinking (antialiasing), and without
    pixels outside the box: torchvision's `resized_crop(antialias=True)` for whole numbers. Weights are zero where the box
    leaves the axis.

    start, extent: (B,) in input pixels. longest: an upper bound on `extent`, if known; it saves waiting for a GPU.
    """
    step = (extent / n_out)[:, None, None]
    out = torch.arange(n_out, device=start.device, dtype=start.dtype)[None, :, None]
    low, high = start[:, None, None], (start + extent)[:, None, None]
    centre, width = low + (out + 0.5) * step, step.clamp(min=1)
    # a triangle covers few inputs: compute only those, then scatter them into rows with a margin for those outside
    taps = 2 * math.ceil(max(1.0, (float(extent.max()) if longest is None else longest) / n_out)) + 1
    at = (centre - 0.5 - width).ceil() + torch.arange(taps, device=start.device, dtype=start.dtype)
    weights = (1 - (at + 0.5 - centre).abs() / width).clamp(min=0)
    weights = weights * ((at + 0.5 > low) & (at + 0.5 < high) & (at >= 0) & (at < n_in))
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-8)
    rows = weights.new_zeros(len(start), n_out, n_in + 2 * taps)
    rows.scatter_(-1, (at.long() + taps).clamp(0, n_in + taps), weights)
    return rows[..., taps : taps + n_in]


def apply_axes(x: Tensor, weights: list[Tensor]) -> Tensor:
    """Multiply x (B, C, *in) by one (B, out, in) or (out, in) matrix per spatial axis: (B, C, *out), contiguous.

    Computes in the dtype of x even under autocast, since x holds pixels and not features.
    """
    with torch.autocast(x.device.type, enabled=False):
        return _apply_axes(x, weights)


def _apply_axes(x: Tensor, weights: list[Tensor]) -> Tensor:
    for axis, w in enumerate(weights):
        before, n_in, after = x.shape[1 : 2 + axis], x.shape[2 + axis], x.shape[3 + axis :]
        B, rest = x.shape[0], math.prod(after)
        if axis == len(weights) - 1:  # the last axis: rows times the transpose, nothing moves
            x = (x.reshape(B, -1, n_in) @ w.mT).view(B, *before, -1)
        else:
            w = w.expand(B, *w.shape[-2:])[:, None].expand(-1, math.prod(before), -1, -1)
            x = (w @ x.reshape(B, -1, n_in, rest)).view(B, *before, -1, *after)
    return x
