"""From slices to volumes: which slices belong together, in which order, and where they lie in the patient.

Positions come from Image Position and Orientation (Patient) alone (PS3.3 C.7.6.2); instance numbers, file names and
slice thickness are never trusted for geometry. What is not regular is cut into stacks that are, or refused with a
reason; no slice is ever put further than `AWAY` from where its header says it lies.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import nibabel
import numpy as np

from medssl.readers.scan import Slice, Unreadable

SAME = 0.01  # mm: closer positions are one position
AWAY = 0.1  # mm: how far a slice may lie from its own header's position
EXTENT = 500.0  # mm: a turn of a slice counts as what it moves a corner so far away
FEWEST = 4  # slices in a volume; less is a localizer or a fragment


@dataclass(frozen=True)
class Plan:
    """What becomes of a group of slices: every one of them is in exactly one stack or rejected.

    Attributes:
        stacks: volumes of at least `FEWEST` slices in the order of their positions along the normal; a stack of one
            slice is a single image.
        rejected: the others, each with its reason (DUPLICATE, REPEATED_POSITIONS, MISSING_SLICES, VARYING_SPACING,
            BAD_GEOMETRY, TOO_FEW_SLICES).
        notes: facts for each stack: gap = "yes" when slices beside it are missing or refused; repeat = number of the
            repeat, from 0, when every position was taken several times.
    """

    stacks: list[list[Slice]] = field(default_factory=list)
    rejected: list[tuple[Slice, Unreadable]] = field(default_factory=list)
    notes: list[dict[str, str | float]] = field(default_factory=list)

    def refuse(self, slices: Sequence[Slice], code: str, reason: str) -> None:
        """Rejects slices."""
        self.rejected.extend((s, Unreadable(code, reason)) for s in slices)

    def add(self, other: "Plan") -> None:
        """Takes over another plan of other slices."""
        self.stacks.extend(other.stacks)
        self.rejected.extend(other.rejected)
        self.notes.extend(other.notes)

    def merit(self) -> tuple[int, int]:
        """How many slices found a place, then how few volumes that took."""
        return sum(map(len, self.stacks)), -sum(len(stack) >= FEWEST for stack in self.stacks)


def group(slices: list[Slice]) -> list[list[Slice]]:
    """Slices of one acquisition together, in the order in which the groups first appear."""
    groups: defaultdict[str, list[Slice]] = defaultdict(list)
    for s in slices:
        groups[s.key].append(s)
    return list(groups.values())


def plan(slices: list[Slice], digest: Callable[[list[Slice]], dict[str, str]]) -> Plan:
    """Volumes of one group of slices. The order of `slices` does not matter.

    When every position holds the same number of slices, these are repeats (time points, directions) and become one
    volume each, told apart by `Slice.order`. Otherwise temporal position and acquisition number (all of `order` but the
    instance number) may separate a scout or a repeated scan; they are used only if more slices then find their place.
    `digest` hashes the pixel bytes of slices, by `Slice.file`; it is asked only where positions coincide.
    """
    ordered = sorted(slices, key=lambda s: (_along(s), s.order, s.uid, s.file))
    there = [t for t in _coincident(ordered) if len(t) > 1]
    clear = len({len(t) for t in _positions(ordered)}) == 1 and all(map(_told_apart, there))
    hashes = {} if clear else digest([s for t in there for s in t])
    copies = _copies(there, lambda s: (s.uid, hashes.get(s.file, s.file)))
    kept = [s for s in ordered if s.file not in copies]

    best = _lay(kept)
    if best.rejected or len(best.stacks) > 1:
        for parts in _separations(kept):
            other = Plan()
            for part in parts:
                other.add(_lay(part))
            best = max(best, other, key=Plan.merit)  # the first when equal
    # Equal pixels under another UID are a copy too, unless they may be the blank slices of repeats.
    same = _copies(there, lambda s: hashes.get(s.file, s.file))
    single = [s for s in kept if s.file not in same]
    if len(single) < len(kept):
        other = _lay(single)
        if other.merit() > best.merit() or max(map(len, _coincident(single))) == 1:
            best, copies = other, same
    best.refuse([s for s in ordered if s.file in copies], "DUPLICATE", "the same image at the same position")
    return best


def _directions(orientation: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit row, column and normal.

    Raises:
        Unreadable: BAD_GEOMETRY when they are not at right angles and of unit length to 1e-3.
    """
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if not max(*(abs(v - 1) for v in lengths), abs(row @ column)) < 1e-3:  # also when not finite
        raise Unreadable("BAD_GEOMETRY", "row and column directions are not at right angles or not of unit length")
    row, column = row / lengths[0], column / lengths[1]
    normal = np.cross(row, column)
    return row, column, normal / np.linalg.norm(normal)


