"""From everything that was read to one table: copies, labels, groups, splits. A pure function of what was read.

The order in which files were read, and by how many children, leaves no trace: rows are sorted by pseudonyms.
"""

import json
import posixpath
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from medssl.errors import UserError
from medssl.scans.alias import Alias
from medssl.scans.codes import CODES
from medssl.store import rendition
from medssl.store.groups import confirmed, groups, identities
from medssl.store.intensity import unit
from medssl.store.labels import Labels
from medssl.store.row import COLUMNS, Row
from medssl.store.sidecar import Sidecars
from medssl.store.splits import SPLITS, assign, torn
from medssl.store.store import SCHEMA_VERSION, fingerprint, read_array

BATCH = 4096  # rows made into a table at once
# What a table of labels, a group or a split may need to know or to change; the rest of a row is not held in memory.
SLIM = (
    *("scan", "patient", "patient_known", "study", "series", "born", "site", "split", "held", "modality"),
    *("hash", "phash", "shape"),
)
SHARED = ("patient", "study", "series", "site", "split", "held", "modality")  # values many rows have in common


class Found(NamedTuple):
    """One scan: the pseudonym of its (first) file, its part of it, the names of its files, its row."""

    file: str
    part: str
    names: list[str]
    row: Row


@dataclass
class Settled:
    """The manifest, what store.json says of it, what was left out on the way, and lines for the terminal."""

    table: pa.Table
    info: dict[str, Any]
    rejects: list[Row] = field(default_factory=list)
    report: list[str] = field(default_factory=list)


def settle(
    rows: Callable[[], Iterator[Found]],
    alias: Alias,
    folder: Path,
    table: Labels | None = None,
    sidecars: Sidecars | None = None,
    site: str = "",
) -> Settled:
    """The table of a store.

    Args:
        rows: everything that was read, in an order that depends on nothing but the files; asked for twice.
        alias: the project's pseudonyms.
        folder: where the bytes of the scans are, for looking at images that seem to be the same.
        table: joined to the scans.
        sidecars: JSON files, joined before it; they also tell which images are copies of DICOM images.
        site: of scans that name none.

    Raises:
        UserError: when no scan is left, or a patient is in two given splits.
    """
    slim, at, names, files, extra = _collect(rows, sidecars is not None)
    rejects = _copies(slim, at, alias)
    keep = [i for i, s in enumerate(slim) if s]
    if not keep:
        raise UserError("no scan is left")
    paths = [names[i] for i in keep]
    joined = [slim[i] for i in keep]
    report: list[str] = []
    for beside in (sidecars, table):
        if beside is not None:
            joined, lines = beside.join(joined, paths)
            report += lines
    if sidecars is not None:
        copies = _renditions(joined, [files[i] for i in keep], sidecars, folder, [at[i][2] for i in keep])
        rejects += [_reject(at[keep[i]], "RENDITION") for i in sorted(copies)]
        keep = [k for i, k in enumerate(keep) if i not in copies]
        joined = [row for i, row in enumerate(joined) if i not in copies]
    addresses = [at[k][2] for k in keep]
    joined = [row | {"site": row["site"] or site} for row in joined]
    released = _released(folder)
    joined = [row | {"held": ""} if row["scan"] in released else row for row in joined]

    pairs = confirmed(joined, lambda i: _middle(folder, addresses[i]))
    group, grouping = groups(joined, pairs)
    split = assign(identities(joined), alias, [r["split"] for r in joined], group)
    grouping |= {"torn": torn(group, split)}
    updates = {k: row | {"group": g, "split": s} for k, row, g, s in zip(keep, joined, group, split, strict=True)}
    extra |= {name for row in joined for name in row if name.startswith(("fact:", "label:"))}
    table = _table(rows, updates, sorted(extra))
    return Settled(table, _info(table, grouping, len(pairs)), rejects, report)


def _collect(
    rows: Callable[[], Iterator[Found]], with_files: bool
) -> tuple[list[Row], list[tuple[str, str, Row]], list[str], list[list[str]], set[str]]:
    """(slim rows, (file, part, address) of each, the path of each for joining, its files, names of all facts and labels)."""
    slim, at, paths, files = [], [], [], []
    extra: set[str] = set()
    for file, part, names, row in rows():
        kept = {name: row[name] for name in SLIM} | {"fact:sex": row.get("fact:sex")}
        kept |= {k: v for k, v in row.items() if k.startswith("label:")}
        slim.append(kept | {name: sys.intern(kept[name]) for name in SHARED})
        at.append((file, part, {n: row[n] for n in ("file", "offset", "length", "shape", "dtype", "low", "high")}))
        common = names[0] + part if len(names) == 1 else posixpath.commonpath([posixpath.dirname(n) for n in names])
        paths.append(common)
        files.append((names if len(names) > 1 else [common]) if with_files else [])
        extra.update(name for name in row if name.startswith(("fact:", "label:")))
    return slim, at, paths, files, extra


