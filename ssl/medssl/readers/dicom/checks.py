"""Checks that reject a bad DICOM file: the header, the length of its pixels and its compressed frames are compared.

They come before anything is allocated or decoded, in this order: `check_image`, `checked_layout`, then for native pixels
`count_native_frames`, for compressed ones `check_codestream` and, after the decoder, `check_decoded`. Run-length segments are
checked in `rle`, fragments in `frame_places`.
"""

from typing import BinaryIO

import numpy as np
from pydicom.config import IGNORE
from pydicom.uid import UID

from medssl.readers.dicom.codestream import Codestream
from medssl.readers.dicom.header import Header
from medssl.readers.dicom.layout import FLOATS, JPEG, JPEG_2000, JPEG_LS, NATIVE, RLE, Layout
from medssl.readers.scan import Unreadable

MAX_PIXELS = 1 << 28  # per frame
MAX_FRAMES = 1 << 20  # in one file; also for compressed fragments
PAD = 3  # bytes after native pixels that are always padding
STEP = 1 << 20
REST_DIVISOR = 50  # a rest of less than one fiftieth of a frame is no sign of another image size
VIDEO = tuple(f"1.2.840.10008.1.2.4.10{n}" for n in range(9))  # MPEG-2, MPEG-4, HEVC
# Prefixes of SOP classes without an image: waveforms, presentation states, segmentations, reports, documents, plans.
NOT_IMAGES = tuple(f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("9.", "11.", "66", "67", "68", "88.", "104.", "481."))


def check_image(header: Header) -> None:
    """Check that the file is to have an image, and that the header is complete.

    Raises:
        Unreadable: NOT_AN_IMAGE, NOT_DICOM, NO_PIXELS; TRUNCATED if an image object ends before its pixels.
    """
    sop = header.word("SOPClassUID")
    if sop.startswith(NOT_IMAGES) or "DirectoryRecordSequence" in header:
        raise Unreadable("NOT_AN_IMAGE", "this kind of DICOM object has no image")
    if header.pixels is None and "Image Storage" in UID(sop, IGNORE).name:  # PS3.6 table A-1
        raise Unreadable("TRUNCATED", "an image object that ends before its pixel data")
    if "Rows" not in header:
        if header.syntax and not sop:  # the file meta information is there, and little else
            raise Unreadable("TRUNCATED", "the file ends inside the header")
        raise Unreadable("NO_PIXELS" if sop else "NOT_DICOM", "the header describes no image")


def checked_layout(header: Header) -> Layout:
    """Return the layout of the pixels, after checking the header for contradictions.

    Raises:
        Unreadable: NO_PIXELS, TOO_LARGE, BAD_HEADER, UNSUPPORTED_SYNTAX, UNSUPPORTED_PIXELS.
    """
    layout = Layout.of(header)
    if layout.rows < 1 or layout.columns < 1:
        raise Unreadable("NO_PIXELS", "the header has no rows or no columns")
    if layout.rows * layout.columns > MAX_PIXELS or layout.frames > MAX_FRAMES:
        raise Unreadable(
            "TOO_LARGE", f"{layout.frames} x {layout.rows} x {layout.columns} pixels according to the header"
        )
    if layout.syntax.startswith(VIDEO):
        raise Unreadable("UNSUPPORTED_SYNTAX", "a video; export its frames as images")
    if layout.syntax not in NATIVE | JPEG | JPEG_LS | JPEG_2000 | {RLE}:
        raise Unreadable("UNSUPPORTED_SYNTAX", "no decoder for this transfer syntax")
    if layout.keyword in FLOATS:
        if layout.samples != 1 or layout.encapsulated:
            raise Unreadable("UNSUPPORTED_PIXELS", "floating point pixels must be uncompressed and of one sample")
        return layout
    if layout.allocated not in {1, 8, 16, 32} or (layout.allocated == 1 and layout.encapsulated):
        raise Unreadable("UNSUPPORTED_PIXELS", f"{layout.allocated} bits allocated are not supported")
    if not (1 <= layout.stored <= layout.allocated and layout.stored - 1 <= layout.high < layout.allocated):
        raise Unreadable("BAD_HEADER", "bits stored, high bit and bits allocated contradict each other")
    colour = layout.photometric.split("_")[0] in {"RGB", "YBR"}
    if layout.samples not in {1, 3} or (layout.samples == 3) != colour or "PARTIAL" in layout.photometric:
        raise Unreadable("UNSUPPORTED_PIXELS", "unsupported samples per pixel or photometric interpretation")
    if layout.samples == 3 and not (layout.allocated in {8, 16} and layout.stored >= 8):
        raise Unreadable(
            "UNSUPPORTED_PIXELS", f"colour with {layout.stored} of {layout.allocated} bits; 8 to 16 bits are supported"
        )
    if layout.photometric == "YBR_FULL_422" and not layout.encapsulated and layout.columns % 2:
        raise Unreadable("UNSUPPORTED_PIXELS", "chroma subsampling with an odd number of columns")
    return layout


