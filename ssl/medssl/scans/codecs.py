"""Pixel data elements to words: DICOM PS3.5 section 8 and annex A.

Every length is proved before anything is decoded, every transfer syntax has one decoder, and a decoder's answer must
have the shape that the header promised.
"""

import math
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import imagecodecs
import numpy as np
from pydicom import Dataset
from pydicom.pixels import get_decoder

from medssl.scans.header import integer
from medssl.scans.scan import Unreadable

MAX_PIXELS = 1 << 28  # per frame; a header that asks for more is lying

NATIVE = {"", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"}

RLE = "1.2.840.10008.1.2.5"

JPEG = {f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70)}

JPEG_LS = {f"1.2.840.10008.1.2.4.{n}" for n in (80, 81)}

JPEG_2000 = {f"1.2.840.10008.1.2.4.{n}" for n in (90, 91)}


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
    def encapsulated(self) -> bool:
        """Whether the pixel data is compressed fragments."""
        return self.syntax not in NATIVE

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest stored value that Bits Stored and Pixel Representation allow."""
        return (-(1 << self.stored - 1), (1 << self.stored - 1) - 1) if self.signed else (0, (1 << self.stored) - 1)


def read_layout(ds: Dataset) -> Layout:
    """The header's promises, checked against each other."""
    allocated = integer(ds, "BitsAllocated", 0)
    stored = integer(ds, "BitsStored", allocated)
    syntax = str(getattr(getattr(ds, "file_meta", None), "TransferSyntaxUID", ""))
    implicit, little = ds.original_encoding
    layout = Layout(
        rows=integer(ds, "Rows", 0),
        columns=integer(ds, "Columns", 0),
        samples=integer(ds, "SamplesPerPixel", 1),
        allocated=allocated,
        stored=stored,
        high=integer(ds, "HighBit", stored - 1),
        signed=integer(ds, "PixelRepresentation", 0) == 1,
        photometric=str(ds.get("PhotometricInterpretation", "") or "MONOCHROME2").strip().upper(),
        planar=integer(ds, "PlanarConfiguration", 0) == 1,
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
        raise Unreadable(
            "UNSUPPORTED_PIXELS", "this number of samples with this photometric interpretation is not read"
        )
    if layout.samples == 3 and layout.stored != 8:
        raise Unreadable("UNSUPPORTED_PIXELS", f"colour with {layout.stored} bits stored; 8 are read")
    if layout.syntax not in NATIVE | JPEG | JPEG_LS | JPEG_2000 | {RLE}:
        raise Unreadable("UNSUPPORTED_SYNTAX", "no decoder for this transfer syntax")
    if integer(ds, "NumberOfFrames", 1) > 1:
        raise Unreadable("MULTI_FRAME_UNSUPPORTED", "more than one frame in one file is not read yet")
    return layout


def read_words(stream: BinaryIO, layout: Layout) -> np.ndarray:
    """Words of the only frame, of `layout.shape`, unsigned; `stream` stands at the pixel data element.

    Raises:
        Unreadable: TRUNCATED, NO_PIXELS, BAD_LENGTH, UNSUPPORTED_PIXELS, DECODE_FAILED.
    """
    data = _element(stream, layout)
    return _decode(data, layout) if layout.encapsulated else _native(data, layout)


def _element(stream: BinaryIO, layout: Layout) -> bytes:
    """Bytes of the pixel data element; proves that all of them are there."""
    order: Literal["little", "big"] = "little" if layout.little else "big"
    head = stream.read(8 if layout.implicit else 12)
    if len(head) < (8 if layout.implicit else 12):
        raise Unreadable("NO_PIXELS", "the file ends without pixel data")
    group, element = (int.from_bytes(head[i : i + 2], order) for i in (0, 2))
    if (group, element) != (0x7FE0, 0x0010):
        raise Unreadable("NO_PIXELS", "no pixel data, or pixel data as floating point")
    length = int.from_bytes(head[-4:], order)
    if layout.encapsulated != (length == 0xFFFFFFFF):
        raise Unreadable("BAD_LENGTH", "the pixel data's length contradicts the transfer syntax")
    if layout.encapsulated:
        return stream.read()
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
    return data


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
    space = "YCBCR" if layout.photometric.startswith("YBR") else "RGB"
    colours: dict[str, Any] = {} if layout.samples == 1 else {"colorspace": space, "outcolorspace": "RGB"}
    try:
        if layout.syntax == RLE:
            words = _rle(data, layout)
        elif layout.syntax in JPEG:
            words = imagecodecs.jpeg_decode(frame, **colours)
        elif layout.syntax in JPEG_LS:
            words = imagecodecs.jpegls_decode(frame)
        else:
            words = imagecodecs.jpeg2k_decode(frame)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:  # a decoder's panic need not be an Exception
        raise Unreadable("DECODE_FAILED", f"the decoder raised {type(e).__name__}") from None
    if words.shape != layout.shape or words.dtype.kind not in "iu" or words.dtype.itemsize > 2:
        raise Unreadable("DECODE_FAILED", "the decoder's answer has another shape or type than the header says")
    return words.view(f"u{words.dtype.itemsize}")


def _rle(data: bytes, layout: Layout) -> np.ndarray:
    options: dict[str, Any] = {
        "rows": layout.rows,
        "columns": layout.columns,
        "number_of_frames": 1,
        "samples_per_pixel": layout.samples,
        "planar_configuration": 1 if layout.samples == 3 else 0,
        "bits_allocated": layout.allocated,
        "bits_stored": layout.stored,
        "pixel_representation": 0,
        "photometric_interpretation": layout.photometric,
        "pixel_keyword": "PixelData",
    }
    return get_decoder(RLE).as_array(data, index=0, raw=True, decoding_plugin="pydicom", **options)[0]


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
