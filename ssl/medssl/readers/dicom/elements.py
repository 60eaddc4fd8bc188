"""Data elements of a DICOM file: tags, value representations and lengths (PS3.5 section 7)."""

import struct
from typing import BinaryIO

from medssl.readers.scan import Unreadable

FIRST = 1 << 14  # bytes of the first read; most headers fit
MAX_HEADER = 1 << 28  # bytes
MAX_NESTING = 32  # sequences inside sequences
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD

# Value representations (PS3.5 table 6.2-1), and those with 32-bit lengths in explicit VR (section 7.1.2).
VRS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)
LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
NAMES = {vr: vr.decode() for vr in VRS}
# By byte order (True: little-endian): group, element, VR and short length of an explicit element; a long length.
EXPLICIT = {True: struct.Struct("<HH2sH"), False: struct.Struct(">HH2sH")}
LENGTH = {True: struct.Struct("<I"), False: struct.Struct(">I")}

Element = tuple[str, int, int]  # value representation ("" if the file does not state it), first byte, length


class Window:
    """The first bytes of a stream, extended on demand. `data` holds what has been read."""

    def __init__(self, stream: BinaryIO, size: int):
        self.stream, self.size = stream, size
        stream.seek(0)
        self.data = stream.read(min(FIRST, size))

    def upto(self, end: int) -> bool:
        """Return whether the stream has `end` bytes, and read that far."""
        if end <= len(self.data):
            return True
        if end > self.size:
            return False
        if end > MAX_HEADER:
            raise Unreadable("TOO_LARGE", "the header is too large")
        self.stream.seek(len(self.data))
        self.data += self.stream.read(min(max(end, 4 * len(self.data)), self.size) - len(self.data))
        return end <= len(self.data)


def element_at(
    data: bytes, at: int, implicit: bool, little: bool, window: Window | None = None
) -> tuple[int, str, int, int]:
    """Return (tag, VR, offset of the value, length) of the element at `at`. At least 8 bytes must be available."""
    group, element, vr, short = EXPLICIT[little].unpack_from(data, at)
    tag = group << 16 | element
    if implicit or group == 0xFFFE:
        return tag, "", at + 8, LENGTH[little].unpack_from(data, at + 4)[0]
    name = NAMES.get(vr)
    if name is None:  # an implicit element in an explicit file, as some writers have in private groups
        if vr.isalpha() and vr.isupper():
            raise Unreadable("BAD_HEADER", "an element has an unknown value representation")
        return tag, "", at + 8, LENGTH[little].unpack_from(data, at + 4)[0]
    if vr not in LONG:
        return tag, name, at + 8, short
    if at + 12 > len(data):
        if window is None or not window.upto(at + 12):
            raise Unreadable("TRUNCATED", "the file ends inside the header")
        data = window.data
    return tag, name, at + 12, LENGTH[little].unpack_from(data, at + 8)[0]


def end_of_sequence(window: Window, at: int, implicit: bool, little: bool) -> int:
    """Return the offset just after a sequence of undefined length that starts at `at`. Iterative, not recursive."""
    inside = ["sequence"]
    while inside:
        if not window.upto(at + 8):
            raise Unreadable("TRUNCATED", "the file ends inside a sequence")
        tag, _, value, length = element_at(window.data, at, implicit, little, window)
        if tag in {SEQUENCE_END, ITEM_END}:
            if inside.pop() != ("sequence" if tag == SEQUENCE_END else "item"):
                raise Unreadable("BAD_HEADER", "a sequence delimiter has no matching start")
            at = value
        elif length == UNDEFINED:
            if len(inside) >= 2 * MAX_NESTING:
                raise Unreadable("BAD_HEADER", "sequences are nested too deeply")
            inside.append("item" if tag == ITEM else "sequence")
            at = value
        elif not window.upto(value + length):
            raise Unreadable("TRUNCATED", "the file ends inside a sequence")
        else:
            at = value + length
    return at


def is_dicom(head: bytes) -> bool:
    """Return whether the first bytes of a file are DICOM.

    Without a preamble, the file must start with a plausible element of group 0002 or 0008, in either byte order.
    """
    if head[128:132] == b"DICM":
        return True
    if len(head) < 16 or head[:2] not in {b"\x02\x00", b"\x08\x00", b"\x00\x08"}:
        return False
    little = head[:2] != b"\x00\x08"
    if head[3 if little else 2] != 0:
        return False
    return head[4:6] in VRS or int.from_bytes(head[4:8], "little" if little else "big") < 1024
