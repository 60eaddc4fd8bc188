"""Siemens mosaics: the slices of one volume tiled into one image, row by row.

The standard does not define them; private elements hold the number of tiles, (0019,xx0A), and the slice geometry, in the
CSA header (0029,xx10), a table of named texts. Without a slice normal or a slice distance the mosaic is refused.
"""

import math
import struct

import numpy as np

from medssl.readers.dicom.header import Header
from medssl.readers.scan import Slice, Unreadable

MR_CREATOR, CSA_CREATOR = b"SIEMENS MR HEADER", b"SIEMENS CSA HEADER"
MAX_ENTRIES = 1000  # limit for a CSA header, which has about a hundred entries
ENTRY, ITEM = struct.Struct("<64si4siii"), struct.Struct("<4i")


def tiles_of(header: Header) -> tuple[list[tuple[int, int]], list[Slice], tuple[int, int]]:
    """Return ([(top, left) of each tile], [each tile as a slice], (rows, columns) of a tile), in order.

    Raises:
        Unreadable: BAD_GEOMETRY if the slice positions are not determined, BAD_HEADER.
    """
    csa = _csa(header)
    count = _count(header) or int(_number(csa, "NumberOfImagesInMosaic"))
    rows, columns = header.integer("Rows", 0), header.integer("Columns", 0)
    across = math.isqrt(max(count - 1, 0)) + 1  # tiles fill the smallest possible square
    if count < 1 or rows % across or columns % across:
        raise Unreadable("BAD_GEOMETRY", "the number of tiles of the mosaic is not stated")
    tile = rows // across, columns // across
    corners = [(i // across * tile[0], i % across * tile[1]) for i in range(count)]
    position, orientation, spacing = (
        header.numbers(k) for k in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    )
    if (len(position), len(orientation), len(spacing)) != (3, 6, 2) or min(spacing) <= 0:
        raise Unreadable("BAD_GEOMETRY", "the mosaic has no position, orientation or pixel spacing")
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    # The position is the corner of a slice as large as the whole mosaic.
    first = np.array(position) + column * spacing[0] * (rows - tile[0]) / 2 + row * spacing[1] * (columns - tile[1]) / 2
    step = _step(header, csa, np.cross(row, column))
    slices = [
        Slice(
            file="",
            uid="",
            key="",
            position=tuple((first + i * step).tolist()),
            orientation=orientation,
            spacing=spacing,
        )
        for i in range(count)
    ]
    return corners, slices, tile


def _step(header: Header, csa: dict[str, list[str]], across: np.ndarray) -> np.ndarray:
    """Return the vector from one slice to the next, mm, LPS.

    The sign of the normal is from the CSA header: sagittal stacks run against the cross product of rows and columns.
    """
    normal = np.array([_float(v) for v in csa.get("SliceNormalVector", [])])
    if normal.shape != (3,) or not abs(abs(normal @ across) - 1) <= 1e-3 or not abs(np.linalg.norm(normal) - 1) <= 1e-3:
        raise Unreadable("BAD_GEOMETRY", "the mosaic's slice normal is missing or contradicts its orientation")
    if _number(csa, "ProtocolSliceNumber") != 0:
        raise Unreadable("BAD_GEOMETRY", "the mosaic's slices are numbered backwards, so their order is uncertain")
    distance = next(iter(header.numbers("SpacingBetweenSlices")), 0.0) or _number(csa, "SpacingBetweenSlices")
    if not (math.isfinite(distance) and distance > 0):
        raise Unreadable("BAD_GEOMETRY", "the mosaic's slice distance is missing")
    return normal * distance


def _count(header: Header) -> int:
    """Return Number Of Images In Mosaic, US, (0019,xx0A), 0 if it is absent."""
    value = _private(header, 0x0019, MR_CREATOR, 0x0A)
    return int.from_bytes(value, "little" if header.little else "big") if len(value) == 2 else 0


def _private(header: Header, group: int, creator: bytes, element: int) -> bytes:
    """Return a private element, in the block reserved by its creator (PS3.5 section 7.8.1)."""
    for block in range(0x10, 0x100):
        if header.raw(group << 16 | block) == creator:
            return header.value(group << 16 | block << 8 | element)
    return b""


def _csa(header: Header) -> dict[str, list[str]]:
    """Return the image CSA header as name -> non-empty texts, {} if there is none in the second format.

    Layout, little-endian: "SV10" and four bytes, the number of entries and a check word. An entry is a name of 64 bytes,
    multiplicity, representation, type, number of items and a check word. An item is four lengths, the second of which is
    valid, and a text padded to four bytes.
    """
    data = _private(header, 0x0029, CSA_CREATOR, 0x10)
    if not data.startswith(b"SV10"):
        return {}
    found: dict[str, list[str]] = {}
    try:
        (entries,) = struct.unpack_from("<I", data, 8)
        if entries > MAX_ENTRIES:
            raise Unreadable("BAD_HEADER", "the CSA header is damaged")
        at = 16
        for _ in range(entries):
            name, _, _, _, items, _ = ENTRY.unpack_from(data, at)
            at += ENTRY.size
            texts = []
            for _ in range(items):
                length = ITEM.unpack_from(data, at)[1]
                at += ITEM.size
                if not 0 <= length <= len(data) - at:
                    raise Unreadable("BAD_HEADER", "the CSA header is damaged")
                texts.append(data[at : at + length].split(b"\0")[0].decode("latin-1").strip())
                at += (length + 3) // 4 * 4
            found[name.split(b"\0")[0].decode("latin-1")] = [t for t in texts if t]
    except struct.error:
        raise Unreadable("BAD_HEADER", "the CSA header is damaged") from None
    return found


def _number(csa: dict[str, list[str]], name: str) -> float:
    """Return the first number of an entry, 0 if it is absent."""
    return _float(next(iter(csa.get(name, [])), "0"))


def _float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise Unreadable("BAD_HEADER", "the CSA header has text in place of a number")
    return value
