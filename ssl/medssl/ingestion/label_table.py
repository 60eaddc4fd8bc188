"""Read a table of labels and join it to the scans. Only the user's labels, patients, splits, sites and metadata are copied."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medssl.errors import UserError
from medssl.ingestion.label_columns import MissingWords, is_nobody
from medssl.ingestion.label_sources import updated
from medssl.ingestion.path_match import PART, compile_pattern, match, path_pattern
from medssl.ingestion.table_file import TableFile, patient_hint, read_table
from medssl.ingestion.table_rows import find_columns, read_rows, tidy
from medssl.readers.pseudonyms import Pseudonyms


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
        hint: what to do if no row matches a scan, or "".
        notes: lines for the report about repeated rows, and about columns and values that were not copied.
    """

    pseudonyms: Pseudonyms
    rows: list[dict[str, Any]] = field(default_factory=list)
    files: list[str] | None = None
    folders: bool = False
    pattern: re.Pattern[str] | None = None
    names: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    hint: str = ""

    @property
    def labels_from_paths(self) -> bool:
        """Whether labels come from the paths of scans."""
        return self.folders

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
            raise UserError(_no_match(self.files, paths, self.hint))
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
    missing: Sequence[str] | bool = (),
) -> Labels:
    r"""Read the table of labels.

    Args:
        source: a CSV file; "folders" if a scan's folder is its label; None for nothing.
        pseudonyms: those of the project.
        targets: columns that are labels; by default those called label, target, class, diagnosis, finding or lesion.
        patient: a regular expression with one group that finds the patient in a relative path, like "person(\d+)".
        paths: all files of the source. The pattern must find a patient in at least one of them.
        missing: words that stand for a missing value, besides those of `label_values.MISSING`; False for none at all.

    Raises:
        UserError: the table is missing, empty, undecodable, contradictory or has no usable column; a target is unknown; the
            pattern is invalid or finds nothing.
    """
    names, words = list(paths), MissingWords.of(missing)
    pattern = _pattern(patient, names) if patient else None
    if source == "folders" or source is None:
        if targets:
            raise UserError(f"targets={list(targets)} needs a table: labels=FILE.csv")
        return Labels(pseudonyms, folders=source == "folders", pattern=pattern)
    labels = _labels(read_table(Path(source)), pseudonyms, targets, pattern, names, words)
    labels.names = names if labels.files is not None else []
    return labels


def _pattern(patient: str, paths: Iterable[str]) -> re.Pattern[str]:
    pattern = compile_pattern("patient", patient)
    if pattern.groups != 1:
        raise UserError(f"patient={patient} needs exactly one group, like person(\\d+); it has {pattern.groups}")
    if not any(_patient(pattern, path) for path in paths):
        raise UserError(f"patient={patient} finds a patient in no path of the source; paths are relative to the source")
    return pattern


def _patient(pattern: re.Pattern[str], path: str) -> str:
    found = pattern.search(unicodedata.normalize("NFC", path))
    patient = (found[1] or "") if found else ""
    return "" if is_nobody(patient) else patient


def _labels(
    table: TableFile,
    pseudonyms: Pseudonyms,
    targets: Sequence[str],
    pattern: re.Pattern[str] | None,
    names: list[str],
    missing: MissingWords,
) -> Labels:
    columns, found = find_columns(table, targets, names)
    if columns.file is not None and pattern:
        columns = columns._replace(patient=None)  # the user's pattern takes precedence
    columns, notes = tidy(table, columns, bool(targets), missing)
    hint = found.hint
    if columns.file is None and columns.patient is not None and not hint and names:
        hint = patient_hint(table.column(columns.patient), names)
    rows, repeated = read_rows(table, columns, pseudonyms, hint)
    notes = [*table.notes, *([found.note] if found.note else []), *notes]
    if repeated:
        notes.insert(0, f"{repeated} rows repeat another row")
    files = None if columns.file is None else list(rows)
    return Labels(pseudonyms, list(rows.values()), files, pattern=pattern, notes=notes, hint=hint)


def _no_match(files: Sequence[str] | None, paths: Sequence[str], hint: str) -> str:
    """Return what to do if a table and the scans have nothing in common, without quoting either: names may identify."""
    if files is None and hint:
        return f"no patient in the table of labels is a patient of the scans; {hint}"
    if files is None:
        return (
            "no patient in the table of labels is a patient of the scans; write their ids as in the scans' Patient ID (or "
            "issuer|id where the scans name an issuer), or find them in the paths with patient=PATTERN"
        )
    assert files is not None
    return (
        f"no row of the table of labels matches a scan: the table names files like {path_pattern(files[0])}, the source has "
        f"paths like {path_pattern(paths[0])}; {hint or 'write paths below the source, or file names that occur once'}"
    )
