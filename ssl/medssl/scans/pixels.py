"""Words to modality values: DICOM PS3.3 C.7.5.1 (padding), C.7.6.3 (pixels) and C.11.1 (modality LUT, rescale)."""

from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from pydicom import Dataset
from pydicom.pixels import apply_color_lut, convert_color_space

from medssl.scans.codecs import JPEG, Layout, read_layout, read_words
from medssl.scans.header import numbers
from medssl.scans.scan import Unreadable

AIR = -1024  # HU, what padding becomes in CT

QUANTITATIVE = {"CT", "MR", "PT", "NM"}  # values mean something: never inverted for display


@dataclass(frozen=True)
class Pixels:
    """One frame.

    Attributes:
        values: (C, H, W), integers unless a slope is fractional (then float64). Not yet in its smallest type.
        preferred: the type for these values, if they fit: int16 for CT, else the stored type; float32 for fractions.
        padding: (H, W) bool, where the scanner wrote no measurement; None when nowhere.
        steps: what was done.
    """

    values: np.ndarray
    preferred: np.dtype
    padding: np.ndarray | None
    steps: tuple[str, ...]


def read_pixels(ds: Dataset, stream: BinaryIO, modality: str) -> Pixels:
    """The frame of `ds`, whose pixel data element starts where `stream` stands.

    Raises:
        Unreadable: TRUNCATED, NO_PIXELS, BAD_LENGTH, BAD_HEADER, TOO_LARGE, UNSUPPORTED_SYNTAX, UNSUPPORTED_PIXELS,
            MULTI_FRAME_UNSUPPORTED, DECODE_FAILED, NO_RESCALE.
    """
    layout = read_layout(ds)
    words = read_words(stream, layout)
    if layout.samples == 3 or layout.photometric == "PALETTE COLOR":
        if modality == "CT":
            raise Unreadable("NO_RESCALE", "a colour image in a CT series is not in Hounsfield units")
        return _colour(ds, words, layout)
    stored = sign_extend(words, layout, shift=not layout.encapsulated)
    return _grey(ds, stored, layout, modality)


def sign_extend(words: np.ndarray, layout: Layout, shift: bool = True) -> np.ndarray:
    """Stored values (int32): Bits Stored bits below High Bit, two's complement when signed."""
    x = words.astype(np.int32)
    if shift:  # a codestream has no unused low bits
        x >>= layout.high + 1 - layout.stored
    x &= (1 << layout.stored) - 1
    if layout.signed:
        half = 1 << layout.stored - 1
        x = (x ^ half) - half
    return x


def _grey(ds: Dataset, stored: np.ndarray, layout: Layout, modality: str) -> Pixels:
    steps = []
    padding = _padding(ds, stored, layout)
    low, high = (float(v) for v in layout.limits)
    lut = ds.get("ModalityLUTSequence")
    slope, intercept, repaired = rescale_of(ds)
    if modality == "CT" and not lut and slope is None and intercept is None:
        raise Unreadable("NO_RESCALE", "a CT image without slope and intercept is not in Hounsfield units")
    if lut:
        values, (low, high) = _modality_lut(lut[0], stored)
        steps.append("modality LUT")
    else:
        m, b = 1.0 if slope is None else slope, intercept or 0.0
        if (m, b) == (1.0, 0.0):
            values = stored
        elif m.is_integer() and b.is_integer():
            values = stored.astype(np.int64) * int(m) + int(b)
            steps.append("rescale")
        else:
            values = stored * m + b
            steps.append("rescale")
        low, high = low * m + b, high * m + b
        if repaired:
            steps.append("missing or invalid slope or intercept replaced")
    if modality not in QUANTITATIVE and (
        layout.photometric == "MONOCHROME1" or str(ds.get("PresentationLUTShape", "")).strip().upper() == "INVERSE"
    ):
        total = low + high
        values = (int(total) if values.dtype.kind == "i" else total) - values
        steps.append("invert MONOCHROME1")
    preferred: np.dtype
    if values.dtype.kind == "f":
        preferred = np.dtype(np.float32)
    elif modality == "CT" or layout.signed:
        preferred = np.dtype(np.int16)
    else:
        preferred = np.dtype(f"uint{layout.allocated}")
    return Pixels(values[None], preferred, padding, tuple(steps))


