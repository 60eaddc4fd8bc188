"""Read a table of labels and join it to the scans. Only the user's labels, patients, splits, sites and metadata are copied."""

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from medssl.errors import UserError, nearest
from medssl.ingestion import allow_list
from medssl.ingestion.allow_list import METADATA, PARSERS, allowed_words, mostly_distinct, squash, squashed
from medssl.ingestion.path_match import PART, compile_pattern, match, normalised, path_pattern
from medssl.readers.pseudonyms import Pseudonyms
from medssl.store.splits import SPLITS

SPLIT_WORDS = {s: s for s in SPLITS} | {"training": "train", "valid": "val", "validation": "val", "testing": "test"}


@dataclass
class Labels:
    """A table that has been read and not yet joined, with values that may be stored.

    Attributes:
        pseudonyms: those of the project.
        rows: the values of each line under the manifest's column names ("label:NAME", "fact:NAME", patient, split, site).
        files: the path in each row, or None if the table has one row per patient.
        folders: use the name of the folder that holds a scan as its label.
        pattern: finds the patient in a path (its only group).
        names: paths of all files of the source, scans or not.
        notes: lines for the report about repeated rows, and about columns and values that were not copied.
    """

    pseudonyms: Pseudonyms
    rows: list[dict[str, Any]] = field(default_factory=list)
    files: list[str] | None = None
    folders: bool = False
    pattern: re.Pattern[str] | None = None
    names: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def join(self, scans: Sequence[dict[str, Any]], paths: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
        """Return the manifest rows with the table's values, and a report in lines for the terminal.

        Args:
            scans: manifest rows.
            paths: the path of each, relative to the source, with "/"; "a.zip!/b.dcm" in an archive, "x.npz#train/3" in
                a file with several scans.

        Raises:
            UserError: no row of the table matches any scan.
        """
        scans = [self._from_path(scan, path) for scan, path in zip(scans, paths, strict=True)]
        if not self.rows:
            return scans, []
        if self.files is None:
            by_patient = {row["patient"]: i for i, row in enumerate(self.rows)}
            found = [by_patient.get(scan["patient"]) for scan in scans]
        else:
            matches = match(paths, self.files, self.names)
            found = [matches.get(path) for path in paths]
        if all(i is None for i in found):
            raise UserError(_no_match(self.files, paths))
        joined = [scan if i is None else updated(scan, self.rows[i]) for scan, i in zip(scans, found, strict=True)]
        return joined, self._report(found)

    def _from_path(self, scan: dict[str, Any], path: str) -> dict[str, Any]:
        if self.folders and (folder := re.sub(r"(\.zip)?!$", "", Path(PART.sub("", path)).parent.name)):
            scan = scan | {"label:label": folder}
        if self.pattern and (patient := _patient(self.pattern, path)):
            scan = updated(scan, self.pseudonyms.person(patient))
        return scan

    def _report(self, found: Sequence[int | None]) -> list[str]:
        used = set(found) - {None}
        names = sorted({c.removeprefix("label:") for row in self.rows for c in row if c.startswith("label:")})
        matched = sum(i is not None for i in found)
        lines = [f"{matched} of {len(found)} scans have a row in the table (labels: {', '.join(names) or 'none'})"]
        if missing := len(found) - matched:
            lines.append(f"{missing} scans have no row in the table")
        if left := len(self.rows) - len(used):
            lines.append(f"{left} rows match no scan")
        return lines + self.notes


def read_labels(
    source: Path | str | None,
    pseudonyms: Pseudonyms,
    targets: Sequence[str] = (),
    patient: str | None = None,
    paths: Iterable[str] = (),
) -> Labels:
    r"""Read the table of labels.

    Args:
        source: a CSV file; "folders" if a scan's folder is its label; None for nothing.
        pseudonyms: those of the project.
        targets: columns that are labels; by default those called label, target, class, diagnosis, finding or lesion.
        patient: a regular expression with one group that finds the patient in a relative path, like "person(\d+)".
        paths: all files of the source. The pattern must find a patient in at least one of them.

    Raises:
        UserError: the table is missing, empty, undecodable, contradictory or has no usable column; a target is unknown; the
            pattern is invalid or finds nothing.
    """
    names = list(paths)
    pattern = _pattern(patient, names) if patient else None
    if source == "folders" or source is None:
        if targets:
            raise UserError(f"targets={list(targets)} needs a table: labels=FILE.csv")
        return Labels(pseudonyms, folders=source == "folders", pattern=pattern)
    table = _table(Path(source), pseudonyms, targets, pattern)
    table.names = names if table.files is not None else []
    return table


def updated(scan: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest row with new values. A hash of the birth date is dropped if the patient changes."""
    row = {**scan, **values}
    if row.get("born") and row["patient"] != scan["patient"]:
        row["born"] = ""
    return row


def _pattern(patient: str, paths: Iterable[str]) -> re.Pattern[str]:
    pattern = compile_pattern("patient", patient)
    if pattern.groups != 1:
        raise UserError(f"patient={patient} needs exactly one group, like person(\\d+); it has {pattern.groups}")
    if not any(_patient(pattern, path) for path in paths):
        raise UserError(f"patient={patient} finds a patient in no path of the source; paths are relative to the source")
    return pattern


def _patient(pattern: re.Pattern[str], path: str) -> str:
    found = pattern.search(unicodedata.normalize("NFC", path))
    return (found[1] or "") if found else ""


class _Columns(NamedTuple):
    """The positions of the columns that are used."""

    file: int | None
    patient: int | None
    split: int | None
    site: int | None
    labels: dict[int, str]
    metadata: dict[int, str]


def _table(path: Path, pseudonyms: Pseudonyms, targets: Sequence[str], pattern: re.Pattern[str] | None) -> Labels:
    header, cells = _read_csv(path)
    columns = _columns(path, header, cells, targets)
    if columns.file is not None and pattern:
        columns = columns._replace(patient=None)  # the user's pattern takes precedence
    columns, notes = _screen(header, cells, columns, named=bool(targets))
    kind = "patient" if columns.file is None else "file"
    rows: dict[str, tuple[int, dict[str, Any]]] = {}  # patient or file -> line, values
    repeated = 0
    for line, cell in cells.items():
        row = _row(cell, columns, pseudonyms)
        if key := row.get("patient", "") if columns.file is None else normalised(cell[columns.file]):
            first, known = rows.setdefault(key, (line, row))
            if known != row:
                raise UserError(
                    f"{path}: lines {first} and {line} contradict each other on one {kind}; keep one of them"
                )
            repeated += first != line
    if not rows:
        raise UserError(f"{path} has no row that names a {kind}")
    if repeated:
        notes.insert(0, f"{repeated} rows repeat another row")
    files = None if columns.file is None else list(rows)
    return Labels(pseudonyms, [row for _, row in rows.values()], files, pattern=pattern, notes=notes)


def _read_csv(path: Path) -> tuple[list[str], dict[int, list[str]]]:
    """Return the header, and line number -> cells, of a CSV file with comma, semicolon or tab. All rows have equal length."""
    if not path.is_file():
        raise UserError(f"labels={path} does not exist; give a CSV file, or labels=folders")
    if (text := allow_list.decode(path.read_bytes())) is None:
        raise UserError(f"{path} is neither UTF-8 nor CP949 text; save it as CSV UTF-8")
    first = text.split("\n", 1)[0]
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count))
        lines = dict((reader.line_num, [cell.strip() for cell in line]) for line in reader)
    except csv.Error as e:
        raise UserError(f"{path} is not a CSV file ({e}); save it as CSV UTF-8") from e
    lines = {number: line for number, line in lines.items() if any(line)}
    if len(lines) < 2:
        raise UserError(f"{path} is empty: it needs a line with the names of the columns, and rows below it")
    header = lines.pop(min(lines))
    return header, {number: (line + [""] * len(header))[: len(header)] for number, line in lines.items()}


def _columns(path: Path, header: list[str], cells: dict[int, list[str]], targets: Sequence[str]) -> _Columns:
    names = {squash(h): i for i, h in reversed(list(enumerate(header)))}  # the first of several equal names
    known = (allow_list.FILE, allow_list.PATIENT)
    file, patient = (next((names[n] for n in squashed(words) if n in names), None) for words in known)
    if file is None and patient is None:
        raise UserError(
            f"{path} has no column that names a file ({', '.join(allow_list.FILE)}) or a patient "
            f"({', '.join(allow_list.PATIENT)}); it has: {', '.join(header)}"
        )
    for name in targets:
        if name not in header:
            raise UserError(f"targets: {path} has no column {name!r}.{nearest(name, header)}")
    labels = {header.index(n): n for n in targets}
    labels = labels or {i: header[i] for n, i in names.items() if n in squashed(allow_list.LABEL)}
    split = names.get("split")
    for line, cell in cells.items():
        if split is not None and cell[split].casefold() not in {*SPLIT_WORDS, ""}:
            raise UserError(
                f"{path}: the column split has a word other than train, val and test in line {line}; "
                "correct it, or rename the column"
            )
    metadata = {names[n]: kind for kind, words in METADATA.items() for n in squashed(words) if n in names}
    metadata = {i: kind for i, kind in metadata.items() if i not in labels}
    return _Columns(file, patient, split, names.get("site"), labels, metadata)


def _screen(
    header: list[str], cells: dict[int, list[str]], columns: _Columns, named: bool
) -> tuple[_Columns, list[str]]:
    """Drop label and site columns with free text; values in `cells` that are not allowed become "".

    Returns the columns left, and notes about everything that is not copied.
    """
    texts, refusals = {}, []
    for i in [*columns.labels, *([] if columns.site is None else [columns.site])]:
        name = header[i]
        values = [cell[i] for cell in cells.values() if cell[i]]
        refused = sum(allowed_words(v) is None for v in values)
        if named and i in columns.labels:
            if refused:
                why = "they look like texts, dates or identifiers"
                refusals.append(f"{refused} values of column {name!r} were not copied: {why}")
            for cell in cells.values():
                cell[i] = allowed_words(cell[i]) or ""
        elif refused or mostly_distinct(values):
            hint = f"if it is a label, add targets=[{name}]"
            texts[i] = f"column {name!r} looks like free text and was not copied; {hint}"
    labels = {i: name for i, name in columns.labels.items() if i not in texts}
    columns = columns._replace(labels=labels, site=None if columns.site in texts else columns.site)
    used = {columns.file, columns.patient, columns.split, columns.site, *labels, *columns.metadata, *texts}
    notes = [*texts.values(), *refusals]
    if dropped := [name for i, name in enumerate(header) if i not in used]:
        notes.append(f"columns not copied: {', '.join(dropped)} (name labels with targets=[…])")
    return columns, notes


def _row(cell: list[str], columns: _Columns, pseudonyms: Pseudonyms) -> dict[str, Any]:
    row: dict[str, Any] = {f"label:{name}": cell[i] or None for i, name in columns.labels.items()}
    row |= {f"fact:{name}": v for i, name in columns.metadata.items() if (v := PARSERS[name](cell[i])) is not None}
    if columns.split is not None and cell[columns.split]:
        row["split"] = SPLIT_WORDS[cell[columns.split].casefold()]
    if columns.site is not None and cell[columns.site]:
        row["site"] = cell[columns.site]
    if columns.patient is not None and (raw := cell[columns.patient]):
        row |= pseudonyms.person(raw)
    return row


def _no_match(files: Sequence[str] | None, paths: Sequence[str]) -> str:
    """Return what to do if a table and the scans have nothing in common, without quoting either: names may identify."""
    if files is None:
        return (
            "no patient in the table of labels is a patient of the scans; write their ids as in the scans' Patient ID (or "
            "issuer|id where the scans name an issuer), or find them in the paths with patient=PATTERN"
        )
    return (
        f"no row of the table of labels matches a scan: the table names files like {path_pattern(files[0])}, the source has "
        f"paths like {path_pattern(paths[0])}; write paths below the source, or file names that occur once"
    )
