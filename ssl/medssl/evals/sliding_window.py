"""Sliding-window inference: a network of fixed input size on scans of any size, with predictions on each scan's own grid."""

import math
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from medssl.augmentations.loader import apply_windows
from medssl.encoders.config import InputConfig
from medssl.resample import apply_axes, axis_weights
from medssl.store.resampled import common_dtype, field_of_view, intensity_windows, resample_to_grid, scan_values
from medssl.store.store import Store

OVERLAP = 0.5  # share of a window that overlaps its neighbour along an axis
SIGMA = 0.125  # standard deviation of the Gaussian weights, as a share of a window's side
LEAST = 1e-3  # smallest weight

Net = Callable[[Tensor], Tensor]  # standardised (B, C, *size) -> probabilities (B, K, *size)


def windows(n: int, size: int) -> list[int]:
    """Return the starts of windows of `size` on an axis of n >= size: half overlapping, the last one at the end."""
    step = max(1, int(size * (1 - OVERLAP)))
    return [*range(0, n - size, step), n - size]


def importance(size: Sequence[int]) -> Tensor:
    """Return the weights of a window's voxels, (*size) float32: a Gaussian at its centre (Isensee et al., 2021, methods)."""
    out = torch.ones(())
    for n in size:
        x = torch.arange(n, dtype=torch.float32) - (n - 1) / 2
        out = out[..., None] * torch.exp(-0.5 * (x / (SIGMA * n)) ** 2)
    return out.clamp_(min=max(float(out.min()), LEAST))


def slide(net: Net, x: Tensor, size: Sequence[int], batch: int = 4) -> Tensor:
    """Return the predictions (K, *S) of all windows of x (C, *S), averaged with `importance`. S is at least `size`.

    Equal to MONAI's sliding_window_inference(overlap=0.5, mode="gaussian").
    """
    places = list(product(*(windows(n, m) for n, m in zip(x.shape[1:], size, strict=True))))
    boxes = [tuple(slice(a, a + m) for a, m in zip(place, size, strict=True)) for place in places]
    if len(boxes) == 1:
        return net(x[None])[0]
    weight = importance(size).to(x.device)
    total, out = x.new_zeros(x.shape[1:]), None
    for start in range(0, len(boxes), batch):
        some = boxes[start : start + batch]
        for at, p in zip(some, net(torch.stack([x[(slice(None), *at)] for at in some])), strict=True):
            out = x.new_zeros(len(p), *x.shape[1:]) if out is None else out
            out[(slice(None), *at)] += p * weight
            total[at] += weight
    assert out is not None
    return out / total


class Grid:
    """Resampling from a scan of a store to the grid that a network was trained on, and back.

    Args:
        store: the scans.
        wanted: the input that the network expects.
        device: the device of the network.

    With a fixed spacing, a scan larger than `size` is covered by windows, whereas training used its centre only.
    """

    def __init__(self, store: Store, wanted: InputConfig, device: str):
        self.store, self.size, self.device = store, wanted.size, device
        self.spacing, self.equalise, self.mean, self.std = (wanted.spacing, wanted.equalise, wanted.mean, wanted.std)
        self.dtype, self.window = common_dtype(store, self.equalise), intensity_windows(store, self.equalise)
        self.columns = {name: store.column(name) for name in ("shape", "spacing")}

    def of(self, row: int) -> tuple[Tensor, list[float], list[float]]:
        """Return the whole scan `row` on the grid, standardised (C, *S), with the grid's starts and extents (`field_of_view`)."""
        shape = self.columns["shape"][row][1:]
        voxel = self.columns["spacing"][row] or (1.0,) * len(shape)
        whole = self.size
        if self.spacing is not None:
            needed = (math.ceil(n * mm / self.spacing) for n, mm in zip(shape, voxel, strict=True))
            whole = tuple(max(m, n) for m, n in zip(self.size, needed, strict=True))
        starts, extents = field_of_view(shape, voxel, whole, self.spacing)
        low, high = (end[[row]] for end in self.window)
        placed = resample_to_grid(
            scan_values(self.store, row, self.equalise)[None], low, whole, starts, extents, self.dtype
        )
        x = apply_windows(
            {
                "image": torch.from_numpy(placed.astype(np.float32)),
                "low": torch.from_numpy(low),
                "high": torch.from_numpy(high),
            }
        )
        return ((x[0] - self.mean) / self.std).to(self.device), starts, extents

    def segment(self, net: Net, row: int) -> np.ndarray:
        """Return the most probable class at each voxel of scan `row`, (*S) uint8; 0 outside the grid."""
        x, starts, extents = self.of(row)
        with torch.inference_mode():
            p = slide(net, x, self.size).float()
        return self.back(p, row, starts, extents).argmax(0).to(torch.uint8).cpu().numpy()

    def back(self, p: Tensor, row: int, starts: Sequence[float], extents: Sequence[float]) -> Tensor:
        """Return p (K, *grid) interpolated linearly at the scan's own voxels, (K, *S)."""
        weights = []
        for n, m, start, extent in zip(self.columns["shape"][row][1:], p.shape[1:], starts, extents, strict=True):
            first, length = (torch.tensor([v * m / extent], dtype=torch.float64) for v in (-start, n))
            weights.append(axis_weights(first, length, m, n)[0].to(p))
        return apply_axes(p[None], weights)[0]