def _along(s: Slice) -> float:
    """Position along the slice normal, mm."""
    a, b, c, d, e, f = s.orientation
    x, y, z = s.position
    return (b * f - c * e) * x + (c * d - a * f) * y + (a * e - b * d) * z


def _positions(ordered: list[Slice]) -> list[list[Slice]]:
    """Sorted slices by position along the normal."""
    at: list[list[Slice]] = []
    for s in ordered:
        if at and _along(s) - _along(at[-1][0]) < SAME:
            at[-1].append(s)
        else:
            at.append([s])
    return [sorted(there, key=lambda s: (s.order, s.uid, s.file)) for there in at]


def _clusters(slices: list[Slice], values: np.ndarray) -> list[list[Slice]]:
    """Slices whose `values` lie within AWAY of the first of their cluster."""
    clusters: list[tuple[np.ndarray, list[Slice]]] = []
    for s, value in zip(slices, values, strict=True):
        for first, members in clusters:
            if np.abs(value - first).max() <= AWAY:
                members.append(s)
                break
        else:
            clusters.append((value, [s]))
    return [members for _, members in clusters]


def _coincident(ordered: list[Slice]) -> list[list[Slice]]:
    """Slices at the same place in all three dimensions."""
    at = _positions(ordered)
    return [c for t in at for c in (_clusters(t, np.array([s.position for s in t])) if len(t) > 1 else [t])]


def _told_apart(there: list[Slice]) -> bool:
    """Whether the slices of one position differ in more than the instance number."""
    return len({s.order[:-1] for s in there}) == len(there)


def _copies(at: list[list[Slice]], what: Callable[[Slice], object]) -> set[str]:
    """Files of all slices but the first of those that have the same `what` at the same position."""
    copies: set[str] = set()
    for there in at:
        seen = set()
        for s in there:
            copies.update({s.file} if what(s) in seen else ())
            seen.add(what(s))
    return copies


def _separations(slices: list[Slice]) -> Iterator[list[list[Slice]]]:
    """Ways to tell volumes apart that positions do not; what is too small for a volume stays together as the last part.

    Where positions are repeated, a separation must resolve that; where they are not, each part must be regular.
    Otherwise the acquisitions of an interleaved volume would be torn apart because of one missing slice.
    """
    repeated = any(len(t) > 1 for t in _positions(slices))
    last = len(slices[0].order) - 1
    for span in (*(slice(i, i + 1) for i in range(last)), slice(last)):
        parts: defaultdict[tuple[float, ...], list[Slice]] = defaultdict(list)
        for s in slices:
            parts[s.order[span]].append(s)
        at = {v: _positions(parts[v]) for v in sorted(parts)}
        big = [v for v in at if len(at[v]) >= FEWEST]
        equal = all(len(set(map(len, at[v]))) == 1 for v in big)
        if big and equal and (repeated or all(_regular(_table([t[0] for t in at[v]])) for v in big)):
            rest = [s for s in slices if s.order[span] not in big]
            yield [parts[v] for v in big] + [rest] * bool(rest)


