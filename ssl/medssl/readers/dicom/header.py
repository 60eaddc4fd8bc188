"""Where each element of a DICOM header lies (PS3.5 section 7, PS3.10 section 7). Nothing is converted until it is asked.

pydicom's parser, which converts everything, is 1.6 times slower than reading a CT slice may be here; it is the
reference in the tests instead. Nesting is walked, not recursed into, and no length is believed that the file has not.
"""

import io
import math
import struct
import zlib
from functools import cache
from typing import BinaryIO

from pydicom.datadict import dictionary_VR, tag_for_keyword

from medssl.readers.scan import Unreadable

FIRST = 1 << 14  # bytes read at first: most headers fit
MOST = 1 << 28  # bytes of a header; one that asks for more is lying
MOST_INFLATED = 1 << 30
DEEPEST = 32  # sequences inside sequences
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
PIXELS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG = "1.2.840.10008.1.2.2"

# Value representations (PS3.5 table 6.2-1), and those whose length has 32 bits in explicit VR (section 7.1.2).
VRS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)
LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
NAMES = {vr: vr.decode() for vr in VRS}
# Group, element, value representation and short length of an explicit element; long lengths; by "little endian".
EXPLICIT = {True: struct.Struct("<HH2sH"), False: struct.Struct(">HH2sH")}
LENGTH = {True: struct.Struct("<I"), False: struct.Struct(">I")}
NUMBER = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d", "UV": "Q", "SV": "q", "US or SS": "H"}

Element = tuple[str, int, int]  # value representation ("" when the file does not say), first byte, length


@cache
def tag_of(keyword: str) -> int:
    """The tag of a keyword of the standard's dictionary."""
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return tag


@cache
def _dictionary(tag: int) -> str:
    try:
        return dictionary_VR(tag)
    except KeyError:
        return "UN"


class Header:
    """One data set, or one item of a sequence.

    Attributes:
        syntax: transfer syntax UID, "" when the file does not say.
        implicit, little: how the elements are written, seen from themselves, which need not be what `syntax` claims.
        pixels: the pixel data element as (keyword, offset of its value in `stream`, its length as written); None without.
        stream: the file, or what a deflated one inflates to.
    """

    def __init__(self, data: bytes, elements: dict[int, Element], implicit: bool, little: bool):
        self._data, self.elements, self.implicit, self.little = data, elements, implicit, little
        self.syntax = ""
        self.pixels: tuple[str, int, int] | None = None
        self.stream: BinaryIO = io.BytesIO()

    def __contains__(self, keyword: str) -> bool:
        return tag_of(keyword) in self.elements

    def value(self, keyword: str | int) -> bytes:
        """An element's bytes as written, b"" when it is absent. By keyword or, for a private element, by tag."""
        found = self.elements.get(tag_of(keyword) if isinstance(keyword, str) else keyword)
        return b"" if found is None else self._data[found[1] : found[1] + found[2]]

    def raw(self, keyword: str | int) -> bytes:
        """The same without padding: what pseudonyms are made of, so that no character set can change them."""
        return self.value(keyword).strip(b" \0")

    def words(self, keyword: str | int) -> tuple[str, ...]:
        """The values of a text element, upper case."""
        value = self.raw(keyword)
        return tuple(v.strip(" \0").upper() for v in value.decode("latin-1").split("\\")) if value else ()

    def word(self, keyword: str | int) -> str:
        """The first of them, or ""."""
        return next(iter(self.words(keyword)), "")

    def numbers(self, keyword: str | int) -> tuple[float, ...]:
        """Finite numbers of an element, empty when it is absent or empty; a decimal comma is forgiven.

        Raises:
            Unreadable: BAD_HEADER when something is written there that is not a number.
        """
        tag = tag_of(keyword) if isinstance(keyword, str) else keyword
        found = self.elements.get(tag)
        if found is None or not found[2]:
            return ()
        vr, at, length = found
        code = NUMBER.get(vr if vr not in {"", "UN"} else _dictionary(tag))
        values: tuple[float, ...]
        try:
            if code:
                count = length // struct.calcsize(code)
                values = struct.unpack_from(f"{'<' if self.little else '>'}{count}{code}", self._data, at)
            else:
                text = self._data[at : at + length].replace(b",", b".").replace(b"\0", b" ")
                values = tuple([float(part) for part in text.split(b"\\") if part.strip()])
        except ValueError:
            raise Unreadable("BAD_HEADER", f"{keyword} is not a number") from None
        return values if all(map(math.isfinite, values)) else ()

    def integer(self, keyword: str | int, default: int) -> int:
        """The first number as an integer, `default` when there is none."""
        found = self.numbers(keyword)
        return int(found[0]) if found else default

    def items(self, keyword: str | int) -> list["Header"]:
        """The items of a sequence; none when it is absent.

        Raises:
            Unreadable: BAD_HEADER, TRUNCATED.
        """
        tag = tag_of(keyword) if isinstance(keyword, str) else keyword
        found = self.elements.get(tag)
        if found is None:
            return []
        vr, start, length = found
        implicit = self.implicit or vr == "UN"  # PS3.5 6.2.2 note 2: a sequence of unknown VR is implicit inside
        return _items(self._data, start, start + length, implicit, self.little or vr == "UN")