def _copies(slim: list[Row], at: list[tuple[str, str, Row]], alias: Alias) -> list[Row]:
    """Empties rows that are copies of another; scans that share a pseudonym but not their pixels get new ones.

    An identifier that returns with other pixels is a broken anonymiser's work: the pixels then are part of the identity.
    """
    pixels: dict[str, set[str]] = {}
    for row in slim:
        pixels.setdefault(row["scan"], set()).add(row["hash"])
    seen: set[str] = set()
    rejects = []
    for i, row in enumerate(slim):
        if len(pixels[row["scan"]]) > 1:
            row["scan"] = alias.alias("scan", f"{row['scan']}|{row['hash']}")
        if row["scan"] in seen:
            rejects.append(_reject(at[i], "DUPLICATE"))
            slim[i] = {}
        else:
            seen.add(row["scan"])
    return rejects


def _reject(at: tuple[str, str, Row], code: str) -> Row:
    return {"file": at[0], "part": at[1], "code": code, "stage": "store", "reason": CODES[code][0]}


def _renditions(
    rows: list[Row], names: list[list[str]], sidecars: Sidecars, folder: Path, addresses: list[Row]
) -> set[int]:
    """Images that are copies of a DICOM image, by name and by pixels: an equal name alone proves nothing.

    names: of each row's files; those of a volume are its slices, from one end to the other.
    """
    kinds, place = {}, {}
    for i, (row, files) in enumerate(zip(rows, names, strict=True)):
        for k, name in enumerate(files):
            kinds[name] = "dicom" if row["modality"] else "image" if len(row["shape"]) == 3 else "other"
            place[name] = i, k
    found = set()
    kept = lru_cache(maxsize=2)(lambda i: read_array(folder, addresses[i]))
    for image, dicom in sorted(sidecars.renditions(kinds), key=lambda pair: place[pair[1]]):
        (i, _), (j, k) = place[image], place[dicom]
        if any(rendition.same(p, kept(i).mean(0)) for p in rendition.planes(kept(j).mean(0), k, len(names[j]))):
            found.add(i)
    return found


def _released(folder: Path) -> set[str]:
    """Scans that somebody has looked at and let in."""
    path = folder / "released.json"
    return set(json.loads(path.read_text())) if path.exists() else set()


def _middle(folder: Path, address: Row) -> np.ndarray:
    """(H, W) in the unit range: an image, or the middle slice of a volume."""
    array = read_array(folder, address)
    return unit(array[0] if array.ndim == 3 else array[0, array.shape[1] // 2], address["low"], address["high"])


def _table(rows: Callable[[], Iterator[Found]], updates: dict[int, Row], extra: list[str]) -> pa.Table:
    numeric = dict.fromkeys((n for n in extra if n.startswith("fact:")), True)
    batches: list[dict[str, list[Any]]] = []
    order: list[tuple[str, ...]] = []
    for i, found in enumerate(rows()):
        if (update := updates.get(i)) is None:
            continue
        if len(order) % BATCH == 0:
            batches.append({name: [] for name in (*COLUMNS, *extra)})
        row = found.row | update
        for name, values in batches[-1].items():
            values.append(row.get(name))
        for name in numeric:
            numeric[name] &= isinstance(row.get(name), int | float | None)
        order.append(tuple(row[n] for n in ("patient", "study", "series", "scan")))
    schema = pa.schema([*COLUMNS.items(), *((n, pa.float64() if numeric.get(n) else pa.string()) for n in extra)])
    tables = []
    for columns in batches:
        arrays = []
        for part in schema:
            values = columns[part.name]
            if part.type == pa.string():
                values = [v if v is None or isinstance(v, str) else str(v) for v in values]
            arrays.append(pa.array(values, part.type))
        tables.append(pa.Table.from_arrays(arrays, schema=schema))
    return pa.concat_tables(tables).take(sorted(range(len(order)), key=order.__getitem__)).combine_chunks()


def _info(table: pa.Table, grouping: dict[str, Any], near: int) -> dict[str, Any]:
    column = {c: table[c].to_pylist() for c in ("patient", "split", "hash", "held")}
    by_split = Counter(column["split"])
    people = Counter(split for _, split in set(zip(column["patient"], column["split"], strict=True)))
    copies = Counter(zip(column["hash"], column["split"], strict=True))
    return {
        "schema": SCHEMA_VERSION,
        "counts": {
            "scans": table.num_rows,
            "patients": len(set(column["patient"])),
            "scans_by_split": {s: by_split[s] for s in SPLITS},
            "patients_by_split": {s: people[s] for s in SPLITS},
            "held": dict(sorted(Counter(h for h in column["held"] if h).items())),
        },
        # scans beyond the first with the same pixels in a split, distinct images that are in several splits, and pairs of
        # images that are nearly the same
        "duplicates": {
            "within": sum(n - 1 for n in copies.values()),
            "between": sum(n > 1 for n in Counter(h for h, _ in copies).values()),
            "near": near,
        },
        "grouping": grouping,
        "fingerprint": fingerprint(table),
    }
