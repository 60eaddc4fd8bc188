"""Tables of scores as text. Every number needs an interval."""

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from medssl.evals.stats.score import Score

Cell = str | Score | None
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def text_table(rows: Sequence[Mapping[str, Cell]], columns: Sequence[str]) -> str:
    """Return aligned lines: a header, one line per row, then how the intervals were computed. Missing cells show as –.

    A cell is text or a Score. A table that is wider than the terminal comes in parts below each other, each with the words of
    its rows. Raises TypeError for a number without an interval, also as text.
    """
    cells = [[_cell(row.get(c), c) for c in columns] for row in rows]
    right = [any(isinstance(row.get(c), Score) for row in rows) for c in columns]
    # where nobody looks at a terminal, such as in a file or a notebook, lines are as long as the table
    width = shutil.get_terminal_size((10_000, 24)).columns
    parts = _parts(list(columns), cells, right, width)
    return "\n".join([*"\n\n".join(parts).splitlines(), *_footnotes(rows, columns)])


def _parts(head: list[str], cells: list[list[str]], right: list[bool], width: int) -> list[str]:
    """Return the table in parts of at most `width` characters, each with as many columns of scores as fit."""
    whole = _aligned(head, cells, right)
    words = right.index(True) if any(right) else len(head)
    if len(whole.splitlines()[1]) <= width or words in (0, len(head)):
        return [whole]
    # the words of a row in one column, so that more scores fit beside them
    names = [", ".join(row[:words]) for row in cells]
    parts, start = [], words
    while start < len(head):
        stop = start + 1
        while stop < len(head) and _width([names, *([row[i] for row in cells] for i in range(start, stop + 1))],
                                          [", ".join(head[:words]), *head[start : stop + 1]]) <= width:  # fmt: skip
            stop += 1
        lines = [[name, *row[start:stop]] for name, row in zip(names, cells, strict=True)]
        parts.append(_aligned([", ".join(head[:words]), *head[start:stop]], lines, [False, *right[start:stop]]))
        start = stop
    return parts


def _width(columns: Sequence[Sequence[str]], head: Sequence[str]) -> int:
    return sum(max(map(len, [title, *column])) + 2 for title, column in zip(head, columns, strict=True)) - 2


def _aligned(head: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    widths = [
        max(len(title), *(len(line[i]) for line in cells)) if cells else len(title) for i, title in enumerate(head)
    ]
    lines = ["  ".join(_pad(*cell) for cell in zip(line, widths, right, strict=True)) for line in [head, *cells]]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: Cell, column: str) -> str:
    if isinstance(value, Score):
        return str(value)
    if value is None:
        return "–"
    if not isinstance(value, str):
        raise TypeError(f"column {column!r} holds {value!r}; a number needs an interval: give a Score")
    with suppress(ValueError):
        float(value.strip().rstrip("%"))
        raise TypeError(f"column {column!r} holds the bare number {value!r}; give a Score")
    return value


def _pad(text: str, width: int, right: bool) -> str:
    return text.rjust(width) if right else text.ljust(width)


def _footnotes(rows: Sequence[Mapping[str, Cell]], columns: Sequence[str]) -> list[str]:
    """Return a line for each way in which intervals were computed; ways that differ only in their numbers share a line."""
    made: dict[str, list[str]] = {}
    for row in rows:
        for c in columns:
            if isinstance(value := row.get(c), Score):
                made.setdefault(f"{value.how}, {value.n} scans", []).append(c)
    ways = [(how, {c for one in hows for c in made[one]}) for how, hows in in_few_words(made).items()]
    if len(ways) == 1:
        return [f"Intervals in brackets: {ways[0][0]}."]
    return [f"Intervals of {', '.join(c for c in columns if c in names)}: {how}." for how, names in ways]


def in_few_words(hows: Iterable[str]) -> dict[str, list[str]]:
    """Return sentences that differ only in their numbers as one, with a range where they differ: {one: those it stands for}."""
    alike: dict[str, list[str]] = {}
    for how in hows:
        alike.setdefault(NUMBER.sub("#", how), []).append(how)
    return {_in_one(group): group for group in alike.values()}


def _in_one(hows: Sequence[str]) -> str:
    columns = zip(*(NUMBER.findall(how) for how in hows), strict=True)
    ranges = [sorted(set(column), key=float) for column in columns]
    shown = iter(found[0] if len(found) == 1 else f"{found[0]} to {found[-1]}" for found in ranges)
    return NUMBER.sub(lambda _: next(shown), hows[0])
