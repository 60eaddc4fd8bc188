"""Crop, resize and flip as one matrix per axis: separable, antialiased, batched, in any number of dimensions."""

import torch
from torch import Tensor


def axis_weights(start: Tensor, extent: Tensor, n_in: int, n_out: int, flip: Tensor | None = None) -> Tensor:
    """(B, n_out, n_in) weights that map the box [start, start + extent) of an axis onto n_out samples.

    Linear interpolation with a triangle as wide as the step when shrinking (antialiased), samples at pixel centres, and
    nothing read from outside the box: what torchvision's `resized_crop(antialias=True)` does for whole numbers. Where the
    box leaves the axis the weights are zero. start, extent: (B,) in input pixels; flip: (B,) bool, mirrors the output.
    """
    step = (extent / n_out)[:, None, None]
    out = torch.arange(n_out, device=start.device, dtype=start.dtype)[None, :, None]
    if flip is not None:
        out = torch.where(flip[:, None, None], n_out - 1 - out, out)
    at = torch.arange(n_in, device=start.device, dtype=start.dtype)
    low, high = start[:, None, None], (start + extent)[:, None, None]
    centre = low + (out + 0.5) * step
    weights = (1 - (at + 0.5 - centre).abs() / step.clamp(min=1)).clamp(min=0)
    weights = weights * ((at + 0.5 > low) & (at + 0.5 < high))
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-8)


def apply_axes(x: Tensor, weights: list[Tensor]) -> Tensor:
    """x (B, C, *in) with one (B, out, in) or (out, in) matrix per spatial axis -> (B, C, *out)."""
    for axis, w in enumerate(weights):
        x = x.movedim(2 + axis, -2)
        x = (w[:, None] if w.ndim == 3 else w) @ x if x.ndim == 4 else _matmul_flat(w, x)
        x = x.movedim(-2, 2 + axis)
    return x


def _matmul_flat(w: Tensor, x: Tensor) -> Tensor:
    """w (B, out, in) or (out, in) on x (B, C, *rest, in, last): the axes between are folded into the last one."""
    B, n_in = x.shape[0], x.shape[-2]
    flat = x.movedim(-2, 1).reshape(B, n_in, -1)
    out = w @ flat
    return out.view(B, -1, *x.shape[1:-2], x.shape[-1]).movedim(1, -2)
