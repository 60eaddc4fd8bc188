"""Detect PNG or JPEG renditions of a DICOM image by their pixels, whatever the window, curve or size."""

from collections.abc import Iterator

import numpy as np
from scipy.optimize import isotonic_regression

CORRELATION = 0.98  # minimum correlation of a rendition with its original
GRID = 256  # pixels per side at which they are compared


def is_rendition(dicom: np.ndarray, image: np.ndarray) -> bool:
    """Return whether an 8-bit image is a copy of a DICOM image under some window, curve or inversion, at any size.

    Fits the best monotone curve from one to the other (isotonic regression), which clipping does not disturb. A rendition
    correlates by 0.98 or more with the curve applied to the original. If sizes differ, both are averaged to a common size.

    Args:
        dicom, image: (H, W).
    """
    x, y = dicom.astype(np.float64), image.astype(np.float64)
    if x.shape == y.shape:  # no averaging needed: a subset of the pixels is enough
        subset = tuple(slice(None, None, -(-n // GRID)) for n in x.shape)
        return max(_fit(x[subset], y[subset], increasing)[1] for increasing in (True, False)) >= CORRELATION
    size = tuple(min(a, b, GRID) for a, b in zip(x.shape, y.shape, strict=True))
    small = _shrink(y, size)
    for increasing in (True, False):
        # a first approximation: values clipped before averaging cannot be recovered after it
        curve, _ = _fit(_shrink(x, size), small, increasing)
        if _fit(_shrink(np.interp(x, *curve), size), small, True)[1] >= CORRELATION:
            return True
    return False


def slice_orientations(array: np.ndarray, k: int, n: int) -> Iterator[np.ndarray]:
    """Yield (H, W) images, averaged over channels, of slice k of n in every orientation it may have in a scan.

    A 2D scan (C, H, W) yields itself. A volume (C, D, H, W) has been reoriented, so it yields slice k from either end of each
    axis of n voxels, rotated and mirrored in every way.
    """
    if array.ndim == 3:
        yield array.mean(0)
        return
    for axis in (a for a in (1, 2, 3) if array.shape[a] == n):
        for at in dict.fromkeys((k, n - 1 - k)):
            plane = array.take(at, axis).mean(0)  # averaging the whole volume would need much memory
            for side in (plane, plane.T):
                yield from (side, side[::-1], side[:, ::-1], side[::-1, ::-1])


def _fit(x: np.ndarray, y: np.ndarray, increasing: bool) -> tuple[tuple[np.ndarray, np.ndarray], float]:
    """Return the monotone curve from x to y as (knots, values), and the correlation of its values with y."""
    knots, index, counts = np.unique(x, return_inverse=True, return_counts=True)
    index = index.ravel()
    means = np.bincount(index, y.ravel()) / counts
    values = isotonic_regression(means, weights=counts, increasing=increasing).x
    if np.ptp(values) == 0 or np.ptp(y) == 0:
        return (knots, values), 0.0
    return (knots, values), float(np.corrcoef(values[index], y.ravel())[0, 1])


def _shrink(x: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Average over equal boxes, each pixel weighted by the share of it inside a box."""
    for axis, n in enumerate(size):
        x = np.moveaxis(x, axis, 0)
        edges = np.linspace(0, len(x), n + 1)
        sums = np.concatenate([np.zeros_like(x[:1]), np.cumsum(x, axis=0)])
        below = np.minimum(edges.astype(int), len(x) - 1)
        sums = sums[below] + (edges - below)[:, None] * x[below]
        x = np.moveaxis(np.diff(sums, axis=0) * (n / len(x)), 0, axis)
    return x
