"""Pixel values: the smallest lossless type, grey stored as colour, and label maps."""

import re

import numpy as np

from medssl.readers.non_finite import check_non_finite
from medssl.readers.scan import Unreadable

LARGEST = 1e30  # far above any physical value; the square of an intensity window must be finite in float32
FEW, NAMED_FEW = 32, 256  # distinct integers of a label map: with any name, and with a name that means labels
LABEL_WORDS = frozenset(
    """
    annotation annotations aparc aseg gt groundtruth label labels labelmap labelstr labelsts mask masks masktr parcellation
    roi rois seg segs segmentation segmentations 라벨 라벨링데이터 마스크
    """.split()  # noqa: SIM905
)


def lossless(array: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return the array as uint8, int16, uint16 or float32, and the processing steps.

    Values that are not finite become the smallest finite one. 64-bit floating point is rounded to 32 bits.

    array: (C, *S).

    Raises:
        Unreadable: NON_FINITE unless these values are a background or few, see `check_non_finite`; UNSUPPORTED_PIXELS if
            no type can hold the values.
    """
    if array.dtype.kind == "f":
        return _floating(array)
    if array.dtype.kind == "b" or array.dtype == np.uint8:
        return array.astype(np.uint8, copy=False), []
    low, high = int(array.min()), int(array.max())
    for dtype in (np.int16, np.uint16) if array.dtype.kind == "i" else (np.uint16,):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return array.astype(dtype, copy=False), []
    if max(-low, high) > 1 << 24:
        raise Unreadable("UNSUPPORTED_PIXELS", "integers too large for 32-bit floating point")
    return array.astype(np.float32), []


def _floating(array: np.ndarray) -> tuple[np.ndarray, list[str]]:
    good = np.isfinite(array)
    steps = [*check_non_finite(~good)]
    if steps:
        array = np.where(good, array, array.min(where=good, initial=np.inf))
    if max(-float(array.min()), float(array.max())) > LARGEST:
        raise Unreadable("UNSUPPORTED_PIXELS", f"values beyond {LARGEST:g}")
    if array.dtype.itemsize > 4:
        steps.append("64-bit to 32-bit floating point")
    return array.astype(np.float32, copy=False), steps


def one_channel(array: np.ndarray) -> bool:
    """Return whether three channels (3, *S) are the same grey; integers may differ by 2, for lossy compression."""
    if array.shape[0] != 3:
        return False
    whole = array.dtype.kind in "iu"
    for plane in zip(*array.reshape(3, -1, array.shape[-1]), strict=True):
        a, b, c = (x.astype(np.int64) if whole else x for x in plane)
        if max(np.abs(a - b).max(), np.abs(a - c).max(), np.abs(b - c).max()) > (2 if whole else 0):
            return False
    return True


def is_label_name(name: str) -> bool:
    """Return whether a word in the file or folder names means labels."""
    return not LABEL_WORDS.isdisjoint(re.split(r"[^a-z0-9가-힣]+", name.lower()))


def few_integers(array: np.ndarray, most: int) -> bool:
    """Return whether all values are integers within a range of 2^16, and at most `most` of them are distinct."""
    low, high = float(array.min()), float(array.max())
    if not (low.is_integer() and high.is_integer() and high - low < 1 << 16):
        return False
    seen = np.zeros(int(high - low) + 1, bool)
    for plane in array.reshape(-1, array.shape[-1]) if array.ndim < 3 else array.reshape(-1, *array.shape[-2:]):
        at = (plane - plane.dtype.type(low)) if plane.dtype.kind == "f" else plane.astype(np.int32) - int(low)
        index = at.astype(np.int32)
        if not np.array_equal(index, at):
            return False
        seen[index] = True
        if np.count_nonzero(seen) > most:
            return False
    return True
