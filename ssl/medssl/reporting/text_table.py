"""Aligned tables for a terminal."""

import unicodedata
from collections.abc import Sequence


def aligned(head: Sequence[str], rows: Sequence[Sequence[object]], indent: str = "  ") -> list[str]:
    """Return the lines of a table: numbers right-aligned with thousands separators, words left-aligned.

    No headings are shown if all of `head` is empty. None is shown as –.
    """
    cells = [[_cell(v) for v in row] for row in rows]
    lines = [list(head), *cells] if any(head) else cells
    columns = range(len(head))
    widths = [max((_width(line[c]) for line in lines), default=0) for c in columns]
    numeric = [bool(rows) and all(isinstance(row[c], int | float | None) for row in rows) for c in columns]
    out = []
    for line in lines:
        padded = []
        for text, width, right in zip(line, widths, numeric, strict=True):
            blank = " " * (width - _width(text))
            padded.append(blank + text if right else text + blank)
        out.append((indent + "  ".join(padded)).rstrip())
    return out


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return " ".join(str(value).split())
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _width(text: str) -> int:
    """Return the number of terminal columns; Korean, Chinese and Japanese characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)
