"""Scans of a store resampled to one grid, so that a batch is a slice of one array; computed once, then mapped from disk."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from medssl.encoders.config import InputConfig
from medssl.errors import UserError
from medssl.progress import Progress
from medssl.resample import apply_axes, axis_weights
from medssl.store.cache import cached_array
from medssl.store.equalise import HIGH, MEAN, STD, equalise_histogram
from medssl.store.store import Store

VERSION = 1  # version of the resampling; part of the cache key
BATCH = 1 << 21  # voxels resampled at once, so that they fit in the CPU cache


@dataclass(frozen=True)
class ResampledScans:
    """N scans of one size, in physical values or histogram-equalised.

    Attributes:
        array: (N, C, *size), uint8, int16, uint16 or float32, mapped read-only from disk.
        low, high: (N,) float32, the values that map to 0 and 1; padding is `low`.
        mean, std: moments of the store's training pixels in the unit range, at native resolution without padding; of a uniform
            distribution if histogram-equalised.
        size: voxels along each spatial axis.
    """

    array: np.ndarray
    low: np.ndarray
    high: np.ndarray
    mean: float
    std: float
    size: tuple[int, ...]


def resample_scans(
    store: Store, size: int | Sequence[int], spacing: float | None = None, equalise: bool = False
) -> ResampledScans:
    """Resample every scan of a store to one grid, or open the cached result of an earlier call.

    Physical proportions are kept: voxels count with their spacing (a scan without spacing is taken as isotropic). Each scan is
    centred, up to whole voxels of the grid, and padded with its `low`. A grid smaller than the scan keeps the middle.

    Args:
        store: the scans.
        size: voxels along each spatial axis; one number for a square or cube.
        spacing: mm per voxel of the grid, for all scans. None: each scan's largest extent fills the grid.
        equalise: histogram-equalise each scan (`equalise_histogram`) before resampling.

    Raises:
        UserError: if `size` does not fit the store, `spacing` is given and a scan has no voxel size, or the disk is full.
    """
    grid = grid_shape(store, size)
    if spacing is not None and not spacing > 0:
        raise UserError(f"spacing={spacing} must be a positive number of mm")
    unknown = sum(s is None for s in store.column("spacing"))
    if spacing is not None and unknown:
        raise UserError(f"{unknown} of {len(store)} scans in {store.path} have no voxel size; leave spacing out")
    dtype, (low, high) = common_dtype(store, equalise), intensity_windows(store, equalise)

    def images() -> Iterator[tuple[int, np.ndarray]]:
        with Progress(f"resample to {'x'.join(map(str, grid))}", len(store), "scan") as bar:
            for rows, starts, extents in _batches(store, grid, spacing):
                store.prefetch(rows)
                x = np.stack([scan_values(store, row, equalise) for row in rows])
                yield from zip(rows, resample_to_grid(x, low[rows], grid, starts, extents, dtype), strict=True)
                bar.update(len(rows))

    key = f"{VERSION}|{store.fingerprint}|{grid}|{spacing}|{equalise}"
    array = cached_array(store, "resampled", key, (len(store), store.channels, *grid), dtype, images)
    mean, std = (MEAN, STD) if equalise else (store.mean, store.std)
    return ResampledScans(array, low, high, mean, std, grid)


def resampled_for_encoder(store: Store, expected: InputConfig) -> ResampledScans:
    """Return a store's scans resampled and standardised as an encoder expects them."""
    scans = resample_scans(store, expected.size, expected.spacing, expected.equalise)
    return replace(scans, mean=expected.mean, std=expected.std)


def grid_shape(store: Store, size: int | Sequence[int]) -> tuple[int, ...]:
    """Return voxels along each spatial axis. Raises UserError if `size` does not fit the store."""
    grid = (int(size),) * store.dims if isinstance(size, int | np.integer) else tuple(int(n) for n in size)
    if len(grid) != store.dims or min(grid) < 1:
        raise UserError(f"size={size} does not fit {store.path}: it needs one positive number, or {store.dims} of them")
    return grid