def rescale_of(ds: Dataset) -> tuple[float | None, float | None, bool]:
    """Rescale slope and intercept, None where absent, and whether one of them had to be made up (C.11.1)."""
    slope, intercept = (next(iter(numbers(ds, name)), None) for name in ("RescaleSlope", "RescaleIntercept"))
    repaired = (slope is None) != (intercept is None)
    if slope == 0:
        slope, repaired = 1.0, True
    return slope, intercept, repaired


def _modality_lut(item: Dataset, stored: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Values through the table (C.11.1.1), clamped at its ends, and the range its bits allow."""
    entries, first, bits = (int(v) for v in item.LUTDescriptor)
    entries = entries or 1 << 16
    data = item.LUTData
    table = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.asarray(data, np.int64)
    if bits not in range(1, 17) or len(table) < entries:
        raise Unreadable("BAD_HEADER", "the modality LUT is shorter than its descriptor says")
    if stored.min() < 0 and first > 0x7FFF:
        first -= 1 << 16  # written as unsigned beside signed pixels
    at = np.clip(stored.astype(np.int64) - first, 0, entries - 1)
    return table.astype(np.int64)[at], (0.0, float((1 << bits) - 1))


def _padding(ds: Dataset, stored: np.ndarray, layout: Layout) -> np.ndarray | None:
    """Where stored values lie between Pixel Padding Value and its Range Limit, read with the sign of the pixels."""
    ends = [v for name in ("PixelPaddingValue", "PixelPaddingRangeLimit") for v in numbers(ds, name)[:1]]
    if not ends or "PixelPaddingValue" not in ds:
        return None
    bits = [int(v) & (1 << layout.allocated) - 1 for v in ends]
    if layout.signed:
        half = 1 << layout.allocated - 1
        bits = [(v ^ half) - half for v in bits]
    mask = (stored >= min(bits)) & (stored <= max(bits))
    return mask if mask.any() else None


def _colour(ds: Dataset, words: np.ndarray, layout: Layout) -> Pixels:
    """RGB, converted once. JPEG and JPEG 2000 decoders have already undone their own colour transform."""
    steps = []
    if layout.photometric == "PALETTE COLOR":
        rgb = apply_color_lut(words & np.asarray((1 << layout.stored) - 1, words.dtype), ds)
        if rgb.dtype.itemsize > 1:
            rgb = (rgb >> 8).astype(np.uint8)
        steps.append("palette to RGB")
    elif layout.photometric == "YBR_FULL" and layout.syntax not in JPEG:
        rgb = convert_color_space(words.astype(np.uint8, copy=False), "YBR_FULL", "RGB")
        steps.append("YBR to RGB")
    else:
        rgb = words
    return Pixels(np.moveaxis(rgb[..., :3], -1, 0), np.dtype(np.uint8), None, tuple(steps))


def one_channel(array: np.ndarray) -> bool:
    """Whether three channels are one grey channel written three times (differences of 2 come from lossy coding)."""
    if array.shape[0] != 3:
        return False
    a, b, c = (array[i].astype(np.int32) if array.dtype.kind in "iu" else array[i] for i in range(3))
    return bool(max(np.abs(a - b).max(), np.abs(a - c).max(), np.abs(b - c).max()) <= 2)


def smallest(low: float, high: float, preferred: np.dtype) -> np.dtype:
    """The type that holds [low, high] without loss: `preferred` when it does, so that stores have one type."""
    if preferred.kind == "f":
        return preferred
    for dtype in (preferred, np.dtype(np.int16), np.dtype(np.uint16)):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return dtype
    return np.dtype(np.float32)
