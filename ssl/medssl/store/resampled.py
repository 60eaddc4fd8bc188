"""Every scan of a store on one grid, so that a batch is one slice of one array. Built once, then mapped from disk."""

import errno
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medssl.encoders.config import InputConfig
from medssl.errors import UserError
from medssl.files import atomic, disk_errors
from medssl.progress import Progress
from medssl.resample import apply_axes, axis_weights
from medssl.store.equalise import HIGH, MEAN, STD, equalise_histogram
from medssl.store.store import Store

VERSION = 1  # of the resampling: part of the cache's key
BATCH = 1 << 21  # voxels resampled at once: what fits the cache


@dataclass(frozen=True)
class ResampledScans:
    """N scans of one size, in the store's physical values or, equalised, in ranks.

    Attributes:
        array: (N, C, *size), uint8, int16, uint16 or float32, mapped read-only from disk.
        low, high: (N,) float32, the values that become 0 and 1; padding is `low`.
        mean, std: of the store's train pixels in unit range, at native resolution and without padding; of ranks, their own.
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
    """Resamples every scan of `store` onto one grid, or opens what an earlier call left in the cache.

    Proportions are physical: each voxel counts with its spacing (a scan without one is taken as isotropic). The scan is
    centred, to whole voxels of the grid, and padded with its `low`. A grid smaller than the scan keeps its middle.

    Args:
        store: the scans.
        size: voxels along each spatial axis; one number means a square or a cube.
        spacing: mm per voxel of the grid, the same for all scans. By default each scan's largest extent fills the grid.
        equalise: give every voxel its rank within its own scan (`equalise.equalised`), before resampling.

    Raises:
        UserError: when `size` does not fit the store, when `spacing` is asked for and some scan has none, or when the
            disk is full.
    """
    dims = store.dims
    shape = (int(size),) * dims if isinstance(size, int | np.integer) else tuple(int(n) for n in size)
    if len(shape) != dims or min(shape) < 1:
        raise UserError(f"size={size} does not fit {store.path}: it needs one positive number, or {dims} of them")
    if spacing is not None and not spacing > 0:
        raise UserError(f"spacing={spacing} must be a positive number of mm")
    unknown = sum(s is None for s in store.column("spacing"))
    if spacing is not None and unknown:
        raise UserError(f"{unknown} of {len(store)} scans in {store.path} have no voxel size; leave spacing out")
    key = hashlib.blake2b(
        f"{VERSION}|{store.fingerprint}|{shape}|{spacing}|{equalise}".encode(), digest_size=16
    ).hexdigest()
    folder = _cache(store)
    path = folder / f"canvas-{key}.npy"
    dtype = common_dtype(store, equalise)
    full = (len(store), store.channels, *shape)
    if (array := _open(path, full, dtype)) is None:
        with atomic(path) as part:
            _build(store, part, full, dtype, spacing, equalise)
        array = _open(path, full, dtype)
        assert array is not None
    mean, std = (MEAN, STD) if equalise else (store.mean, store.std)
    return ResampledScans(array, *intensity_windows(store, equalise), mean, std, shape)


def resampled_for_encoder(store: Store, wanted: InputConfig) -> ResampledScans:
    """A store's scans resampled and standardised as an encoder expects them."""
    grid = resample_scans(store, wanted.size, wanted.spacing, wanted.equalise)
    return replace(grid, mean=wanted.mean, std=wanted.std)


def intensity_windows(store: Store, equalise: bool) -> tuple[np.ndarray, np.ndarray]:
    """low and high of every scan, (N,) float32: what becomes 0 and 1."""
    if equalise:
        return np.zeros(len(store), np.float32), np.full(len(store), HIGH, np.float32)
    low, high = (store.column(name).astype(np.float32) for name in ("low", "high"))
    return low, high


def scan_values(store: Store, row: int, equalise: bool) -> np.ndarray:
    """Scan `row` on its own grid, (C, *spatial): as stored, or its ranks."""
    return equalise_histogram(store[row], float(store.column("low")[row])) if equalise else store[row]


