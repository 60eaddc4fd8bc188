"""Histogram equalisation: of a scan's values their ranks alone, so that no scanner's contrast curve is left in them."""

import numpy as np

HIGH = 255  # of the ranks; 0 is for what lies at or below the window
MEAN, STD = 0.5, 12**-0.5  # of ranks in unit range: they are uniform, in every hospital


def equalise_histogram(x: np.ndarray, low: float) -> np.ndarray:
    """x (C, *spatial) of any dtype -> uint8 of the same shape: 1 to 255 by the share of the scan's voxels that are darker.

    Any strictly rising change of the values leaves the result as it is. Equal values get the middle of their ranks; voxels at
    or below `low`, the lower end of the window, which are padding or air, get 0 and do not count. Channels share one ranking.
    """
    out = np.zeros(x.shape, np.uint8)
    inside = x > low
    values = x[inside]
    if not values.size:
        return out
    whole = x.dtype.kind in "iu"
    place = values.astype(np.int64) - int(values.min()) if whole else np.unique(values, return_inverse=True)[1]
    counts = np.bincount(place)
    middle = np.cumsum(counts) - counts / 2
    out[inside] = np.ceil(HIGH * middle / values.size).astype(np.uint8)[place]
    return out
