"""Histogram equalisation: replaces each value by its rank within the scan, which removes the scanner's contrast curve."""

import numpy as np

HIGH = 255  # highest rank; 0 is for values at or below the window
MEAN, STD = 0.5, 12**-0.5  # ranks in the unit range are uniformly distributed


def equalise_histogram(x: np.ndarray, low: float) -> np.ndarray:
    """Histogram-equalise x (C, *spatial), any dtype; returns uint8 of the same shape.

    A voxel becomes 1 to 255, the share of the scan's voxels that are darker; equal values share their middle rank. Voxels at or
    below `low`, the lower end of the intensity window (padding or air), become 0 and are not counted. Channels are ranked
    together. Any strictly increasing transform of the values leaves the result unchanged.
    """
    out = np.zeros(x.shape, np.uint8)
    inside = x > low
    values = x[inside]
    if not values.size:
        return out
    integer = x.dtype.kind in "iu"
    index = values.astype(np.int64) - int(values.min()) if integer else np.unique(values, return_inverse=True)[1]
    counts = np.bincount(index)
    middle = np.cumsum(counts) - counts / 2
    out[inside] = np.ceil(HIGH * middle / values.size).astype(np.uint8)[index]
    return out
