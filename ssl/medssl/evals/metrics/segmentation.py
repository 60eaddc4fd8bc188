"""Agreement of a segmentation P with the reference T, per case and class, on the scan's own grid, in mm where known.

    Dice            2 |P and T| / (|P| + |T|)
    HD95            the larger of the two 95th percentiles of the distances from one surface to the other
    surface Dice    the share of both surfaces within a tolerance of the other (Nikolov et al., 2018,
                    https://arxiv.org/abs/1809.04430, with voxels as surface elements)
    volume error    |P| - |T|, signed, so that bias is visible

The surface consists of the voxels with a face on another class or on the border of the scan. Definitions and values are
those of MONAI's compute_dice, compute_hausdorff_distance and compute_surface_dice.

No case is excluded because of its prediction. If neither has the class, the prediction is correct (Dice and surface Dice 1,
HD95 0); if only one has it, it is wrong (0, and for HD95 the diagonal of the scan, the largest possible distance).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree

from medssl.evals.metrics.metrics import Floats

MEASURES = ("Dice", "HD95", "surface Dice", "volume error")
PERCENTILE = 0.95

Mask = NDArray[np.bool_]


def agreement(predicted: Mask, truth: Mask, spacing: Sequence[float] | None = None, tolerance: float = 1.0) -> Floats:
    """Return MEASURES of one class, (4,) float64.

    Args:
        predicted, truth: (*S) bool.
        spacing: mm per axis; None for distances in pixels.
        tolerance: for the surface Dice, in the same unit.

    The volume error is in ml (3D) or cm^2 (2D), in pixels without spacing.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"the prediction has shape {predicted.shape}, the reference {truth.shape}")
    voxel = np.ones(truth.ndim) if spacing is None else np.asarray(spacing, np.float64)
    p, t = np.count_nonzero(predicted), np.count_nonzero(truth)
    volume = (p - t) * (float(np.prod(voxel / 10)) if spacing is not None else 1.0)
    if not p or not t:
        alike = p == t
        diagonal = float(np.linalg.norm(voxel * truth.shape))
        return np.array([float(alike), 0.0 if alike else diagonal, float(alike), volume])
    there, back = distances(predicted, truth, voxel)
    near = np.count_nonzero(there <= tolerance) + np.count_nonzero(back <= tolerance)
    hausdorff = max(np.quantile(there, PERCENTILE), np.quantile(back, PERCENTILE))
    dice = 2 * np.count_nonzero(predicted & truth) / (p + t)
    return np.array([dice, hausdorff, near / (len(there) + len(back)), volume])


def case(
    predicted: NDArray, truth: NDArray, classes: int, spacing: Sequence[float] | None = None, tolerance: float = 1.0
) -> Floats:
    """Return MEASURES of every class but 0, the background, (classes - 1, 4). predicted, truth: (*S) integers in [0, classes)."""
    return np.stack([agreement(predicted == k, truth == k, spacing, tolerance) for k in range(1, classes)])


def distances(a: Mask, b: Mask, voxel: Floats) -> tuple[Floats, Floats]:
    """Return the distances from each surface voxel of a to the nearest of b, and the reverse. Neither may be empty."""
    axes = [tuple(k for k in range(a.ndim) if k != axis) for axis in range(a.ndim)]
    both = a | b
    inside = tuple(slice(at[0], at[-1] + 1) for at in (np.flatnonzero(both.any(other)) for other in axes))
    points = [np.argwhere(m[inside] & ~binary_erosion(m[inside])) * voxel for m in (a, b)]
    trees = [KDTree(p) for p in points]
    return trees[1].query(points[0])[0], trees[0].query(points[1])[0]
