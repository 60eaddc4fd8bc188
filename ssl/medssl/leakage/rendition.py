"""Whether a PNG or JPEG is a copy of a DICOM image: by its pixels, whatever was done to make it look good."""

from collections.abc import Iterator

import numpy as np
from scipy.optimize import isotonic_regression

AGREED = 0.98  # correlation of a copy with its original
GRID = 256  # pixels per side at which they are compared


def is_rendition(dicom: np.ndarray, image: np.ndarray) -> bool:
    """Whether an 8-bit image is a copy of a DICOM image under some window, curve or inversion, at any size.

    The best monotone curve from one to the other (isotonic regression) is fitted, which no clipping disturbs; a copy
    correlates with what the curve makes of the original by 0.98 or more. Sizes that differ are averaged down to one.

    Args:
        dicom, image: (H, W).
    """
    x, y = dicom.astype(np.float64), image.astype(np.float64)
    if x.shape == y.shape:  # then a curve says all, at any pixel
        every = tuple(slice(None, None, -(-n // GRID)) for n in x.shape)
        return max(_fit(x[every], y[every], up)[1] for up in (True, False)) >= AGREED
    size = tuple(min(a, b, GRID) for a, b in zip(x.shape, y.shape, strict=True))
    small = _shrink(y, size)
    for up in (True, False):
        curve, _ = _fit(_shrink(x, size), small, up)  # near it: what was clipped before averaging is not undone after
        if _fit(_shrink(np.interp(x, *curve), size), small, True)[1] >= AGREED:
            return True
    return False


def slice_orientations(array: np.ndarray, k: int, n: int) -> Iterator[np.ndarray]:
    """Every way slice k of n may lie in a scan, as (H, W), the mean of its channels: itself when (C, H, W); of a
    (C, D, H, W) volume, which was turned to lie as all volumes do, slice k from either end of each axis of n voxels,
    turned and mirrored in every way.
    """
    if array.ndim == 3:
        yield array.mean(0)
        return
    for axis in (a for a in (1, 2, 3) if array.shape[a] == n):
        for at in dict.fromkeys((k, n - 1 - k)):
            plane = array.take(at, axis).mean(0)  # not the mean of the whole volume, which is large
            for side in (plane, plane.T):
                yield from (side, side[::-1], side[:, ::-1], side[::-1, ::-1])


def _fit(x: np.ndarray, y: np.ndarray, up: bool) -> tuple[tuple[np.ndarray, np.ndarray], float]:
    """The monotone curve from x to y as (knots, values), and the correlation of its values with y."""
    knots, where, counts = np.unique(x, return_inverse=True, return_counts=True)
    where = where.ravel()
    means = np.bincount(where, y.ravel()) / counts
    values = isotonic_regression(means, weights=counts, increasing=up).x
    if np.ptp(values) == 0 or np.ptp(y) == 0:
        return (knots, values), 0.0
    return (knots, values), float(np.corrcoef(values[where], y.ravel())[0, 1])


def _shrink(x: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Means over equal boxes, each pixel counted by the share of it that lies in a box."""
    for axis, n in enumerate(size):
        x = np.moveaxis(x, axis, 0)
        edges = np.linspace(0, len(x), n + 1)
        sums = np.concatenate([np.zeros_like(x[:1]), np.cumsum(x, axis=0)])
        below = np.minimum(edges.astype(int), len(x) - 1)
        sums = sums[below] + (edges - below)[:, None] * x[below]
        x = np.moveaxis(np.diff(sums, axis=0) * (n / len(x)), 0, axis)
    return x
