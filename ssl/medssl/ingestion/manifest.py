"""From everything that was read to one table: copies, labels, groups, splits. A pure function of what was read.

The order in which files were read, and by how many children, leaves no trace: rows are sorted by pseudonyms.
"""

import posixpath
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from medssl.errors import UserError
from medssl.ingestion.json_sidecars import Sidecars
from medssl.ingestion.label_table import Labels
from medssl.ingestion.mask_pairing import LABEL_MAP, Pairs, are_labels, label_maps, pair_masks
from medssl.ingestion.path_match import match
from medssl.leakage import rendition
from medssl.leakage.groups import group_scans, near_duplicate_pairs, patient_identities
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.reject_codes import CODES
from medssl.store.intensity import to_unit_range
from medssl.store.schema import COLUMNS, MASK, SCHEMA_VERSION, Row, fingerprint
from medssl.store.splits import SPLITS, assign_splits, count_groups_across_splits
from medssl.store.store import read_array

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


class _At(NamedTuple):
    """The source of a scan and the address of its bytes."""

    source: str
    part: str
    file: str
    offset: int
    length: int
    shape: list[int]
    dtype: str
    low: float
    high: float


@dataclass
class Settled:
    """The manifest, what store.json says of it, what was left out on the way, and lines for the terminal."""

    table: pa.Table
    info: dict[str, Any]
    rejects: list[Row] = field(default_factory=list)
    report: list[str] = field(default_factory=list)


def build_manifest(
    rows: Callable[[], Iterator[Found]],
    alias: Pseudonyms,
    folder: Path,
    released: Mapping[str, Mapping[str, str]],
    table: Labels | None = None,
    sidecars: Sidecars | None = None,
    site: str = "",
    masks: str = "",
) -> Settled:
    """The table of a store.

    Args:
        rows: everything that was read, in an order that depends on nothing but the files; asked for twice.
        alias: the project's pseudonyms.
        folder: where the bytes of the scans are, for looking at images that seem to be the same.
        released: scan -> what a human has let in: the reason it was held for, and the hash of its pixels.
        table: joined to the scans.
        sidecars: JSON files, joined before it; they also tell which images are copies of DICOM images.
        site: of scans that name none.
        masks: the folder of the label maps, relative to the source; "" for all scans that look like one.

    Raises:
        UserError: when no scan is left, when a patient is in two given splits, or when nothing is in `masks`.
    """
    slim, at, files, extra = _collect(rows)
    rejects = _copies(slim, at, alias)
    keep = [i for i, s in enumerate(slim) if s]
    if not keep:
        raise UserError("no scan is left")
    pairs = _masks(slim, at, files, keep, rows, folder, masks)
    mine = {mask: slim[mask] for mask in pairs.of.values()}
    keep = [i for i in keep if i not in mine]
    if table is not None and mine:  # a mask is not one more that a line of the table may mean
        table = replace(table, names=sorted(set(table.names) - {name for mask in mine for name in files[mask]}))
    paths = _paths([files[i] for i in keep], table)
    joined = [slim[i] for i in keep]
    slim.clear()  # what the tables replace need not be held twice
    report: list[str] = []
    for beside in (sidecars, table):
        if beside is not None:
            joined, lines = beside.join(joined, paths)
            report += lines
    if sidecars is not None:
        copies = _renditions(joined, [files[i] for i in keep], sidecars, folder, [at[i] for i in keep])
        rejects += [_reject(at[keep[i]], "RENDITION") for i in sorted(copies)]
        keep = [k for i, k in enumerate(keep) if i not in copies]
        joined = [row for i, row in enumerate(joined) if i not in copies]
    for row in joined:
        row["site"] = row["site"] or site
        if released.get(row["scan"]) == {"held": row["held"], "hash": row["hash"]}:
            row["held"] = ""

    near = near_duplicate_pairs(joined, lambda i: _middle(folder, at[keep[i]]))
    place = {i: n for n, i in enumerate(keep)}
    tied = [(place[a], place[b]) for a, b in pairs.one_case() if a in place and b in place]
    group, grouping = group_scans(joined, [*near, *tied])
    split = assign_splits(patient_identities(joined), alias, [r["split"] for r in joined], group)
    grouping |= {"torn": count_groups_across_splits(group, split)}
    for row, g, s in zip(joined, group, split, strict=True):
        row |= {"group": g, "split": s, "mask": ""}
        _note(extra, row)
    updates = dict(zip(keep, joined, strict=True))
    pairs.give(updates, mine)
    rejects += [_reject(at[i], *why) for i, why in sorted(pairs.left.items()) if i not in updates or updates[i]["held"]]
    kinds = ((name, pa.float64() if numeric else pa.string()) for name, numeric in sorted(extra.items()))
    table = _table(rows, updates, pa.schema([*COLUMNS.items(), *kinds]))
    info = _info(table, grouping, len(near)) | {"masks": len(mine)}
    return Settled(table, info, rejects, report)


def _collect(rows: Callable[[], Iterator[Found]]) -> tuple[list[Row], list[_At], list[list[str]], dict[str, bool]]:
    """(slim rows, where each is, the names of its files or its part of one, all facts and labels)."""
    slim, at, files = [], [], []
    extra: dict[str, bool] = {}
    for file, part, names, row in rows():
        kept = {name: row[name] for name in SLIM} | {"fact:sex": row.get("fact:sex")}
        kept |= {k: v for k, v in row.items() if k.startswith("label:")}
        slim.append(kept | {name: sys.intern(kept[name]) for name in SHARED})
        where = (row[n] for n in ("file", "offset", "length", "shape", "dtype", "low", "high"))
        at.append(_At(file, part, *where))
        files.append([names[0] + part] if len(names) == 1 else names)
        _note(extra, row)
    return slim, at, files, extra