def _open(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
    """The cached array; None when there is none, or a damaged one."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return array if array.shape == shape and array.dtype == dtype else None


def _cache(store: Store) -> Path:
    """`cache/` in the store; when that is read-only, a private folder among the temporary files."""
    folder = store.path / "cache"
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as e:
        if e.errno not in {errno.EACCES, errno.EROFS, errno.EPERM}:
            raise
    user = os.geteuid() if hasattr(os, "geteuid") else 0
    private = Path(tempfile.gettempdir()) / f"medssl-cache-{user}"
    with disk_errors(private):
        private.mkdir(mode=0o700, exist_ok=True)
    if private.stat().st_uid != user:
        raise UserError(f"{private} belongs to somebody else; set TMPDIR to a folder of your own")
    print(f"{store.path} is read-only: resampled scans are kept in {private}", file=sys.stderr)
    return private


def common_dtype(store: Store, equalise: bool) -> np.dtype:
    """The smallest of the store's own types that holds all its scans; of ranks, bytes."""
    if equalise:
        return np.dtype(np.uint8)
    common = np.result_type(*set(store.column("dtype")))
    return common if common in (np.uint8, np.int16, np.uint16) else np.dtype(np.float32)


def _build(
    store: Store, path: Path, full: tuple[int, ...], dtype: np.dtype, spacing: float | None, equalise: bool
) -> None:
    """Writes the .npy with plain writes: a full disk is then an error, where a memory map would kill the process."""
    low = intensity_windows(store, equalise)[0]
    stride = int(np.prod(full[1:])) * dtype.itemsize
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": full}
    what = f"canvas {'x'.join(map(str, full[2:]))}"
    with path.open("wb") as f, Progress(what, len(store), "scan") as bar:
        np.lib.format.write_array_header_1_0(f, header)
        start = f.tell()
        for rows, starts, extents in _batches(store, full[2:], spacing):
            x = np.stack([scan_values(store, row, equalise) for row in rows])
            for row, image in zip(rows, resample_to_grid(x, low[rows], full[2:], starts, extents, dtype), strict=True):
                f.seek(start + row * stride)
                f.write(image.tobytes())
            bar.update(len(rows))


def _batches(
    store: Store, size: tuple[int, ...], spacing: float | None
) -> Iterator[tuple[list[int], list[float], list[float]]]:
    """Rows of one shape and spacing, with the `box` of the scan that the grid covers."""
    groups: dict[tuple[tuple[int, ...], tuple[float, ...]], list[int]] = {}
    for row, (shape, voxel) in enumerate(zip(store.column("shape"), store.column("spacing"), strict=True)):
        groups.setdefault((shape, voxel or (1.0,) * len(size)), []).append(row)
    for (shape, voxel), rows in groups.items():
        starts, extents = field_of_view(shape[1:], voxel, size, spacing)
        n = max(1, BATCH // max(int(np.prod(shape)), shape[0] * int(np.prod(size))))
        for i in range(0, len(rows), n):
            yield rows[i : i + n], starts, extents


def field_of_view(
    shape: Sequence[int], voxel: Sequence[float], size: Sequence[int], spacing: float | None
) -> tuple[list[float], list[float]]:
    """The part of a scan that the grid covers, in the scan's voxels: (starts, extents). Negative starts mean padding.

    shape and size: voxels per axis; voxel: mm per axis; spacing: mm of a grid voxel, None for the largest that fits.
    """
    grid = spacing or max(n * mm / m for n, mm, m in zip(shape, voxel, size, strict=True))
    starts, extents = [], []
    for n, mm, m in zip(shape, voxel, size, strict=True):
        pad = round((m - n * mm / grid) / 2)  # whole, so that a scan at the grid's own scale is not blurred
        starts.append(-pad * grid / mm)
        extents.append(m * grid / mm)
    return starts, extents


def resample_to_grid(
    x: np.ndarray, low: np.ndarray, size: tuple[int, ...], starts: list[float], extents: list[float], dtype: np.dtype
) -> np.ndarray:
    """x (B, C, *in) to (B, C, *size) in `dtype`."""
    if x.shape[2:] == size and all(abs(e - n) < 1e-6 * n for e, n in zip(extents, size, strict=True)):
        return x.astype(dtype)  # nothing to resample
    weights = [_weights(s, e, n, m) for s, e, n, m in zip(starts, extents, x.shape[2:], size, strict=True)]
    low_B1 = torch.from_numpy(low.astype(np.float32)).view(-1, *[1] * (x.ndim - 1))
    # outside the scan all weights are zero: with `low` at 0, outside is `low`
    y = apply_axes(torch.from_numpy(x.astype(np.float32)).sub_(low_B1), weights).add_(low_B1)
    if dtype.kind != "f":
        y = y.round_().clamp_(np.iinfo(dtype).min, np.iinfo(dtype).max)
    return y.numpy().astype(dtype)


def _weights(start: float, extent: float, n_in: int, n_out: int) -> Tensor:
    """(n_out, n_in). Grid voxels whose centre lies outside the scan get nothing, not even the edge's blur."""
    first, length = torch.tensor([start], dtype=torch.float64), torch.tensor([extent], dtype=torch.float64)
    weights = axis_weights(first, length, n_in, n_out)[0]
    centre = start + (torch.arange(n_out, dtype=torch.float64) + 0.5) * extent / n_out
    return (weights * ((centre >= 0) & (centre < n_in))[:, None]).float()
