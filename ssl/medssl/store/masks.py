"""Segmentation masks as classes: the labels in a store, and its masks on the grid of its resampled scans."""

from collections.abc import Iterator, Sequence

import numpy as np

from medssl.progress import track
from medssl.store.cache import cached_array
from medssl.store.resampled import field_of_view, grid_shape
from medssl.store.store import Store

VERSION = 1  # version of the resampling; part of the cache key


def mask_labels(store: Store, rows: np.ndarray) -> tuple[int, ...]:
    """Return the labels in the masks of `rows`, ascending; 0, the background, is always the first."""
    found = {0}
    for row in track(rows.tolist(), "read masks", unit="mask"):
        mask = store.mask(row)
        found |= set() if mask is None else set(np.flatnonzero(np.bincount(mask.ravel())).tolist())
    return tuple(sorted(found))


def labels_to_classes(mask: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """Map a mask (1, *S) uint8 of labels to classes (*S) uint8, indices into `labels`; other labels become background, 0."""
    table = np.zeros(256, np.uint8)
    table[list(labels)] = np.arange(len(labels))
    return table[mask[0]]


def resample_masks(
    store: Store, labels: Sequence[int], size: int | Sequence[int], spacing: float | None = None
) -> np.ndarray:
    """Return every scan's mask as classes (N, *size) uint8 on the grid of `resample_scans`, mapped read-only from disk.

    Each grid voxel takes the class of the nearest voxel; outside the scan, and for scans without a mask, it is 0.

    Raises:
        UserError: if `size` does not fit the store, or the disk is full.
    """
    grid = grid_shape(store, size)

    def images() -> Iterator[tuple[int, np.ndarray]]:
        shapes, voxels = store.column("shape"), store.column("spacing")
        for row in track(np.flatnonzero(store.column("mask") != "").tolist(), "resample masks", unit="mask"):
            mask = store.mask(row)
            assert mask is not None
            view = field_of_view(shapes[row][1:], voxels[row] or (1.0,) * len(grid), grid, spacing)
            yield row, resample_nearest(labels_to_classes(mask, labels), grid, *view)

    key = f"masks|{VERSION}|{store.fingerprint}|{list(labels)}|{grid}|{spacing}"
    return cached_array(store, "masks", key, (len(store), *grid), np.dtype(np.uint8), images)


def resample_nearest(
    classes: np.ndarray, grid: Sequence[int], starts: Sequence[float], extents: Sequence[float]
) -> np.ndarray:
    """Resample classes (*S) to (*grid): the voxel that contains the centre of each grid voxel, else 0.

    starts, extents: the part of the scan that the grid covers, in voxels, see `field_of_view`.
    """
    out = classes
    for axis, (start, extent, n) in enumerate(zip(starts, extents, grid, strict=True)):
        at = np.floor(start + (np.arange(n) + 0.5) * extent / n + 1e-9).astype(np.int64)
        inside = (at >= 0) & (at < classes.shape[axis])
        out = np.take(out, np.where(inside, at, 0), axis)
        out[(slice(None),) * axis + (~inside,)] = 0
    return out