def _table(stack: list[Slice]) -> np.ndarray:
    """(N, 9): position and directions of every slice."""
    return np.array([(*s.position, *s.orientation) for s in stack], float)


def _stray(table: np.ndarray) -> float:
    """mm by which the worst slice lies off the even line from the first to the last, or is turned against the first."""
    places, turns = table[:, :3], table[:, 3:] - table[0, 3:]
    line = np.linspace(places[0], places[-1], len(places))
    return max(float(np.linalg.norm(line - places, axis=1).max()), EXTENT * float(np.abs(turns).max()))


def _regular(table: np.ndarray) -> bool:
    """Whether evenly spaced slices along one line are where the headers say.

    A fifth of a step allows positions that were rounded to 0.1 mm; a missing slice puts some slice off by half a step.
    """
    step = np.linalg.norm(table[-1, :3] - table[0, :3]) / max(1, len(table) - 1)
    return _stray(table) <= min(AWAY, 0.2 * float(step))


def _lines(slices: list[Slice]) -> tuple[list[list[Slice]], list[Slice], bool]:
    """(stacks of slices along one line each, slices beside them, whether lines were found) of sorted slices."""
    table, heights = _table(slices), np.array([_along(s) for s in slices])
    places, turns = table[:, :3], EXTENT * table[:, 3:]
    part = (heights - heights[0]) / max(SAME, heights[-1] - heights[0])
    line = places[0] + part[:, None] * (places[-1] - places[0])
    if np.linalg.norm(line - places, axis=1).max() <= AWAY and np.abs(turns - turns[0]).max() <= AWAY:
        return [slices], [], True
    row, column, _ = _directions(slices[0].orientation)
    clusters = _clusters(slices, np.column_stack([turns, places @ row, places @ column]))
    large = [len(_positions(c)) >= FEWEST for c in clusters]
    if not any(large):
        return [slices], [], False
    strays = [s for c, is_large in zip(clusters, large, strict=True) if not is_large for s in c]
    return [c for c, is_large in zip(clusters, large, strict=True) if is_large], strays, True


def _lay(slices: list[Slice]) -> Plan:
    """Sorted slices by their positions alone, into what is regular and the rest."""
    result = Plan()
    if len(slices) == 1:
        return Plan([slices], [], [{}])
    try:
        lines, strays, straight = _lines(slices)
    except Unreadable as why:
        result.refuse(slices, why.code, str(why))
        return result
    result.refuse(strays, "BAD_GEOMETRY", "the slice does not lie on the line of the others")
    for line in lines:
        at = _positions(line)
        if len(at) == 1:
            result.refuse(line, "REPEATED_POSITIONS", "several images of one position are not a volume")
        elif len(at) < FEWEST:
            result.refuse(line, "TOO_FEW_SLICES", f"{len(at)} slices are no volume; at least {FEWEST} are needed")
        else:
            _cut(at, straight, result)
    return result


def _cut(at: list[list[Slice]], straight: bool, result: Plan) -> None:
    """Cuts the positions of one line where it stops being regular, or the number of slices at a position changes."""
    runs: list[tuple[int, int]] = []  # first and last position; neighbours may share one
    for _, members in groupby(range(len(at)), key=lambda i: (len(at[i]), len({s.order for s in at[i]}))):
        segment = list(members)
        runs += [(segment[0] + a, segment[0] + b) for a, b in _runs([at[i][0] for i in segment])]
    for i in range(len(runs) - 1):  # the slice between two volumes goes to the smaller one
        (a, b), (c, d) = runs[i : i + 2]
        if b == c:
            left, right = b - a + 1, d - c + 1
            if max(left, right) < FEWEST or (left >= FEWEST and (right < FEWEST or left <= right)):
                runs[i + 1] = (c + 1, d)
            else:
                runs[i] = (a, b - 1)
    volumes = [_volumes(at[a : b + 1]) for a, b in runs]
    for i, (a, b) in enumerate(runs):
        if not volumes[i]:
            there = at[a : b + 1]
            if any(len(t) != 1 for t in there):
                why = "REPEATED_POSITIONS", "images at one position that cannot be told apart"
            else:
                why = _why(at, a, b) if straight else ("BAD_GEOMETRY", "the slices do not lie on one line")
            result.refuse([s for t in there for s in t], *why)
        beside = [volumes[j] for j in (i - 1, i + 1) if 0 <= j < len(runs)]
        for repeat, stack in enumerate(volumes[i]):
            result.stacks.append(stack)
            result.notes.append(
                ({"repeat": float(repeat)} if len(volumes[i]) > 1 else {}) | ({} if all(beside) else {"gap": "yes"})
            )


