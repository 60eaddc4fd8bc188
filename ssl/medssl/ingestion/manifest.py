"""Build the manifest from everything that was read: duplicates, masks, labels, groups, splits.

A pure function of the files: rows are sorted by pseudonym, so neither the reading order nor the number of workers matters.
"""

import posixpath
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from medssl.errors import UserError
from medssl.ingestion.json_sidecars import Sidecars
from medssl.ingestion.label_columns import MissingWords, tidy_labels, unified
from medssl.ingestion.label_sources import LabelSources
from medssl.ingestion.label_table import Labels
from medssl.ingestion.manifest_table import FoundScan, Manifest, describe, manifest_table, note_types
from medssl.ingestion.mask_pairing import LABEL_MAP, Pairs, label_fault, label_maps, pair_masks
from medssl.ingestion.path_match import match
from medssl.ingestion.patients import uncertain_patients
from medssl.leakage import rendition
from medssl.leakage.groups import group_scans, near_duplicate_pairs, patient_identities
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.reject_codes import CODES
from medssl.store.intensity_windows import to_unit_range
from medssl.store.manifest_columns import Row
from medssl.store.scan_bytes import read_array
from medssl.store.splits import assign_splits, count_groups_across_splits

# The columns that label tables, groups and splits read or change. The rest of a row is not kept in memory.
KEPT = (
    *("scan", "patient", "patient_known", "study", "series", "born", "similar_id", "site", "split"),
    *("held", "modality", "hash", "phash", "shape"),
)
SHARED = ("patient", "study", "series", "site", "split", "held", "modality")  # many rows have the same value


