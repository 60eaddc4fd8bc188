"""Tables of scores as text. Every number needs an interval."""

from collections.abc import Mapping, Sequence
from contextlib import suppress

from medssl.evals.stats.score import Score

Cell = str | Score | None


def text_table(rows: Sequence[Mapping[str, Cell]], columns: Sequence[str]) -> str:
    """Return aligned lines: a header, one line per row, then how the intervals were computed. Missing cells show as –.

    A cell is text or a Score. Raises TypeError for a number without an interval, also as text.
    """
    cells = [[_cell(row.get(c), c) for c in columns] for row in rows]
    widths = [max(len(c), *(len(line[i]) for line in cells)) if cells else len(c) for i, c in enumerate(columns)]
    right = [any(isinstance(row.get(c), Score) for row in rows) for c in columns]
    lines = [
        "  ".join(_pad(*cell) for cell in zip(line, widths, right, strict=True)) for line in [list(columns), *cells]
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(line.rstrip() for line in lines + _footnotes(rows, columns))


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
    made: dict[str, list[str]] = {}
    for row in rows:
        for c in columns:
            if isinstance(value := row.get(c), Score) and c not in made.setdefault(f"{value.how}, {value.n} scans", []):
                made[f"{value.how}, {value.n} scans"].append(c)
    if len(made) == 1:
        return [f"Brackets: {next(iter(made))}."]
    return [f"Brackets of {', '.join(names)}: {how}." for how, names in made.items()]