def _runs(stack: list[Slice]) -> list[tuple[int, int]]:
    """Regular pieces (first, last) of slices; the last of one is the first of the next."""
    table = _table(stack)
    if len(stack) == 1 or _regular(table):
        return [(0, len(stack) - 1)]
    runs, first = [], 0
    while first < len(stack) - 1:
        last = first + 1
        while last + 1 < len(stack) and _regular(table[first : last + 2]):
            last += 1
        runs.append((first, last))
        first = last
    return runs


def _volumes(at: list[list[Slice]]) -> list[list[Slice]]:
    """One volume per repeat; none when there are too few positions, or repeats cannot be told apart or are irregular."""
    if len(at) < FEWEST or any(len({s.order for s in there}) < len(there) for there in at):
        return []
    stacks = [[there[i] for there in at] for i in range(len(at[0]))]
    return stacks if all(_regular(_table(stack)) for stack in stacks) else []


def _why(at: list[list[Slice]], first: int, last: int) -> tuple[str, str]:
    """What keeps these positions of a line, each of one slice, from being a volume."""
    steps = np.diff([_along(there[0]) for there in at])
    ratio = steps / steps.min()
    around = slice(max(first - 1, 0), last + 2)  # with the neighbours
    if np.abs(ratio[around.start : last + 1] - 1).max(initial=0) <= 0.1 and any(len(there) > 1 for there in at[around]):
        return "TOO_FEW_SLICES", f"fewer than {FEWEST} slices beside a repeated position are no volume"
    if np.abs(ratio - ratio.round()).max() <= 0.1 and 2 * np.sum(ratio.round() == 1) >= len(steps):
        return "MISSING_SLICES", f"fewer than {FEWEST} slices between gaps are no volume"
    return "VARYING_SPACING", f"slice steps vary from {steps.min():.2f} to {steps.max():.2f} mm"


def stack_geometry(stack: list[Slice]) -> tuple[np.ndarray, float]:
    """((4, 4) affine from (d, h, w) to RAS+ mm, gantry tilt in degrees) of a sorted stack of two or more slices.

    The slice vector is last minus first position over N - 1, so a tilted gantry stays a shear and every slice stays
    where the scanner put it.

    Raises:
        Unreadable: BAD_GEOMETRY when a slice would lie more than 0.1 mm off its header's position, or when the vectors
            do not span space.
    """
    row, column, normal = _directions(stack[0].orientation)
    if not _stray(_table(stack)) <= AWAY:  # also when not finite
        raise Unreadable("BAD_GEOMETRY", "the slices do not lie evenly on one line")
    first, last = np.array(stack[0].position), np.array(stack[-1].position)
    step = (last - first) / (len(stack) - 1)
    lps = np.eye(4)
    lps[:3, 0] = step
    lps[:3, 1] = column * stack[0].spacing[0]  # Pixel Spacing: the first number is the distance between rows
    lps[:3, 2] = row * stack[0].spacing[1]
    lps[:3, 3] = first
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise Unreadable("BAD_GEOMETRY", "orientation, spacing and positions do not span a volume")
    cosine = abs(float(normal @ step)) / float(np.linalg.norm(step))
    return affine, float(np.degrees(np.arccos(min(1.0, cosine))))


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