def _paths(files: list[list[str]], table: Labels | None) -> list[str]:
    """What each scan is called in a table: of a volume the folder that holds its slices, or else its first slice.

    Folders as labels and patterns look at files, so a volume is there its first slice too.
    """
    firsts = [names[0] for names in files]
    if table is None or table.files is None:
        return firsts if table is None or table.folders or table.pattern else [_folder(names) for names in files]
    folders = [_folder(names) for names in files]
    known = match([f for f, names in zip(folders, files, strict=True) if len(names) > 1], table.files)
    return [
        folder if len(names) == 1 or folder in known else first
        for folder, first, names in zip(folders, firsts, files, strict=True)
    ]


def _folder(names: list[str]) -> str:
    return names[0] if len(names) == 1 else posixpath.commonpath([posixpath.dirname(n) for n in names])


def _note(extra: dict[str, bool], row: Row) -> None:
    """Names of facts and labels, and whether all values of it are numbers; labels are words whatever they look like."""
    for name, value in row.items():
        if name.startswith(("fact:", "label:")):
            number = name.startswith("fact:") and isinstance(value, int | float | None)
            extra[name] = extra.get(name, True) and number


def _copies(slim: list[Row], at: list[_At], alias: Pseudonyms) -> list[Row]:
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
            row["scan"] = alias.of("scan", f"{row['scan']}|{row['hash']}")
        if row["scan"] in seen:
            rejects.append(_reject(at[i], "DUPLICATE"))
            slim[i] = {}
        else:
            seen.add(row["scan"])
    return rejects


def _reject(at: _At, code: str, reason: str = "") -> Row:
    return {"file": at.source, "part": at.part, "code": code, "stage": "store", "reason": reason or CODES[code][0]}


def _masks(
    slim: list[Row],
    at: list[_At],
    files: list[list[str]],
    keep: list[int],
    rows: Callable[[], Iterator[Found]],
    folder: Path,
    masks: str,
) -> Pairs:
    """Which of the scans in `keep` are masks of which."""
    if not masks and not any(slim[i]["held"] == LABEL_MAP for i in keep):
        return Pairs()
    names = [_folder(files[i]) for i in keep]
    labels = label_maps(names, [slim[i] for i in keep], masks)

    def look(some: set[int]) -> dict[int, Row]:
        wanted = {keep[n]: n for n in some}
        return {wanted[i]: f.row for i, f in enumerate(rows()) if i in wanted} if wanted else {}

    def fits(n: int) -> bool:
        sure = not masks and at[keep[n]].dtype == "uint8"  # the reader has counted its values
        return sure or are_labels(read_array(folder, at[keep[n]]._asdict()))

    if masks:
        names = [name.removeprefix(f"{masks}/") for name in names]
    found = pair_masks(names, labels, look, fits)
    of = {keep[image]: keep[mask] for image, mask in found.of.items()}
    alone = masks or of  # in a source without any mask, what looks like a label map is a held scan and nothing more
    left = {keep[mask]: why for mask, why in found.left.items() if alone or why[0] != "MASK_ALONE"}
    return Pairs(of, left)


def _renditions(
    rows: list[Row], names: list[list[str]], sidecars: Sidecars, folder: Path, addresses: list[_At]
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
    kept = lru_cache(maxsize=2)(lambda i: read_array(folder, addresses[i]._asdict()))
    for image, dicom in sorted(sidecars.renditions(kinds), key=lambda pair: place[pair[1]]):
        (i, _), (j, k) = place[image], place[dicom]
        if any(
            rendition.is_rendition(plane, kept(i).mean(0))
            for plane in rendition.slice_orientations(kept(j), k, len(names[j]))
        ):
            found.add(i)
    return found


def _middle(folder: Path, at: _At) -> np.ndarray:
    """(H, W) in the unit range: an image, or the middle slice of a volume."""
    array = read_array(folder, at._asdict())
    return to_unit_range(array[0] if array.ndim == 3 else array[0, array.shape[1] // 2], at.low, at.high)


def _table(rows: Callable[[], Iterator[Found]], updates: dict[int, Row], schema: pa.Schema) -> pa.Table:
    tables: list[pa.Table] = []
    order: list[tuple[str, ...]] = []
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}

    def convert() -> None:
        arrays = []
        for part in schema:
            values = columns[part.name]
            if part.type == pa.string():
                values = [v if v is None or isinstance(v, str) else str(v) for v in values]
            arrays.append(pa.array(values, part.type))
            columns[part.name] = []
        tables.append(pa.Table.from_arrays(arrays, schema=schema))

    for i, found in enumerate(rows()):
        if (update := updates.get(i)) is None:
            continue
        row = found.row | update
        for name, values in columns.items():
            values.append(row.get(name))
        order.append(tuple(row[n] for n in ("patient", "study", "series", "scan")))
        if len(order) % BATCH == 0:
            convert()
    convert()
    return pa.concat_tables(tables).take(sorted(range(len(order)), key=order.__getitem__)).combine_chunks()


def _info(table: pa.Table, grouping: dict[str, Any], near: int) -> dict[str, Any]:
    column = {c: table[c].to_pylist() for c in ("patient", "split", "hash", "held")}
    images = [(h, s) for h, s, why in zip(*(column[c] for c in ("hash", "split", "held")), strict=True) if why != MASK]
    by_split = Counter(column["split"])
    people = Counter(split for _, split in set(zip(column["patient"], column["split"], strict=True)))
    copies = Counter(images)
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
