"""What a compressed frame states about itself: JPEG (T.81), JPEG-LS (T.87) and JPEG 2000 (T.800) codestreams."""

from collections.abc import Iterator
from dataclasses import dataclass

SOC_SIZ = b"\xff\x4f\xff\x51"  # start of a JPEG 2000 codestream; inside a JP2 file it follows some boxes
COD, SOT, SOS = 0x52, 0x90, 0xDA
LOSSLESS_FRAMES = {0xC3, 0xC7, 0xCB, 0xCF}  # start of frame of lossless JPEG (T.81 table B.1)
JPEG_LS_FRAME = 0xF7


@dataclass(frozen=True)
class Codestream:
    """Properties of one compressed frame.

    Attributes:
        precision: bits of a sample.
        signed: whether samples are signed; possible in JPEG 2000 only.
        lossless: whether the encoding is reversible. A JPEG 2000 stream may still have been cut to a smaller size.
        near: largest difference of a sample from the original, if it is known: 0 if lossless, NEAR of JPEG-LS.
        rgb: whether the decoder returns RGB whatever the header says: JPEG 2000 applied its own colour transform, which the
            decoder reverses, or a lossless JPEG is marked as RGB.
    """

    rows: int
    columns: int
    components: int
    precision: int
    signed: bool = False
    lossless: bool = False
    near: int = 0
    rgb: bool = False


def parse(frame: bytes) -> Codestream | None:
    """Return the properties of a JPEG, JPEG-LS or JPEG 2000 stream, None if it is none of these or is cut off."""
    return _jpeg(frame) if frame.startswith(b"\xff\xd8") else _jpeg_2000(frame)


def is_start(head: bytes) -> bool:
    """Return whether the first 8 bytes start a codestream: SOI (JPEG, JPEG-LS), SOC or signature box (JPEG 2000)."""
    return head[:3] == b"\xff\xd8\xff" or head[:4] == SOC_SIZ or head[4:] == b"jP  "


def without_boxes(frame: bytes) -> bytes:
    """Return a JPEG 2000 codestream without the boxes of a JP2 file, which DICOM ignores (PS3.5 8.2.4)."""
    return frame[max(_siz(frame), 0) :]


def _siz(frame: bytes) -> int:
    return frame.find(SOC_SIZ, 0, 1 << 16)


def _jpeg_2000(frame: bytes) -> Codestream | None:
    """T.800 A.5.1: Xsiz, Ysiz, XOsiz, YOsiz, four tile sizes, Csiz, Ssiz of each component; A.6.1: COD."""
    siz = _siz(frame)
    if siz < 0:
        return None
    x, y, x0, y0 = (int.from_bytes(frame[siz + 8 + 4 * i : siz + 12 + 4 * i], "big") for i in range(4))
    components = int.from_bytes(frame[siz + 40 : siz + 42], "big")
    sizes = frame[siz + 42 : siz + 42 + 3 * components : 3]
    lossless = rgb = False
    at = siz + 2
    while at + 14 <= len(frame) and frame[at] == 0xFF and frame[at + 1] != SOT:
        if frame[at + 1] == COD:
            rgb, lossless = components >= 3 and frame[at + 8] == 1, frame[at + 13] == 1
        at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    if not sizes:
        return None
    bits, signed = max((s & 0x7F) + 1 for s in sizes), any(s & 0x80 for s in sizes)
    return Codestream(y - y0, x - x0, components, bits, signed, lossless, 0, rgb)


def _jpeg(frame: bytes) -> Codestream | None:
    """T.81 B.2.2 and B.2.3, T.87 C.2.3: start of frame, then of the first scan."""
    start: tuple[int, bytes] | None = None
    near = shift = 0
    for marker, content in _segments(frame):
        if marker == SOS and start is not None and content:
            tail = content[1 + 2 * content[0] :]
            if len(tail) > 2 and start[0] == JPEG_LS_FRAME:
                near = tail[0]
            elif len(tail) > 2:
                shift = tail[2] & 15
        elif marker not in {0xE0, 0xEE, SOS} and len(content) > 5:
            start = marker, content
    if start is None:
        return None
    marker, content = start
    lossless = near == 0 if marker == JPEG_LS_FRAME else marker in LOSSLESS_FRAMES and shift == 0
    rows, columns = int.from_bytes(content[1:3], "big"), int.from_bytes(content[3:5], "big")
    rgb = marker in LOSSLESS_FRAMES and colour_space(frame) == "RGB"
    return Codestream(rows, columns, content[5], content[0], False, lossless, near, rgb)


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
        elif marker not in {0xE0, SOS}:
            return adobe or ("RGB" if content[6:15:3] == b"RGB" else "")
    return adobe


def _segments(frame: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (marker, content) of the JFIF and Adobe segments (APP0, APP14), the start of frame, and the first start of scan."""
    at = 2
    while at + 4 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        end = at + 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
        start = marker == JPEG_LS_FRAME or (0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC})
        if start or marker in {0xE0, 0xEE, SOS}:
            yield marker, frame[at + 4 : end]
        if marker == SOS:
            return
        at = end
