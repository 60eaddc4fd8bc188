"""A folder of scans becomes a store: `ingest("scans", "store")`."""

import os
from collections.abc import Sequence
from pathlib import Path

from medssl.errors import UserError
from medssl.scans.alias import open_key
from medssl.scans.read import read, relative_to, walk
from medssl.scans.scan import Unreadable
from medssl.store.intensity import check
from medssl.store.labels import read_labels
from medssl.store.splits import SPLITS, empty_splits
from medssl.store.store import Store
from medssl.store.write import Row, StoreWriter, check_out


def ingest(
    source: str | Path,
    out: str | Path,
    *,
    recipe: str = "auto",
    labels: str | Path | None = None,
    targets: Sequence[str] = (),
    patient: str | None = None,
    site: str = "",
    key: str | Path | None = None,
    overwrite: bool = False,
) -> Store:
    r"""Reads every scan below `source` and writes a store at `out`: arrays, pseudonyms, allow-listed facts.

    Each scan keeps its physical values (HU for CT) in the smallest type that loses nothing. Files that cannot be used
    are left out and listed with a reason in `rejects.jsonl`. A keyed hash divides the patients into train (70 %), val
    (10 %) and test (20 %), so a later ingest with more patients and the same key moves nobody. The same source and key
    give the same store. Prints a summary.

    Args:
        source: a folder with DICOM, NIfTI, PNG, JPEG, TIFF or npz files at any depth, or one such file.
        out: the store's folder; it must not exist, nor lie in `source`.
        recipe: which values count as black and white: auto (by modality), ct, mr, xray, natural or neutral.
        labels: a CSV file with one row per file or per patient, or "folders" when a scan's folder is its label. From a
            table come labels, and the columns patient, split (train, val, test), site, age, sex, view and laterality.
        targets: columns of the table that are labels; by default those called label, target, class, diagnosis, finding
            or lesion.
        patient: a regular expression with one group that finds the patient in a file's path below `source`, like
            "person(\d+)". Without it the patient comes from the table or from the scan; else each file is a patient.
        site: a word for where the scans come from, for comparisons across sites.
        key: the file of the project's secret key, made when absent. Default: $MEDSSL_KEY, else ~/.config/medssl/key.
            Keep it, keep it secret, and keep it apart from the store: it links pseudonyms to patients.
        overwrite: replace a store at `out`, once the new one is whole.

    Raises:
        UserError: for whatever is wrong with the arguments, the table, the disk, or when no file can be used.
    """
    source, out, key = Path(source).expanduser(), Path(out).expanduser(), _key(key)
    check(recipe)
    _check_places(source, out, key)
    check_out(out, overwrite)
    root = source if source.is_dir() else source.parent
    table = None if labels is None or labels == "folders" else Path(labels).expanduser()
    files = sorted(f for f in walk(source) if table is None or f.resolve() != table.resolve())
    if not files:
        raise UserError(f"source={source} has no files")
    alias = open_key(key)
    wanted = [targets] if isinstance(targets, str) else targets
    beside = read_labels(table or labels, alias, wanted, patient, [relative_to(f, root) for f in files])
    report: list[str] = []

    def join(rows: list[Row], paths: list[str]) -> list[Row]:
        rows, lines = beside.join(rows, paths)
        report.extend(lines)
        return [row | {"site": row["site"] or site} for row in rows]

    with StoreWriter(out, alias, recipe, overwrite) as writer:
        for scan, path in read(files, alias, root, lambda file, why: writer.reject(relative_to(file, root), why)):
            try:
                writer.add(scan, path)
            except Unreadable as why:
                writer.reject(path, why)
        store = writer.finish(join)
    print("\n".join(_summary(store, report, key)))
    return store


def _key(key: str | Path | None) -> Path:
    return Path(key or os.environ.get("MEDSSL_KEY") or "~/.config/medssl/key").expanduser()


def _check_places(source: Path, out: Path, key: Path) -> None:
    """Raises UserError when the three places are in each other's way."""
    if not source.exists():
        raise UserError(f"source={source} does not exist")
    real, store, secret = source.resolve(), out.resolve(), key.resolve()
    if store.is_relative_to(real):
        raise UserError(f"out={out} lies in the source, where the next ingest would read it; choose another out=")
    if real.is_relative_to(store):
        raise UserError(f"source={source} lies in out={out}; choose another out=")
    for place, name in ((store, "out"), (real, "source")):
        if secret.is_relative_to(place):
            raise UserError(
                f"the key {key} would lie in {name}: whoever gets that folder could undo the pseudonyms; "
                "choose another key= (or MEDSSL_KEY)"
            )


def _summary(store: Store, report: list[str], key: Path) -> list[str]:
    """What a researcher wants to know, in lines."""
    info, counts = store.info, store.info["counts"]
    splits = ", ".join(f"{s} {counts['scans_by_split'][s]} ({counts['patients_by_split'][s]} patients)" for s in SPLITS)
    unknown = int((~store.column("patient_known")).sum())
    alone = f" ({unknown} scans name none: each stands alone)" if unknown else ""
    rejected = ", ".join(f"{code} {n}" for code, n in counts["rejected"].items())
    rejected = f": {rejected} (rejects.jsonl)" if rejected else ""
    lines = [
        f"store        {store.path} ({size_on_disk(store.path) / 1e6:.1f} MB)",
        f"scans        {counts['scans']}: {info['dims']}D, "
        f"{info['channels']} channel{'s'[: info['channels'] > 1]}, {info['modality'] or 'modality unknown'}",
        f"patients     {counts['patients']}{alone}",
        f"splits       {splits}",
        f"intensity    {info['intensity']}; train mean {info['mean']:.4f}, standard deviation {info['std']:.4f}",
        f"left out     {sum(counts['rejected'].values())}{rejected}",
    ]
    lines += [f"table        {line}" for line in report]
    copies = info["duplicates"]
    if any(copies.values()):
        lines.append(
            f"duplicates   {copies['within']} within a split, {copies['between']} images in more than one split"
        )
    if warning := empty_splits(store.column("split"), counts["patients"]):
        lines.append(f"warning      {warning}")
    return [*lines, f"key          {key} (id {info['key_id']})", f"fingerprint  {store.fingerprint}"]


def size_on_disk(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
