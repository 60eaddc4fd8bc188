"""Turn a table of labels into rows with the manifest's column names, without anything that must not be stored."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from medssl.errors import UserError, nearest
from medssl.ingestion import allow_list
from medssl.ingestion.allow_list import METADATA, PARSERS, allowed_words, mostly_distinct, squash, squashed
from medssl.ingestion.label_columns import LabelColumn, MissingWords
from medssl.ingestion.label_sources import differ
from medssl.ingestion.path_match import normalised
from medssl.ingestion.table_file import FileColumn, TableFile
from medssl.readers.pseudonyms import Pseudonyms
from medssl.store.label_values import clean
from medssl.store.splits import SPLITS

SPLIT_WORDS = {s: s for s in SPLITS} | {"training": "train", "valid": "val", "validation": "val", "testing": "test"}


class Columns(NamedTuple):
    """The positions of the columns that are used."""

    file: int | None
    patient: int | None
    split: int | None
    site: int | None
    labels: dict[int, str]
    metadata: dict[int, str]


def find_columns(table: TableFile, targets: Sequence[str], paths: Sequence[str]) -> tuple[Columns, FileColumn]:
    """Return the positions of the columns that are used, and how the column of the files was found.

    Raises UserError for an unknown target, if no column names a file or a patient, and if two that are used have one name.
    """
    path, header = table.path, table.header
    names = {squash(h): i for i, h in reversed(list(enumerate(header)))}  # the first of several equal names
    patient = next((names[n] for n in squashed(allow_list.PATIENT) if n in names), None)
    targets = [clean(name) for name in targets]
    for name in targets:
        if name not in header:
            raise UserError(f"targets: {path} has no column {name!r}.{nearest(name, header)}")
    labels = {header.index(n): n for n in targets}
    labels = labels or {i: header[i] for n, i in names.items() if n in squashed(allow_list.LABEL)}
    split, site = names.get("split"), names.get("site")
    metadata = {names[n]: kind for kind, words in METADATA.items() for n in squashed(words) if n in names}
    metadata = {i: kind for i, kind in metadata.items() if i not in labels}
    others = {patient, split, site, *labels, *metadata} - {None}
    found = FileColumn(table, paths, [i for i in others if i is not None])
    if found.index is None and patient is None:
        raise UserError(
            f"{path} has no column that names a file ({', '.join(allow_list.FILE[:6])}, …) or a patient "
            f"({', '.join(allow_list.PATIENT[:4])}, …); it has: {', '.join(header)}{found.hint and f'; {found.hint}'}"
        )
    labels.pop(-1 if found.index is None else found.index, None)
    used = {i for i in (found.index, patient, split, site, *labels, *metadata) if i is not None}
    _check_repeated(table, used, exactly=set(labels) if targets else set())
    return Columns(found.index, patient, split, site, labels, metadata), found


def _check_repeated(table: TableFile, used: set[int], exactly: set[int]) -> None:
    """Raise UserError if another column has the name of one in use, and other cells. The user has named those in `exactly`."""
    for i in sorted(used):
        name = table.header[i]
        same = [j for j, h in enumerate(table.header) if h == name or (i not in exactly and squash(h) == squash(name))]
        if any(table.column(j) != table.column(i) for j in same):
            raise UserError(
                f"{table.path} has several columns {name!r} with different cells; rename or delete all but one"
            )


def tidy(table: TableFile, columns: Columns, named: bool, missing: MissingWords) -> tuple[Columns, list[str]]:
    """Clean the cells of the columns that are used, and drop label and site columns with free text.

    Returns the columns left, and notes about what counts as missing and about everything that is not copied.
    """
    notes, texts, refusals = [], {}, []
    tidied = {i: LabelColumn(table.header[i], table.column(i)) for i in {*columns.labels, *columns.metadata}}
    for i in (columns.site, columns.split, columns.patient):
        if i is not None and i not in tidied:
            tidied[i] = LabelColumn(table.header[i], table.column(i))
    for i, column in tidied.items():
        if i == columns.patient:
            column.drop_nobody()
        else:
            column.drop_missing(missing if i in columns.labels else MissingWords(missing.usual))
        if i in columns.labels or columns.metadata.get(i) == "age":
            column.read_commas(table.separator)
        notes += column.notes
        column.notes.clear()
        if i in columns.labels and named:
            column.screen()
            refusals += column.notes
        elif (i in columns.labels or i == columns.site) and _is_text(column.known):
            hint = f"if it is a label, add targets=[{column.name}]"
            texts[i] = f"column {column.name!r} looks like free text and was not copied; {hint}"
        for cell, value in zip(table.cells.values(), column.cells, strict=True):
            if i != columns.patient or not value:  # identifiers stay as they are written
                cell[i] = value
    _check_splits(table, columns.split)
    labels = {i: name for i, name in columns.labels.items() if i not in texts}
    columns = columns._replace(labels=labels, site=None if columns.site in texts else columns.site)
    used = {columns.file, columns.patient, columns.split, columns.site, *labels, *columns.metadata, *texts}
    notes += [*texts.values(), *refusals]
    if dropped := [name for i, name in enumerate(table.header) if i not in used]:
        notes.append(f"columns not copied: {', '.join(dropped)} (name labels with targets=[…])")
    return columns, notes


def _is_text(values: Sequence[str]) -> bool:
    return any(allowed_words(v) is None for v in values) or mostly_distinct(values)


def _check_splits(table: TableFile, split: int | None) -> None:
    for line, cell in table.cells.items():
        if split is not None and cell[split].casefold() not in {*SPLIT_WORDS, ""}:
            raise UserError(
                f"{table.path}: the column split has a word other than train, val and test in line {line}; "
                "correct it, or rename the column"
            )


def read_rows(
    table: TableFile, columns: Columns, pseudonyms: Pseudonyms, hint: str
) -> tuple[dict[str, dict[str, Any]], int]:
    """Return patient or file -> values, and how many rows repeat another. Raises UserError for contradicting rows."""
    kind = "patient" if columns.file is None else "file"
    rows: dict[str, dict[str, Any]] = {}
    lines: dict[str, int] = {}
    contradicting: dict[str, tuple[int, int]] = {}
    repeated = 0
    for line, cell in table.cells.items():
        row = _row(cell, columns, pseudonyms)
        if key := row.get("patient", "") if columns.file is None else normalised(cell[columns.file]):
            known, first = rows.setdefault(key, row), lines.setdefault(key, line)
            if any(differ(name, known.get(name), value) for name, value in row.items()):
                contradicting.setdefault(key, (first, line))
            rows[key] = row | {name: value for name, value in known.items() if value is not None}
            repeated += first != line
    if not rows:
        raise UserError(f"{table.path} has no row that names a {kind}")
    if contradicting:
        first, line = next(iter(contradicting.values()))
        what = hint or ("call the column with the names of the files file" if kind == "patient" else "keep one of them")
        many = f" ({len(contradicting)} {kind}s in all)" if len(contradicting) > 1 else ""
        raise UserError(f"{table.path}: lines {first} and {line} contradict each other on one {kind}{many}; {what}")
    return rows, repeated


def _row(cell: list[str], columns: Columns, pseudonyms: Pseudonyms) -> dict[str, Any]:
    row: dict[str, Any] = {f"label:{name}": cell[i] or None for i, name in columns.labels.items()}
    row |= {f"fact:{name}": v for i, name in columns.metadata.items() if (v := PARSERS[name](cell[i])) is not None}
    if columns.split is not None and cell[columns.split]:
        row["split"] = SPLIT_WORDS[cell[columns.split].casefold()]
    if columns.site is not None and cell[columns.site]:
        row["site"] = cell[columns.site]
    if columns.patient is not None and (raw := cell[columns.patient]):
        row |= pseudonyms.person(raw)
    return row
