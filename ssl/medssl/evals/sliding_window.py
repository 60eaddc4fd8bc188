"""A network of a fixed input size on scans of any size, and its answer on each scan's own grid."""

import math
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from medssl.augmentations.loader import to_unit_range
from medssl.encoders.config import InputConfig
from medssl.resample import apply_axes, axis_weights
from medssl.store.resampled import common_dtype, field_of_view, intensity_windows, resample_to_grid, scan_values
from medssl.store.store import Store

OVERLAP = 0.5  # of neighbouring windows along an axis
SIGMA = 0.125  # of a window's side: how fast its say falls off towards its edges
LEAST = 1e-3  # say of the corners

Net = Callable[[Tensor], Tensor]  # standardised (B, C, *size) -> probabilities (B, K, *size)


def windows(n: int, size: int) -> list[int]:
    """Where windows of `size` begin on an axis of n >= size: half overlapping, the last one at the end."""
    step = max(1, int(size * (1 - OVERLAP)))
    return [*range(0, n - size, step), n - size]


def importance(size: Sequence[int]) -> Tensor:
    """(*size) float32: a Gaussian about the centre of the window (Isensee et al., 2021, methods)."""
    out = torch.ones(())
    for n in size:
        x = torch.arange(n, dtype=torch.float32) - (n - 1) / 2
        out = out[..., None] * torch.exp(-0.5 * (x / (SIGMA * n)) ** 2)
    return out.clamp_(min=max(float(out.min()), LEAST))


def slide(net: Net, x: Tensor, size: Sequence[int], batch: int = 4) -> Tensor:
    """x (C, *S), S at least `size`: the answers (K, *S) of all windows, averaged by their importance.

    As MONAI's sliding_window_inference(overlap=0.5, mode="gaussian").
    """
    places = list(product(*(windows(n, m) for n, m in zip(x.shape[1:], size, strict=True))))
    boxes = [tuple(slice(a, a + m) for a, m in zip(place, size, strict=True)) for place in places]
    if len(boxes) == 1:
        return net(x[None])[0]
    say = importance(size).to(x.device)
    total, answers = x.new_zeros(x.shape[1:]), None
    for start in range(0, len(boxes), batch):
        some = boxes[start : start + batch]
        for at, answer in zip(some, net(torch.stack([x[(slice(None), *at)] for at in some])), strict=True):
            answers = x.new_zeros(len(answer), *x.shape[1:]) if answers is None else answers
            answers[(slice(None), *at)] += answer * say
            total[at] += say
    assert answers is not None
    return answers / total


class Grid:
    """The way from a scan of a store to the grid that a network was trained on, and back.

    Args:
        store: the scans.
        wanted: how scans are brought to the network.
        device: of the network.

    With a spacing, a scan that is larger than `size` is looked at through windows; in training only its middle was.
    """

    def __init__(self, store: Store, wanted: InputConfig, device: str):
        self.store, self.size, self.device = store, wanted.size, device
        self.spacing, self.equalise, self.mean, self.std = (wanted.spacing, wanted.equalise, wanted.mean, wanted.std)
        self.dtype, self.window = common_dtype(store, self.equalise), intensity_windows(store, self.equalise)
        self.columns = {name: store.column(name) for name in ("shape", "spacing")}

    def of(self, row: int) -> tuple[Tensor, list[float], list[float]]:
        """(standardised (C, *S), starts, extents): scan `row` on the grid, all of it, and the `box` that the grid covers."""
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
        x = to_unit_range(
            {
                "image": torch.from_numpy(placed.astype(np.float32)),
                "low": torch.from_numpy(low),
                "high": torch.from_numpy(high),
            }
        )
        return ((x[0] - self.mean) / self.std).to(self.device), starts, extents

    def segment(self, net: Net, row: int) -> np.ndarray:
        """(*S) uint8: the most probable class at each voxel of scan `row` itself; 0 where the grid does not reach."""
        x, starts, extents = self.of(row)
        with torch.inference_mode():
            p = slide(net, x, self.size).float()
        return self.back(p, row, starts, extents).argmax(0).to(torch.uint8).cpu().numpy()

    def back(self, p: Tensor, row: int, starts: Sequence[float], extents: Sequence[float]) -> Tensor:
        """p (K, *grid) -> (K, *S), linearly interpolated at the scan's own voxels."""
        weights = []
        for n, m, start, extent in zip(self.columns["shape"][row][1:], p.shape[1:], starts, extents, strict=True):
            first, length = (torch.tensor([v * m / extent], dtype=torch.float64) for v in (-start, n))
            weights.append(axis_weights(first, length, m, n)[0].to(p))
        return apply_axes(p[None], weights)[0]
