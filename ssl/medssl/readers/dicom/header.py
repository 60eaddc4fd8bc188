"""The header of a DICOM file: where each element lies (PS3.5 section 7, PS3.10 section 7). Values are decoded on demand.

pydicom's parser converts every value, which makes it too slow here (benchmarks/speed_ingest.py); the tests compare with
it. Sequences are walked iteratively, and no length is trusted before it is checked against the file.
"""

import gzip
import io
import math
import struct
import zlib
from functools import cache
from typing import BinaryIO

from pydicom.datadict import dictionary_VR, tag_for_keyword

from medssl.readers.dicom.elements import (
    ITEM,
    ITEM_END,
    SEQUENCE_END,
    UNDEFINED,
    VRS,
    Element,
    Window,
    element_at,
    end_of_sequence,
)
from medssl.readers.scan import Unreadable
from medssl.readers.watched import watched_like

MAX_INFLATED = 1 << 30  # bytes of a deflated or gzipped file
GZIP = b"\x1f\x8b"
STEP = 1 << 22  # bytes decompressed at once
PIXELS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG = "1.2.840.10008.1.2.2"
NUMBER = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d", "UV": "Q", "SV": "q", "US or SS": "H"}


@cache
def tag_of(keyword: str) -> int:
    """Return the tag of a keyword of the DICOM dictionary (PS3.6)."""
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return tag


@cache
def _dictionary_vr(tag: int) -> str:
    try:
        return dictionary_VR(tag)
    except KeyError:
        return "UN"


class Header:
    """One data set, or one item of a sequence.

    Attributes:
        syntax: transfer syntax UID, "" if the file does not state it.
        implicit, little: encoding of the elements, detected from their bytes; it may differ from `syntax`.
        pixels: the pixel data element as (keyword, offset of its value in `stream`, stated length), or None.
        stream: the file; if it is gzipped or deflated, its decompressed content.
    """

    def __init__(self, data: bytes, elements: dict[int, Element], implicit: bool, little: bool):
        self.data, self.elements, self.implicit, self.little = data, elements, implicit, little
        self.syntax = ""
        self.pixels: tuple[str, int, int] | None = None
        self.stream: BinaryIO = io.BytesIO()

    def __contains__(self, keyword: str) -> bool:
        return tag_of(keyword) in self.elements

    def value(self, keyword: str | int) -> bytes:
        """Return the raw bytes of an element, b"" if it is absent. Private elements are given by tag."""
        found = self.elements.get(tag_of(keyword) if isinstance(keyword, str) else keyword)
        return b"" if found is None else self.data[found[1] : found[1] + found[2]]

    def raw(self, keyword: str | int) -> bytes:
        """Return the raw bytes without padding, in the character set of the file; see `identity.identifier`."""
        return self.value(keyword).strip(b" \0")

    def words(self, keyword: str | int) -> tuple[str, ...]:
        """Return the values of a text element, in upper case."""
        value = self.raw(keyword)
        return tuple(v.strip(" \0").upper() for v in value.decode("latin-1").split("\\")) if value else ()

    def word(self, keyword: str | int) -> str:
        """Return the first value of a text element in upper case, "" if it is absent."""
        return next(iter(self.words(keyword)), "")

    def numbers(self, keyword: str | int) -> tuple[float, ...]:
        """Return the values of a numeric element, () if it is absent or not finite. A decimal comma is accepted.

        Raises:
            Unreadable: BAD_HEADER if the value is not a number.
        """
        tag = tag_of(keyword) if isinstance(keyword, str) else keyword
        found = self.elements.get(tag)
        if found is None or not found[2]:
            return ()
        vr, at, length = found
        code = NUMBER.get(vr if vr not in {"", "UN"} else _dictionary_vr(tag))
        values: tuple[float, ...]
        try:
            if code:
                count = length // struct.calcsize(code)
                values = struct.unpack_from(f"{'<' if self.little else '>'}{count}{code}", self.data, at)
            else:
                text = self.data[at : at + length].replace(b",", b".").replace(b"\0", b" ")
                values = tuple([float(part) for part in text.split(b"\\") if part.strip()])
        except ValueError:
            raise Unreadable("BAD_HEADER", f"{keyword} is not a number") from None
        return values if all(map(math.isfinite, values)) else ()

    def integer(self, keyword: str | int, default: int) -> int:
        """Return the first value as an integer, `default` if the element is absent."""
        found = self.numbers(keyword)
        return int(found[0]) if found else default

    def items(self, keyword: str | int) -> list["Header"]:
        """Return the items of a sequence, [] if it is absent.

        Raises:
            Unreadable: BAD_HEADER, TRUNCATED.
        """
        tag = tag_of(keyword) if isinstance(keyword, str) else keyword
        found = self.elements.get(tag)
        if found is None:
            return []
        vr, start, length = found
        implicit = self.implicit or vr == "UN"  # PS3.5 6.2.2 note 2: sequences of unknown VR are implicit
        return _items(self.data, start, start + length, implicit, self.little or vr == "UN")


