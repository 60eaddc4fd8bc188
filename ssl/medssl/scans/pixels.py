"""Pixel data to modality values: DICOM PS3.5 section 8 and annex A, PS3.3 C.7.5.1, C.7.6.3 and C.11.1.

Every length is proved before anything is decoded, every transfer syntax has one decoder, and a decoder's answer must have
the shape that the header promised.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import imagecodecs
import numpy as np
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.pixels import apply_color_lut, convert_color_space, get_decoder
from pydicom.tag import Tag

from medssl.scans.scan import Unreadable

AIR = -1024  # HU, what padding becomes in CT
MAX_PIXELS = 1 << 28  # per frame; a header that asks for more is lying
QUANTITATIVE = {"CT", "MR", "PT", "NM"}  # values mean something: never inverted for display
NATIVE = {"", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"}
RLE = "1.2.840.10008.1.2.5"
JPEG = {f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70)}
JPEG_LS = {f"1.2.840.10008.1.2.4.{n}" for n in (80, 81)}
JPEG_2000 = {f"1.2.840.10008.1.2.4.{n}" for n in (90, 91)}

# Enhanced objects keep these in functional groups (PS3.3 C.7.6.16): the frame's own, then the shared ones, then the top.
GROUPS = {
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
}


@dataclass(frozen=True)
class Layout:
    """How the header says the pixels are laid out."""

    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    high: int
    signed: bool
    photometric: str
    planar: bool
    syntax: str
    implicit: bool
    little: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns) or (rows, columns, samples)."""
        return (self.rows, self.columns) if self.samples == 1 else (self.rows, self.columns, self.samples)

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest stored value that Bits Stored and Pixel Representation allow."""
        return (-(1 << self.stored - 1), (1 << self.stored - 1) - 1) if self.signed else (0, (1 << self.stored) - 1)


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
    data, encapsulated = _element(stream, layout)
    words = _decode(data, layout) if encapsulated else _native(data, layout)
    if layout.samples == 3 or layout.photometric == "PALETTE COLOR":
        if modality == "CT":
            raise Unreadable("NO_RESCALE", "a colour image in a CT series is not in Hounsfield units")
        return _colour(ds, words, layout)
    stored = sign_extend(words, layout, shift=not encapsulated)
    return _grey(ds, stored, layout, modality)


def read_layout(ds: Dataset) -> Layout:
    """The header's promises, checked against each other."""
    allocated = _integer(ds, "BitsAllocated", 0)
    stored = _integer(ds, "BitsStored", allocated)
    syntax = str(getattr(getattr(ds, "file_meta", None), "TransferSyntaxUID", ""))
    implicit, little = ds.original_encoding
    layout = Layout(
        rows=_integer(ds, "Rows", 0),
        columns=_integer(ds, "Columns", 0),
        samples=_integer(ds, "SamplesPerPixel", 1),
        allocated=allocated,
        stored=stored,
        high=_integer(ds, "HighBit", stored - 1),
        signed=_integer(ds, "PixelRepresentation", 0) == 1,
        photometric=str(ds.get("PhotometricInterpretation", "") or "MONOCHROME2").strip().upper(),
        planar=_integer(ds, "PlanarConfiguration", 0) == 1,
        syntax=syntax,
        implicit=bool(implicit),
        little=little is not False,
    )
    if layout.rows < 1 or layout.columns < 1:
        raise Unreadable("NO_PIXELS", "the header has no rows or no columns")
    if layout.rows * layout.columns > MAX_PIXELS:
        raise Unreadable("TOO_LARGE", f"the header asks for {layout.rows} x {layout.columns} pixels")
    if layout.allocated not in {8, 16}:
        raise Unreadable("UNSUPPORTED_PIXELS", f"{layout.allocated} bits allocated; 8 and 16 are read")
    if not (1 <= layout.stored <= layout.allocated and layout.stored - 1 <= layout.high < layout.allocated):
        raise Unreadable("BAD_HEADER", "bits stored, high bit and bits allocated contradict each other")
    if layout.samples not in {1, 3} or (layout.samples == 3) != (layout.photometric.split("_")[0] in {"RGB", "YBR"}):
        raise Unreadable("UNSUPPORTED_PIXELS", "this number of samples with this photometric interpretation is not read")
    if layout.samples == 3 and layout.stored != 8:
        raise Unreadable("UNSUPPORTED_PIXELS", f"colour with {layout.stored} bits stored; 8 are read")
    if layout.syntax not in NATIVE | JPEG | JPEG_LS | JPEG_2000 | {RLE}:
        raise Unreadable("UNSUPPORTED_SYNTAX", "no decoder for this transfer syntax")
    if _integer(ds, "NumberOfFrames", 1) > 1:
        raise Unreadable("MULTI_FRAME_UNSUPPORTED", "more than one frame in one file is not read yet")
    return layout


