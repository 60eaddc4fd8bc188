"""The header of a NIfTI-1.1 or NIfTI-2 file (https://nifti.nimh.nih.gov): where and what the voxels are, if it is consistent."""

import math
from dataclasses import dataclass
from typing import Literal

import nibabel
import numpy as np

from medssl.readers.geometry import voxel_spacing
from medssl.readers.scan import Unreadable

MAX_VOLUMES = 1 << 16  # of one file; the longest time series have some ten thousand
DEGENERATE = 1e-3  # volume of a voxel over the product of its sides; below, its axes do not span space
UNIT_MM = {1: 1000.0, 3: 1e-3}  # metre, micron; otherwise mm
# nifti1.h: datatype code -> NumPy type; 128 is RGB, 2304 RGBA.
TYPES = {
    **{2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 128: "3u1"},
    **{256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8", 2304: "4u1"},
}
UNSUPPORTED_TYPES = {1, 32, 1536, 1792, 2048}  # bits, complex numbers, 128-bit floating point
NOT_SCALAR = range(1004, 1011)  # intents: matrices, displacements, vectors, points, triangles, quaternions
SURFACE = {2002, 2005}  # intents: indices of the nodes of a surface, values at these
CIFTI = range(3000, 3100)  # intents: CIFTI-2, tables of values at points of the brain's surfaces and deep nuclei
LONGEST = 100  # length over width of an image; tables of the points of a surface are longer …
NARROW, LONG = 8, 16  # … or narrow: FreeSurfer writes the 163,842 points of a surface as 27307 x 1 x 6


@dataclass(frozen=True)
class Layout:
    """The voxels of a file, according to its header.

    Attributes:
        dtype: dtype of a voxel, in the byte order of the file; 3 or 4 uint8 for colour.
        shape: (i, j, k); i varies fastest.
        volumes: number of consecutive volumes.
        offset: bytes before the first voxel.
        slope, inter: value = slope * stored + inter.
        zooms: mm per voxel along i, j, k (pixdim).
        affine: (4, 4) from (i, j, k) to RAS+ mm, None if there is no usable one.
        mirrored: whether another usable affine of the file turns or mirrors the axes differently.
        intent: code from nifti1.h.
    """

    dtype: np.dtype
    shape: tuple[int, int, int]
    volumes: int
    offset: int
    slope: float
    inter: float
    zooms: tuple[float, ...]
    affine: np.ndarray | None
    mirrored: bool
    intent: int

    @property
    def size(self) -> int:
        """Bytes of one volume."""
        return math.prod(self.shape) * self.dtype.itemsize


def is_nifti(head: bytes) -> bool:
    """Return whether the first bytes of a file are a NIfTI-1 or NIfTI-2 header."""
    first = {head[:4], head[3::-1]}  # either byte order
    one = (348).to_bytes(4, "little") in first and head[344:348] in {b"n+1\0", b"ni1\0"}
    return one or ((540).to_bytes(4, "little") in first and head[4:7] in {b"n+2", b"ni2"})


def parse(head: bytes) -> Layout:
    """Return the layout described by a header of 348 (NIfTI-1) or 540 bytes (NIfTI-2).

    Raises:
        Unreadable: BAD_HEADER, HEADER_PAIR, NOT_AN_IMAGE, UNSUPPORTED_PIXELS.
    """
    order: Literal["little", "big"] = "little" if int.from_bytes(head[:4], "little") in {348, 540} else "big"
    version = {348: 1, 540: 2}.get(int.from_bytes(head[:4], order))
    magic = head[344:348] if version == 1 else head[4:12]
    if magic in {b"ni1\0", b"ni2\0\r\n\x1a\n"}:
        raise Unreadable("HEADER_PAIR", "the voxels are in a second file")
    if version is None or magic != (b"n+1\0" if version == 1 else b"n+2\0\r\n\x1a\n"):
        raise Unreadable("BAD_HEADER", "not a NIfTI header")
    fields = (nibabel.nifti1 if version == 1 else nibabel.nifti2).header_dtype
    header = np.frombuffer(head, fields.newbyteorder(order), 1)[0]
    rank, *dim = header["dim"].tolist()
    datatype, offset, intent = (header[k].item() for k in ("datatype", "vox_offset", "intent_code"))
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if version == 1 and dim[0] == -1 and header["glmin"] > 0:  # FreeSurfer's way to state more than 32,767 points
        raise Unreadable("NOT_AN_IMAGE", "values at the points of a surface, not an image")
    if not 1 <= rank <= 7 or min(dim[:rank]) < 1:
        raise Unreadable("BAD_HEADER", "the number of dimensions is not 1 to 7, or a dimension is not positive")
    if intent in CIFTI:
        raise Unreadable("NOT_AN_IMAGE", "a CIFTI file: values at points of the brain's surface, not an image")
    if datatype in UNSUPPORTED_TYPES:
        raise Unreadable("UNSUPPORTED_PIXELS", f"NIfTI data type {datatype} is not supported")
    if datatype not in TYPES or header["bitpix"] != 8 * np.dtype(TYPES[datatype]).itemsize:
        raise Unreadable("BAD_HEADER", "the data type is unknown or contradicts the bits per voxel")
    if not (math.isfinite(offset) and offset == int(offset) and offset >= len(head)):
        raise Unreadable("BAD_HEADER", "the offset of the voxels is invalid")
    if intent in NOT_SCALAR:
        raise Unreadable("NOT_AN_IMAGE", "vectors, matrices or points, not an image")
    if not math.isfinite(slope) or slope == 0:
        slope, inter = 1.0, 0.0  # nifti1.h: not scaled
    if not math.isfinite(inter):
        raise Unreadable("BAD_HEADER", "the intercept is not finite")
    i, j, k = (*dim[:rank], 1, 1)[:3]
    _check_shape((i, j, k), math.prod(dim[3:rank]), intent)
    unit = UNIT_MM.get(int(header["xyzt_units"]) & 7, 1.0)
    affines = _affines(header, unit)
    return Layout(
        dtype=np.dtype(TYPES[datatype]).newbyteorder(order),
        shape=(i, j, k),
        volumes=math.prod(dim[3:rank]),
        offset=int(offset),
        slope=slope,
        inter=inter,
        zooms=tuple(v * unit for v in header["pixdim"][1:4].tolist()),
        affine=affines[0] if affines else None,
        mirrored=len({nibabel.aff2axcodes(a) for a in affines}) > 1,
        intent=intent,
    )


def _check_shape(shape: tuple[int, int, int], volumes: int, intent: int) -> None:
    """Refuse what is no image, and files that state an absurd number of them.

    Raises:
        Unreadable: NOT_AN_IMAGE, TOO_LARGE.
    """
    width, length = sorted(shape)[-2:]
    if width == 1:
        raise Unreadable("NOT_AN_IMAGE", "lines or points, not an image")
    flat = 1 in shape
    if intent in SURFACE or (flat and (length > LONGEST * width or (width < NARROW and length > LONG * width))):
        raise Unreadable("NOT_AN_IMAGE", "values at the points of a surface, not an image")
    if volumes > MAX_VOLUMES:
        raise Unreadable("TOO_LARGE", f"{volumes:,} volumes according to the header; at most {MAX_VOLUMES:,} are read")


def _affines(header: np.void, unit: float) -> list[np.ndarray]:
    """Return the usable (4, 4) affines from (i, j, k) to RAS+ mm: the sform, then the qform. The first is taken."""
    found, usable = [], []
    if header["sform_code"] > 0:
        found.append(np.array([header[f"srow_{axis}"] for axis in "xyz"], np.float64))
    if header["qform_code"] > 0:
        found.append(_qform(header))
    with np.errstate(all="ignore"):
        for rows in found:
            affine = np.diag([unit, unit, unit, 1.0]) @ np.vstack([rows, [0, 0, 0, 1]])
            lengths = voxel_spacing(affine)
            if plausible_spacing(lengths) and abs(np.linalg.det(affine[:3, :3])) > DEGENERATE * math.prod(lengths):
                usable.append(affine)
    return usable if usable and np.isfinite(usable[0]).all() else []


def plausible_spacing(spacing: tuple[float, ...]) -> bool:
    """Return whether these may be voxel spacings in mm: a nanometre to a hundred metres."""
    return all(1e-6 < v < 1e5 for v in spacing)


def _qform(header: np.void) -> np.ndarray:
    """Return the (3, 4) qform (method 2 of nifti1.h), NaN if the quaternion or a spacing is invalid.

    nibabel rejects quaternions that float32 rounding made slightly longer than 1.
    """
    b, c, d, *origin = (float(header[k]) for k in (*(f"quatern_{k}" for k in "bcd"), *(f"qoffset_{k}" for k in "xyz")))
    spacing = np.array(header["pixdim"][1:4], np.float64)
    rest = 1.0 - (b * b + c * c + d * d)
    if not rest > -1e-5 or not (spacing > 0).all():
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
    spacing[2] *= -1 if header["pixdim"][0] < 0 else 1
    return np.column_stack([rotation * spacing, origin])