@dataclass(slots=True)
class _Entry:
    """One scan on its way into the manifest.

    Attributes:
        index: its position among the found scans.
        source, part: the pseudonym of its file, and its part of that file.
        names: names of its files, in the order of the slices.
        row: the columns in KEPT, the patient's sex and all labels.
        file, offset, length, shape, dtype: address and format of its bytes.
        low, high: its intensity window.
    """

    index: int
    source: str
    part: str
    names: list[str]
    row: Row
    file: str
    offset: int
    length: int
    shape: list[int]
    dtype: str
    low: float
    high: float

    @property
    def folder(self) -> str:
        """The folder that holds all files of the scan, or its only file."""
        return (
            self.names[0] if len(self.names) == 1 else posixpath.commonpath([posixpath.dirname(n) for n in self.names])
        )

    def read(self, store: Path) -> np.ndarray:
        return read_array(store, {n: getattr(self, n) for n in ("file", "offset", "length", "shape", "dtype")})

    def middle(self, store: Path) -> np.ndarray:
        """Return the image, or the middle slice of the volume, as (H, W) in the unit range."""
        array = self.read(store)
        return to_unit_range(array[0] if array.ndim == 3 else array[0, array.shape[1] // 2], self.low, self.high)

    def reject(self, code: str, reason: str = "") -> Row:
        reason = reason or CODES[code][0]
        return {"file": self.source, "part": self.part, "code": code, "stage": "store", "reason": reason}


def build_manifest(
    found: Callable[[], Iterator[FoundScan]],
    pseudonyms: Pseudonyms,
    store: Path,
    released: Mapping[str, Mapping[str, str]],
    table: Labels | None = None,
    sidecars: Sidecars | None = None,
    site: str = "",
    masks: str = "",
    missing: Sequence[str] | bool = (),
    prefer: str = "",
) -> Manifest:
    """Build the table of a store.

    Args:
        found: yields everything that was read, in an order that depends on the files only. Called several times.
        pseudonyms: those of the project.
        store: the folder with the scans' bytes, to compare images that may be the same.
        released: scan -> the reason for its quarantine and the hash of its pixels at the time of its release.
        table: labels to join to the scans.
        sidecars: JSON files to join first. They also tell which images are copies of DICOM images.
        site: the site of scans that name none.
        masks: the folder of the label maps, relative to the source; "" for all scans that look like a label map.
        missing: words that stand for a missing label; see `label_columns.MissingWords.of`.
        prefer: the source to believe where two contradict each other on a label; see `label_sources.LabelSources`.

    Raises:
        UserError: no scan is left, a patient is in two given splits, `masks` is empty, or labels contradict each other.
    """
    entries, numeric = _collect(found)
    entries, rejects = _without_duplicates(entries, pseudonyms)
    if not entries:
        raise UserError("no scan is left")
    by_index = {e.index: e for e in entries}
    pairs = _pair_masks(entries, found, store, masks)
    paired = {mask: by_index[mask] for mask in pairs.mask_of.values()}
    images = [e for e in entries if e.index not in paired]
    report = _join(images, paired, sidecars, table, MissingWords.of(missing), prefer)
    if sidecars is not None:
        copies = _renditions(images, sidecars, store)
        rejects += [e.reject("RENDITION") for e in images if e.index in copies]
        images = [e for e in images if e.index not in copies]
    for e in images:
        e.row["site"] = e.row["site"] or site
        if released.get(e.row["scan"]) == {"held": e.row["held"], "hash": e.row["hash"]}:
            e.row["held"] = ""

    rows = [e.row for e in images]
    near = near_duplicate_pairs(rows, lambda i: images[i].middle(store))
    position = {e.index: n for n, e in enumerate(images)}
    same_case = [(position[a], position[b]) for a, b in pairs.same_case() if a in position and b in position]
    group, grouping = group_scans(rows, [*near, *same_case])
    split = assign_splits(patient_identities(rows), pseudonyms, [r["split"] for r in rows], group)
    grouping |= {"torn": count_groups_across_splits(group, split)}
    for row, g, s in zip(rows, group, split, strict=True):
        row |= {"group": g, "split": s, "mask": ""}
        note_types(numeric, row)
    about = uncertain_patients(rows, [e.names[0] for e in images])
    updates = {e.index: e.row for e in images}
    pairs.assign(updates, {mask: e.row for mask, e in paired.items()})
    rejects += [
        by_index[i].reject(*why) for i, why in sorted(pairs.unpaired.items()) if i not in updates or updates[i]["held"]
    ]
    manifest = manifest_table(found(), updates, numeric)
    return Manifest(
        manifest,
        describe(manifest, grouping, len(near)) | {"masks": len(paired), "uncertain_patients": about},
        rejects,
        report,
    )


def _collect(found: Callable[[], Iterator[FoundScan]]) -> tuple[list[_Entry], dict[str, bool]]:
    """Return all scans, and for each fact and label whether its values are numbers."""
    entries = []
    numeric: dict[str, bool] = {}
    for index, (source, part, names, row) in enumerate(found()):
        kept = {name: row[name] for name in KEPT} | {"fact:sex": row.get("fact:sex")}
        kept |= {k: v for k, v in row.items() if k.startswith("label:")}
        kept |= {name: sys.intern(kept[name]) for name in SHARED}
        names = [names[0] + part] if len(names) == 1 else names
        at = (row[n] for n in ("file", "offset", "length", "shape", "dtype", "low", "high"))
        entries.append(_Entry(index, source, part, names, kept, *at))
        note_types(numeric, row)
    return entries, numeric


def _without_duplicates(entries: list[_Entry], pseudonyms: Pseudonyms) -> tuple[list[_Entry], list[Row]]:
    """Drop copies, and give new pseudonyms to scans that share one but differ in their pixels.

    A broken anonymiser reuses identifiers; the pixels then become part of the identity.
    """
    pixels: dict[str, set[str]] = {}
    for e in entries:
        pixels.setdefault(e.row["scan"], set()).add(e.row["hash"])
    kept: dict[str, _Entry] = {}
    rejects = []
    for e in entries:
        if len(pixels[e.row["scan"]]) > 1:
            e.row["scan"] = pseudonyms.of("scan", f"{e.row['scan']}|{e.row['hash']}")
        if kept.setdefault(e.row["scan"], e) is not e:
            rejects.append(e.reject("DUPLICATE"))
    return list(kept.values()), rejects


def _pair_masks(entries: list[_Entry], found: Callable[[], Iterator[FoundScan]], store: Path, masks: str) -> Pairs:
    """Pair label maps with images, by index. `masks` is the folder of the label maps, "" to recognise them."""
    if not masks and not any(e.row["held"] == LABEL_MAP for e in entries):
        return Pairs()
    names = [e.folder for e in entries]
    labels = label_maps(names, [e.row for e in entries], masks)

    def geometry(some: set[int]) -> dict[int, Row]:
        wanted = {entries[n].index: n for n in some}
        return {wanted[i]: f.row for i, f in enumerate(found()) if i in wanted} if wanted else {}

    def fault(n: int) -> str:
        checked = (
            not masks and entries[n].dtype == "uint8" and entries[n].shape[0] == 1
        )  # the reader has counted the values
        return "" if checked else label_fault(entries[n].read(store))

    pairs = pair_masks([name.removeprefix(f"{masks}/") for name in names] if masks else names, labels, geometry, fault)
    mask_of = {entries[image].index: entries[mask].index for image, mask in pairs.mask_of.items()}
    # in a source without any mask, a scan that looks like a label map is only quarantined
    unpaired = {
        entries[mask].index: why for mask, why in pairs.unpaired.items() if masks or mask_of or why[0] != "MASK_ALONE"
    }
    return Pairs(mask_of, unpaired)


def _join(
    images: list[_Entry],
    paired: Mapping[int, _Entry],
    sidecars: Sidecars | None,
    table: Labels | None,
    missing: MissingWords,
    prefer: str,
) -> list[str]:
    """Update the rows with the JSON files and the table. Returns lines for the terminal."""
    if table is not None and paired:  # a row of the table cannot refer to a mask
        table = replace(
            table, names=sorted(set(table.names) - {name for mask in paired.values() for name in mask.names})
        )
    paths = _paths(images, table)
    rows, report = tidy_labels([e.row for e in images], missing)
    labels = LabelSources(rows, prefer)
    for source in (sidecars, table):
        if source is not None:
            rows, lines = source.join(labels.rows, paths)
            if source.labels_from_paths:
                rows, more = tidy_labels(rows, missing)
                lines = [*lines, *more]
            by_path = isinstance(source, Labels) and source.pattern is not None
            name = "json" if isinstance(source, Sidecars) else "folders" if source.folders else "table"
            labels.join(name, rows, certain={"patient"} if by_path else ())
            report += lines
    report += labels.check()
    rows, lines = unified(labels.rows)
    for e, row in zip(images, rows, strict=True):
        e.row = row
    return report + lines


def _paths(images: Sequence[_Entry], table: Labels | None) -> list[str]:
    """Return each scan's name in a table: the folder of a volume's slices, or else its first slice.

    Folders as labels and patterns refer to files, so they use a volume's first slice.
    """
    if table is None or table.files is None:
        first = table is not None and (table.folders or table.pattern)
        return [e.names[0] if first or table is None else e.folder for e in images]
    known = match([e.folder for e in images if len(e.names) > 1], table.files)
    return [e.folder if len(e.names) == 1 or e.folder in known else e.names[0] for e in images]


def _renditions(images: Sequence[_Entry], sidecars: Sidecars, store: Path) -> set[int]:
    """Return the indices of images that copy a DICOM image, by name and by pixels: an equal name alone proves nothing."""
    kinds, place = {}, {}
    for i, e in enumerate(images):
        for k, name in enumerate(e.names):
            kinds[name] = "dicom" if e.row["modality"] else "image" if len(e.row["shape"]) == 3 else "other"
            place[name] = i, k
    copies = set()
    read = lru_cache(maxsize=2)(lambda i: images[i].read(store))
    for image, dicom in sorted(sidecars.renditions(kinds), key=lambda pair: place[pair[1]]):
        (i, _), (j, k) = place[image], place[dicom]
        planes = rendition.slice_orientations(read(j), k, len(images[j].names))
        if any(rendition.is_rendition(plane, read(i).mean(0)) for plane in planes):
            copies.add(images[i].index)
    return copies