def count_native_frames(stream: BinaryIO, layout: Layout, frame_bytes: int, start: int, length: int) -> int:
    """Return the number of native frames of `frame_bytes` bytes in pixel data of `length` bytes at `start`.

    That is Number Of Frames, unless it is absent or larger than what is there. Further frames and bytes after the last
    frame are ignored, as other readers do, unless these bytes may mean that the image has another size.

    Raises:
        Unreadable: NO_PIXELS, BAD_LENGTH, TRUNCATED.
    """
    size = stream.seek(0, 2)
    count, rest = divmod(length, frame_bytes)
    known = min(count, layout.frames or count)
    if length == 0:
        raise Unreadable("NO_PIXELS", "the pixel data is empty")
    if count == 0:
        raise Unreadable("BAD_LENGTH", "there is less pixel data than rows x columns x samples x bytes")
    if start + max(known * frame_bytes, length - PAD if rest <= PAD else 0) > size:
        raise Unreadable("TRUNCATED", "the file ends inside the pixel data")
    if not layout.frames and count > 1 and _is_blank(stream, start + frame_bytes, length - frame_bytes):
        return 1
    if rest > PAD and not _is_padding(stream, layout, start + count * frame_bytes, rest, frame_bytes):
        raise Unreadable("BAD_LENGTH", "the length of the pixel data is not rows x columns x samples x bytes")
    return known


def _is_padding(stream: BinaryIO, layout: Layout, end: int, rest: int, frame_bytes: int) -> bool:
    """Return whether the `rest` bytes after the last frame are no part of an image.

    A wrong number of rows or columns leaves whole rows or columns over. So a small rest that is neither is padding, and
    any rest of zeros if the last row before it is not black as well.
    """
    row, column = (max(n * layout.samples * layout.allocated // 8, 1) for n in (layout.columns, layout.rows))
    if rest < min(row, column) or (rest * REST_DIVISOR < frame_bytes and rest % row and rest % column):
        return True
    return not _is_blank(stream, end - row, row) and _is_blank(stream, end, rest)


def _is_blank(stream: BinaryIO, start: int, length: int) -> bool:
    """Return whether these bytes, as far as they are there, are zeros."""
    stream.seek(start)
    while length > 0 and (piece := stream.read(min(length, STEP))):
        if piece.strip(b"\0"):
            return False
        length -= len(piece)
    return True


def check_codestream(found: Codestream | None, layout: Layout) -> Codestream:
    """Return what a compressed frame states about itself.

    Raises:
        Unreadable: DECODE_FAILED if its size is not that of the header.
    """
    if found is None or (found.rows, found.columns, found.components) != (layout.rows, layout.columns, layout.samples):
        raise Unreadable("DECODE_FAILED", "the size of the compressed image contradicts the header")
    return found


def check_decoded(found: np.ndarray, layout: Layout) -> np.ndarray:
    """Return a decoded frame.

    Raises:
        Unreadable: DECODE_FAILED if it does not have the shape and type that the header states.
    """
    if found.shape != layout.shape or found.dtype.kind not in "iu" or found.dtype.itemsize * 8 > layout.allocated:
        raise Unreadable("DECODE_FAILED", "the shape or type of the decoded image contradicts the header")
    return found
