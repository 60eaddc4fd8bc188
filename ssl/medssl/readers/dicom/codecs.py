"""Pixel data elements to stored words (PS3.5 section 8 and annex A).

Every length is validated before decoding, every transfer syntax has one decoder, and its result must have the shape and
type stated in the header.
"""

import io
import math
from collections.abc import Iterator
from typing import Any, BinaryIO

import imagecodecs
import numpy as np

from medssl.readers.dicom.elements import UNDEFINED
from medssl.readers.dicom.header import Header
from medssl.readers.dicom.layout import FLOATS, JPEG, JPEG_LS, MAX_FRAMES, RLE, YBR_DECODED, Layout
from medssl.readers.scan import Unreadable

PAD = 3  # bytes of padding after native pixels seen in practice

Place = tuple[tuple[int, int], ...]  # (offset, length) of every fragment of one frame; a native frame has one


def frames(stream: BinaryIO, header: Header, layout: Layout) -> list[Place]:
    """Return the place of each frame in `stream` (`header.stream`): as many as are both stated and present.

    Raises:
        Unreadable: NO_PIXELS, TRUNCATED, BAD_LENGTH, TOO_LARGE.
    """
    if header.pixels is None:
        raise Unreadable("NO_PIXELS", "the file has no pixel data")
    _, start, length = header.pixels
    if layout.encapsulated != (length == UNDEFINED):
        raise Unreadable("BAD_LENGTH", "the length of the pixel data contradicts the transfer syntax")
    size = stream.seek(0, io.SEEK_END)
    if layout.encapsulated:
        return _compressed(stream, header, layout, start, size)
    return _native(layout, start, length, size)


def _native(layout: Layout, start: int, length: int, size: int) -> list[Place]:
    each = layout.length
    if layout.photometric == "YBR_FULL_422" and length >= math.prod(layout.shape) * layout.frames:
        each = math.prod(layout.shape)  # some writers use this name without subsampling
    if layout.frames > 1 and math.prod(layout.shape) * layout.allocated % 8:
        raise Unreadable("UNSUPPORTED_PIXELS", "single-bit frames that do not start at a byte are not supported")
    if layout.swapped and each % 2:
        if layout.frames > 1:
            raise Unreadable("UNSUPPORTED_PIXELS", "frames that start inside a big-endian word are not supported")
        each += 1
    count = length // each
    if count == 0 or length - count * each > PAD:
        raise Unreadable("BAD_LENGTH", "the length of the pixel data is not rows x columns x samples x bytes")
    count = min(count, layout.frames)  # further frames are ignored
    if start + max(count * each, length - PAD) > size:
        raise Unreadable("TRUNCATED", "the file ends inside the pixel data")
    return [((start + k * each, each),) for k in range(count)]


def _compressed(stream: BinaryIO, header: Header, layout: Layout, start: int, size: int) -> list[Place]:
    """Assign fragments to frames by the offset table, otherwise by the start of codestreams (PS3.5 A.4)."""
    table, fragments = _fragments(stream, start, size)
    if not any(length for _, length in fragments):
        raise Unreadable("NO_PIXELS", "the compressed pixel data is empty")
    starts = _long_table(header) or table
    origin = fragments[0][0] - 8
    heads = {offset - 8 - origin: i for i, (offset, _) in enumerate(fragments)}
    if len(starts) > 1 and starts[0] == 0 and sorted(set(starts)) == starts and set(starts) <= heads.keys():
        firsts = [heads[s] for s in starts]
    elif layout.frames == 1 and layout.syntax != RLE:
        firsts = [0]
    elif layout.syntax == RLE:  # a frame is one fragment (PS3.5 A.4.2)
        firsts = list(range(len(fragments)))
    else:
        firsts = [i for i, (offset, _) in enumerate(fragments) if _begins(stream, offset)]
        if not firsts or firsts[0] != 0:
            raise Unreadable("BAD_LENGTH", "the compressed fragments cannot be assigned to frames")
    ends = [*firsts[1:], len(fragments)]
    places = [tuple(fragments[a:b]) for a, b in zip(firsts, ends, strict=True)]
    return places[: layout.frames]


