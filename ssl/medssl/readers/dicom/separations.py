"""Ways to separate repeated volumes of one series: by time or acquisition, or by instance number if some are incomplete."""

from collections import defaultdict
from collections.abc import Callable, Iterator

from medssl.readers.dicom.positions import positions
from medssl.readers.dicom.stack_geometry import is_regular, placements
from medssl.readers.scan import Slice

MIN_SLICES = 4  # in a volume; fewer are single images


def separations(slices: list[Slice]) -> Iterator[list[list[Slice]]]:
    """Yield ways to divide sorted slices into volumes; slices of parts too small for a volume form one last part.

    If positions are repeated, every position of a part must occur equally often. Otherwise each part must have a constant
    distance between slices: one missing slice then does not split an interleaved volume into its acquisitions.
    """
    repeated = any(len(t) > 1 for t in positions(slices))
    last = len(slices[0].order) - 1
    for span in (*(slice(i, i + 1) for i in range(last)), slice(last)):
        parts: defaultdict[tuple[float, ...], list[Slice]] = defaultdict(list)
        for s in slices:
            parts[s.order[span]].append(s)
        at = {v: positions(parts[v]) for v in sorted(parts)}
        big = [v for v in at if len(at[v]) >= MIN_SLICES]
        equal = all(len(set(map(len, at[v]))) == 1 for v in big)
        if big and equal and (repeated or all(is_regular(placements([t[0] for t in at[v]])) for v in big)):
            rest = [s for s in slices if s.order[span] not in big]
            yield [parts[v] for v in big] + [rest] * bool(rest)
    if repeated:
        yield from _by_number(slices)


def _by_number(slices: list[Slice]) -> Iterator[list[list[Slice]]]:
    """Yield the repeats according to the instance numbers, if some repeats are incomplete, as after a scan that was stopped.

    Scanners number all positions of the first repeat, then those of the second, or all repeats at the first position,
    then those at the second. The position must follow from the number alone; otherwise nothing is yielded.
    """
    at = positions(slices)
    most = max(map(len, at))
    numbers = [s.order[-1] for s in slices]
    if min(map(len, at)) == most or len(set(numbers)) < len(numbers) or not all(map(float.is_integer, numbers)):
        return
    place = {s.file: i for i, there in enumerate(at) for s in there}
    rank = {n: i for i, n in enumerate(sorted(numbers))}
    counts: list[dict[float, int]] = [{n: int(n - first) for n in numbers} for first in (1, min(numbers))]
    counts = [c for c in (*counts, rank) if min(c.values()) >= 0]
    for divide in (lambda i: divmod(i, len(at)), lambda i: divmod(i, most)[::-1]):
        found = [parts for count in counts if (parts := _consistent(slices, place, count, divide))]
        if found:  # the first of those with the most complete repeats, and then the fewest others
            yield max(found, key=lambda parts: (sum(len(part) == len(at) for part in parts), -len(parts)))


def _consistent(
    slices: list[Slice], place: dict[str, int], count: dict[float, int], divide: Callable[[int], tuple[int, int]]
) -> list[list[Slice]]:
    """Return the repeats, [] unless a number's second part, `divide(count)[1]`, and the position determine each other."""
    parts: defaultdict[int, list[Slice]] = defaultdict(list)
    pairs = set()
    for s in slices:
        repeat, where = divide(count[s.order[-1]])
        parts[repeat].append(s)
        pairs.add((where, place[s.file]))
    if not len(pairs) == len({where for where, _ in pairs}) == len({at for _, at in pairs}):
        return []
    return [parts[repeat] for repeat in sorted(parts)]
