"""Orientation and voxel spacing of volumes, from their affines."""

import nibabel
import numpy as np

REVERSE = np.eye(4)[[2, 1, 0, 3]]  # between array axes (d, h, w) and image axes (i, j, k)


def to_canonical(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a volume flipped and transposed so that (D, H, W) point to superior, anterior and right, and its affine.

    array: (C, D, H, W). affine: (4, 4) from (d, h, w) to RAS+ mm. Voxels are not interpolated.
    """
    ornt = nibabel.orientations.io_orientation(affine @ REVERSE)
    image = nibabel.orientations.apply_orientation(array.transpose(3, 2, 1, 0), ornt)
    turned = affine @ REVERSE @ nibabel.orientations.inv_ornt_aff(ornt, array.shape[:0:-1]) @ REVERSE
    return np.ascontiguousarray(image.transpose(3, 2, 1, 0)), turned


def voxel_spacing(affine: np.ndarray) -> tuple[float, ...]:
    """Return the mm per voxel along each axis of the array."""
    return tuple(float(v) for v in np.linalg.norm(affine[:3, :3], axis=0))