def _fragments(stream: BinaryIO, start: int, size: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the basic offset table and the (offset, length) of every fragment."""
    found: list[tuple[int, int]] = []
    at = start
    while True:
        stream.seek(at)
        head = stream.read(8)
        length = int.from_bytes(head[4:], "little")
        if head[:4] == b"\xfe\xff\xdd\xe0" and len(head) == 8:
            break
        if head[:4] != b"\xfe\xff\x00\xe0" or len(head) < 8 or at + 8 + length > size:
            raise Unreadable("TRUNCATED", "the compressed pixel data has no end")
        if len(found) > MAX_FRAMES:
            raise Unreadable("TOO_LARGE", "too many compressed fragments")
        found.append((at + 8, length))
        at += 8 + length
    if len(found) < 2:
        raise Unreadable("NO_PIXELS", "the compressed pixel data is empty")
    stream.seek(found[0][0])
    table = np.frombuffer(stream.read(found[0][1] // 4 * 4), "<u4").tolist()
    return table, found[1:]


def _long_table(header: Header) -> list[int]:
    """Return the extended offset table (PS3.3 C.7.6.3.1.8), with the same origin as the basic one."""
    value = header.value("ExtendedOffsetTable")
    return np.frombuffer(value[: len(value) // 8 * 8], "<u8").tolist()


def _begins(stream: BinaryIO, offset: int) -> bool:
    """Return whether a codestream starts at `offset`: SOI (JPEG, JPEG-LS), SOC or signature box (JPEG 2000)."""
    stream.seek(offset)
    head = stream.read(8)
    return head[:3] == b"\xff\xd8\xff" or head[:4] == b"\xff\x4f\xff\x51" or head[4:] == b"jP  "


def words(stream: BinaryIO, layout: Layout, place: Place) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return one frame of `layout.shape` as stored words, and the processing steps.

    Words are floats, or integers that are unsigned except in signed JPEG 2000 codestreams.

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
    return _decode(data, layout) if layout.encapsulated else (_read_native(data, layout), ())


def _read_native(data: bytes, layout: Layout) -> np.ndarray:
    if layout.swapped:
        data = np.frombuffer(data, np.uint16).byteswap().tobytes()[: layout.length]
    if layout.allocated == 1:
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        return bits[: math.prod(layout.shape)].reshape(layout.shape)
    kind = "f" if layout.keyword in FLOATS else "u"
    dtype = np.dtype(f"{'<' if layout.little else '>'}{kind}{layout.allocated // 8}")
    flat = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False)
    if layout.photometric == "YBR_FULL_422" and len(data) < math.prod(layout.shape):
        pairs = flat.reshape(layout.rows, layout.columns // 2, 4)
        luma, chroma = pairs[..., :2].reshape(layout.rows, layout.columns, 1), pairs[..., 2:].repeat(2, axis=1)
        return np.concatenate([luma, chroma], -1)
    if layout.samples == 3 and layout.planar:
        return np.ascontiguousarray(flat.reshape(3, layout.rows, layout.columns).transpose(1, 2, 0))
    return flat.reshape(layout.shape)


def _decode(data: bytes, layout: Layout) -> tuple[np.ndarray, tuple[str, ...]]:
    """Decode with one fixed decoder per transfer syntax: fallbacks turned bit errors into plausible noise."""
    if layout.syntax == RLE:
        return _rle(data, layout), ()
    if stream_size(data) != (layout.rows, layout.columns, layout.samples):
        raise Unreadable("DECODE_FAILED", "the size of the compressed image contradicts the header")
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
            found = imagecodecs.jpeg2k_decode(data)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:  # a panic in a decoder need not be an Exception
        raise Unreadable("DECODE_FAILED", f"the decoder raised {type(e).__name__}") from None
    if found.shape != layout.shape or found.dtype.kind not in "iu" or found.dtype.itemsize * 8 > layout.allocated:
        raise Unreadable("DECODE_FAILED", "the shape or type of the decoded image contradicts the header")
    return found, steps


def _rle(data: bytes, layout: Layout) -> np.ndarray:
    """Decode PS3.5 annex G: a header of 64 bytes, then one run-length segment per byte of a sample, highest first."""
    width, pixels = layout.allocated // 8, layout.rows * layout.columns
    count = int.from_bytes(data[:4], "little")
    starts = [int.from_bytes(data[4 * i : 4 * i + 4], "little") for i in range(1, count + 1)] if count < 16 else []
    bounds = [*starts, len(data)]
    if (
        count != layout.samples * width
        or bounds[0] < 64
        or any(a >= b for a, b in zip(starts, bounds[1:], strict=True))
    ):
        raise Unreadable("DECODE_FAILED", "the run-length segments contradict the header")
    planes = np.empty((layout.samples, pixels, width), np.uint8)
    for i, (start, stop) in enumerate(zip(starts, bounds[1:], strict=True)):
        segment = _unpack(data[start:stop], pixels)
        if len(segment) < pixels:
            raise Unreadable("DECODE_FAILED", "a run-length segment is too short")
        planes[i // width, :, width - 1 - i % width] = np.frombuffer(segment, np.uint8, pixels)
    found = planes.view(f"<u{width}")[..., 0].reshape(layout.samples, layout.rows, layout.columns)
    return found[0] if layout.samples == 1 else np.ascontiguousarray(found.transpose(1, 2, 0))


def _unpack(data: bytes, size: int) -> bytearray:
    """Decode a run-length segment (PS3.5 G.3.2). imagecodecs' decoders hang or crash on damaged data."""
    out = bytearray()
    at, end = 0, len(data)
    while at < end and len(out) < size:
        n = data[at]
        if n < 128:
            out += data[at + 1 : at + 2 + n]
            at += 2 + n
        elif n > 128:
            out += data[at + 1 : at + 2] * (257 - n)
            at += 2
        else:
            at += 1
    return out


def stream_size(frame: bytes) -> tuple[int, int, int] | None:
    """Return (rows, columns, components) stated in a JPEG, JPEG-LS or JPEG 2000 stream, or None."""
    siz = -1 if frame.startswith(b"\xff\xd8") else frame.find(b"\xff\x4f\xff\x51", 0, 1 << 16)
    if siz >= 0:  # T.800 A.5.1: Xsiz, Ysiz, XOsiz, YOsiz, four tile sizes, Csiz
        x, y, x0, y0 = (int.from_bytes(frame[siz + 8 + 4 * i : siz + 12 + 4 * i], "big") for i in range(4))
        return y - y0, x - x0, int.from_bytes(frame[siz + 40 : siz + 42], "big")
    for marker, content in _segments(frame):
        if marker not in {0xE0, 0xEE} and len(content) > 5:
            return int.from_bytes(content[1:3], "big"), int.from_bytes(content[3:5], "big"), content[5]
    return None


def colour_space(frame: bytes) -> str:
    """Return "RGB" or "YCBCR" for a JPEG stream of three components, "" if unknown. More reliable than a DICOM header.

    JFIF (T.871) is YCbCr; otherwise the Adobe marker (T.872 6.5.3) states it; otherwise components may be named R, G, B.
    """
    adobe = ""
    for marker, content in _segments(frame):
        if marker == 0xE0 and content[:5] == b"JFIF\0":
            return "YCBCR"
        if marker == 0xEE:
            if content[:5] == b"Adobe" and len(content) > 11:
                adobe = "YCBCR" if content[11] else "RGB"
        elif marker != 0xE0:
            return adobe or ("RGB" if content[6:15:3] == b"RGB" else "")
    return adobe


def _segments(frame: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (marker, content) of the JFIF and Adobe segments (APP0, APP14) of a JPEG stream, then of the start of frame."""
    at = 2
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        end = at + 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
        start = marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC})
        if start or marker in {0xE0, 0xEE}:
            yield marker, frame[at + 4 : end]
        if start:
            return
        at = end
