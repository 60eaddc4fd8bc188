"""Read a table of labels: its encoding, separator, header and cells, and find the column that names the files."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medssl.errors import UserError
from medssl.ingestion import allow_list
from medssl.ingestion.allow_list import squash, squashed
from medssl.ingestion.path_match import NEVER_SCANS, PART, normalised, stem
from medssl.ingestion.text_encoding import decode
from medssl.store.label_values import clean

SEPARATORS = ",;\t"
BINARY = {b"PK\x03\x04": "an Excel or zip file", b"\xd0\xcf\x11\xe0": "an Excel file", b"PAR1": "a parquet file"}


@dataclass
class TableFile:
    """A table that has been read.

    Attributes:
        path: of the file.
        header: names of the columns. cells: line number -> its cells, as many as there are columns.
        separator: between cells.
        notes: lines for the report.
    """

    path: Path
    header: list[str]
    cells: dict[int, list[str]]
    separator: str
    notes: list[str]

    def column(self, i: int) -> list[str]:
        """Return the cells of one column."""
        return [cell[i] for cell in self.cells.values()]


def read_table(path: Path) -> TableFile:
    """Read a CSV file with comma, semicolon or tab, and perhaps Excel's first line "sep=;".

    Raises UserError if it is missing, in an unknown encoding, or empty, and if a row has more cells than the header.
    """
    if not path.is_file():
        raise UserError(f"labels={path} does not exist; give a CSV file, or labels=folders")
    data = path.read_bytes()
    if (decoded := decode(data)) is None:
        kind = next((f"it looks like {what}" for magic, what in BINARY.items() if data.startswith(magic)), "")
        why = kind or "read as CP949 it has no everyday Hangul, so it may be GBK, Shift-JIS or Latin-1"
        raise UserError(f"{path} is neither UTF-8 nor CP949 text ({why}); save it as CSV UTF-8")
    text, encoding = decoded
    if "\0" in text:
        raise UserError(
            f"{path} has zero bytes: it is UTF-16 without a byte order mark, or no text; save it as CSV UTF-8"
        )
    separator, skipped = "", 0
    if found := re.match(r"\"?sep=([,;\t|])\"?[ \t]*(\r\n|\n|\r)", text, re.IGNORECASE):
        separator, skipped, text = found[1], 1, text[found.end() :]
    separator = separator or max(SEPARATORS, key=re.split(r"[\r\n]", text, maxsplit=1)[0].count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        lines = dict((reader.line_num + skipped, [cell.strip() for cell in line]) for line in reader)
    except csv.Error as e:
        raise UserError(f"{path} is not a CSV file ({e}); save it as CSV UTF-8") from e
    lines = {number: line for number, line in lines.items() if any(line)}
    if len(lines) < 2:
        raise UserError(f"{path} is empty: it needs a line with the names of the columns, and rows below it")
    header = list(map(clean, lines.pop(first := min(lines))))
    if long := [number for number, line in lines.items() if any(line[len(header) :])]:
        some = f"line {long[0]} has" if len(long) == 1 else f"{len(long)} lines, the first of them line {long[0]}, have"
        raise UserError(
            f"{path}: {some} more cells than the header in line {first} ({len(header)}); put cells that contain the separator "
            f"{separator!r} in quotes, and delete lines above the header"
        )
    cells = {number: (line + [""] * len(header))[: len(header)] for number, line in lines.items()}
    notes = [] if encoding == "UTF-8" else [f"the table was read as {encoding}"]
    named = max((i for i, name in enumerate(header, 1) if name), default=0)
    if short := [number for number, line in lines.items() if len(line) < named]:
        notes.append(
            f"{len(short)} rows have fewer cells than the header, the first of them in line {short[0]}: the cells missing at "
            "their end count as empty"
        )
    return TableFile(path, header, cells, separator, notes)


class FileColumn:
    """The column of a table that names the files of the scans, found by its name and by what it names.

    Args:
        table: the table.
        paths: all files of the source; empty if unknown.
        others: positions of columns with another meaning: labels, patients, sites.

    Attributes:
        index: its position, None if the table has no such column.
        note: a line for the report if the column was found by its content, else "".
        hint: the beginning of a remedy, if another column names files; else "".
    """

    def __init__(self, table: TableFile, paths: Sequence[str], others: Iterable[int]):
        names, others = {squash(h): i for i, h in reversed(list(enumerate(table.header)))}, set(others)
        certain, also = (
            [names[n] for n in squashed(usual) if n in names] for usual in (allow_list.FILE, allow_list.ALSO_FILE)
        )
        usual, words = [*certain, *also], _names(paths)
        named = {i: _count(table.column(i), words) for i in range(len(table.header))} if words else {}
        self.index, self.note, self.hint = next(iter(certain if named else usual), None), "", ""
        by_name = max(usual, key=lambda i: named.get(i, 0), default=None)
        if by_name is not None and named.get(by_name):
            self.index = by_name
            return
        best = max((i for i in named if i not in {*others, *usual}), key=lambda i: named[i], default=None)
        if best is not None and named[best]:
            cells = [cell for cell in table.column(best) if cell]
            found = f"column {table.header[best]!r} names {named[best]} files of the source"
            if len(set(cells)) == len(cells) and 2 * named[best] >= len(cells) and not _counts_up(cells):
                self.index, self.note = best, f"{found}: its rows are joined to them"
            else:
                self.hint = f"{found}: if it is meant to, call it file"


def _names(paths: Iterable[str]) -> set[str]:
    """Return all names by which a table may mean a file or the folder of a volume."""
    out: set[str] = set()
    for path in paths:
        whole = normalised(PART.sub("", path))
        if not NEVER_SCANS.search(whole):
            *folders, name = whole.split("/")
            out |= {name, stem(name), *folders}
    return out


def _count(cells: Sequence[str], names: set[str]) -> int:
    """Return how many different cells name a file."""
    last = (normalised(PART.sub("", cell)).rpartition("/")[2] for cell in set(cells) if cell)
    return sum(name in names or stem(name) in names for name in last)


def _counts_up(cells: Sequence[str]) -> bool:
    """Return whether cells are 0, 1, 2, … or 1, 2, 3, …: the numbers of the rows."""
    return cells[:2] in (["0", "1"], ["1", "2"], ["0"], ["1"]) and all(
        cell == str(i) for i, cell in enumerate(cells, int(cells[0]))
    )


def patient_hint(cells: Sequence[str], paths: Sequence[str]) -> str:
    """Return a remedy if the patients of a table are folders or the names of files, "" if they are not."""
    people = {normalised(cell) for cell in cells if cell}
    split = [normalised(PART.sub("", path)).split("/") for path in paths]
    for depth in range(max((len(parts) for parts in split), default=1) - 1):
        if any(len(parts) > depth + 1 and parts[depth] in people for parts in split):
            return f"they are names of folders: add patient=^{'[^/]+/' * depth}([^/]+)/"
    if any(stem(parts[-1]) in people for parts in split):
        return "they are names of files: call the column file, or add patient=([^/]+)[.][^/]*$"
    return ""