def intensity_windows(store: Store, equalise: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return low and high of every scan, (N,) float32: the values that map to 0 and 1."""
    if equalise:
        return np.zeros(len(store), np.float32), np.full(len(store), HIGH, np.float32)
    low, high = (store.column(name).astype(np.float32) for name in ("low", "high"))
    return low, high


def scan_values(store: Store, row: int, equalise: bool) -> np.ndarray:
    """Return scan `row` on its own grid, (C, *spatial): as stored or histogram-equalised."""
    return equalise_histogram(store[row], float(store.column("low")[row])) if equalise else store[row]


def common_dtype(store: Store, equalise: bool) -> np.dtype:
    """Return the smallest of the store's dtypes that holds all its scans; uint8 if histogram-equalised."""
    if equalise:
        return np.dtype(np.uint8)
    common = np.result_type(*set(store.column("dtype")))
    return common if common in (np.uint8, np.int16, np.uint16) else np.dtype(np.float32)


def _batches(
    store: Store, grid: tuple[int, ...], spacing: float | None
) -> Iterator[tuple[list[int], list[float], list[float]]]:
    """Yield rows of the same shape and spacing, with the `field_of_view` of the grid in them."""
    groups: dict[tuple[tuple[int, ...], tuple[float, ...]], list[int]] = {}
    for row, (shape, voxel) in enumerate(zip(store.column("shape"), store.column("spacing"), strict=True)):
        groups.setdefault((shape, voxel or (1.0,) * len(grid)), []).append(row)
    for (shape, voxel), rows in groups.items():
        starts, extents = field_of_view(shape[1:], voxel, grid, spacing)
        n = max(1, BATCH // max(int(np.prod(shape)), shape[0] * int(np.prod(grid))))
        for i in range(0, len(rows), n):
            yield rows[i : i + n], starts, extents


def field_of_view(
    shape: Sequence[int], voxel: Sequence[float], grid: Sequence[int], spacing: float | None
) -> tuple[list[float], list[float]]:
    """Return the part of a scan that the grid covers, in voxels of the scan: (starts, extents). Negative starts mean padding.

    shape, grid: voxels per axis; voxel: mm per axis; spacing: mm per voxel of the grid, None for the largest that fits.
    """
    mm_grid = spacing or max(n * mm / m for n, mm, m in zip(shape, voxel, grid, strict=True))
    starts, extents = [], []
    for n, mm, m in zip(shape, voxel, grid, strict=True):
        pad = round((m - n * mm / mm_grid) / 2)  # whole voxels, so that a scan at the grid's own spacing is not blurred
        starts.append(-pad * mm_grid / mm)
        extents.append(m * mm_grid / mm)
    return starts, extents


def resample_to_grid(
    x: np.ndarray, low: np.ndarray, grid: tuple[int, ...], starts: list[float], extents: list[float], dtype: np.dtype
) -> np.ndarray:
    """Resample x (B, C, *in) to (B, C, *grid) in `dtype`, padded with low (B,). starts, extents: see `field_of_view`."""
    if x.shape[2:] == grid and all(abs(e - n) < 1e-6 * n for e, n in zip(extents, grid, strict=True)):
        return x.astype(dtype)
    weights = [_weights(s, e, n, m) for s, e, n, m in zip(starts, extents, x.shape[2:], grid, strict=True)]
    low_B1 = torch.from_numpy(low.astype(np.float32)).view(-1, *[1] * (x.ndim - 1))
    # all weights are zero outside the scan, so subtracting `low` first pads with `low`
    y = apply_axes(torch.from_numpy(x.astype(np.float32)).sub_(low_B1), weights).add_(low_B1)
    if dtype.kind != "f":
        y = y.round_().clamp_(np.iinfo(dtype).min, np.iinfo(dtype).max)
    return y.numpy().astype(dtype)


def _weights(start: float, extent: float, n_in: int, n_out: int) -> Tensor:
    """Return interpolation weights (n_out, n_in). They are 0 for grid voxels whose centre lies outside the scan."""
    first, length = torch.tensor([start], dtype=torch.float64), torch.tensor([extent], dtype=torch.float64)
    weights = axis_weights(first, length, n_in, n_out)[0]
    centre = start + (torch.arange(n_out, dtype=torch.float64) + 0.5) * extent / n_out
    return (weights * ((centre >= 0) & (centre < n_in))[:, None]).float()
