"""Pixel values: the smallest lossless type, grey stored as colour, and label maps."""

import re

import numpy as np

from medssl.readers.non_finite import check_non_finite
from medssl.readers.scan import Unreadable

LARGEST = 1e30  # far above any physical value; the square of an intensity window must be finite in float32
FEW, MANY = 32, 256  # distinct integers of a label map, and of one with a name that means labels
# Share of neighbouring voxels (without background) that are equal. In 900 8-bit images at most .37, enlarged five times .70;
# in 100 regions of a brain of 50 voxels across .84.
PIECEWISE = 0.7
LABEL_WORDS = frozenset(
    """
    annotation annotations aparc aseg gt groundtruth label labels labelmap labelstr labelsts mask masks masktr parcellation
    roi rois seg segs segmentation segmentations 라벨 라벨링데이터 마스크
    """.split()  # noqa: SIM905
)


def lossless(array: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return the array as uint8, int16, uint16 or float32, and the processing steps.

    Values that are not finite become the smallest finite one, in label maps 0. 64-bit floating point is rounded to 32 bits.

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
        lowest = array.min(where=good, initial=np.inf)
        array = np.where(good, array, lowest)
        if lowest > 0 and few_integers(array, FEW):  # a label map, whose lowest value is a class and not the background
            array[~good] = 0
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
    return not LABEL_WORDS.isdisjoint(_words(name))


def _words(name: str) -> list[str]:
    return re.split(r"[^a-z0-9가-힣]+", name.lower())


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


def is_named_label_map(array: np.ndarray, name: str, most: int) -> bool:
    """Return whether the name of a file means labels and its values (1, *S) are at most `most` distinct integers.

    The folder of a data set may be called tumor_seg and hold its images too. If only such a folder means labels, and neither the
    file nor a folder of label words that directly holds it, then the values must also be constant in regions.
    """
    if not (is_label_name(name) and few_integers(array, most)):
        return False
    *folders, file = name.split("/")
    own_folder = [w for w in _words(folders[-1]) if w] if folders else []
    certain = is_label_name(file) or (bool(own_folder) and LABEL_WORDS.issuperset(own_folder))
    return certain or _is_piecewise_constant(array)


def _is_piecewise_constant(array: np.ndarray) -> bool:
    """Return whether neighbours in (1, *S), an array of few integers, are mostly equal where both are not background.

    The background is the most frequent value.
    """
    low, high = int(array.min()), int(array.max())
    counts = np.zeros(high - low + 1, np.int64)
    for plane in array[0]:
        counts += np.bincount(plane.astype(np.int64).ravel() - low, minlength=len(counts))
    background = counts.argmax() + low
    equal = pairs = 0
    for axis in range(1, array.ndim):
        first, second = (np.moveaxis(array, axis, 0)[part] for part in (slice(1, None), slice(None, -1)))
        inside = (first != background) & (second != background)
        pairs += int(np.count_nonzero(inside))
        equal += int(np.count_nonzero(inside & (first == second)))
    return equal >= PIECEWISE * pairs
