"""Run-length encoded frames (PS3.5 annex G). imagecodecs' decoders hang or crash on damaged data."""

from itertools import pairwise

import numpy as np

from medssl.readers.dicom.layout import Layout
from medssl.readers.scan import Unreadable

HEADER = 64  # bytes


def begins(head: bytes, layout: Layout) -> bool:
    """Return whether the first 64 bytes of a fragment are the header of a frame: the right number of increasing offsets."""
    count, *starts = np.frombuffer(head[:HEADER].ljust(HEADER, b"\xff"), "<u4").tolist()
    used, unused = starts[:count], starts[count:]
    if count != layout.samples * layout.allocated // 8 or any(unused):
        return False
    return bool(used[0] == HEADER and all(a < b for a, b in pairwise(used)))


def decode(data: bytes, layout: Layout) -> np.ndarray:
    """Decode one frame: a header of 64 bytes, then one segment per byte of a sample, highest first.

    Returns:
        Unsigned words of `layout.shape`.

    Raises:
        Unreadable: DECODE_FAILED if a segment does not unpack to exactly rows x columns bytes.
    """
    width, pixels = layout.allocated // 8, layout.rows * layout.columns
    count = int.from_bytes(data[:4], "little")
    starts = [int.from_bytes(data[4 * i : 4 * i + 4], "little") for i in range(1, count + 1)] if count < 16 else []
    bounds = [*starts, len(data)]
    if (
        count != layout.samples * width
        or bounds[0] < HEADER
        or any(a >= b for a, b in zip(starts, bounds[1:], strict=True))
    ):
        raise Unreadable("DECODE_FAILED", "the run-length segments contradict the header")
    planes = np.empty((layout.samples, pixels, width), np.uint8)
    for i, (start, stop) in enumerate(zip(starts, bounds[1:], strict=True)):
        planes[i // width, :, width - 1 - i % width] = np.frombuffer(_unpack(data[start:stop], pixels), np.uint8)
    found = planes.view(f"<u{width}")[..., 0].reshape(layout.samples, layout.rows, layout.columns)
    return found[0] if layout.samples == 1 else np.ascontiguousarray(found.transpose(1, 2, 0))


def _unpack(data: bytes, size: int) -> bytearray:
    """Decode a segment (G.3.2) of `size` bytes. After the last run, only padding is allowed: zeros, or runs of nothing.

    A damaged run header changes how much the segment unpacks to, so any other size means another image.
    """
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
    if len(out) != size or data[at:].strip(b"\0\x80"):
        raise Unreadable("DECODE_FAILED", "a run-length segment does not unpack to rows x columns bytes")
    return out
