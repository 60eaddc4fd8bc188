"""NIfTI-1.1 and NIfTI-2 files to scans (https://nifti.nimh.nih.gov). No text of the header is read: it may name people.

The header is read field by field and must be consistent; the voxels are inflated no further than it says, and nothing
is handed out before the file has been checked to its end.
"""

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from medssl.readers.dicom.series import canonical, spacing_of
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Scan, Unreadable
from medssl.readers.values import FEW, NAMED_FEW, few_integers, is_label_name, lossless, one_channel

MAX_BYTES = 1 << 33  # voxels of one file; a header that asks for more is lying
MAX_INFLATION = 1032  # deflate cannot do better (https://zlib.net/zlib_tech.html)
CHUNK = 1 << 22  # bytes inflated at once: memory grows with what is there, not with what a header claims
SLACK = 1 << 20  # bytes after the voxels that are forgiven
FLAT = 1e-3  # volume of a voxel over the product of its sides; below, its axes do not span space
UNIT_MM = {1: 1000.0, 3: 1e-3}  # metre, micron; mm is 2, and what 0 (unknown) is taken for
# datatype -> (numpy type, bits per voxel), nifti1.h
TYPES = {
    2: ("u1", 8),
    4: ("i2", 16),
    8: ("i4", 32),
    16: ("f4", 32),
    64: ("f8", 64),
    128: ("u1", 24),  # RGB
    256: ("i1", 8),
    512: ("u2", 16),
    768: ("u4", 32),
    1024: ("i8", 64),
    1280: ("u8", 64),
    2304: ("u1", 32),  # RGBA
}
COLOUR = {128: 3, 2304: 4}
OTHER_TYPES = {1, 32, 1536, 1792, 2048}  # bits, complex numbers and 128-bit floating point exist and are not read
LABELS = {1002, 1003}  # intents: labels, names of brain regions
NOT_SCALAR = range(1004, 1010)  # intents: matrices, displacements, vectors, points, triangles
# Where dim, datatype, bitpix, pixdim, vox_offset, scl_slope and inter, xyzt_units, qform and sform code, quaternion and
# offset, srow, and intent start in the headers of 348 and of 540 bytes, and how they are packed.
NIFTI1 = {
    40: "8h",
    70: "h",
    72: "h",
    76: "8f",
    108: "f",
    112: "2f",
    123: "b",
    252: "2h",
    256: "6f",
    280: "12f",
    68: "h",
}
NIFTI2 = {
    16: "8q",
    12: "h",
    14: "h",
    104: "8d",
    168: "q",
    176: "2d",
    500: "i",
    344: "2i",
    352: "6d",
    400: "12d",
    504: "i",
}


@dataclass(frozen=True)
class Layout:
    """What a NIfTI header says about its voxels.

    Attributes:
        order: "<" or ">".
        datatype: code of nifti1.h.
        shape: (i, j, k), the first index the fastest.
        volumes: how many of them follow each other.
        offset: bytes before the first voxel.
        slope, inter: real value = slope * stored + inter.
        unit: mm per unit of length.
        pixdim: qfac, then the spacing of i, j, k.
        codes: qform code, sform code.
        quaternion: b, c, d, then the offset of the qform.
        srow: the sform, (3, 4).
        intent: code of nifti1.h.
    """

    order: str
    datatype: int
    shape: tuple[int, int, int]
    volumes: int
    offset: int
    slope: float
    inter: float
    unit: float
    pixdim: tuple[float, ...]
    codes: tuple[int, int]
    quaternion: tuple[float, ...]
    srow: np.ndarray
    intent: int

    @property
    def size(self) -> int:
        """Bytes of one volume."""
        return math.prod(self.shape) * TYPES[self.datatype][1] // 8


def read(stream: BinaryIO, name: str, pseudonyms: Pseudonyms) -> Iterator[tuple[Scan | Unreadable, str]]:
    """Every volume as (C, D, H, W), reoriented to RAS, or as (C, H, W) when one axis has length 1.

    The volumes of a 4D file are `name#volume/k`. A label map is held.

    Raises:
        Unreadable: EMPTY, TRUNCATED, BAD_LENGTH, TOO_LARGE, BAD_HEADER, HEADER_PAIR, NOT_AN_IMAGE, UNSUPPORTED_PIXELS.
    """
    layout, body = _start(stream)
    data = _take(body, layout.size)
    for _ in range(1, layout.volumes):
        _skip(body, layout.size)
    _finish(body)  # the checksum is at the end; nothing before it can be trusted
    yield _scan(data, layout, name, 0, pseudonyms)
    del data
    if layout.volumes > 1:
        layout, body = _start(stream)
        _skip(body, layout.size)
        for k in range(1, layout.volumes):
            yield _scan(_take(body, layout.size), layout, name, k, pseudonyms)