def _element(stream: BinaryIO, layout: Layout) -> tuple[bytes, bool]:
    """Bytes of the pixel data element, and whether they are encapsulated; proves that all of them are there."""
    order = "little" if layout.little else "big"
    head = stream.read(8 if layout.implicit else 12)
    if len(head) < (8 if layout.implicit else 12):
        raise Unreadable("NO_PIXELS", "the file ends without pixel data")
    group, element = (int.from_bytes(head[i : i + 2], order) for i in (0, 2))  # type: ignore[arg-type]
    if (group, element) != (0x7FE0, 0x0010):
        raise Unreadable("NO_PIXELS", "no pixel data, or pixel data as floating point")
    length = int.from_bytes(head[-4:], order)  # type: ignore[arg-type]
    encapsulated = layout.syntax not in NATIVE
    if encapsulated != (length == 0xFFFFFFFF):
        raise Unreadable("BAD_LENGTH", "the pixel data's length contradicts the transfer syntax")
    if encapsulated:
        return stream.read(), True
    if not layout.implicit and not layout.little and layout.allocated == 8:
        raise Unreadable("UNSUPPORTED_PIXELS", "8 bits in big-endian words are not read")
    if layout.photometric == "YBR_FULL_422":
        raise Unreadable("UNSUPPORTED_PIXELS", "uncompressed subsampled colour is not read")
    expected = math.prod(layout.shape) * layout.allocated // 8
    if not expected <= length <= expected + 3:  # up to three bytes of padding are seen in practice
        raise Unreadable("BAD_LENGTH", "the pixel data's length is not rows x columns x samples x bytes")
    data = stream.read(expected)
    if len(data) < expected:
        raise Unreadable("TRUNCATED", "the file ends inside the pixel data")
    return data, False


def _native(data: bytes, layout: Layout) -> np.ndarray:
    dtype = np.dtype(np.uint8 if layout.allocated == 8 else ("<u2" if layout.little else ">u2"))
    words = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False)
    if layout.samples == 3 and layout.planar:
        return np.ascontiguousarray(words.reshape(3, layout.rows, layout.columns).transpose(1, 2, 0))
    return words.reshape(layout.shape)


def _fragments(data: bytes) -> bytes:
    """The only frame of encapsulated pixel data: all fragments after the offset table (PS3.5 A.4)."""
    at, parts = 0, []
    while True:
        tag, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if tag == b"\xfe\xff\xdd\xe0" and len(data) >= at + 8:
            break
        if tag != b"\xfe\xff\x00\xe0" or at + 8 + length > len(data):
            raise Unreadable("TRUNCATED", "the compressed pixel data has no end")
        parts.append(data[at + 8 : at + 8 + length])
        at += 8 + length
    if not any(parts[1:]):
        raise Unreadable("NO_PIXELS", "the compressed pixel data is empty")
    return b"".join(parts[1:])


def _decode(data: bytes, layout: Layout) -> np.ndarray:
    """One pinned decoder per transfer syntax, no second try: a fallback turned bit flips into plausible noise."""
    frame = _fragments(data)
    size = stream_size(frame)
    if layout.syntax != RLE and size != (layout.rows, layout.columns):
        raise Unreadable("DECODE_FAILED", "the compressed image is not of the size that the header says")
    decoder: Callable[[], np.ndarray]
    if layout.syntax == RLE:
        decoder = lambda: _rle(data, layout)  # noqa: E731
    elif layout.syntax in JPEG:
        space = None if layout.samples == 1 else ("YCBCR" if layout.photometric.startswith("YBR") else "RGB")
        out = None if layout.samples == 1 else "RGB"
        decoder = lambda: imagecodecs.jpeg_decode(frame, colorspace=space, outcolorspace=out)  # noqa: E731
    elif layout.syntax in JPEG_LS:
        decoder = lambda: imagecodecs.jpegls_decode(frame)  # noqa: E731
    else:
        decoder = lambda: imagecodecs.jpeg2k_decode(frame)  # noqa: E731
    try:
        words = np.asarray(decoder())
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:  # a decoder's panic need not be an Exception
        raise Unreadable("DECODE_FAILED", f"the decoder raised {type(e).__name__}") from None
    if words.shape != layout.shape or words.dtype.kind not in "iu" or words.dtype.itemsize > 2:
        raise Unreadable("DECODE_FAILED", "the decoder's answer has another shape or type than the header says")
    return words.view(f"u{words.dtype.itemsize}")


