"""Mosaics: the slices of one volume tiled into one image, row by row.

The standard does not define them. Siemens has the number of tiles in (0019,xx0A) and the slice geometry in the CSA header
(0029,xx10), a table of named texts; UIH has them in (0065,xx50) and (0065,xx51), the latter with the position of each tile.
A mosaic without these is refused: its tiles would lie side by side in one flat picture.
"""

import math
import struct

import numpy as np

from medssl.readers.dicom.header import Header
from medssl.readers.dicom.metadata import image_type
from medssl.readers.dicom.stack_geometry import height
from medssl.readers.scan import Slice, Unreadable

MR_CREATOR, CSA_CREATOR, UIH_CREATOR = b"SIEMENS MR HEADER", b"SIEMENS CSA HEADER", b"Image Private Header"
CREATORS = frozenset(group << 16 | block for group in (0x0019, 0x0029, 0x0065) for block in range(0x10, 0x100))
MAKERS = b"SIEMENS", b"UIH", b"UNITED IMAGING"
WORDS = {"MOSAIC", "VFRAME"}  # in Image Type
MAX_ENTRIES = 1000  # limit for a CSA header, which has about a hundred entries
ENTRY, ITEM = struct.Struct("<64si4siii"), struct.Struct("<4i")


def is_tiled(header: Header) -> bool:
    """Return whether the image is a mosaic, by its Image Type, or if that was overwritten by its number of tiles."""
    if not WORDS.isdisjoint(image_type(header)):
        return True
    maker = header.raw("Manufacturer").upper()
    if maker and not any(name in maker for name in MAKERS):
        return False
    return max(_siemens_count(header), _uih_count(header)) > 1


def tiles_of(header: Header) -> tuple[list[tuple[int, int]], list[Slice], tuple[int, int]]:
    """Return ([(top, left) of each tile], [each tile as a slice], (rows, columns) of a tile), sorted along one direction.

    Raises:
        Unreadable: BAD_GEOMETRY if the number of tiles or their positions are not determined, BAD_HEADER.
    """
    return _uih_tiles(header, uih) if (uih := _uih_count(header)) else _siemens_tiles(header)


def _siemens_tiles(header: Header) -> tuple[list[tuple[int, int]], list[Slice], tuple[int, int]]:
    csa = _csa(header)
    count = _siemens_count(header) or int(_number(csa, "NumberOfImagesInMosaic"))
    rows, columns = header.integer("Rows", 0), header.integer("Columns", 0)
    across = math.isqrt(max(count - 1, 0)) + 1  # tiles fill the smallest possible square
    if count < 1 or rows % across or columns % across:
        raise Unreadable("BAD_GEOMETRY", "the number of tiles of the mosaic is not stated")
    tile = rows // across, columns // across
    position, orientation, spacing = _plane(header, header.numbers("ImagePositionPatient"))
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    # The position is the corner of a slice as large as the whole mosaic.
    first = np.array(position) + column * spacing[0] * (rows - tile[0]) / 2 + row * spacing[1] * (columns - tile[1]) / 2
    step = _step(header, csa, np.cross(row, column))
    slices = [_slice(tuple((first + i * step).tolist()), orientation, spacing) for i in range(count)]
    return _corners(count, across, tile), slices, tile


