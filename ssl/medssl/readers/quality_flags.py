"""Quality flags for scans that look wrong. They exclude nothing; use them to filter scans and to decide what to review.

The thresholds were set on good chest X-rays, ultrasound, CT and MR, and flag at most 2 % of them (except brain crops,
which really are cut off); see benchmarks/quality_duplicates.py. Motion is not flagged, because no known measure separates
it from anatomy without a reference.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

FLAGS = {
    "blank": "98 % of the values lie within 1 % of the window around their median",
    "blurred": "no fine detail: at 256 to 511 pixels, second differences have less than 0.35 of the energy of first "
    "differences, as after a Gaussian blur of 1.5 pixels",
    "cut off": "tissue along 30 % of two borders that meet in a corner (CT and MR): the field of view is too small",
    "label map": "at most 32 distinct whole numbers in patches, as in a segmentation",
    "low contrast": "percentiles 1 and 99 are closer than 20 % of the window (except CT and PET, whose window is fixed)",
    "saturated": "more than 5 % of the values are equal to the maximum",
    "text in border": "a line of at least three bright characters in the outer quarter of a 2D image; characters lower than "
    "6 pixels (of the image reduced to less than 1,024) or higher than a twelfth of it are not seen, nor a single L or R",
    "wrong modality": "impossible values: CT without air or outside -1100 to 32,000, MR or PET mostly negative",
}
PLANES = 5  # evenly spaced planes of a volume that are examined
BLANK_SHARE, BLANK_RANGE = 0.98, 0.01
SHARPNESS = 0.35  # good scans: 0.64 or more; after a Gaussian blur of 1.5 pixels: 0.35 or less, except CT at 512 pixels
TISSUE_HU, AIR_HU = -400.0, -500.0
TISSUE_SHARE = 0.1  # share of an MR image's 99th percentile above which a value is tissue
BORDER = 0.3
LABELS, PATCHES = 32, 0.9  # distinct values; share of pixels equal to their right neighbour
CONTRAST = 0.2
SATURATED = 0.05
GLYPH_CONTRAST, GLYPH_BAND, GLYPHS = 0.3, 0.25, 3
GLYPH_HEIGHT = 5  # pixels, minimum; the maximum is a twelfth of the image
TEXT_SIDE, SEEN_TEXT = (
    512,
    6,
)  # `_shrink`; height above which 9 of 10 words are found (benchmarks/quality_border_text.py)
HU = (-1100.0, 32_000.0)
OUTSIDE = 0.001  # share of values outside this range that is tolerated


def flags(array: np.ndarray, low: float, high: float, modality: str = "") -> tuple[str, ...]:
    """Return the quality flags of a scan (keys of `FLAGS`) in alphabetical order, usually ().

    A blank scan or a label map gets no other flags. Takes about 15 ms for 512 x 512, 40 ms for 300 x 512 x 512.

    Args:
        array: (C, H, W) or (C, D, H, W), values as stored (HU for CT). Channels are averaged.
        low, high: the intensity window that is mapped to 0 to 1.
        modality: DICOM code, or "".
    """
    stored = _planes(array)
    sample = stored[:, :: max(1, stored.shape[1] // 256), :: max(1, stored.shape[2] // 256)]
    unit = _unit(sample, low, high)
    found = set()
    if np.mean(np.abs(unit - np.median(unit)) < BLANK_RANGE) > BLANK_SHARE:
        found.add("blank")
    if not np.any(sample != np.round(sample)) and len(np.unique(sample)) <= LABELS and _is_label_map(stored):
        found.add("label map")
    if found:
        return tuple(sorted(found))
    if _wrong(sample, modality):
        found.add("wrong modality")
    if np.mean(sample == stored.max()) > SATURATED:
        found.add("saturated")
    if modality not in {"CT", "PT"} and np.subtract(*np.percentile(unit, (99, 1))) < CONTRAST:
        found.add("low contrast")
    if modality not in {"PT", "NM"} and min(stored.shape[1:]) >= 16:  # nuclear images are smooth by nature
        sharp = [_sharpness(_unit(_shrink(plane, 256), low, high)) for plane in stored]
        if np.median(sharp) < SHARPNESS:
            found.add("blurred")
    if modality in {"CT", "MR"} and np.mean([_is_cut(plane, modality) for plane in stored]) >= 0.5:
        found.add("cut off")
    if array.ndim == 3 and _has_text(_unit(_shrink(stored[0], TEXT_SIDE), low, high)):
        found.add("text in border")
    return tuple(sorted(found))


def seen_text_height(shape: Sequence[int]) -> int:
    """Return the height in pixels below which "text in border" does not see characters in an image (C, H, W)."""
    return SEEN_TEXT * _step(shape[1:], TEXT_SIDE)


def _planes(array: np.ndarray) -> np.ndarray:
    """Return (P, H, W): the image, or some planes of the volume, averaged over channels."""
    if array.ndim == 4:
        depth = array.shape[1]
        array = array[:, sorted({int((k + 0.5) * depth / PLANES) for k in range(PLANES)})]
    else:
        array = array[:, None]
    return array[0] if len(array) == 1 else array.mean(0, dtype=np.float32)


def _unit(x: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((x.astype(np.float32) - low) / max(high - low, 1e-9), 0, 1)


def _shrink(x: np.ndarray, side: int) -> np.ndarray:
    """Average over blocks, so that the longer side is at least `side` and less than twice that."""
    step = _step(x.shape, side)
    height, width = x.shape[0] // step, x.shape[1] // step
    if step == 1 or not height or not width:
        return x
    blocks = x[: height * step, : width * step].reshape(height, step, width, step)
    return blocks.mean((1, 3), dtype=np.float32)


def _step(shape: Sequence[int], side: int) -> int:
    return max(1, max(shape) // side)


def _is_label_map(planes: np.ndarray) -> bool:
    """Return whether the values are few whole numbers in patches."""
    values = np.unique(planes)
    whole = 1 < len(values) <= LABELS and not np.any(values != np.round(values))
    return bool(whole and np.mean(planes[..., 1:] == planes[..., :-1]) > PATCHES)


def _wrong(x: np.ndarray, modality: str) -> bool:
    if modality == "CT":
        below = (x < HU[0]) & (x != x.min())  # scanners fill the corners with one value below air
        return bool(x.min() >= AIR_HU or np.mean(below | (x > HU[1])) > OUTSIDE)
    return bool(modality in {"MR", "PT"} and np.mean(x < 0) > 0.5)


def _sharpness(x: np.ndarray) -> float:
    """Return the energy of second over first differences: 2 for white noise, 0 for a ramp, independent of contrast."""
    first = np.mean(np.diff(x, axis=0) ** 2) + np.mean(np.diff(x, axis=1) ** 2)
    second = np.mean(np.diff(x, 2, axis=0) ** 2) + np.mean(np.diff(x, 2, axis=1) ** 2)
    return float(second / first) if first > 1e-7 else 1.0


def _is_cut(plane: np.ndarray, modality: str) -> bool:
    tissue = plane > (TISSUE_HU if modality == "CT" else TISSUE_SHARE * np.percentile(plane[::4, ::4], 99))
    top, left, bottom, right = (
        _longest(tissue[(slice(None),) * axis + (end,)]) > BORDER for end in (0, -1) for axis in (0, 1)
    )
    return (top or bottom) and (left or right)


def _longest(line: np.ndarray) -> float:
    """Return the longest run of True, as a share of the line."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(np.int8), [0]])))
    return float((edges[1::2] - edges[::2]).max(initial=0) / len(line))


