"""Label maps whose values were changed when they were saved: by scaling, lossy compression, smoothing or colours."""

import numpy as np

from medssl.readers.values import FEW, few_integers, is_label_name, is_named_label_map

NEAR = 0.05  # distance from a whole number; an 8-bit scaling of labels up to 25 moves them less far
LARGEST_STEP = 0.5  # between stored values; from there on any value is near a whole number
BAND = 32  # grey levels around 0 and 255; of 64 x 64 pixels, JPEG of quality 50 moves 0.9 % farther …
OUTSIDE = 0.01  # … so this share may lie outside


def as_label_map(array: np.ndarray, name: str, most: int, step: float = 0.0, lossy: bool = False) -> np.ndarray | None:
    """Return the labels of a file (1, *S) whose name means labels, undamaged, or None if its values are no labels.

    Floating point values close to whole numbers are rounded. 8-bit values around 0 and 255 become these if the file is
    lossily compressed, or has more than `most` values (smoothed borders).

    Args:
        array: (1, *S).
        name: path of the file below the source.
        most: number of distinct labels.
        step: difference between neighbouring stored values, if they are scaled. A label may be moved by half of it.
        lossy: whether the file is lossily compressed.
    """
    if array.shape[0] != 1 or not is_label_name(name):
        return None
    if array.dtype.kind == "f":
        array = _rounded(array, step)
    elif array.dtype == np.uint8 and (lossy or not few_integers(array, most)):
        levels = two_levels(array)
        array = array if levels is None else levels
    return array if is_named_label_map(array, name, most) else None


def _rounded(array: np.ndarray, step: float) -> np.ndarray:
    """Return whole numbers if all values are close to one and not all to 0, else the array itself."""
    allowed = max(NEAR, 0.5001 * step) if step < LARGEST_STEP else NEAR
    whole = np.rint(array)
    return whole if np.abs(array - whole).max() <= allowed and whole.any() else array


def two_levels(array: np.ndarray) -> np.ndarray | None:
    """Return 0 and 255, from 128 on, if nearly all values of a uint8 array lie around these two and some are neither."""
    low, high = array <= BAND, array >= 255 - BAND
    blurred = bool((low & (array > 0)).any() and (high & (array < 255)).any())
    if not blurred or np.count_nonzero(low | high) < (1 - OUTSIDE) * array.size:
        return None
    return np.where(array >= 128, np.uint8(255), np.uint8(0))


def has_label_colours(array: np.ndarray, name: str) -> bool:
    """Return whether an image (3, H, W) uint8, whose name means labels, has a colour for each of a few labels."""
    if array.shape[0] != 3 or array.dtype != np.uint8 or not is_label_name(name):
        return False
    red, green, blue = array.astype(np.int32).reshape(3, -1)
    colour = red << 16 | green << 8 | blue
    if len(np.unique(colour[: 1 << 12])) > FEW:  # most photographs end here
        return False
    found, label = np.unique(colour, return_inverse=True)
    return len(found) <= FEW and is_named_label_map(label.reshape(1, *array.shape[1:]).astype(np.uint16), name, FEW)
