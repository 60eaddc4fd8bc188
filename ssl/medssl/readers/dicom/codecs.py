"""Frames to stored words (PS3.5 section 8 and annexes A and G). Every transfer syntax has one decoder."""

import math
from dataclasses import dataclass
from typing import Any, BinaryIO

import imagecodecs
import numpy as np

from medssl.readers.dicom import rle
from medssl.readers.dicom.checks import check_codestream, check_decoded
from medssl.readers.dicom.codestream import Codestream, colour_space, parse, without_boxes
from medssl.readers.dicom.frame_places import Place
from medssl.readers.dicom.layout import FLOATS, JPEG, JPEG_LS, RLE, YBR_DECODED, Layout
from medssl.readers.scan import Unreadable


@dataclass(frozen=True)
class Words:
    """The stored words of one frame.

    Attributes:
        array: `Layout.shape`; floats, or integers that are unsigned except in signed JPEG 2000 codestreams.
        stream: what the codestream states; None for native and run-length encoded words, which have unused bits.
        steps: processing steps.
    """

    array: np.ndarray
    stream: Codestream | None = None
    steps: tuple[str, ...] = ()


def words(stream: BinaryIO, layout: Layout, place: Place) -> Words:
    """Return the stored words of one frame.

    Raises:
        Unreadable: TRUNCATED, DECODE_FAILED.
    """
    parts = []
    for offset, length in place:
        stream.seek(offset)
        parts.append(stream.read(length))
        if len(parts[-1]) < length:
            raise Unreadable("TRUNCATED", "the file ends inside the pixel data")
    data = parts[0] if len(parts) == 1 else b"".join(parts)
    if not layout.encapsulated:
        return Words(_read_native(data, layout))
    return Words(rle.decode(data, layout)) if layout.syntax == RLE else _decode(data, layout)


def _read_native(data: bytes, layout: Layout) -> np.ndarray:
    if layout.swapped:
        data = np.frombuffer(data, np.uint16).byteswap().tobytes()[: layout.length]
    if layout.allocated == 1:
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        return bits[: math.prod(layout.shape)].reshape(layout.shape)
    kind = "f" if layout.keyword in FLOATS else "u"
    dtype = np.dtype(f"{'<' if layout.little else '>'}{kind}{layout.allocated // 8}")
    flat = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False)
    if layout.photometric == "YBR_FULL_422" and flat.size < math.prod(layout.shape):
        pairs = flat.reshape(layout.rows, layout.columns // 2, 4)
        luma, chroma = pairs[..., :2].reshape(layout.rows, layout.columns, 1), pairs[..., 2:].repeat(2, axis=1)
        return np.concatenate([luma, chroma], -1)
    if layout.samples == 3 and layout.planar:
        return np.ascontiguousarray(flat.reshape(3, layout.rows, layout.columns).transpose(1, 2, 0))
    return flat.reshape(layout.shape)


def _decode(data: bytes, layout: Layout) -> Words:
    """Decode with one fixed decoder per transfer syntax: fallbacks turned bit errors into plausible noise."""
    stream = check_codestream(parse(data), layout)
    steps: tuple[str, ...] = ()
    colours: dict[str, Any] = {}
    if layout.samples == 3 and layout.syntax in YBR_DECODED:
        stated = "YCBCR" if layout.photometric.startswith("YBR") else "RGB"
        space = colour_space(data) or stated
        colours = {"colorspace": space, "outcolorspace": "RGB"}
        steps = () if space == stated else ("colour space from the codestream",)
    try:
        if layout.syntax in JPEG:  # libjpeg-turbo: 8 and 12 bits, and lossless
            found = imagecodecs.jpeg8_decode(data, **colours)
        elif layout.syntax in JPEG_LS:
            found = imagecodecs.jpegls_decode(data)
        else:
            found = imagecodecs.jpeg2k_decode(without_boxes(data))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:  # a panic in a decoder need not be an Exception
        raise Unreadable("DECODE_FAILED", f"the decoder raised {type(e).__name__}") from None
    return Words(check_decoded(found, layout), stream, steps)