def _uih_tiles(header: Header, count: int) -> tuple[list[tuple[int, int]], list[Slice], tuple[int, int]]:
    rows, columns = header.integer("Rows", 0), header.integer("Columns", 0)
    across = math.isqrt(max(count - 1, 0)) + 1
    # The last rows of tiles may be left out. Where both fit, tiles are as nearly square as can be.
    down = [n for n in {across, -(-count // across)} if not rows % n]
    if columns % across or not down:
        raise Unreadable("BAD_GEOMETRY", "the tiles of the mosaic do not fill its rows and columns")
    width = columns // across
    tile = min((rows // n for n in down), key=lambda size: abs(math.log(size / width))), width
    items = header.items(_tag(header, 0x0065, UIH_CREATOR, 0x51))
    if len(items) != count:
        raise Unreadable("BAD_GEOMETRY", "the mosaic does not state a position for each of its tiles")
    slices = [_slice(*_plane(header, item.numbers("ImagePositionPatient"))) for item in items]
    found = sorted(zip(_corners(count, across, tile), slices, strict=True), key=lambda pair: height(pair[1]))
    return [corner for corner, _ in found], [s for _, s in found], tile


def _corners(count: int, across: int, tile: tuple[int, int]) -> list[tuple[int, int]]:
    """Return (top, left) of tiles that stand row by row."""
    return [(i // across * tile[0], i % across * tile[1]) for i in range(count)]


def _plane(
    header: Header, position: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Return (position, orientation, spacing), all of which must be there."""
    orientation, spacing = (header.numbers(k) for k in ("ImageOrientationPatient", "PixelSpacing"))
    if (len(position), len(orientation), len(spacing)) != (3, 6, 2) or min(spacing) <= 0:
        raise Unreadable("BAD_GEOMETRY", "the mosaic has no position, orientation or pixel spacing")
    return position, orientation, spacing


def _slice(position: tuple[float, ...], orientation: tuple[float, ...], spacing: tuple[float, ...]) -> Slice:
    return Slice(file="", uid="", key="", position=position, orientation=orientation, spacing=spacing)


def _step(header: Header, csa: dict[str, list[str]], across: np.ndarray) -> np.ndarray:
    """Return the vector from one slice to the next, mm, LPS.

    The sign of the normal is from the CSA header: sagittal stacks run against the cross product of rows and columns. It
    already includes whether slices are numbered backwards (Protocol Slice Number).
    """
    normal = np.array([_float(v) for v in csa.get("SliceNormalVector", [])])
    if normal.shape != (3,) or not abs(abs(normal @ across) - 1) <= 1e-3 or not abs(np.linalg.norm(normal) - 1) <= 1e-3:
        raise Unreadable("BAD_GEOMETRY", "the mosaic's slice normal is missing or contradicts its orientation")
    distance = next(iter(header.numbers("SpacingBetweenSlices")), 0.0) or _number(csa, "SpacingBetweenSlices")
    if not (math.isfinite(distance) and distance > 0):
        raise Unreadable("BAD_GEOMETRY", "the mosaic's slice distance is missing")
    return normal * distance


def _siemens_count(header: Header) -> int:
    """Return Number Of Images In Mosaic, US, (0019,xx0A), 0 if it is absent."""
    value = header.value(_tag(header, 0x0019, MR_CREATOR, 0x0A))
    return int.from_bytes(value, "little" if header.little else "big") if len(value) == 2 else 0


def _uih_count(header: Header) -> int:
    """Return the number of slices in the volume, DS, (0065,xx50), 0 if it is absent."""
    return header.integer(_tag(header, 0x0065, UIH_CREATOR, 0x50), 0)


def _tag(header: Header, group: int, creator: bytes, element: int) -> int:
    """Return the tag of a private element in the block reserved by its creator (PS3.5 section 7.8.1), 0 if there is none."""
    for tag in header.elements:  # asked of every slice: a look at what is there, not at all 240 places
        if tag >> 8 == group << 8 and tag & 0xFF >= 0x10 and header.raw(tag) == creator:
            return group << 16 | (tag & 0xFF) << 8 | element
    return 0


def _csa(header: Header) -> dict[str, list[str]]:
    """Return the image CSA header as name -> non-empty texts, {} if there is none in the second format.

    Layout, little-endian: "SV10" and four bytes, the number of entries and a check word. An entry is a name of 64 bytes,
    multiplicity, representation, type, number of items and a check word. An item is four lengths, the second of which is
    valid, and a text padded to four bytes.
    """
    data = header.value(_tag(header, 0x0029, CSA_CREATOR, 0x10))
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
