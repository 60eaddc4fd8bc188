"""Values that are not finite (NaN, infinite): the background outside an organ, or damage.

Maps that were computed inside a mask, and images that were resampled onto another grid, are NaN in their background.
"""

import numpy as np
from scipy import ndimage

from medssl.readers.scan import Unreadable

MAX_INSIDE = 0.01  # share of values; more means a damaged file
FILLED = "non-finite background filled"  # a processing step
MAX_SCATTER = 0.5  # contacts between finite and other values, as a share of those that scattered values would have


def check_non_finite(bad: np.ndarray) -> tuple[str, ...]:
    """Return the processing steps for the values to be replaced, () if there are none.

    The background is made of the regions (connected through faces) that hold a corner of the image. Together they reach every
    side of it, and do not alternate with finite values. Elsewhere at most 1 % of the values may be missing: holes, missing
    lines and slices, and half an image are damage.

    Args:
        bad: (C, *S) bool, where values are not finite.

    Raises:
        Unreadable: NON_FINITE.
    """
    count = int(np.count_nonzero(bad))
    if not count:
        return ()
    if count <= MAX_INSIDE * bad.size:
        return ("non-finite replaced",)
    if count == bad.size:
        raise Unreadable("NON_FINITE", "no value is finite")
    inside = count - sum(_background(np.squeeze(channel)) for channel in bad)
    if inside > MAX_INSIDE * bad.size:
        raise Unreadable(
            "NON_FINITE", f"{100 * inside / bad.size:.0f} % of the values are not finite, outside a background"
        )
    return (FILLED, *(["non-finite replaced"] if inside else []))


def _background(bad: np.ndarray) -> int:
    """Return how many values of one channel (*S) are background."""
    if _is_scattered(bad):
        return 0
    regions, _ = ndimage.label(bad)
    sizes = np.bincount(regions.ravel())
    outer = np.unique(regions[np.ix_(*[[0, -1]] * bad.ndim)])
    outer = outer[outer > 0]
    sides = (regions.take(end, axis) for axis in range(bad.ndim) for end in (0, -1))
    return int(sizes[outer].sum()) if all(np.isin(side, outer).any() for side in sides) else 0


def _is_scattered(bad: np.ndarray) -> bool:
    """Return whether finite and other values are neighbours nearly as often as at random, 2 p (1 - p)."""
    changes = sum(np.count_nonzero(np.diff(bad, axis=axis)) for axis in range(bad.ndim))
    neighbours = sum(bad.size // n * (n - 1) for n in bad.shape)
    p = np.count_nonzero(bad) / bad.size
    return changes > MAX_SCATTER * 2 * p * (1 - p) * neighbours
