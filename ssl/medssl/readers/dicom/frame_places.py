"""Where the frames of a file lie (PS3.5 section 8 and annex A.4)."""

import io
import math
from typing import BinaryIO

import numpy as np

from medssl.readers.dicom import codestream, rle
from medssl.readers.dicom.checks import MAX_FRAMES, PAD, count_native_frames
from medssl.readers.dicom.elements import UNDEFINED
from medssl.readers.dicom.header import Header
from medssl.readers.dicom.layout import RLE, Layout
from medssl.readers.scan import Unreadable

Place = tuple[tuple[int, int], ...]  # (offset, length) of every fragment of one frame; a native frame has one


def frame_places(stream: BinaryIO, header: Header, layout: Layout) -> list[Place]:
    """Return the place of each frame in `stream` (`header.stream`), at least one.

    As many as are both stated and present; if Number Of Frames is absent, as many as are present.

    Raises:
        Unreadable: NO_PIXELS, TRUNCATED, BAD_LENGTH, TOO_LARGE.
    """
    if header.pixels is None:
        raise Unreadable("NO_PIXELS", "the file has no pixel data")
    _, start, length = header.pixels
    if layout.encapsulated != (length == UNDEFINED):
        raise Unreadable("BAD_LENGTH", "the length of the pixel data contradicts the transfer syntax")
    if layout.encapsulated:
        return _compressed(stream, header, layout, start)
    return _native(stream, layout, start, length)


def _native(stream: BinaryIO, layout: Layout, start: int, length: int) -> list[Place]:
    each, bits = layout.length, math.prod(layout.shape) * layout.allocated
    if layout.photometric == "YBR_FULL_422" and (
        8 * length >= bits * layout.frames if layout.frames else 0 <= length - bits // 8 <= PAD
    ):
        each = bits // 8  # some writers use this name without subsampling
    if layout.frames > 1 and bits % 8:
        raise Unreadable("UNSUPPORTED_PIXELS", "single-bit frames that do not start at a byte are not supported")
    if layout.swapped and each % 2:
        if layout.frames > 1:
            raise Unreadable("UNSUPPORTED_PIXELS", "frames that start inside a big-endian word are not supported")
        each += 1
    count = count_native_frames(stream, layout, each, start, length)
    return [((start + k * each, each),) for k in range(1 if bits % 8 else count)]


def _compressed(stream: BinaryIO, header: Header, layout: Layout, start: int) -> list[Place]:
    """Assign fragments to frames by the offset table, otherwise by the start of codestreams (PS3.5 A.4)."""
    table, fragments = _fragments(stream, start)
    if not any(length for _, length in fragments):
        raise Unreadable("NO_PIXELS", "the compressed pixel data is empty")
    starts = _long_table(header) or table
    origin = fragments[0][0] - 8
    heads = {offset - 8 - origin: i for i, (offset, _) in enumerate(fragments)}
    if len(starts) > 1 and starts[0] == 0 and sorted(set(starts)) == starts and set(starts) <= heads.keys():
        firsts = [heads[s] for s in starts]
    elif layout.frames == 1:  # also a run-length frame in several fragments, against A.4.2
        firsts = [0]
    elif layout.syntax == RLE and len(fragments) == layout.frames:
        firsts = list(range(len(fragments)))
    else:
        firsts = [i for i, (offset, _) in enumerate(fragments) if _begins(stream, offset, layout)]
        if firsts[:1] != [0]:
            if layout.frames:
                raise Unreadable("BAD_LENGTH", "the compressed fragments cannot be assigned to frames")
            firsts = [0]
    ends = [*firsts[1:], len(fragments)]
    places = [tuple(fragments[a:b]) for a, b in zip(firsts, ends, strict=True)]
    return places[: layout.frames or None]


def _fragments(stream: BinaryIO, start: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the basic offset table and the (offset, length) of every fragment."""
    size = stream.seek(0, io.SEEK_END)
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


def _begins(stream: BinaryIO, offset: int, layout: Layout) -> bool:
    """Return whether a frame starts at `offset`."""
    stream.seek(offset)
    head = stream.read(rle.HEADER)
    return rle.begins(head, layout) if layout.syntax == RLE else codestream.is_start(head[:8])
