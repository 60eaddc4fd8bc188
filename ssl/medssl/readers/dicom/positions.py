"""Groups of slices at the same position."""

from collections.abc import Sequence

import numpy as np

from medssl.readers.dicom.stack_geometry import TOLERANCE, height
from medssl.readers.scan import Slice

SAME = 0.01  # mm; closer positions are the same
PIXEL = 0.05  # of the distance between pixels; the same for images of a few micrometres


def positions(ordered: list[Slice]) -> list[list[Slice]]:
    """Group sorted slices by position along the normal."""
    at: list[list[Slice]] = []
    limit = min(SAME, PIXEL * min(ordered[0].spacing)) if ordered else SAME
    for s in ordered:
        if at and height(s) - height(at[-1][0]) < limit:
            at[-1].append(s)
        else:
            at.append([s])
    return [sorted(there, key=lambda s: (s.order, s.uid, s.file)) for there in at]


def clusters(slices: list[Slice], values: np.ndarray) -> list[list[Slice]]:
    """Group slices whose `values` lie within TOLERANCE of the first slice of their cluster."""
    found: list[tuple[np.ndarray, list[Slice]]] = []
    for s, value in zip(slices, values, strict=True):
        for first, members in found:
            if np.abs(value - first).max() <= TOLERANCE:
                members.append(s)
                break
        else:
            found.append((value, [s]))
    return [members for _, members in found]


def coincident(ordered: list[Slice]) -> list[list[Slice]]:
    """Group sorted slices by position in all three dimensions."""
    at = positions(ordered)
    return [c for t in at for c in (clusters(t, np.array([s.position for s in t])) if len(t) > 1 else [t])]


def told_apart(there: Sequence[Slice]) -> bool:
    """Return whether the order of every slice at one position is different."""
    return len({s.order for s in there}) == len(there)


def told_apart_in_time(there: Sequence[Slice]) -> bool:
    """Return whether the slices at one position differ in more than the instance number."""
    return len({s.order[:-1] for s in there}) == len(there)
