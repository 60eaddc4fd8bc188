"""Tables for a terminal."""

import unicodedata
from collections.abc import Sequence


def aligned(head: Sequence[str], rows: Sequence[Sequence[object]], indent: str = "  ") -> list[str]:
    """A table in lines: numbers (with thousands set apart) to the right, words to the left. `head` may be empty words."""
    cells = [[_cell(v) for v in row] for row in rows]
    lines = [list(head), *cells] if any(head) else cells
    widths = [max((_width(line[c]) for line in lines), default=0) for c in range(len(head))]
    right = [
        bool(rows) and all(isinstance(row[c], int | float) or row[c] is None for row in rows) for c in range(len(head))
    ]
    out = []
    for line in lines:
        padded = []
        for text, width, number in zip(line, widths, right, strict=True):
            blank = " " * (width - _width(text))
            padded.append(blank + text if number else text + blank)
        out.append((indent + "  ".join(padded)).rstrip())
    return out


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return " ".join(str(value).split())
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _width(text: str) -> int:
    """Columns on a terminal, where Korean, Chinese and Japanese letters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)