def parse(stream: BinaryIO) -> Header:
    """Return the header of a DICOM file: all elements before the pixel data, and the position of the pixel data.

    Tolerates what occurs in practice: no preamble, no file meta information, file meta information in implicit VR, a
    transfer syntax UID that contradicts the VR or byte order, and a last item or sequence without its delimiter. The file
    may be gzipped as a whole.

    Raises:
        Unreadable: EMPTY, TRUNCATED, BAD_HEADER, TOO_LARGE, NOT_DICOM.
    """
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    if size == 0:
        raise Unreadable("EMPTY", "the file has no bytes")
    if stream.read(2) == GZIP:
        content, size = _gunzip(stream)
        stream = watched_like(stream, content, size)
    window = Window(stream, size)
    start = 132 if window.upto(132) and window.data[128:132] == b"DICM" else 0
    meta: dict[int, Element] = {}
    while window.upto(start + 8) and window.data[start : start + 2] == b"\x02\x00":
        implicit = window.data[start + 4 : start + 6] not in VRS
        tag, vr, at, length = element_at(window.data, start, implicit, True)
        if length == UNDEFINED or not window.upto(at + length):
            raise Unreadable("TRUNCATED", "the file ends inside the file meta information")
        meta[tag] = (vr, at, length)
        start = at + length
    syntax = Header(window.data, meta, False, True).raw("TransferSyntaxUID").decode("latin-1")
    if syntax == DEFLATED:
        content, size = _inflate(stream, start)
        window = Window(watched_like(stream, content, size), size)
        start = 0
    if not window.upto(start + 8):
        raise Unreadable("TRUNCATED", "the file ends before the header")
    little = _is_little(window.data, start, syntax)
    implicit = window.data[start + 4 : start + 6] not in VRS
    elements: dict[int, Element] = {}
    pixels = None
    at = start
    while at + 8 <= len(window.data) or window.upto(at + 8):
        tag, vr, value, length = element_at(window.data, at, implicit, little, window)
        if tag >> 16 > 0x7FE0 or (tag >> 16 == 0 and elements):
            break  # trailing padding
        if tag in PIXELS:
            pixels = (PIXELS[tag], value, length)
            break
        if length == UNDEFINED:
            length = end_of_sequence(window, value, implicit or vr == "UN", little or vr == "UN") - value
        elif value + length > len(window.data) and not window.upto(value + length):
            raise Unreadable("TRUNCATED", "the file ends inside the header")
        elements[tag] = (vr, value, length)
        at = value + length
    else:
        if window.upto(window.size) and window.data[at:].strip(b"\0"):
            raise Unreadable("TRUNCATED", "the file ends inside the header")
    if not elements or (not meta and min(elements) >> 16 > 0x0010):
        raise Unreadable("NOT_DICOM", "the file does not start with a DICOM header")
    header = Header(window.data, elements, implicit, little)
    header.syntax, header.pixels, header.stream = syntax, pixels, window.stream
    return header


def _items(data: bytes, at: int, stop: int, implicit: bool, little: bool) -> list[Header]:
    """Return the items between two offsets of a header that `parse` has validated."""
    found = []
    window = Window(io.BytesIO(), 0)
    window.data = data
    while at + 8 <= stop:
        tag, _, value, length = element_at(data, at, True, little)
        if tag == SEQUENCE_END:
            break
        if tag != ITEM:
            raise Unreadable("BAD_HEADER", "a sequence contains something other than an item")
        end = stop if length == UNDEFINED else value + length
        if end > stop:
            raise Unreadable("TRUNCATED", "an item is longer than its sequence")
        elements: dict[int, Element] = {}
        at = value
        while at + 8 <= end:
            tag, vr, value, length = element_at(data, at, implicit, little, window)
            if tag in {ITEM_END, SEQUENCE_END}:
                at = value if tag == ITEM_END else at
                break
            if length == UNDEFINED:
                length = end_of_sequence(window, value, implicit or vr == "UN", little or vr == "UN") - value
            if value + length > end:
                raise Unreadable("TRUNCATED", "an element is longer than its sequence")
            elements[tag] = (vr, value, length)
            at = value + length
        found.append(Header(data, elements, implicit, little))
    return found


def _is_little(data: bytes, at: int, syntax: str) -> bool:
    """Return the byte order, from the first group number: it is small, so 0008 would be 0800 in the other order."""
    group = int.from_bytes(data[at : at + 2], "little")
    if group == 0 or (group & 0xFF == 0) == (group >> 8 == 0):
        return syntax != BIG
    return group & 0xFF != 0


def _inflate(stream: BinaryIO, start: int) -> tuple[BinaryIO, int]:
    """Return the decompressed rest of a deflated file (PS3.5 A.5) and its length, at most MAX_INFLATED."""
    stream.seek(start)
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    out = io.BytesIO()
    try:
        while not engine.eof and (piece := engine.unconsumed_tail or stream.read(1 << 20)):
            out.write(engine.decompress(piece, 1 << 24))
            if out.tell() > MAX_INFLATED:
                raise Unreadable("TOO_LARGE", "the decompressed file is too large")
    except zlib.error:
        raise Unreadable("TRUNCATED", "the deflated file is damaged") from None
    if not engine.eof:
        raise Unreadable("TRUNCATED", "the deflated file is incomplete")
    return out, out.tell()


def _gunzip(stream: BinaryIO) -> tuple[BinaryIO, int]:
    """Return the content of a gzipped file and its length, at most MAX_INFLATED."""
    stream.seek(0)
    out = io.BytesIO()
    try:
        with gzip.GzipFile(fileobj=stream) as opened:
            while piece := opened.read(STEP):
                out.write(piece)
                if out.tell() > MAX_INFLATED:
                    raise Unreadable("TOO_LARGE", "the decompressed file is too large")
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise Unreadable("TRUNCATED", "the gzipped file is damaged or incomplete") from None
    return out, out.tell()
