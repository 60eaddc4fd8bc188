"""Stored words to modality values (PS3.3 C.7.5.1 padding, C.7.6.3 colour, C.11.1 modality LUT and rescale).

The VOI LUT is not applied: the store keeps modality values, and the window is chosen for training.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medssl.readers.dicom.codecs import Words
from medssl.readers.dicom.header import Header
from medssl.readers.dicom.layout import FLOATS, YBR_DECODED, Layout
from medssl.readers.dicom.luts import Palette, Table, eight_bits, modality_table, palette
from medssl.readers.dicom.metadata import HU, is_lossy, rescale_type
from medssl.readers.dicom.stored_values import Stored, stored_values, whole_words
from medssl.readers.non_finite import FILLED, check_non_finite
from medssl.readers.scan import Unreadable

QUANTITATIVE = {"CT", "MR", "PT", "NM"}  # modalities never inverted for display
EXACT = 1 << 24  # integers up to here are exact in float32
AIR = -1024  # HU; replaces padding in CT


@dataclass(frozen=True)
class Pixels:
    """One frame.

    Attributes:
        values: (C, H, W), integers unless the slope is fractional (float64) or the words are floats (float32); not yet
            in the smallest type.
        preferred: type for these values if they fit: int16 for CT, otherwise the stored type; float32 for fractions.
        padding: (H, W) bool, True where nothing was measured; None if there is no padding.
        steps: processing steps.
        mirror: the number values were subtracted from if they were inverted for display, else None. A window [a, b]
            before the inversion becomes [mirror - b, mirror - a].
    """

    values: np.ndarray
    preferred: np.dtype
    padding: np.ndarray | None
    steps: tuple[str, ...]
    mirror: float | None = None


def arguments(header: Header, layout: Layout, modality: str) -> dict[str, Any]:
    """Return the keyword arguments of `to_values` for one data set. JSON-compatible, except for the tables in "lut".

    Raises:
        Unreadable: BAD_HEADER; NO_RESCALE for a CT image in colour, or without slope, intercept and lookup table.
    """
    slope, intercept = (next(iter(header.numbers(k)), None) for k in ("RescaleSlope", "RescaleIntercept"))
    prefix = layout.keyword.removesuffix("PixelData")
    ends = [v for end in ("Value", "RangeLimit") for v in header.numbers(f"{prefix}PixelPadding{end}")[:1]]
    inverse = layout.photometric == "MONOCHROME1" or header.word("PresentationLUTShape") == "INVERSE"
    coloured = layout.samples == 3 or layout.photometric == "PALETTE COLOR"
    lut = palette(header) if layout.photometric == "PALETTE COLOR" else modality_table(header)
    if modality == "CT" and (coloured or (lut is None and slope is None and intercept is None)):
        why = "in colour" if coloured else "without Rescale Slope and Rescale Intercept"
        raise Unreadable("NO_RESCALE", f"a CT image {why} has no Hounsfield units")
    return {
        "modality": modality,
        "slope": slope,
        "intercept": intercept,
        "lut": lut,
        "padding": tuple(ends) if f"{prefix}PixelPaddingValue" in header and ends else None,
        "invert": inverse and modality not in QUANTITATIVE and layout.samples == 1,
        "lossy": is_lossy(header),
        "hounsfield": modality == "CT" and rescale_type(header) == HU,
    }


def to_values(
    words: Words,
    layout: Layout,
    *,
    modality: str,
    slope: float | None,
    intercept: float | None,
    lut: Table | Palette | None,
    padding: tuple[float, ...] | None,
    invert: bool,
    lossy: bool,
    hounsfield: bool,
) -> Pixels:
    """Convert the words of one frame to modality values.

    words: from `codecs.words`. The other arguments are from `arguments`: slope and intercept, None if absent; lut: the
    modality LUT, which replaces them, or the palette; padding: Pixel Padding Value and, if present, its Range Limit, in
    stored units; invert: whether to swap bright and dark; lossy: whether the pixels were ever compressed with loss;
    hounsfield: whether the values are Hounsfield units.

    Raises:
        Unreadable: UNSUPPORTED_PIXELS, NON_FINITE.
    """
    if layout.samples == 3 or isinstance(lut, tuple):
        return _colour(words, layout, lut if isinstance(lut, tuple) else None)
    table = lut if isinstance(lut, Table) else None
    if layout.keyword in FLOATS:
        return _floats(words.array, slope, intercept, padding)
    (stored, ends, done), mask = _stored(words, layout, padding)
    steps = [*words.steps, *done]
    low, high = (float(v) for v in ends)
    if table is not None:
        values, low, high = table(stored), 0.0, float((1 << table.bits) - 1)
        steps.append("modality LUT")
    else:
        m, b = slope or 1.0, intercept or 0.0
        values = _rescale(stored, m, b)
        low, high = low * m + b, high * m + b
        if (m, b) != (1.0, 0.0):
            steps.append("rescale")
        if slope == 0 or (slope is None) != (intercept is None):
            steps.append("missing or invalid slope or intercept replaced")
        lossy = lossy or (words.stream is not None and not words.stream.lossless)
        if hounsfield and lossy and padding and min(v * m + b for v in _padding_range(layout, padding)) < AIR:
            mask = _below_air(values, mask)
    if invert:
        values = _rescale(values, -1.0, low + high)
        steps.append("invert MONOCHROME1")
    if layout.allocated == 32 and max(-float(stored.min()), float(stored.max())) > EXACT:
        raise Unreadable("UNSUPPORTED_PIXELS", "integers of more than 24 bits are not supported")
    return Pixels(
        values[None], _preferred(values, layout, modality), mask, tuple(steps), low + high if invert else None
    )


def _stored(words: Words, layout: Layout, padding: tuple[float, ...] | None) -> tuple[Stored, np.ndarray | None]:
    """Return the stored values, and where they lie between Pixel Padding Value and its Range Limit (None: nowhere).

    Both should be possible stored values (C.7.5.1.1.2). If they need more than Bits Stored, they refer to whole words,
    which are compared before the upper bits are dropped: the lower bits alone may be a value of tissue. In JPEG-LS values
    may differ from them by NEAR.
    """
    if padding is None:
        return stored_values(words, layout), None
    low, high = _padding_range(layout, padding)
    near = 0 if words.stream is None else words.stream.near
    if low < layout.limits[0] or high > layout.limits[1]:
        mask = _between(whole_words(words.array, layout), low - near, high + near)
        if mask is not None:
            words = replace(words, array=np.where(mask, words.array.dtype.type(0), words.array))
        return stored_values(words, layout), mask
    found = stored_values(words, layout)
    return found, _between(found.values, low - near, high + near)


def _padding_range(layout: Layout, ends: tuple[float, ...]) -> tuple[int, int]:
    """Return the smallest and largest padding value, with the sign of the pixels."""
    bits = [int(v) & (1 << layout.allocated) - 1 for v in ends]
    if layout.signed:
        half = 1 << layout.allocated - 1
        bits = [(v ^ half) - half for v in bits]
    return min(bits), max(bits)


def _between(x: np.ndarray, low: int, high: int) -> np.ndarray | None:
    """Return where low <= x <= high, None if nowhere."""
    if x.min() > high:
        return None
    mask = x == low if low == high else (x >= low) & (x <= high)
    return mask if mask.any() else None


def _below_air(values: np.ndarray, mask: np.ndarray | None) -> np.ndarray | None:
    """Return the padding mask with all values below air: compression blurs padding far below air into its surroundings."""
    below = values < AIR
    if not below.any():
        return mask
    return below if mask is None else mask | below


def _rescale(x: np.ndarray, m: float, b: float) -> np.ndarray:
    """Return x * m + b, in the smallest integer type of 16 bits or more if exact, otherwise float64."""
    if (m, b) == (1.0, 0.0):
        return x
    if x.dtype.kind == "f" or not (m.is_integer() and b.is_integer()):
        return x * m + b
    ends = [int(x.min()), int(x.max())]
    reach = [int(m), int(b), *ends, *(v * int(m) for v in ends), *(v * int(m) + int(b) for v in ends)]
    fit = next(
        (t for t in (np.int16, np.int32) if np.iinfo(t).min <= min(reach) and max(reach) <= np.iinfo(t).max), None
    )
    if fit is None:
        return x.astype(np.int64) * int(m) + int(b) if max(map(abs, reach)) < 1 << 62 else x * m + b
    if m == 1:
        return np.add(x, fit(b), dtype=fit, casting="unsafe")
    values: np.ndarray = np.multiply(x, fit(m), dtype=fit, casting="unsafe")
    values += fit(b)
    return values


def _preferred(values: np.ndarray, layout: Layout, modality: str) -> np.dtype:
    if values.dtype.kind == "f":
        return np.dtype(np.float32)
    if modality == "CT" or layout.signed:
        return np.dtype(np.int16)
    return np.dtype(np.uint8 if layout.allocated <= 8 else np.uint16)


def _floats(
    words: np.ndarray, slope: float | None, intercept: float | None, padding: tuple[float, ...] | None
) -> Pixels:
    """Convert a parametric map (PS3.3 C.7.6.24), whose words are floats. What is not finite becomes padding."""
    finite = np.isfinite(words)
    mask = ~finite
    filled = (
        (FILLED,) if mask.all() else check_non_finite(mask[None])
    )  # `assemble` refuses empty frames inside a volume
    if padding is not None:
        mask |= (words >= min(padding)) & (words <= max(padding))
    values = np.where(finite, words, words.min(where=finite, initial=np.inf) if finite.any() else 0).astype(np.float64)
    values = values * (slope or 1.0) + (intercept or 0.0)
    return Pixels(
        values.astype(np.float32)[None],
        np.dtype(np.float32),
        mask if mask.any() else None,
        (*filled, *(() if slope is None and intercept is None else ("rescale",))),
    )


def _colour(words: Words, layout: Layout, table: Palette | None) -> Pixels:
    """Return RGB. Decoders have already reversed the colour transform of a codestream."""
    stored, _, done = stored_values(words, replace(layout, signed=layout.signed and table is not None))
    steps = [*words.steps, *done]
    preferred = np.dtype(np.uint8 if layout.stored <= 8 or table is not None else np.uint16)
    if table is not None:
        rgb = eight_bits(np.stack([t(stored) for t in table]), table)
        steps.append("palette to RGB")
    else:
        rgb = np.moveaxis(stored, -1, 0)
        if layout.photometric in {"YBR_FULL", "YBR_FULL_422"} and layout.syntax not in YBR_DECODED:
            if words.stream is not None and words.stream.rgb:
                steps.append("colour space from the codestream")
            else:
                rgb = _from_ybr(rgb, layout.stored)
                steps.append("YBR to RGB")
    return Pixels(rgb, preferred, None, tuple(steps))


def _from_ybr(ybr: np.ndarray, bits: int) -> np.ndarray:
    """Convert YBR_FULL to RGB (inverse of C.7.6.3.1.2). ybr: (3, H, W) unsigned integers of `bits` bits."""
    half, top = 1 << bits - 1, (1 << bits) - 1
    y, b, r = ybr[0].astype(np.float32), ybr[1].astype(np.float32) - half, ybr[2].astype(np.float32) - half
    rgb = np.stack([y + 1.402 * r, y - 0.114 * 1.772 / 0.587 * b - 0.299 * 1.402 / 0.587 * r, y + 1.772 * b])
    return np.clip(np.rint(rgb), 0, top).astype(ybr.dtype)


def smallest(low: float, high: float, preferred: np.dtype) -> np.dtype:
    """Return a type that holds [low, high] without loss: `preferred` if possible, so that a store has few types."""
    if preferred.kind == "f":
        return preferred
    for dtype in (preferred, np.dtype(np.int16), np.dtype(np.uint16)):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return dtype
    return np.dtype(np.float32)