def _start(stream: BinaryIO) -> tuple[Layout, BinaryIO]:
    """The header, and a stream that stands at the first voxel. A gzip stream is known by its magic, not by a name."""
    length = stream.seek(0, 2)
    stream.seek(0)
    zipped = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    if not length:
        raise Unreadable("EMPTY", "the file has no bytes")
    body: BinaryIO = gzip.GzipFile(fileobj=stream, mode="rb") if zipped else stream  # type: ignore[assignment]
    head = bytes(_take(body, 348))
    if head[4:7] in {b"n+2", b"ni2"}:
        head += _take(body, 192)
    layout = parse(head)
    needed = layout.offset + layout.size * layout.volumes
    if needed > MAX_BYTES:
        raise Unreadable("TOO_LARGE", f"the header asks for {needed} bytes")
    if needed > (length * MAX_INFLATION if zipped else length):
        raise Unreadable("TRUNCATED", "the file is too short for its voxels")
    if not zipped and length > needed + SLACK:
        raise Unreadable("BAD_LENGTH", "the file goes on long after its voxels")
    _skip(body, layout.offset - len(head))
    return layout, body


def _take(body: BinaryIO, size: int) -> bytearray:
    """The next `size` bytes. Raises Unreadable TRUNCATED when there are less, or they are damaged."""
    data = bytearray()
    while len(data) < size:
        data += _chunk(body, size - len(data))
    return data


def _skip(body: BinaryIO, size: int) -> None:
    while size:
        size -= len(_chunk(body, size))


def _chunk(body: BinaryIO, size: int) -> bytes:
    chunk = _inflate(body, size)
    if not chunk:
        raise Unreadable("TRUNCATED", "the file ends inside the voxels or before them")
    return chunk


def _inflate(body: BinaryIO, size: int) -> bytes:
    try:
        return body.read(min(size, CHUNK))
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise Unreadable("TRUNCATED", "the compressed file is damaged or has no end") from None


def _finish(body: BinaryIO) -> None:
    """Reads to the end, where gzip keeps checksum and length; a little after the voxels is forgiven."""
    left = SLACK
    while chunk := _inflate(body, left + 1):
        left -= len(chunk)
        if left < 0:
            raise Unreadable("BAD_LENGTH", "the file goes on long after its voxels")


def parse(head: bytes) -> Layout:
    """The header of 348 (NIfTI-1) or 540 bytes (NIfTI-2).

    Raises:
        Unreadable: BAD_HEADER, HEADER_PAIR, NOT_AN_IMAGE, UNSUPPORTED_PIXELS.
    """
    order = {348: "<", 540: "<"}.get(int.from_bytes(head[:4], "little"), ">")
    version = {348: 1, 540: 2}.get(struct.unpack_from(order + "i", head)[0])
    magic = head[344:348] if version == 1 else head[4:12]
    if magic in {b"ni1\0", b"ni2\0\r\n\x1a\n"}:
        raise Unreadable("HEADER_PAIR", "the voxels are in a second file")
    if version is None or magic != (b"n+1\0" if version == 1 else b"n+2\0\r\n\x1a\n"):
        raise Unreadable("BAD_HEADER", "the header is not NIfTI's")
    dim, (datatype,), (bits,), pixdim, (offset,), (slope, inter), (units,), codes, quaternion, srow, (intent,) = (
        struct.unpack_from(order + how, head, at) for at, how in (NIFTI1 if version == 1 else NIFTI2).items()
    )
    if not 1 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1:
        raise Unreadable("BAD_HEADER", "the dimensions are not between 1 and 7, or one of them has no length")
    if datatype in OTHER_TYPES:
        raise Unreadable("UNSUPPORTED_PIXELS", f"voxels of NIfTI type {datatype} are not read")
    if datatype not in TYPES or bits != TYPES[datatype][1]:
        raise Unreadable("BAD_HEADER", "the type of the voxels is unknown or contradicts their bits")
    if not (math.isfinite(offset) and offset == int(offset) and offset >= len(head)):
        raise Unreadable("BAD_HEADER", "the voxels start inside the header or nowhere")
    if intent in NOT_SCALAR:
        raise Unreadable("NOT_AN_IMAGE", "vectors, matrices or points, not an image")
    if not math.isfinite(slope) or slope == 0:
        slope, inter = 1.0, 0.0  # nifti1.h: not scaled
    if not math.isfinite(inter):
        raise Unreadable("BAD_HEADER", "the intercept is not finite")
    sides = (*dim[1 : dim[0] + 1], 1, 1)
    return Layout(
        order=order,
        datatype=datatype,
        shape=sides[:3],
        volumes=math.prod(dim[4 : dim[0] + 1]),
        offset=int(offset),
        slope=slope,
        inter=inter,
        unit=UNIT_MM.get(units & 7, 1.0),
        pixdim=pixdim[:4],
        codes=codes,
        quaternion=quaternion,
        srow=np.array(srow, np.float64).reshape(3, 4),
        intent=intent,
    )


