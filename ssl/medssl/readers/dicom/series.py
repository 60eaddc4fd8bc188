"""Divides the slices of a DICOM series into volumes, and sorts them.

Geometry comes only from Image Position and Image Orientation (Patient) (PS3.3 C.7.6.2), never from instance numbers,
file names or slice thickness. Irregular series are cut into regular stacks or rejected with a reason; no slice is placed
further than `TOLERANCE` from the position in its header.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from medssl.readers.dicom.positions import SAME, clusters, coincident, positions, told_apart, told_apart_in_time
from medssl.readers.dicom.separations import MIN_SLICES, separations
from medssl.readers.dicom.stack_geometry import EXTENT, TOLERANCE, directions, height, is_regular, placements
from medssl.readers.scan import Slice, Unreadable


@dataclass(frozen=True)
class Plan:
    """The division of a group of slices: each slice is in exactly one stack or rejected.

    Attributes:
        stacks: volumes of at least `MIN_SLICES` slices, sorted by position along the normal. A stack of one slice is a
            single image: series of fewer positions consist of these.
        rejected: the other slices, each with its reason (DUPLICATE, REPEATED_POSITIONS, MISSING_SLICES,
            VARYING_SPACING, BAD_GEOMETRY, TOO_FEW_SLICES).
        left: slices at too few positions for a volume, which become single images unless another division places them.
        notes: metadata of each stack: gap = "yes" if slices next to it are missing or rejected; repeat = index of the
            repeat if every position was acquired several times.
    """

    stacks: list[list[Slice]] = field(default_factory=list)
    rejected: list[tuple[Slice, Unreadable]] = field(default_factory=list)
    notes: list[dict[str, str | float]] = field(default_factory=list)
    left: list[Slice] = field(default_factory=list)

    def reject(self, slices: Sequence[Slice], code: str, reason: str) -> None:
        """Reject slices."""
        self.rejected.extend((s, Unreadable(code, reason)) for s in slices)

    def keep_as_images(self, slices: Sequence[Slice]) -> None:
        """Add slices as single images."""
        self.stacks.extend([s] for s in slices)
        self.notes.extend({} for _ in slices)

    def finish(self) -> None:
        """Make what is left single images."""
        self.keep_as_images(self.left)
        self.left.clear()

    def add(self, other: "Plan") -> None:
        """Append a plan for other slices."""
        self.stacks.extend(other.stacks)
        self.rejected.extend(other.rejected)
        self.notes.extend(other.notes)
        self.left.extend(other.left)

    def merit(self) -> tuple[int, int]:
        """Return a sort key: prefer more slices in stacks, then fewer volumes."""
        return sum(map(len, self.stacks)), -len(self.volumes)

    @property
    def volumes(self) -> list[list[Slice]]:
        """The stacks that are volumes."""
        return [stack for stack in self.stacks if len(stack) >= MIN_SLICES]


def plan(slices: list[Slice], digest: Callable[[list[Slice]], dict[str, str]]) -> Plan:
    """Divide the slices of one group into volumes. The order of `slices` does not matter.

    If every position has the same number of slices, these are repeats (time points, directions): `Slice.order`
    separates them into one volume each. Otherwise temporal position, acquisition number or, after a scan that was
    stopped, the instance number may separate them (`separations`); they are used only if this places more slices or
    makes fewer volumes. Slices at fewer than `MIN_SLICES` positions are single images.

    digest: returns hashes of the pixel data by `Slice.file`; it is called only for slices at the same position.
    """
    ordered = sorted(slices, key=lambda s: (height(s), s.order, s.uid, s.file))
    there = [t for t in coincident(ordered) if len(t) > 1]
    clear = len({len(t) for t in positions(ordered)}) == 1 and all(map(told_apart_in_time, there))
    hashes = {} if clear else digest([s for t in there for s in t])
    copies = _copies(there, lambda s: (s.uid, hashes.get(s.file, s.file)))
    kept = [s for s in ordered if s.file not in copies]

    best = _by_position(kept)
    if best.rejected or best.left or len(best.stacks) > 1:
        for parts in separations(kept):
            other = Plan()
            for part in parts:
                other.add(_by_position(part))
            best = max(best, other, key=Plan.merit)  # the first if equal
    # Equal pixels with another UID are copies too, unless they are the blank slices of repeats.
    same = _copies(there, lambda s: hashes.get(s.file, s.file))
    single = [s for s in kept if s.file not in same]
    if len(single) < len(kept):
        other = _by_position(single)
        if other.merit() > best.merit() or max(map(len, coincident(single))) == 1:
            best, copies = other, same
    best.finish()
    best.reject([s for s in ordered if s.file in copies], "DUPLICATE", "the same image at the same position")
    return best


def _copies(at: list[list[Slice]], key: Callable[[Slice], object]) -> set[str]:
    """Return the files of copies: at each position, all but the first slice with the same key."""
    copies: set[str] = set()
    for there in at:
        seen = set()
        for s in there:
            copies.update({s.file} if key(s) in seen else ())
            seen.add(key(s))
    return copies


def _lines(slices: list[Slice]) -> tuple[list[list[Slice]], list[Slice], bool]:
    """Return (stacks of sorted slices along one line each, slices off these lines, whether lines were found)."""
    table, heights = placements(slices), np.array([height(s) for s in slices])
    places, turns = table[:, :3], EXTENT * table[:, 3:]
    part = (heights - heights[0]) / max(SAME, heights[-1] - heights[0])
    line = places[0] + part[:, None] * (places[-1] - places[0])
    if np.linalg.norm(line - places, axis=1).max() <= TOLERANCE and np.abs(turns - turns[0]).max() <= TOLERANCE:
        return [slices], [], True
    row, column, _ = directions(slices[0].orientation)
    found = clusters(slices, np.column_stack([turns, places @ row, places @ column]))
    large = [len(positions(c)) >= MIN_SLICES for c in found]
    if not any(large):
        return [slices], [], False
    strays = [s for c, is_large in zip(found, large, strict=True) if not is_large for s in c]
    return [c for c, is_large in zip(found, large, strict=True) if is_large], strays, True


def _by_position(slices: list[Slice]) -> Plan:
    """Divide sorted slices by their positions alone into regular stacks and rejects."""
    result = Plan()
    if len(slices) == 1:
        return Plan([slices], [], [{}])
    try:
        lines, strays, straight = _lines(slices)
    except Unreadable as why:
        result.reject(slices, why.code, str(why))
        return result
    result.reject(strays, "BAD_GEOMETRY", "the slice does not lie on a line with the others")
    for line in lines:
        at = positions(line)
        if len(at) < MIN_SLICES:  # a localizer, a cine at one position: nothing is missing from a volume
            result.left.extend(line)
        else:
            _cut(at, straight, result)
    return result


def _cut(at: list[list[Slice]], straight: bool, result: Plan) -> None:
    """Cut one line of positions where it becomes irregular or the number of slices per position changes."""
    runs: list[tuple[int, int]] = []  # first and last position; neighbouring runs may share one
    for _, members in groupby(range(len(at)), key=lambda i: (len(at[i]), len({s.order for s in at[i]}))):
        segment = list(members)
        runs += [(segment[0] + a, segment[0] + b) for a, b in _runs([at[i][0] for i in segment])]
    for i in range(len(runs) - 1):  # a shared slice goes to the smaller volume
        (a, b), (c, d) = runs[i : i + 2]
        if b == c:
            left, right = b - a + 1, d - c + 1
            if max(left, right) < MIN_SLICES or (left >= MIN_SLICES and (right < MIN_SLICES or left <= right)):
                runs[i + 1] = (c + 1, d)
            else:
                runs[i] = (a, b - 1)
    volumes = [_volumes(at[a : b + 1]) for a, b in runs]
    for i, (a, b) in enumerate(runs):
        if not volumes[i]:
            there = at[a : b + 1]
            some = [s for t in there for s in t]
            if all(len(t) == 1 for t in there):
                why = _why(at, a, b) if straight else ("BAD_GEOMETRY", "the slices do not lie on one line")
                result.reject(some, *why)
            elif not all(map(told_apart, there)):
                result.reject(some, "REPEATED_POSITIONS", "images at one position cannot be told apart")
            elif len(there) < MIN_SLICES:
                result.reject(some, "REPEATED_POSITIONS", "only a few positions of the series have several images")
            else:
                result.reject(some, "BAD_GEOMETRY", "the repeats of these positions are not evenly spaced")
        beside = [volumes[j] for j in (i - 1, i + 1) if 0 <= j < len(runs)]
        for repeat, stack in enumerate(volumes[i]):
            result.stacks.append(stack)
            result.notes.append(
                ({"repeat": float(repeat)} if len(volumes[i]) > 1 else {}) | ({} if all(beside) else {"gap": "yes"})
            )


def _runs(stack: list[Slice]) -> list[tuple[int, int]]:
    """Return regular runs of slices as (first, last); the last slice of a run is the first of the next."""
    table = placements(stack)
    if len(stack) == 1 or is_regular(table):
        return [(0, len(stack) - 1)]
    runs, first = [], 0
    while first < len(stack) - 1:
        last = first + 1
        while last + 1 < len(stack) and is_regular(table[first : last + 2]):
            last += 1
        runs.append((first, last))
        first = last
    return runs


def _volumes(at: list[list[Slice]]) -> list[list[Slice]]:
    """Return one volume per repeat, [] if there are too few positions or repeats are indistinguishable or irregular."""
    if len(at) < MIN_SLICES or not all(map(told_apart, at)):
        return []
    stacks = [[there[i] for there in at] for i in range(len(at[0]))]
    return stacks if all(is_regular(placements(stack)) for stack in stacks) else []


def _why(at: list[list[Slice]], first: int, last: int) -> tuple[str, str]:
    """Return the code and reason why these positions, each with one slice, are not a volume."""
    steps = np.diff([height(there[0]) for there in at])
    ratio = steps / steps.min()
    around = slice(max(first - 1, 0), last + 2)  # including neighbours
    if np.abs(ratio[around.start : last + 1] - 1).max(initial=0) <= 0.1 and any(len(there) > 1 for there in at[around]):
        return "TOO_FEW_SLICES", f"fewer than {MIN_SLICES} slices next to a repeated position"
    if np.abs(ratio - ratio.round()).max() <= 0.1 and 2 * np.sum(ratio.round() == 1) >= len(steps):
        return "MISSING_SLICES", f"fewer than {MIN_SLICES} slices between gaps"
    return "VARYING_SPACING", f"slice steps vary from {steps.min():.2f} to {steps.max():.2f} mm"