def _has_text(x: np.ndarray) -> bool:
    """Return whether at least three small bright shapes of one height lie side by side near a border."""
    height, width = x.shape
    inside = (
        np.s_[int(height * GLYPH_BAND) : height - int(height * GLYPH_BAND)],
        np.s_[int(width * GLYPH_BAND) : width - int(width * GLYPH_BAND)],
    )
    bright = x - ndimage.uniform_filter(x, 15) > GLYPH_CONTRAST
    bright[inside] = False
    marks, _ = ndimage.label(bright, np.ones((3, 3)))
    area = np.bincount(marks.ravel())[1:]
    glyphs = []
    for size, (rows, columns) in zip(area, ndimage.find_objects(marks), strict=True):
        tall, wide = rows.stop - rows.start, columns.stop - columns.start
        if (
            GLYPH_HEIGHT <= tall <= max(height / 12, GLYPH_HEIGHT + 1)
            and wide <= 1.6 * tall
            and size >= 0.2 * tall * wide
        ):
            glyphs.append((columns.start, columns.stop, rows.start, rows.stop))
    glyphs.sort()
    return any(_line(glyphs[i:]) >= GLYPHS for i in range(len(glyphs)))


def _line(glyphs: Sequence[tuple[int, int, int, int]]) -> int:
    """Return how many shapes, sorted from left to right, form a line of text that starts with the first."""
    count, (_, right, top, bottom) = 1, glyphs[0]
    for a, b, c, d in glyphs[1:]:
        if a - right > 1.5 * (bottom - top):
            break
        if a >= right - 1 and min(bottom, d) - max(top, c) >= 0.7 * max(bottom - top, d - c):
            count, right, top, bottom = count + 1, b, c, d
    return count
