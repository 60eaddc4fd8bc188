"""Masks as classes: which labels there are, and every mask of a store on the grid of its canvas."""

import hashlib
from collections.abc import Sequence

import numpy as np

from medssl.errors import UserError
from medssl.files import atomic
from medssl.progress import track
from medssl.store.resampled import _cache, _open, field_of_view
from medssl.store.store import Store

VERSION = 1  # of the resampling: part of the cache's key


def mask_labels(store: Store, rows: np.ndarray) -> tuple[int, ...]:
    """The labels in the masks of `rows`, rising, with 0, the background, first whether or not it occurs."""
    found = {0}
    for row in track(rows.tolist(), "look at masks", unit="mask"):
        mask = store.mask(row)
        found |= set() if mask is None else set(np.flatnonzero(np.bincount(mask.ravel())).tolist())
    return tuple(sorted(found))


def labels_to_classes(mask: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """(1, *S) uint8 labels -> (*S) uint8 places in `labels`; a label that is not among them becomes background, 0."""
    table = np.zeros(256, np.uint8)
    table[list(labels)] = np.arange(len(labels))
    return table[mask[0]]


def resample_masks(
    store: Store, labels: Sequence[int], size: int | Sequence[int], spacing: float | None = None
) -> np.ndarray:
    """(N, *size) uint8 classes, mapped read-only from disk: the mask of every scan on the grid of `store.resampled`.

    Each pixel of the grid takes the class of the nearest voxel; beyond the scan, and where a scan has no mask, it is 0.
    Raises UserError when the disk is full, and as `store.resampled` does.
    """
    shape = (size,) * store.dims if isinstance(size, int) else tuple(size)
    if len(shape) != store.dims:
        raise UserError(f"size={size} does not fit {store.path}: it needs one positive number, or {store.dims} of them")
    asked = f"masks|{VERSION}|{store.fingerprint}|{list(labels)}|{shape}|{spacing}"
    path = _cache(store) / f"masks-{hashlib.blake2b(asked.encode(), digest_size=16).hexdigest()}.npy"
    full = (len(store), *shape)
    if (array := _open(path, full, np.dtype(np.uint8))) is None:
        shapes, voxels = store.column("shape"), store.column("spacing")
        with atomic(path) as part, part.open("wb") as f:
            header = {"descr": "|u1", "fortran_order": False, "shape": full}
            np.lib.format.write_array_header_1_0(f, header)
            start, stride = f.tell(), int(np.prod(shape))
            for row in track(np.flatnonzero(store.column("mask") != "").tolist(), "masks on the canvas", unit="mask"):
                mask = store.mask(row)
                assert mask is not None
                place = field_of_view(shapes[row][1:], voxels[row] or (1.0,) * len(shape), shape, spacing)
                f.seek(start + row * stride)
                f.write(resample_nearest(labels_to_classes(mask, labels), shape, *place).tobytes())
            f.truncate(start + len(store) * stride)  # what was not written reads as 0
        array = _open(path, full, np.dtype(np.uint8))
        assert array is not None
    return array


def resample_nearest(
    classes: np.ndarray, size: Sequence[int], starts: Sequence[float], extents: Sequence[float]
) -> np.ndarray:
    """(*S) -> (*size): at each pixel of the grid over the box (see `canvas.box`) the voxel its centre lies in, else 0."""
    out = classes
    for axis, (start, extent, n) in enumerate(zip(starts, extents, size, strict=True)):
        at = np.floor(start + (np.arange(n) + 0.5) * extent / n + 1e-9).astype(np.int64)
        inside = (at >= 0) & (at < classes.shape[axis])
        out = np.take(out, np.where(inside, at, 0), axis)
        out[(slice(None),) * axis + (~inside,)] = 0
    return out
