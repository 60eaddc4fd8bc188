"""From slices to volumes: which slices belong together, in which order, and where they lie in the patient.

Positions come from Image Position and Orientation (Patient) alone (PS3.3 C.7.6.2); instance numbers, file names and
slice thickness are never trusted for geometry. What does not form a regular stack is refused, never stretched.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

from medssl.scans.scan import Unreadable

SAME = 0.01  # mm: closer positions are one position
FEWEST = 4  # slices in a volume; less is a localizer or a fragment


@dataclass(frozen=True)
class Slice:
    """What grouping needs to know of one file."""

    path: Path
    uid: bytes
    key: tuple[Hashable, ...]
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    order: tuple[float, ...]  # sorts repeats at one position: temporal position, acquisition, instance


def group(slices: list[Slice]) -> list[list[Slice]]:
    """Slices of one acquisition together, in the order in which the groups first appear."""
    groups: defaultdict[tuple[Hashable, ...], list[Slice]] = defaultdict(list)
    for s in slices:
        groups[s.key].append(s)
    return list(groups.values())


def stacks(slices: list[Slice], digest: Callable[[Slice], bytes]) -> tuple[list[list[Slice]], list[Slice]]:
    """Splits a group into volumes, each sorted along its normal, and the duplicates that were dropped.

    When every position holds the same number of slices, these are repeats (time points, directions) and become one
    volume each. `digest` hashes the pixel bytes of a slice; it is asked only where positions coincide.

    Raises:
        Unreadable: REPEATED_POSITIONS when some positions hold more slices than others, VARYING_SPACING,
            MISSING_SLICES, TOO_FEW_SLICES.
    """
    at = _by_position(slices)
    dropped: list[Slice] = []
    if max(map(len, at)) > 1:
        hashes = {s.path: digest(s) for there in at for s in there}
        at, dropped = _drop_duplicates(at, hashes)
    counts = {len(there) for there in at}
    if len(counts) > 1:
        raise Unreadable("REPEATED_POSITIONS", "some slice positions hold more images than others")
    if len(at) == 1 and counts != {1}:
        raise Unreadable("REPEATED_POSITIONS", "several images of one position are not a volume")
    if len(at) > 1:
        _check_spacing([_along(there[0]) for there in at])
    return [[there[i] for there in at] for i in range(counts.pop())], dropped


def _along(s: Slice) -> float:
    """Position along the slice normal, mm."""
    return float(np.dot(np.cross(s.orientation[:3], s.orientation[3:]), s.position))


def _by_position(slices: list[Slice]) -> list[list[Slice]]:
    ordered = sorted(slices, key=lambda s: (_along(s), s.order, s.uid))
    at = [[ordered[0]]]
    for s in ordered[1:]:
        if _along(s) - _along(at[-1][0]) < SAME:
            at[-1].append(s)
        else:
            at.append([s])
    return [sorted(there, key=lambda s: (s.order, s.uid)) for there in at]


def _drop_duplicates(at: list[list[Slice]], hashes: dict[Path, bytes]) -> tuple[list[list[Slice]], list[Slice]]:
    """Files copied twice go; so do equal pixels under a new UID, but only where that leaves one slice per position.

    Repeats of a 4D series may hold equal (blank) slices, which must stay.
    """
    unique: list[list[Slice]] = [list({(s.uid, hashes[s.path]): s for s in reversed(there)}.values()) for there in at]
    if max(map(len, unique)) > 1:
        single = [list({hashes[s.path]: s for s in reversed(there)}.values()) for there in at]
        if max(map(len, single)) == 1:
            unique = single
    kept = {s.path for there in unique for s in there}
    dropped = [s for there in at for s in there if s.path not in kept]
    return [sorted(there, key=lambda s: (s.order, s.uid)) for there in unique], dropped


def _check_spacing(positions: list[float]) -> None:
    steps = np.diff(positions)
    median = float(np.median(steps))
    off = np.abs(steps - median)
    if off.max() > max(SAME, 0.01 * median):
        ratio = steps / steps.min()
        whole = np.abs(ratio - ratio.round()) <= 0.1
        if whole.all() and Counter(ratio.round()).most_common(1)[0][0] == 1:
            raise Unreadable(
                "MISSING_SLICES", f"{int(ratio.round().sum()) - len(steps)} slices of the stack are missing"
            )
        raise Unreadable("VARYING_SPACING", f"slice steps vary from {steps.min():.2f} to {steps.max():.2f} mm")
    if len(positions) < FEWEST:
        raise Unreadable("TOO_FEW_SLICES", f"{len(positions)} slices are no volume; at least {FEWEST} are needed")


def geometry(stack: list[Slice]) -> tuple[np.ndarray, float]:
    """((4, 4) affine from (d, h, w) to RAS+ mm, gantry tilt in degrees) of a sorted stack of two or more slices.

    The slice vector is last minus first position over N - 1, so a tilted gantry stays a shear and every slice stays
    where the scanner put it.

    Raises:
        Unreadable: BAD_GEOMETRY when the vectors do not span space.
    """
    first, last = stack[0], stack[-1]
    row, column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    step = (np.array(last.position) - first.position) / (len(stack) - 1)
    line = np.array(first.position) + np.arange(len(stack))[:, None] * step
    stray = np.linalg.norm(line - [s.position for s in stack], axis=1).max()
    if stray > max(10 * SAME, 0.01 * float(np.linalg.norm(step))):
        raise Unreadable("BAD_GEOMETRY", "the slices do not lie on one line")
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 2], lps[:3, 3] = (
        step,
        column * first.spacing[0],  # Pixel Spacing: the first number is the distance between rows
        row * first.spacing[1],
        first.position,
    )
    normal = np.cross(row, column)
    cosine = float(np.dot(step, normal) / np.linalg.norm(step))
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise Unreadable("BAD_GEOMETRY", "orientation, spacing and positions do not span a volume")
    return affine, float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def canonical(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flips and swaps axes so that (D, H, W) point to superior, anterior and right: every volume lies the same way.

    array: (C, D, H, W); affine: (4, 4) from (d, h, w) to RAS+ mm. No voxel is interpolated.
    """
    swap = np.eye(4)[[2, 1, 0, 3]]
    ornt = nibabel.orientations.io_orientation(affine @ swap)  # of (w, h, d), nearest to R, A, S
    image = nibabel.orientations.apply_orientation(array.transpose(3, 2, 1, 0), ornt)
    turned = affine @ swap @ nibabel.orientations.inv_ornt_aff(ornt, array.shape[:0:-1]) @ swap
    return np.ascontiguousarray(image.transpose(3, 2, 1, 0)), turned


def spacing_of(affine: np.ndarray) -> tuple[float, ...]:
    """mm per voxel along each axis of the array."""
    return tuple(float(v) for v in np.linalg.norm(affine[:3, :3], axis=0))