def parse(stream: BinaryIO) -> Header:
    """The header of a DICOM file: all elements before the pixel data, which is only located.

    Tolerated, because files in hospitals are so: no preamble, no file meta information, file meta information in
    implicit VR, a transfer syntax that lies about VR or byte order, an item or sequence without its end at the end.

    Raises:
        Unreadable: EMPTY, TRUNCATED, BAD_HEADER, TOO_LARGE, NOT_DICOM.
    """
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    if size == 0:
        raise Unreadable("EMPTY", "the file has no bytes")
    window = _Window(stream, size)
    start = 132 if window.upto(132) and window.data[128:132] == b"DICM" else 0
    meta: dict[int, Element] = {}
    while window.upto(start + 8) and window.data[start : start + 2] == b"\x02\x00":
        implicit = window.data[start + 4 : start + 6] not in VRS
        tag, vr, at, length = _element(window.data, start, implicit, True)
        if length == UNDEFINED or not window.upto(at + length):
            raise Unreadable("TRUNCATED", "the file ends inside its meta information")
        meta[tag] = (vr, at, length)
        start = at + length
    syntax = Header(window.data, meta, False, True).raw("TransferSyntaxUID").decode("latin-1")
    if syntax == DEFLATED:
        window = _Window(*_inflate(stream, start))
        start = 0
    if not window.upto(start + 8):
        raise Unreadable("TRUNCATED", "the file ends before its header begins")
    little = _is_little(window.data, start, syntax)
    implicit = window.data[start + 4 : start + 6] not in VRS
    elements: dict[int, Element] = {}
    pixels = None
    at = start
    while at + 8 <= len(window.data) or window.upto(at + 8):
        tag, vr, value, length = _element(window.data, at, implicit, little, window)
        if tag >> 16 > 0x7FE0 or (tag >> 16 == 0 and elements):
            break  # trailing padding, or bytes that are no element
        if tag in PIXELS:
            pixels = (PIXELS[tag], value, length)
            break
        if length == UNDEFINED:
            length = _end(window, value, implicit or vr == "UN", little or vr == "UN") - value
        elif value + length > len(window.data) and not window.upto(value + length):
            raise Unreadable("TRUNCATED", "the file ends inside the header")
        elements[tag] = (vr, value, length)
        at = value + length
    if not elements or (not meta and min(elements) >> 16 > 0x0010):
        raise Unreadable("NOT_DICOM", "the header does not begin as DICOM's does")
    header = Header(window.data, elements, implicit, little)
    header.syntax, header.pixels, header.stream = syntax, pixels, window.stream
    return header


class _Window:
    """The first bytes of a stream, read further only when somebody needs them."""

    def __init__(self, stream: BinaryIO, size: int):
        self.stream, self.size = stream, size
        stream.seek(0)
        self.data = stream.read(min(FIRST, size))

    def upto(self, end: int) -> bool:
        """Whether the stream has `end` bytes; then `data` has them too."""
        if end <= len(self.data):
            return True
        if end > self.size:
            return False
        if end > MOST:
            raise Unreadable("TOO_LARGE", "the header is larger than any header is")
        self.stream.seek(len(self.data))
        self.data += self.stream.read(min(max(end, 4 * len(self.data)), self.size) - len(self.data))
        return end <= len(self.data)


