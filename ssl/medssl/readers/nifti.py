"""NIfTI-1.1 and NIfTI-2 files to scans (https://nifti.nimh.nih.gov). Text fields of the header are ignored: they may
name people.

The header must be consistent. Decompression stops at the stated size, and nothing is returned before the whole file has
been checked.
"""

import gzip
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from medssl.readers.geometry import REVERSE, to_canonical, voxel_spacing
from medssl.readers.label_maps import as_label_map
from medssl.readers.nifti_header import Layout, parse, plausible_spacing
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Scan, Unreadable
from medssl.readers.values import FEW, MANY, few_integers, lossless, one_channel

MAX_BYTES = 1 << 33  # voxels of one file
MAX_INFLATION = 1032  # upper bound of deflate (https://zlib.net/zlib_tech.html)
CHUNK = 1 << 22  # bytes decompressed at once, so that memory grows with the data, not with what the header states
SLACK = 1 << 20  # bytes after the voxels that are tolerated
LABELS = {1002, 1003}  # intents: labels, names of brain regions


def read(stream: BinaryIO, name: str, pseudonyms: Pseudonyms) -> Iterator[tuple[Scan | Unreadable, str]]:
    """Yield every volume as (C, D, H, W) in canonical orientation, or as (C, H, W) if one axis has length 1.

    The volumes of a 4D file are `name#volume/k`. Label maps are quarantined.

    Raises:
        Unreadable: EMPTY, TRUNCATED, BAD_LENGTH, TOO_LARGE, BAD_HEADER, HEADER_PAIR, NOT_AN_IMAGE, UNSUPPORTED_PIXELS.
    """
    layout, body = _start(stream)
    data = _take(body, layout.size)
    _skip(body, layout.size * (layout.volumes - 1))
    _finish(body)
    yield _scan(data, layout, name, 0, pseudonyms)
    del data
    if layout.volumes > 1:
        layout, body = _start(stream)
        _skip(body, layout.size)
        for k in range(1, layout.volumes):
            yield _scan(_take(body, layout.size), layout, name, k, pseudonyms)


def _start(stream: BinaryIO) -> tuple[Layout, BinaryIO]:
    """Return the layout, and a decompressed stream positioned at the first voxel."""
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
        raise Unreadable("TOO_LARGE", f"{needed:,} bytes according to the header; at most {MAX_BYTES:,} are read")
    if needed > (length * MAX_INFLATION if zipped else length):
        raise Unreadable("TRUNCATED", "the file is too short for its voxels")
    if not zipped and length > needed + SLACK:
        raise Unreadable("BAD_LENGTH", "there is too much data after the voxels")
    _skip(body, layout.offset - len(head))
    return layout, body


def _take(body: BinaryIO, size: int) -> bytearray:
    """Return the next `size` bytes. Raises Unreadable TRUNCATED if there are fewer, or they are damaged."""
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
        raise Unreadable("TRUNCATED", "the file ends before or inside the voxels")
    return chunk


def _inflate(body: BinaryIO, size: int) -> bytes:
    try:
        return body.read(min(size, CHUNK))
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise Unreadable("TRUNCATED", "the compressed file is damaged or incomplete") from None


def _finish(body: BinaryIO) -> None:
    """Read to the end, which has the checksum of a gzip file. A little data after the voxels is tolerated."""
    left = SLACK
    while chunk := _inflate(body, left + 1):
        left -= len(chunk)
        if left < 0:
            raise Unreadable("BAD_LENGTH", "there is too much data after the voxels")


def _scan(data: bytearray, layout: Layout, name: str, k: int, pseudonyms: Pseudonyms) -> tuple[Scan | Unreadable, str]:
    """Return volume k, identified by the path of its file only, and its path."""
    part = f"{name}#volume/{k}" if layout.volumes > 1 else name
    try:
        array, steps = _values(data, layout)
        affine, spacing = None, layout.zooms[::-1] if plausible_spacing(layout.zooms) else None
        if layout.affine is not None:
            if spacing and not np.allclose(voxel_spacing(layout.affine), layout.zooms, rtol=0.01, atol=0):
                steps.append("affine and pixdim disagree on the spacing: affine taken")
            if layout.mirrored:
                steps.append("sform and qform disagree on the orientation: sform taken")
            array, affine = to_canonical(array, layout.affine @ REVERSE)
            spacing = voxel_spacing(affine)
            steps.append("reorient to RAS")
        if flat := [axis for axis in (1, 2, 3) if array.shape[axis] == 1]:
            array, affine = array.squeeze(flat[0]), None
            spacing = spacing and tuple(v for axis, v in enumerate(spacing, 1) if axis != flat[0])
    except Unreadable as why:
        return why, part
    scaled = layout.dtype.kind in "iu" and layout.dtype.shape == ()
    labels = as_label_map(array, name, MANY, step=abs(layout.slope) if scaled else 0.0)
    if labels is not None and labels is not array:
        array = labels
        steps.append("labels restored")  # nibabel scales labels that are saved with the header of an image: 1.00004
    label = labels is not None or (array.shape[0] == 1 and few_integers(array, FEW))
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
    """Return (C, k, j, i) in the smallest type, and the processing steps."""
    i, j, k = layout.shape
    x = np.frombuffer(data, layout.dtype)
    if x.ndim == 2:  # colour is never scaled (nifti1.h)
        array = np.ascontiguousarray(np.moveaxis(x.reshape(k, j, i, -1)[..., :3], -1, 0))
        steps = ["alpha dropped"] if x.shape[1] == 4 else []
        return (array[:1].copy(), [*steps, "grey from colour"]) if one_channel(array) else (array, steps)
    x = x.reshape(1, k, j, i)
    if (layout.slope, layout.inter) == (1.0, 0.0):
        return lossless(x)
    array, steps = lossless(_scaled(x, layout.slope, layout.inter))
    return array, ["rescale", *steps]


def _scaled(x: np.ndarray, slope: float, inter: float) -> np.ndarray:
    """Return slope * x + inter, exact if all are integers, otherwise rounded once to float32, one plane at a time."""
    if x.dtype.kind in "iu" and slope.is_integer() and inter.is_integer():
        ends = [int(v) * int(slope) + int(inter) for v in (x.min(), x.max())]
        if max(map(abs, (*ends, int(slope), int(inter)))) < 1 << 30 and x.dtype.itemsize < 4:
            return x.astype(np.int32) * np.int32(slope) + np.int32(inter)
    out = np.empty(x.shape, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # overflow is counted as non-finite later
        for plane, stored in zip(out[0], x[0], strict=True):
            plane[...] = stored.astype(np.float64) * slope + inter
    return out
