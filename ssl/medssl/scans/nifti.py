"""NIfTI-1 and NIfTI-2 files to scans (nibabel). No text of the header is read: it may name the patient."""

import gzip
import math
import zlib
from pathlib import Path

import nibabel
import numpy as np

from medssl.scans.alias import Alias
from medssl.scans.dicom import quiet
from medssl.scans.scan import Scan, Unreadable
from medssl.scans.series import canonical, spacing_of

MAX_BYTES = 1 << 33  # voxels of one file; a header that asks for more is lying
SLACK = 1 << 20  # bytes after the voxels that are still read, so that a gzip stream is checked to its end
UNIT_MM = {"mm": 1.0, "meter": 1000.0, "micron": 1e-3, "unknown": 1.0}
MOST_NONFINITE = 0.01


def image(path: Path, alias: Alias, relative: str) -> Scan:
    """The first volume of a file, reoriented to RAS, as (C, D, H, W), or (C, H, W) when one axis has length 1.

    Raises:
        Unreadable: EMPTY, TRUNCATED, TOO_LARGE, BAD_HEADER, UNSUPPORTED_PIXELS, NON_FINITE.
    """
    with quiet():
        img = _load(path)
        steps: list[str] = []
        shape = img.shape
        if len(shape) > 3 and math.prod(shape[3:]) > 1:
            steps.append("first volume of 4D")
        at = (slice(None),) * 3 + (0,) * (len(shape) - 3)
        array = np.asarray(img.dataobj[at])
        scaled = img.header.get_slope_inter() not in {(None, None), (1.0, 0.0)}
        if scaled:
            steps.append("rescale")
        array = np.atleast_3d(array) if array.ndim < 3 else array
        array = to_channels(array)
    array = np.ascontiguousarray(array.transpose(0, 3, 2, 1))
    array, repaired = lossless(array)
    steps += repaired
    affine, spacing = _geometry(img)
    if affine is not None:
        array, affine = canonical(array, affine)
        spacing = spacing_of(affine)
        steps.append("reorient to RAS")
    return finish(array, affine, spacing, steps, alias, relative)


def finish(
    array: np.ndarray,
    affine: np.ndarray | None,
    spacing: tuple[float, ...] | None,
    steps: list[str],
    alias: Alias,
    relative: str,
) -> Scan:
    """A scan whose only identity is its path; one axis of length 1 goes."""
    flat = [axis for axis in (1, 2, 3) if array.shape[axis] == 1]
    if len(flat) > 1:
        raise Unreadable("BAD_HEADER", "the array is a line or a point, not an image")
    if flat:
        array = array.squeeze(flat[0])
        spacing = None if spacing is None else tuple(v for axis, v in enumerate(spacing, 1) if axis != flat[0])
        affine = None
    return Scan(
        array=array,
        scan=alias.alias("scan", f"file|{relative}"),
        patient=alias.alias("patient", f"file|{relative}"),
        patient_known=False,
        affine=affine,
        spacing=spacing,
        steps=tuple(steps),
    )


def _load(path: Path) -> nibabel.Nifti1Image:
    """The image over bytes in memory: as many as the header needs, never more, and all of them."""
    with path.open("rb") as plain:
        zipped = plain.read(2) == b"\x1f\x8b"
        plain.seek(0)
        stream = gzip.GzipFile(fileobj=plain) if zipped else plain
        try:
            head = stream.read(540)
            kind = nibabel.Nifti2Image if head[4:7] == b"n+2" else nibabel.Nifti1Image
            try:
                header = kind.header_class(head[: kind.header_class.template_dtype.itemsize])
                voxels = math.prod(int(n) for n in header.get_data_shape())
                width = header.get_data_dtype().itemsize
                offset = int(header.get_data_offset())
            except Exception as e:
                raise Unreadable("BAD_HEADER", f"the header is not NIfTI's ({type(e).__name__})") from None
            if voxels < 1 or offset < header.template_dtype.itemsize:
                raise Unreadable("BAD_HEADER", "the header describes no voxels, or voxels inside the header")
            needed = offset + voxels * width
            if needed > MAX_BYTES:
                raise Unreadable("TOO_LARGE", f"the header asks for {needed} bytes")
            data = head + stream.read(needed + SLACK - len(head))
        except (EOFError, zlib.error, gzip.BadGzipFile):
            raise Unreadable("TRUNCATED", "the compressed file is damaged or has no end") from None
    if len(data) < needed:
        raise Unreadable("TRUNCATED", "the file ends inside the voxels")
    return kind.from_bytes(data[:needed])


def to_channels(array: np.ndarray) -> np.ndarray:
    """(i, j, k) to (C, i, j, k); RGB and RGBA records become three channels.

    Raises:
        Unreadable: UNSUPPORTED_PIXELS for complex numbers and other records.
    """
    if array.dtype.names and array.dtype.names[:3] == ("R", "G", "B"):
        return np.stack([array[c] for c in "RGB"])
    if array.dtype.kind not in "iufb":
        raise Unreadable("UNSUPPORTED_PIXELS", f"voxels of type {array.dtype} are not read")
    return array[None]


def lossless(array: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The array as uint8, int16, uint16 or float32, and what had to be done for that.

    Non-finite values become the smallest finite one.

    Raises:
        Unreadable: NON_FINITE above 1 %; UNSUPPORTED_PIXELS when no type holds the values.
    """
    if array.dtype.kind == "f":
        bad = ~np.isfinite(array)
        if bad.mean() > MOST_NONFINITE:
            raise Unreadable("NON_FINITE", f"{100 * bad.mean():.0f} % of the values are not finite")
        steps = []
        if bad.any():
            array = np.where(bad, array[~bad].min(), array)
            steps.append("non-finite replaced")
        if np.abs(array).max() > np.finfo(np.float32).max:
            raise Unreadable("UNSUPPORTED_PIXELS", "values too large for 32-bit floating point")
        return array.astype(np.float32), steps
    if array.dtype.kind == "b" or array.dtype == np.uint8:
        return array.astype(np.uint8), []
    low, high = int(array.min()), int(array.max())
    for dtype in (np.int16, np.uint16) if array.dtype.kind == "i" else (np.uint16,):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return array.astype(dtype), []
    if max(abs(low), abs(high)) > 1 << 24:
        raise Unreadable("UNSUPPORTED_PIXELS", "integers too large for 32-bit floating point")
    return array.astype(np.float32), []


def _geometry(img: nibabel.Nifti1Image) -> tuple[np.ndarray | None, tuple[float, ...] | None]:
    """(affine from (d, h, w) to RAS+ mm, None) or, when the file does not say how it lies, (None, spacing)."""
    header = img.header
    unit = UNIT_MM.get(header.get_xyzt_units()[0], 1.0)
    zooms = [float(v) * unit for v in header.get_zooms()[:3]]
    spacing = tuple(zooms[::-1]) if len(zooms) == 3 and all(math.isfinite(v) and v > 0 for v in zooms) else None
    if not (int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0) or len(img.shape) < 3:
        return None, spacing
    affine = np.diag([unit, unit, unit, 1.0]) @ np.asarray(img.affine, float)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        return None, spacing
    return affine @ np.eye(4)[[2, 1, 0, 3]], None