def affine_of(layout: Layout) -> np.ndarray | None:
    """(4, 4) from voxel (i, j, k) to RAS+ mm: the sform if there is a usable one, else the qform, else None."""
    qform, sform = (code > 0 for code in layout.codes)
    found = [_complete(layout.srow)] if sform else []
    if qform:
        found.append(_complete(_from_quaternion(layout)))
    with np.errstate(all="ignore"):
        for affine in found:
            affine = np.diag([layout.unit, layout.unit, layout.unit, 1.0]) @ affine
            lengths = spacing_of(affine)
            if plausible(lengths) and abs(np.linalg.det(affine[:3, :3])) > FLAT * math.prod(lengths):
                return affine if np.isfinite(affine).all() else None
    return None


def plausible(spacing: tuple[float, ...]) -> bool:
    """Whether these may be distances between voxels in mm: a nanometre to a hundred metres."""
    return all(1e-6 < v < 1e5 for v in spacing)


def _complete(rows: np.ndarray) -> np.ndarray:
    return np.vstack([rows, [0, 0, 0, 1]])


def _from_quaternion(layout: Layout) -> np.ndarray:
    """(3, 4), method 2 of nifti1.h; NaN where the quaternion is no rotation or a spacing is not positive."""
    b, c, d, *origin = layout.quaternion
    spacing = np.array(layout.pixdim[1:4], np.float64)
    rest = 1.0 - (b * b + c * c + d * d)
    if not rest > -1e-5 or not (spacing > 0).all():  # float32 may miss 1 by a little
        return np.full((3, 4), np.nan)
    length = math.sqrt(b * b + c * c + d * d) if rest < 0 else 1.0
    a, b, c, d = math.sqrt(max(rest, 0.0)), b / length, c / length, d / length
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ]
    )
    spacing[2] *= -1 if layout.pixdim[0] < 0 else 1
    return np.column_stack([rotation * spacing, origin])


def _scan(data: bytearray, layout: Layout, name: str, k: int, pseudonyms: Pseudonyms) -> tuple[Scan | Unreadable, str]:
    """Volume k as a scan whose only identity is its path."""
    part = f"{name}#volume/{k}" if layout.volumes > 1 else name
    try:
        array, steps = _values(data, layout)
        affine, zooms = affine_of(layout), tuple(v * layout.unit for v in layout.pixdim[1:4])
        spacing = zooms[::-1] if plausible(zooms) else None
        if affine is not None:
            if spacing and not np.allclose(spacing_of(affine), zooms, rtol=0.01, atol=0):
                steps.append("affine and pixdim disagree on the spacing: affine taken")
            array, affine = canonical(array, affine @ np.eye(4)[[2, 1, 0, 3]])
            spacing = spacing_of(affine)
            steps.append("reorient to RAS")
        flat = [axis for axis in (1, 2, 3) if array.shape[axis] == 1]
        if len(flat) > 1:
            raise Unreadable("NOT_AN_IMAGE", "a line or a point, not an image")
        if flat:
            array, affine = array.squeeze(flat[0]), None
            spacing = spacing and tuple(v for axis, v in enumerate(spacing, 1) if axis != flat[0])
    except Unreadable as why:
        return why, part
    label = array.shape[0] == 1 and few_integers(array, NAMED_FEW if is_label_name(name) else FEW)
    scan = Scan(
        array=array,
        scan=pseudonyms.of("scan", f"file|{part}"),
        patient=pseudonyms.of("patient", f"file|{name}"),
        patient_known=False,
        affine=affine,
        spacing=spacing,
        metadata={"volume": float(k)} if layout.volumes > 1 else {},
        steps=tuple(steps),
        quarantined="label map" if label or layout.intent in LABELS else "",
    )
    return scan, part


def _values(data: bytearray, layout: Layout) -> tuple[np.ndarray, list[str]]:
    """(C, k, j, i) in the smallest type, and what was done."""
    i, j, k = layout.shape
    x = np.frombuffer(data, layout.order + TYPES[layout.datatype][0])
    if layout.datatype in COLOUR:  # never scaled, says nifti1.h
        array = np.ascontiguousarray(np.moveaxis(x.reshape(k, j, i, -1)[..., :3], -1, 0))
        steps = ["alpha dropped"] if COLOUR[layout.datatype] == 4 else []
        return (array[:1].copy(), [*steps, "grey from colour"]) if one_channel(array) else (array, steps)
    x = x.reshape(1, k, j, i)
    if (layout.slope, layout.inter) == (1.0, 0.0):
        return lossless(x)
    array, steps = lossless(_scaled(x, layout.slope, layout.inter))
    return array, ["rescale", *steps]


def _scaled(x: np.ndarray, slope: float, inter: float) -> np.ndarray:
    """slope * x + inter, exact in integers where both are, else rounded once to float32, a plane at a time."""
    if x.dtype.kind in "iu" and slope.is_integer() and inter.is_integer():
        ends = [int(v) * int(slope) + int(inter) for v in (x.min(), x.max())]
        if max(map(abs, (*ends, int(slope), int(inter)))) < 1 << 30 and x.dtype.itemsize < 4:
            return x.astype(np.int32) * np.int32(slope) + np.int32(inter)
    out = np.empty(x.shape, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is not finite, and counted as such
        for plane, stored in zip(out[0], x[0], strict=True):
            plane[...] = stored.astype(np.float64) * slope + inter
    return out