def _element(
    data: bytes, at: int, implicit: bool, little: bool, window: _Window | None = None
) -> tuple[int, str, int, int]:
    """(tag, VR, offset of the value, length) of the element at `at`, of which at least 8 bytes are there."""
    group, element, vr, short = EXPLICIT[little].unpack_from(data, at)
    tag = group << 16 | element
    if implicit or group == 0xFFFE:
        return tag, "", at + 8, LENGTH[little].unpack_from(data, at + 4)[0]
    name = NAMES.get(vr)
    if name is None:  # an element that slipped into implicit VR, as some writers do in private groups
        if vr.isalpha() and vr.isupper():
            raise Unreadable("BAD_HEADER", "an element has a value representation that does not exist")
        return tag, "", at + 8, LENGTH[little].unpack_from(data, at + 4)[0]
    if vr not in LONG:
        return tag, name, at + 8, short
    if at + 12 > len(data):
        if window is None or not window.upto(at + 12):
            raise Unreadable("TRUNCATED", "the file ends inside the header")
        data = window.data
    return tag, name, at + 12, LENGTH[little].unpack_from(data, at + 8)[0]


def _end(window: _Window, at: int, implicit: bool, little: bool) -> int:
    """Where a sequence of undefined length that begins at `at` ends, its delimiter included."""
    inside = ["sequence"]
    while inside:
        if not window.upto(at + 8):
            raise Unreadable("TRUNCATED", "the file ends inside a sequence")
        tag, _, value, length = _element(window.data, at, implicit, little, window)
        if tag in {SEQUENCE_END, ITEM_END}:
            if inside.pop() != ("sequence" if tag == SEQUENCE_END else "item"):
                raise Unreadable("BAD_HEADER", "a sequence ends where none began")
            at = value
        elif length == UNDEFINED:
            if len(inside) >= 2 * DEEPEST:
                raise Unreadable("BAD_HEADER", "sequences are nested deeper than any scanner writes them")
            inside.append("item" if tag == ITEM else "sequence")
            at = value
        elif not window.upto(value + length):
            raise Unreadable("TRUNCATED", "the file ends inside a sequence")
        else:
            at = value + length
    return at


def _items(data: bytes, at: int, stop: int, implicit: bool, little: bool) -> list[Header]:
    """Items between two bytes of a header that `parse` has walked to its end."""
    found = []
    window = _Window(io.BytesIO(), 0)
    window.data = data  # all there is: nothing is read further
    while at + 8 <= stop:
        tag, _, value, length = _element(data, at, True, little)
        if tag == SEQUENCE_END:
            break
        if tag != ITEM:
            raise Unreadable("BAD_HEADER", "something other than an item stands in a sequence")
        end = stop if length == UNDEFINED else value + length
        if end > stop:
            raise Unreadable("TRUNCATED", "an item is longer than its sequence")
        elements: dict[int, Element] = {}
        at = value
        while at + 8 <= end:
            tag, vr, value, length = _element(data, at, implicit, little, window)
            if tag in {ITEM_END, SEQUENCE_END}:
                at = value if tag == ITEM_END else at
                break
            if length == UNDEFINED:
                length = _end(window, value, implicit or vr == "UN", little or vr == "UN") - value
            if value + length > end:
                raise Unreadable("TRUNCATED", "an element is longer than its sequence")
            elements[tag] = (vr, value, length)
            at = value + length
        found.append(Header(data, elements, implicit, little))
    return found


def _is_little(data: bytes, at: int, syntax: str) -> bool:
    """From the first group number, which is small: 0008 in one order is 0800 in the other."""
    group = int.from_bytes(data[at : at + 2], "little")
    if group == 0 or (group & 0xFF == 0) == (group >> 8 == 0):
        return syntax != BIG
    return group & 0xFF != 0


def _inflate(stream: BinaryIO, start: int) -> tuple[BinaryIO, int]:
    """What follows `start` inflated (PS3.5 A.5), with a bound."""
    stream.seek(start)
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    out = io.BytesIO()
    try:
        while not engine.eof and (piece := engine.unconsumed_tail or stream.read(1 << 20)):
            out.write(engine.decompress(piece, 1 << 24))
            if out.tell() > MOST_INFLATED:
                raise Unreadable("TOO_LARGE", "the file inflates without limit")
    except zlib.error:
        raise Unreadable("TRUNCATED", "the deflated file is damaged") from None
    if not engine.eof:
        raise Unreadable("TRUNCATED", "the deflated file has no end")
    return out, out.tell()
