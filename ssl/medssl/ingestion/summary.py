"""The summary of an ingest for the terminal."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from medssl.ingestion.mask_pairing import LABEL_MAP
from medssl.ingestion.patients import warnings
from medssl.readers.dicom.separations import MIN_SLICES
from medssl.readers.dicom.slices import STACKED
from medssl.store.intensity_windows import modalities_of_values, resolve_intensity
from medssl.store.manifest_columns import MASK
from medssl.store.splits import SPLITS, empty_split_warning
from medssl.store.store import Store

SUGGESTED = {
    "volume": "intensity=ct, mr or pet (volumes)",
    "grey": "intensity=xray or us (grey images)",
    "colour": "intensity=fundus, natural or us (colour images)",
}


def summary(store: Store, report: list[str], key: Path, changed: str | None = None) -> str:
    """Return lines about the contents of the store, rejected files, quarantined scans, and warnings.

    Args:
        store: opened with quarantined scans.
        report: lines about the table and the JSON files.
        key: the file of the secret key.
        changed: see `changes`.
    """
    info, counts = store.info, store.info["counts"]
    splits = (f"{s} {counts['scans_by_split'][s]} ({counts['patients_by_split'][s]} patients)" for s in SPLITS)
    unknown = int((~store.column("patient_known")).sum())
    alone = f" ({unknown} scans name no patient: each file or study counts as one)" if unknown else ""
    codes = ", ".join(f"{code} {n}" for code, n in counts["rejected"].items())
    rejected = f": {codes} (medssl rejects store={store.path})" if codes else ""
    size = sum(f.stat().st_size for f in store.path.rglob("*") if f.is_file())
    lines = [
        ("store", f"{store.path} ({size / 1e6:.1f} MB)"),
        *([] if changed is None else [("changes", changed)]),
        ("files", counts["files"]),
        *(("scans", kind) for kind in store.kinds),
        ("patients", f"{counts['patients']}{alone}"),
        ("splits", ", ".join(splits)),
        ("intensity", f"{info['recipe']}: {store.intensity_description}"),
        *(("intensity", line) for line in without_window(store)),
        ("left out", f"{sum(counts['rejected'].values())}{rejected}"),
    ]
    if info["masks"]:
        n = int((store.column("mask") != "").sum())
        lines.append(("masks", f"{info['masks']} of these scans are the masks of {n} images"))
    if waiting := ", ".join(f"{reason} {n}" for reason, n in counts["held"].items() if reason != MASK):
        look = f"medssl inspect store={store.path} quarantined=true sheet=sheet.png"
        lines.append(("quarantined", f"{waiting} (look at them with {look}, then use medssl release)"))
    lines += [("table", line) for line in report]
    copies = info["duplicates"]
    if any(copies.values()):
        within, between, near = (copies[k] for k in ("within", "between", "near"))
        text = (
            f"{within} within a split, {between} images in more than one split, {near} pairs of nearly identical images"
        )
        lines.append(("duplicates", text))
    empty = empty_split_warning(store.column("split"), counts["patients"])
    for warning in (empty, info["grouping"]["warning"], *warnings(info["uncertain_patients"]), single_slices(store)):
        if warning:
            lines.append(("warning", warning))
    lines += [("key", f"{key} (id {info['key_id']})"), ("fingerprint", info["fingerprint"])]
    return "\n".join(f"{name:<13}{text}" for name, text in lines)


def single_slices(store: Store) -> str:
    """Return a warning if DICOM images of CT, MR or PET are single slices, as localizers are, but also fallen stacks."""
    if "fact:sop_class" not in store.table.column_names:
        return ""
    columns = (store.column(name) for name in ("modality", "shape", "fact:sop_class", "held", "patient", "study"))
    studies: defaultdict[str, list[str]] = defaultdict(list)
    for modality, shape, sop, held, patient, study in zip(*columns, strict=True):
        if modality in STACKED - {""} and len(shape) == 3 and sop is not None and held != "localizer":
            studies[patient].append(study)
    n = sum(map(len, studies.values()))
    if n < MIN_SLICES:
        return ""
    # a study of its own for each of many slices of one patient
    apart = sum(len(s) for s in studies.values() if len(s) >= MIN_SLICES and "" not in s and len(set(s)) == len(s))
    told = (
        f"; {apart} of them have a Study Instance UID of their own beside others of the same patient: if they are one stack, "
        "write one UID into all files of it"
    )
    return (
        f"{n} images of CT, MR or PET are single slices: at fewer than {MIN_SLICES} positions of a series and study, or without "
        "a position in the header; if they should be volumes, export them again with Image Position and Orientation (Patient)"
        f"{told if apart else ''}"
    )


def without_window(store: Store) -> list[str]:
    """Return a line about the scans whose modality has no intensity window, with the intensity= to give instead."""
    if store.info["recipe"] != "auto":
        return []
    scans = store.table.filter(pc.invert(pc.is_in(store.table["held"], pa.array([MASK, LABEL_MAP]))))
    columns = modalities_of_values(scans), scans["modality"].to_pylist(), scans["shape"].to_pylist()
    found = [
        (
            f"{modality} in other units" if modality and not known else modality,
            SUGGESTED["volume" if len(shape) == 4 else "colour" if shape[0] > 1 else "grey"],
        )
        for known, modality, shape in zip(*columns, strict=True)
        if resolve_intensity("auto", known) == "neutral"
    ]
    if not found:
        return []
    names = [f"modality {m}" if m else "unknown modality" for m in sorted({m for m, _ in found})]
    choices = ", ".join(sorted({choice for _, choice in found}))
    alone = len(found) == scans.num_rows and len(set(found)) == 1
    how = "ingest again with overwrite=true and" if alone else "ingest each kind into a store of its own, with"
    return [
        f"{len(found)} scans of {' or '.join(names)} are shown from percentile 0.5 to 99.5 of their values, 8-bit images from "
        f"0 to 255; if you know what they are, {how} {choices}"
    ]


def changes(before: pa.Table, now: pa.Table, read: int, gone: int) -> str:
    """Return the changes of an update in words.

    Args:
        before, now: the manifest of the old and the new store.
        read: files read.
        gone: files that were gone or had changed.
    """
    parts = [f"{read} files read, {gone} gone or changed"] if read or gone else []
    if changed := changed_values(before, now):
        parts.append("changed: " + ", ".join(f"{name} of {n} scans" for name, n in changed.items()))
    was, is_now = (dict(zip(t["patient"].to_pylist(), t["split"].to_pylist(), strict=True)) for t in (before, now))
    if moved := sum(is_now.get(patient, split) != split for patient, split in was.items()):
        why = ", because new scans link them to others" if read else ""
        parts.append(f"{moved} patients moved to another split{why}")
    if not parts and not before.equals(now):
        parts.append("no file was read, and other columns of the manifest have changed")
    return "; ".join(parts) or "nothing has changed"


def changed_values(before: pa.Table, now: pa.Table) -> dict[str, int]:
    """Return patient, site, metadata and labels -> the number of scans of both manifests for which they differ."""
    known = set(before["scan"].to_pylist())
    scans = [scan for scan in now["scan"].to_pylist() if scan in known]
    kept = {c for t in (before, now) for c in t.column_names if c.startswith(("label:", "fact:"))}
    out = {}
    for column in ("patient", "site", *sorted(kept)):
        old, new = (_by_scan(table, column) for table in (before, now))
        kind, _, name = column.partition(":")
        if n := sum(old.get(scan) != new.get(scan) for scan in scans):
            out[f"label {name!r}" if kind == "label" else name or kind] = n
    return out


def _by_scan(table: pa.Table, column: str) -> dict[str, Any]:
    if column not in table.column_names:
        return {}
    return dict(zip(table["scan"].to_pylist(), table[column].to_pylist(), strict=True))
