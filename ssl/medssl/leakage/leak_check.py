"""The leak check before scoring: patients and images that the test set shares with pretraining, training and validation.

    pretraining ──▶ training ──▶ validation ──▶ test

Patients whose source names them are compared by pseudonym, images as in `medssl.leakage.near_duplicates`.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medssl.errors import UserError
from medssl.leakage.equalised_grid import MIN_PIXELS
from medssl.leakage.image_sets import TINY, ImageComparer, ScanSet
from medssl.leakage.leak_report import LeakReport, SetOverlap, keep_report, read_report, report_file
from medssl.leakage.near_duplicates import find_duplicates
from medssl.leakage.transformed_duplicates import Transformed, find_transformed
from medssl.store.intensity_windows import to_unit_range
from medssl.store.store import Store

TEXT_COLUMNS = ("patient", "scan", "hash", "phash")
PRETRAINED_ON_COLUMNS = (*TEXT_COLUMNS, "patient_known")  # columns of RUN/pretrained_on.parquet
EXAMPLES = 3  # pairs of scans named per kind


def check_leaks(
    pretrained: ScanSet, train: ScanSet, val: ScanSet, test: ScanSet, cache: Path | None = None
) -> LeakReport:
    """Count what each set shares with the later ones, and what training, validation and test contain twice.

    Args:
        pretrained, train, val, test: the sets; any may be empty. Pixels of one set are also read through another that has them.
        cache: folder where reports and the results of comparisons are kept for later checks, if it can be written. It can be
            deleted at any time.
    """
    file = None if cache is None else report_file(cache, (pretrained, train, val, test))
    kept = None if file is None else read_report(file)
    if kept is not None:
        return kept
    # pretraining last, since its store may be gone
    images = ImageComparer((test, val, train, pretrained), None if cache is None else cache / "alike.npz")
    report = _compare(pretrained, train, val, test, images, cache)
    images.save()
    if file is not None and not images.incomplete:  # what cannot be read now may be readable the next time
        keep_report(file, report)
    return report


def _compare(
    pretrained: ScanSet, train: ScanSet, val: ScanSet, test: ScanSet, images: ImageComparer, cache: Path | None
) -> LeakReport:
    transformed = {
        "test": find_transformed((pretrained, train, val), test, images, cache),
        "validation": find_transformed((train,), val, images, cache),
    }
    pairs = []
    compared = [(pretrained, test), (train, test), (val, test), (train, val), (train, train), (val, val), (test, test)]
    for a, b in compared:
        found = find_duplicates(a, b, images, {} if a is b else transformed[b.name].copies)
        shared = None if a.key != b.key else 0 if a is b else len(_named(a) & _named(b))
        examples = tuple(
            (kind, str(a.scan[i]), str(b.scan[j]))
            for kind, rows in (("exact", found.exact), ("near", found.near), ("maybe", found.maybe))
            for j, i in islice(sorted(rows.items()), EXAMPLES)
        )
        counts = (len(found.exact), len(found.near), len(found.maybe))
        pairs.append(SetOverlap(a.name, b.name, len(b), len(set(b.patient)), shared, *counts, examples))
    repeats = tuple((str(test.scan[i]), str(test.scan[j])) for j, i in [*found.exact.items(), *found.near.items()])
    return LeakReport(tuple(pairs), tuple(_unchecked(pretrained, train, test, images, transformed["test"])), repeats)


def _named(part: ScanSet) -> set[str]:
    """Return the patients that the source names. An unnamed one is known by its file, and two hospitals may both have 1.png."""
    return set(part.patient[part.patient_known].tolist())


def _unchecked(
    pretrained: ScanSet, train: ScanSet, test: ScanSet, images: ImageComparer, transformed: Transformed
) -> list[str]:
    lines = []
    others = [part.name for part in (pretrained, train) if part.key != test.key]
    if others:
        lines.append(
            f"the test store was made with a different key than {' and '.join(others)}: shared images are found, "
            "shared patients are not"
        )
    if unknown := int((~test.patient_known).sum()):
        lines.append(
            f"{unknown} of {len(test)} test scans have no patient id: patients shared with another set are found by images only"
        )
    if unread := images.count_unreadable(pretrained.hash):
        lines.append(
            f"the pixels of {unread} of {len(pretrained)} pretraining scans cannot be read: copies of them are found by hash "
            "only, and those shifted, turned by few degrees, cropped, covered or locally equalised are mostly missed; of volumes "
            "only the middle slice is compared"
        )
    plain = [
        (part, int(np.isin(part.hash, list(transformed.not_compared)).sum())) for part in (test, pretrained, train)
    ]
    if counts := [f"{n} of {len(part)} {part.name} scans" for part, n in plain if n]:
        lines.append(
            f"{' and '.join(counts)} have too little texture (binary masks, for example), or less than {MIN_PIXELS} pixels "
            "inside their border: of their copies, those cropped, resized, covered or turned by a few degrees are mostly missed"
        )
    if tiny := int(((test.side > 0) & (test.side <= TINY)).sum()):
        lines.append(
            f"{tiny} test scans are at most {TINY} pixels wide and high: their near-duplicates are found, except some very "
            "noisy ones"
        )
    return lines


def scan_set_from_store(name: str, store: Store, rows: np.ndarray) -> ScanSet:
    """Return the scans `rows` of a store as a set named "training", "validation" or "test"."""
    patient, scan, content, phash = (store.column(c)[rows].astype(str) for c in TEXT_COLUMNS)
    side = np.array([max(shape[-2:]) for shape in store.column("shape")[rows]], np.int64)
    known = store.column("patient_known")[rows].astype(bool)
    volumes = _volumes((i, store, int(row)) for i, row in enumerate(rows))
    return ScanSet(
        name,
        store.info["key_id"],
        patient,
        scan,
        content,
        phash,
        known,
        side,
        lambda i: _middle(store, int(rows[i])),
        volumes,
    )


def pretrained_on(store: Store, rows: np.ndarray, earlier: Iterable[tuple[Path, str]] = ()) -> pa.Table:
    """Return the scans an encoder has learned from, for RUN/pretrained_on.parquet.

    Args:
        rows: the scans of `store` it was trained on.
        earlier: the folder and key_id of each run that its initial weights or its teacher come from. Their scans are added.
            Patients of a run with another key than the store's cannot be compared with others: they count as unnamed.

    Raises UserError if the list of an earlier run is missing or damaged.
    """
    columns = list(PRETRAINED_ON_COLUMNS)
    tables = [store.table.select(columns).take(rows)]
    for folder, key in earlier:
        file = folder / "pretrained_on.parquet"
        try:
            table = pq.read_table(file, columns=columns)
        except (OSError, pa.ArrowException) as e:
            raise UserError(f"{file} is missing or damaged; copy the whole run again, or pretrain it again") from e
        if key != store.info["key_id"]:
            unnamed = pa.array([False] * len(table))
            table = table.set_column(columns.index("patient_known"), "patient_known", unnamed)
        tables.append(table)
    whole = pa.concat_tables([table.cast(tables[0].schema) for table in tables])
    seen = dict.fromkeys(zip(*(whole[c].to_pylist() for c in columns), strict=True))
    return pa.table(dict(zip(columns, map(list, zip(*seen, strict=True)), strict=True)), schema=whole.schema)


def read_pretrained_on(path: Path, key: str, stores: Iterable[Store] = ()) -> ScanSet:
    """Return the scans an encoder was pretrained on, from a run's pretrained_on.parquet.

    Args:
        path: the file pretrained_on.parquet.
        key: the key_id in encoder.json.
        stores: stores that may hold the images, which are found by content: copies are then confirmed by pixels.

    Raises:
        UserError: if the file is missing or damaged.
    """
    try:
        table = pq.read_table(path, columns=list(PRETRAINED_ON_COLUMNS))
    except (OSError, pa.ArrowException) as e:
        raise UserError(f"{path} is missing or damaged; pretrain again") from e
    patient, scan, content, phash = (np.array(table[c].to_pylist(), str) for c in TEXT_COLUMNS)
    known = np.array(table["patient_known"].to_pylist(), bool)
    held: dict[str, tuple[Store, int]] = {}
    for store in stores:
        for row, name in enumerate(store.column("hash").tolist()):
            held.setdefault(name, (store, row))
    at = [held.get(name) for name in content.tolist()]
    side = np.array([max(found[0].table["shape"][found[1]].as_py()[-2:]) if found else 0 for found in at], np.int64)

    def image(i: int) -> np.ndarray | None:
        return _unless_damaged(partial(_middle, *found)) if (found := at[i]) else None

    volumes = _volumes((i, *found) for i, found in enumerate(at) if found)
    readers = {i: partial(_unless_damaged, read) for i, read in volumes.items()}
    return ScanSet("pretraining", key, patient, scan, content, phash, known, side, image if held else None, readers)


def _unless_damaged(read: Callable[[], np.ndarray]) -> np.ndarray | None:
    """Return the array, None if its bytes are missing or damaged."""
    with suppress(UserError):
        return read()
    return None


def _volumes(places: Iterable[tuple[int, Store, int]]) -> dict[int, Callable[[], np.ndarray]]:
    """Return a function that reads the volume (D, H, W) in the unit range of each scan (key, store, row) that is one."""
    return {i: partial(_volume, store, row) for i, store, row in places if len(store.table["shape"][row].as_py()) == 4}


def _volume(store: Store, row: int) -> np.ndarray:
    low, high = (store.table[name][row].as_py() for name in ("low", "high"))
    return to_unit_range(store[row][0], low, high)


def _middle(store: Store, row: int) -> np.ndarray:
    """Return (H, W) in the unit range: an image or the middle slice of a volume, first channel, as ingest hashes it."""
    _, *shape = store.table["shape"][row].as_py()
    low, high = (store.table[name][row].as_py() for name in ("low", "high"))
    if len(shape) == 2:
        return to_unit_range(store[row][0], low, high)
    return to_unit_range(store.crop(row, (shape[0] // 2, 0, 0), (1, *shape[1:]))[0, 0], low, high)
