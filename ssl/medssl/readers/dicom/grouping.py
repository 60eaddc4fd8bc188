"""Grouping: the slices of a study that make up one volume.

Slices are first grouped by everything in which volumes may differ: series, frame of reference, stack, contrast (echo time,
b-value, …), orientation and pixel spacing. Some of these also differ by rounding, or because software writes a new UID into
each file. So groups that agree within a tolerance are joined if together they make fewer volumes or use more slices; groups
that differ by more are joined only if, besides, no slice of one is at the position of a slice of another. Echoes, phases
and b-values share their positions and stay apart.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import floor

import numpy as np

from medssl.readers.dicom.positions import SAME, positions
from medssl.readers.dicom.separations import MIN_SLICES
from medssl.readers.dicom.series import Plan, plan
from medssl.readers.dicom.stack_geometry import height
from medssl.readers.scan import Slice

Digest = Callable[[list[Slice]], dict[str, str]]

# (relative, absolute) tolerance: a number is equal to the next smaller one if it is no further from it
CONTRAST = 1e-3, 1e-4
ORIENTATION = 0.0, 1e-3
SPACING = 2e-4, 1e-4
MAX_PAIRED_GROUPS = 12  # with more groups, joining them in pairs is not tried


@dataclass(frozen=True)
class Group:
    """Slices that are divided into volumes together, in any order."""

    slices: list[Slice]
    plan: Plan

    @property
    def rank(self) -> tuple[int, int]:
        """Sort key: prefer more slices in volumes, then fewer volumes."""
        return sum(map(len, self.plan.volumes)), -len(self.plan.volumes)

    @property
    def is_complete(self) -> bool:
        """Whether every slice is in a volume."""
        return self.rank[0] == len(self.slices)

    @property
    def heights(self) -> list[float]:
        """Positions along the normal of the first slice, mm, ascending."""
        return [height(there[0]) for there in positions(sorted(self.slices, key=height))]

    @property
    def is_small(self) -> bool:
        """Whether there are too few positions for a volume."""
        return len(self.heights) < MIN_SLICES


def divide(slices: list[Slice], digest: Digest) -> Plan:
    """Divide slices with the same key into volumes, single images and rejects. Their order does not matter.

    digest: returns hashes of the pixel data by `Slice.file`; it is called only for slices at the same position.
    """
    hashes: dict[str, str] = {}

    def cached(some: list[Slice]) -> dict[str, str]:
        new = [s for s in some if s.file not in hashes]
        hashes.update(digest(new) if new else {})
        return {s.file: hashes[s.file] for s in some if s.file in hashes}

    slices = sorted(slices, key=lambda s: (s.uid, s.file))
    identity, alone = _identities(slices)
    contrast, orientation, spacing = (
        _equal_within_tolerance(slices, values, *tolerance)
        for values, tolerance in (
            (lambda s: s.contrast, CONTRAST),
            (lambda s: (s.orientation,), ORIENTATION),
            (lambda s: (s.spacing,), SPACING),
        )
    )
    plane = {f: (orientation[f], spacing[f]) for f in orientation}
    number = {s.file: s.series_number for s in slices}

    exact = _by(slices, lambda s: (identity[s.file], s.contrast, _rounded(s)))
    groups = [Group(some, plan(some, cached)) for some in exact]
    steps: tuple[tuple[Callable[[str], Hashable], Callable[[Sequence[Group]], bool]], ...] = (
        (lambda f: (identity[f], contrast[f], plane[f]), _are_not_repeats),
        (lambda f: (identity[f][0], contrast[f], plane[f]), _share_no_position),
        (lambda f: (number[f], contrast[f], plane[f]), _are_parts_of_one_series),
        (lambda f: (number[f], plane[f]), _are_small),
    )
    tried: set[frozenset[str]] = set()
    for key_of, may_join in steps if len(groups) > 1 else ():
        groups = _join_by_key(groups, key_of, may_join, cached, tried)
    result = Plan()
    for group in groups:
        result.add(group.plan)
    # A rejected slice without others of its series, or of unknown modality, is kept as an image: it is no part of a volume.
    kept = [s for s, why in result.rejected if why.code != "DUPLICATE" and (s.file in alone or not _stacked(s))]
    files = {s.file for s in kept}
    result.rejected[:] = [(s, why) for s, why in result.rejected if s.file not in files]
    result.keep_as_images(kept)
    return result


def exact_groups(slices: list[Slice]) -> list[list[Slice]]:
    """Group slices that agree in everything, up to rounding of the plane."""
    return _by(slices, lambda s: (s.key, s.series, s.frame_of_reference, s.stack, s.contrast, _rounded(s)))


def _by(slices: list[Slice], key_of: Callable[[Slice], Hashable]) -> list[list[Slice]]:
    found: defaultdict[Hashable, list[Slice]] = defaultdict(list)
    for s in slices:
        found[key_of(s)].append(s)
    return list(found.values())


def _rounded(s: Slice) -> tuple[tuple[float, ...], ...]:
    return tuple(round(v, 3) + 0.0 for v in s.orientation), tuple(round(v, 4) for v in s.spacing)


def _stacked(s: Slice) -> bool:
    return s.about.get("modality", "?") != ""


def _identities(slices: list[Slice]) -> tuple[dict[str, tuple[tuple[str, str], str, str]], set[str]]:
    """Return (series, frame of reference, stack) by `Slice.file`, and the files that are alone in their series.

    A UID of a single image says nothing about what it belongs to; the series number then stands for the series.
    """
    images = {(s.uid, s.series, s.frame_of_reference) for s in slices}
    series, frames = Counter(s for _, s, _ in images), Counter(f for _, _, f in images)
    alone = {s.file for s in slices if s.series and series[s.series] == 1}
    identity = {
        s.file: (
            ("", s.series_number) if s.file in alone else (s.series, ""),
            "alone" if frames[s.frame_of_reference] == 1 else s.frame_of_reference,
            s.stack,
        )
        for s in slices
    }
    return identity, alone


def _equal_within_tolerance(
    slices: list[Slice], values: Callable[[Slice], tuple[tuple[float, ...], ...]], relative: float, absolute: float
) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Return the numbers of each slice, by `Slice.file`, each replaced by an integer that is the same for equal numbers.

    Sorted numbers are equal as long as the steps between them are within the tolerance, whatever the order of files.
    """
    columns: defaultdict[tuple[int, int, int], dict[float, int]] = defaultdict(dict)
    tables = {s.file: values(s) for s in slices}
    cells = {(i, len(v), k, x) for table in set(tables.values()) for i, v in enumerate(table) for k, x in enumerate(v)}
    last, index = ((-1, 0, 0), 0.0), 0
    for i, n, k, x in sorted(cells):
        column, before = last
        index += column != (i, n, k) or x - before > max(relative * max(abs(x), abs(before)), absolute)
        columns[i, n, k][x] = index
        last = (i, n, k), x
    return {
        f: tuple(tuple(columns[i, len(v), k][x] for k, x in enumerate(v)) for i, v in enumerate(table))
        for f, table in tables.items()
    }


