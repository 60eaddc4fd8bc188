"""The manifest as a table, and its description for store.json."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from medssl.store.manifest_columns import COLUMNS, MASK, SCHEMA_VERSION, Row, fingerprint
from medssl.store.splits import SPLITS

BATCH = 4096  # rows converted to a table at once


class FoundScan(NamedTuple):
    """One scan as read: the pseudonym of its (first) file, its part of that file, the names of its files, its row."""

    file: str
    part: str
    names: list[str]
    row: Row


@dataclass
class Manifest:
    """The table of a store, its description for store.json, further rejects, and lines for the terminal."""

    table: pa.Table
    info: dict[str, Any]
    rejects: list[Row] = field(default_factory=list)
    report: list[str] = field(default_factory=list)


def note_types(numeric: dict[str, bool], row: Row) -> None:
    """Record which facts have only numbers. Labels are words, even those that look like numbers."""
    for name, value in row.items():
        if name.startswith(("fact:", "label:")):
            number = name.startswith("fact:") and isinstance(value, int | float | None)
            numeric[name] = numeric.get(name, True) and number


def manifest_table(found: Iterator[FoundScan], updates: Mapping[int, Row], numeric: Mapping[str, bool]) -> pa.Table:
    """Return the rows of all scans in `updates`, with the updates, sorted by pseudonym.

    Args:
        found: everything that was read.
        updates: index of a scan -> new values for its row.
        numeric: name of each fact and label -> whether its values are numbers; see `note_types`.
    """
    extra = {name: pa.float64() if number else pa.string() for name, number in sorted(numeric.items())}
    schema = pa.schema([*COLUMNS.items(), *extra.items()])
    words = {part.name for part in schema if part.type == pa.string()}

    def batches() -> Iterator[pa.Table]:
        batch: list[Row] = []
        for i, scan in enumerate(found):
            if i in updates:
                row = scan.row | updates[i]
                batch.append(row | {k: str(v) for k, v in row.items() if k in words and v is not None})
            if len(batch) == BATCH:
                yield pa.Table.from_pylist(batch, schema)
                batch = []
        yield pa.Table.from_pylist(batch, schema)

    order = [(name, "ascending") for name in ("patient", "study", "series", "scan")]
    return pa.concat_tables(batches()).sort_by(order).combine_chunks()


def describe(table: pa.Table, grouping: dict[str, Any], near: int) -> dict[str, Any]:
    """Return the content of store.json: counts, duplicates (`near`: pairs of nearly identical images), fingerprint."""
    column = {c: table[c].to_pylist() for c in ("patient", "split", "hash", "held")}
    by_split = Counter(column["split"])
    patients = Counter(split for _, split in set(zip(column["patient"], column["split"], strict=True)))
    rows = zip(column["hash"], column["split"], column["held"], strict=True)
    copies = Counter((pixels, split) for pixels, split, held in rows if held != MASK)
    return {
        "schema": SCHEMA_VERSION,
        "counts": {
            "scans": table.num_rows,
            "patients": len(set(column["patient"])),
            "scans_by_split": {s: by_split[s] for s in SPLITS},
            "patients_by_split": {s: patients[s] for s in SPLITS},
            "held": dict(sorted(Counter(h for h in column["held"] if h).items())),
        },
        # within: scans whose pixels another scan of the same split has; between: distinct images in several splits;
        # near: pairs of nearly identical images
        "duplicates": {
            "within": sum(n - 1 for n in copies.values()),
            "between": sum(n > 1 for n in Counter(pixels for pixels, _ in copies).values()),
            "near": near,
        },
        "grouping": grouping,
        "fingerprint": fingerprint(table),
    }
