"""The positions and spacing of DICOM slices, and the affine of a stack (PS3.3 C.7.6.2)."""

from collections.abc import Sequence

import numpy as np

from medssl.readers.scan import Slice, Unreadable

TOLERANCE = 0.1  # mm between the place of a slice in a volume and the position in its header
FLAT = 1e-6  # volume of a voxel against that of a box with its edges, up to which the axes span no volume
EXTENT = 500.0  # mm; rotations of a slice are measured by the displacement at this distance


def directions(orientation: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the unit vectors along rows, along columns, and normal to the slice.

    Raises:
        Unreadable: BAD_GEOMETRY unless the direction cosines are orthogonal and of unit length to within 1e-3.
    """
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if not max(*(abs(v - 1) for v in lengths), abs(row @ column)) < 1e-3:  # true for NaN as well
        raise Unreadable("BAD_GEOMETRY", "row and column directions are not orthogonal unit vectors")
    row, column = row / lengths[0], column / lengths[1]
    normal = np.cross(row, column)
    return row, column, normal / np.linalg.norm(normal)


def height(s: Slice) -> float:
    """Return the position along the slice normal, mm."""
    a, b, c, d, e, f = s.orientation
    x, y, z = s.position
    return (b * f - c * e) * x + (c * d - a * f) * y + (a * e - b * d) * z


def placements(stack: Sequence[Slice]) -> np.ndarray:
    """Return (N, 9): position and direction cosines of every slice."""
    return np.array([(*s.position, *s.orientation) for s in stack], float)


def deviation(rows: np.ndarray) -> float:
    """Return the largest distance of a slice in the `placements` from even spacing, rotations included, mm."""
    places, turns = rows[:, :3], rows[:, 3:] - rows[0, 3:]
    line = np.linspace(places[0], places[-1], len(places))
    return max(float(np.linalg.norm(line - places, axis=1).max()), EXTENT * float(np.abs(turns).max()))


def is_regular(rows: np.ndarray) -> bool:
    """Return whether slices are evenly spaced along a line.

    A fifth of a step is allowed, for positions rounded to 0.1 mm; a missing slice displaces others by half a step.
    """
    step = np.linalg.norm(rows[-1, :3] - rows[0, :3]) / max(1, len(rows) - 1)
    return deviation(rows) <= min(TOLERANCE, 0.2 * float(step))


def stack_affine(stack: list[Slice]) -> tuple[np.ndarray, float]:
    """Return the (4, 4) affine from (d, h, w) to RAS+ mm and the gantry tilt in degrees of two or more sorted slices.

    The slice vector is (last - first position) / (N - 1), so a tilted gantry becomes a shear and every slice keeps the
    position given by the scanner.

    Raises:
        Unreadable: BAD_GEOMETRY if a slice is more than TOLERANCE off its header's position, or the axes are degenerate.
    """
    row, column, normal = directions(stack[0].orientation)
    if not deviation(placements(stack)) <= TOLERANCE:  # true for NaN as well
        raise Unreadable("BAD_GEOMETRY", "the slices are not evenly spaced along a line")
    first, last = np.array(stack[0].position), np.array(stack[-1].position)
    step = (last - first) / (len(stack) - 1)
    lps = np.eye(4)
    lps[:3, 0] = step
    lps[:3, 1] = column * stack[0].spacing[0]  # the first value of Pixel Spacing is the distance between rows
    lps[:3, 2] = row * stack[0].spacing[1]
    lps[:3, 3] = first
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
    axes = affine[:3, :3]
    if not np.isfinite(affine).all() or abs(np.linalg.det(axes)) <= FLAT * np.linalg.norm(axes, axis=0).prod():
        raise Unreadable("BAD_GEOMETRY", "orientation, spacing and positions do not span a volume")
    cosine = abs(float(normal @ step)) / float(np.linalg.norm(step))
    return affine, float(np.degrees(np.arccos(min(1.0, cosine))))