def _join_by_key(
    groups: list[Group],
    key_of: Callable[[str], Hashable],
    may_join: Callable[[Sequence[Group]], bool],
    digest: Digest,
    tried: set[frozenset[str]],
) -> list[Group]:
    """Join groups with the same key where they may be and are better together.

    tried: the files of groups that were found not to be better together.
    """
    alike: defaultdict[Hashable, list[Group]] = defaultdict(list)
    for group in groups:
        alike[key_of(group.slices[0].file)].append(group)
    return [g for some in alike.values() for g in _join_pool(some, may_join, digest, tried)]


def _join_pool(
    groups: list[Group],
    may_join: Callable[[Sequence[Group]], bool],
    digest: Digest,
    tried: set[frozenset[str]],
) -> list[Group]:
    """Join all groups, or those that share no position, or those that are not complete; then pairs, if they are few."""

    def together(some: list[Group]) -> list[Group]:
        if len(some) < 2 or not may_join(some):
            return some
        slices = [s for g in some for s in g.slices]
        files = frozenset(s.file for s in slices)
        if files in tried:
            return some
        whole = Group(slices, plan(slices, digest))
        if whole.rank > tuple(map(sum, zip(*(g.rank for g in some), strict=True))):
            return [whole]
        tried.add(files)
        return some

    if len(groups) < 2:
        return groups
    found = together(groups)
    if len(found) > 1:
        found = [g for pool in _pools(groups) for g in together(pool)]
    if len(found) > 1:
        whole = [g for g in found if g.is_complete]
        found = whole + [g for pool in _pools([g for g in found if not g.is_complete]) for g in together(pool)]
    while 1 < len(found) <= MAX_PAIRED_GROUPS:
        for a, b in combinations(range(len(found)), 2):
            if len(both := together([found[a], found[b]])) == 1:
                found = [g for k, g in enumerate(found) if k not in (a, b)] + both
                break
        else:
            break
    return found


class _PositionIndex:
    """Positions, to find others within `SAME` of them."""

    def __init__(self) -> None:
        self.cells: defaultdict[tuple[int, ...], list[tuple[float, ...]]] = defaultdict(list)

    def add(self, slices: Iterable[Slice]) -> None:
        for s in slices:
            self.cells[self._cell(s)].append(s.position)

    def touch(self, slices: Iterable[Slice]) -> bool:
        """Return whether one of the slices is at one of the positions."""
        return any(
            np.linalg.norm(np.subtract(place, s.position)) < SAME
            for s in slices
            for cell in product(*((c - 1, c, c + 1) for c in self._cell(s)))
            if cell in self.cells
            for place in self.cells[cell]
        )

    def _cell(self, s: Slice) -> tuple[int, ...]:
        return tuple(floor(v / SAME) for v in s.position)


def _pools(groups: list[Group]) -> list[list[Group]]:
    """Divide groups into pools without common positions."""
    pools: list[tuple[_PositionIndex, list[Group]]] = []
    for g in sorted(groups, key=lambda g: (min(g.heights), min(s.file for s in g.slices))):
        pool = next((p for p in pools if not p[0].touch(g.slices)), None)
        if pool is None:
            pool = _PositionIndex(), []
            pools.append(pool)
        pool[0].add(g.slices)
        pool[1].append(g)
    return [members for _, members in pools]


def _share_no_position(groups: Sequence[Group]) -> bool:
    return len(_pools(list(groups))) == 1


def _are_not_repeats(groups: Sequence[Group]) -> bool:
    """Return False for whole volumes that share positions: values that differ a little are then different contrasts."""
    return not all(g.is_complete for g in groups) or _share_no_position(groups)


def _are_parts_of_one_series(groups: Sequence[Group]) -> bool:
    """Return whether groups of several series may be one: without a series number, whole volumes must interleave."""
    if not _share_no_position(groups):
        return False
    if groups[0].slices[0].series_number:
        return True
    ends = [(g.heights[0], g.heights[-1]) for g in groups]
    return all(
        g.is_small or any(a < d and c < b for k, (c, d) in enumerate(ends) if k != i)
        for i, (g, (a, b)) in enumerate(zip(groups, ends, strict=True))
    )


def _are_small(groups: Sequence[Group]) -> bool:
    return all(g.is_small for g in groups) and _share_no_position(groups)