def _rle(data: bytes, layout: Layout) -> np.ndarray:
    return get_decoder(RLE).as_array(
        data,
        index=0,
        raw=True,
        decoding_plugin="pydicom",
        rows=layout.rows,
        columns=layout.columns,
        number_of_frames=1,
        samples_per_pixel=layout.samples,
        planar_configuration=1 if layout.samples == 3 else 0,
        bits_allocated=layout.allocated,
        bits_stored=layout.stored,
        pixel_representation=0,
        photometric_interpretation=layout.photometric,
        pixel_keyword="PixelData",
    )[0]


def stream_size(frame: bytes) -> tuple[int, int] | None:
    """(rows, columns) written in a JPEG, JPEG-LS or JPEG 2000 stream; None when it has no size."""
    siz = frame.find(b"\xff\x4f\xff\x51")
    if 0 <= siz < 512:  # JPEG 2000 (T.800 A.5.1): Xsiz, Ysiz, XOsiz, YOsiz
        x, y, x0, y0 = (int.from_bytes(frame[siz + 8 + 4 * i : siz + 12 + 4 * i], "big") for i in range(4))
        return y - y0, x - x0
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}):  # start of frame
            return int.from_bytes(frame[at + 5 : at + 7], "big"), int.from_bytes(frame[at + 7 : at + 9], "big")
        else:
            at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None


def sign_extend(words: np.ndarray, layout: Layout, shift: bool = True) -> np.ndarray:
    """Stored values (int32): Bits Stored bits below High Bit, two's complement when signed. Other bits are not pixels."""
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
    """The type that holds [low, high] without loss: `preferred` when it does, so that a store of one kind has one type."""
    if preferred.kind == "f":
        return preferred
    for dtype in (preferred, np.dtype(np.int16), np.dtype(np.uint16)):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return dtype
    return np.dtype(np.float32)


def lookup(ds: Dataset, keyword: str) -> tuple[Dataset, bool]:
    """The dataset that holds `keyword` for the first frame, and whether any does."""
    group = GROUPS.get(keyword)
    for outer in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence") if group else ():
        frames = ds.get(outer)
        items = frames[0].get(group) if frames else None
        if items and keyword in items[0]:
            return items[0], True
    return ds, keyword in ds


def numbers(ds: Dataset, keyword: str) -> tuple[float, ...]:
    """Finite numbers of an element, empty when it is absent or empty; a decimal comma is forgiven.

    Raises:
        Unreadable: BAD_HEADER when something is written there that is not a number.
    """
    holder, found = lookup(ds, keyword)
    if not found:
        return ()
    raw = holder.get_item(Tag(keyword))
    try:
        value = holder[keyword].value
    except Exception:  # pydicom refuses what a scanner has written; try to read it as text
        value = raw.value if isinstance(raw, RawDataElement) else None
    if isinstance(value, bytes):
        value = value.decode("latin-1").split("\\")
    if value is None or value == "":
        return ()
    items = [value] if isinstance(value, str | int | float) else list(value)
    try:
        found_numbers = tuple(float(str(v).strip(" \0").replace(",", ".")) for v in items if str(v).strip(" \0"))
    except ValueError:
        raise Unreadable("BAD_HEADER", f"{keyword} is not a number") from None
    return found_numbers if all(math.isfinite(v) for v in found_numbers) else ()


def _integer(ds: Dataset, keyword: str, default: int) -> int:
    found = numbers(ds, keyword)
    return int(found[0]) if found else default
