"""Scans of a store in the formats of other programs: NIfTI bytes, 8-bit images, and a table of them."""

from typing import Any

import nibabel
import numpy as np

from medssl.store.store import Store

ORTHOGONAL = 1e-4  # cosine between two axes up to which a qform can represent an affine
RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


def index_rows(store: Store) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return each scan's identifiers and its labels, for the table of an export."""
    labels = [f"label:{name}" for name in store.labels]
    columns = (["scan", "patient", "split", "modality"], labels)
    return tuple(store.table.select(names).to_pylist() for names in columns)


def nifti_bytes(array: np.ndarray, affine: np.ndarray | None, spacing: list[float] | None) -> bytes:
    """Return an uncompressed NIfTI-1 file.

    Args:
        array: (C, D, H, W) or (C, H, W); 3 channels of uint8 become RGB24, several others a fifth dimension.
        affine: (4, 4) from (d, h, w) to RAS+ mm, or None: both form codes are then 0, and pixdim holds the spacing.
        spacing: mm along d, h, w, or None.
    """
    array = array[:, None] if array.ndim == 3 else array
    channels, size = array.shape[0], array.shape[:0:-1]
    colour = channels == 3 and array.dtype == np.uint8
    header = nibabel.Nifti1Header(endianness="<")
    header.set_data_dtype(RGB if colour else array.dtype)
    header.set_data_shape(size if colour or channels == 1 else (*size, 1, channels))
    if affine is not None:
        ijk = affine[:, [2, 1, 0, 3]]
        zooms = np.linalg.norm(ijk[:3, :3], axis=0)
        header.set_zooms([*zooms, *header.get_zooms()[3:]])
        header.set_sform(ijk, code="scanner")
        rotation = ijk[:3, :3] / zooms
        if np.allclose(rotation.T @ rotation, np.eye(3), rtol=0, atol=ORTHOGONAL):
            header.set_qform(ijk, code="scanner")
    elif spacing is not None:
        header.set_zooms([*spacing[::-1], *header.get_zooms()[3:]])
    known = affine is not None or spacing is not None
    header.set_xyzt_units("mm" if known else "unknown")
    header.set_slope_inter(1, 0)
    header["vox_offset"] = 352
    voxels = np.moveaxis(array, 0, -1) if colour else array
    return b"".join((header.binaryblock, bytes(4), np.ascontiguousarray(voxels).data))


def window_loss(image: np.ndarray, small: np.ndarray, level: float, width: float) -> tuple[float, float]:
    """Return what an 8-bit image loses.

    Args:
        image: stored values.
        small: the same as uint8, from `intensity.to_uint8`.
        level, width: the window.

    Returns:
        The share of pixels outside the window, and the RMS error of the others after converting `small` back, in stored
        units.
    """
    first = level - 0.5 - (width - 1) / 2
    inside = (image >= first) & (image <= first + width - 1)
    back = small[inside].astype(np.float64) / 255 * (width - 1) + first
    loss = np.sqrt(np.mean((image[inside] - back) ** 2)) if back.size else 0.0
    return 1 - back.size / image.size, float(loss)
