"""The guard over a score: what its test set shares with pretraining, training and validation, counted before anything is read.

    pretraining ──▶ training ──▶ validation ──▶ test

Patients are compared by pseudonym, images as `medssl.leakage.near_duplicates` does.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medssl.errors import UserError
from medssl.leakage.image_sets import TINY, ImageComparer, ScanSet
from medssl.leakage.near_duplicates import find_duplicates
from medssl.store.intensity import to_unit_range
from medssl.store.store import Store

WORDS = ("patient", "scan", "hash", "phash")
PRETRAINED_ON_COLUMNS = (*WORDS, "patient_known")  # columns of RUN/pretrained_on.parquet
EXAMPLES = 3  # pairs of scans named per kind


@dataclass(frozen=True)
class SetOverlap:
    """What set `b` has of set `a`; of one set and itself: scans that an earlier scan of another patient repeats.

    Attributes:
        a, b: names of the sets; scans, people: how many `b` has.
        patients: of b that are in a; None where the two were made with different keys, 0 inside one set.
        exact, near, maybe: scans of b, see `copies.Copies`.
        examples: (kind, scan of a, scan of b), pseudonyms, a few of each kind.
    """

    a: str
    b: str
    scans: int
    people: int
    patients: int | None
    exact: int
    near: int
    maybe: int
    examples: tuple[tuple[str, str, str], ...]

    def __bool__(self) -> bool:
        return bool(self.patients or self.exact or self.near or self.maybe)

    @property
    def certain(self) -> bool:
        """Whether something is shared for sure."""
        return bool(self.patients or self.exact or self.near)

    def __str__(self) -> str:
        if self.a == self.b:
            return (
                f"inside {self.a}, {self.exact + self.near} of the {self.scans} images repeat another patient's ({self.near} of "
                f"them nearly)" + (f", and perhaps {self.maybe} more" if self.maybe else "")
            )
        things = [f"{self.patients} of the {self.people} {self.b} patients"] if self.patients else []
        if self.exact or self.near:
            things.append(f"{self.exact + self.near} of the {self.scans} {self.b} images ({self.near} of them nearly)")
        if self.maybe:
            things.append(
                f"perhaps {self.maybe} {self.b} images (alike, but their pixels cannot be read or leave it open)"
            )
        found = " and ".join(things) or f"none of the {self.scans} {self.b} images"
        return f"{self.a} has seen {found}"


@dataclass(frozen=True)
class LeakReport:
    """What the sets share, pair by pair, and what could not be looked at."""

    pairs: tuple[SetOverlap, ...]
    unknown: tuple[str, ...]

    def __getitem__(self, names: tuple[str, str]) -> SetOverlap:
        return next(pair for pair in self.pairs if (pair.a, pair.b) == names)

    @property
    def refusal(self) -> str:
        """In one line why a score on this test would be too high; "" where nothing says so."""
        return "; ".join(str(p) for p in self.pairs if p.b == "test" and p.a != "test" and p.certain)

    def warnings(self) -> list[str]:
        """A line for each pair that shares something, with an example, then what could not be looked at."""
        lines = []
        for pair in filter(None, self.pairs):
            example = next((f": {a} and {b}, for example" for _, a, b in pair.examples), "")
            lines.append(f"{pair}{example}")
        return [*lines, *self.unknown]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"pairs": [asdict(pair) for pair in self.pairs], "unknown": list(self.unknown), "refusal": self.refusal}


def check_leaks(
    pretrained: ScanSet,
    train: ScanSet,
    val: ScanSet,
    test: ScanSet,
    features: Mapping[str, np.ndarray] | None = None,
    kept: Path | None = None,
) -> LeakReport:
    """What pretraining, training and validation share with the test, training with validation, and each of these has twice.

    Args:
        pretrained, train, val, test: the sets, any of them may be empty. Pixels of one are read through another that has them.
        features: name of a set -> (N, D) embeddings of its scans under the encoder that is scored. Two sets that both have
            some are compared by them too.
        kept: file that remembers which images were compared by their pixels, so that the next run on these sets need not.
    """
    sets = (pretrained, train, val, test)
    images = ImageComparer(sets[::-1], kept)  # pretraining last, since its store may be gone
    features = features or {}
    pairs = []
    for a, b in (
        (pretrained, test),
        (train, test),
        (val, test),
        (train, val),
        (train, train),
        (val, val),
        (test, test),
    ):
        both = (features[a.name], features[b.name]) if {a.name, b.name} <= set(features) else None
        found = find_duplicates(a, b, images, both)
        patients = None if a.key != b.key else 0 if a is b else len(set(a.patient) & set(b.patient))
        examples = tuple(
            (kind, str(a.scan[i]), str(b.scan[j]))
            for kind, rows in (("exact", found.exact), ("near", found.near), ("maybe", found.maybe))
            for j, i in islice(sorted(rows.items()), EXAMPLES)
        )
        counts = (len(found.exact), len(found.near), len(found.maybe))
        pairs.append(SetOverlap(a.name, b.name, len(b), len(set(b.patient)), patients, *counts, examples))
    images.keep()
    return LeakReport(tuple(pairs), tuple(_unknown(pretrained, train, test, images)))


def _unknown(pretrained: ScanSet, train: ScanSet, test: ScanSet, images: ImageComparer) -> list[str]:
    lines = []
    others = [part.name for part in (pretrained, train) if part.key != test.key]
    if others:
        lines.append(
            f"the test store was made with another key than {' and '.join(others)}: shared images are found, "
            "shared patients are not"
        )
    if unnamed := int((~test.named).sum()):
        lines.append(
            f"{unnamed} of {len(test)} test scans name no patient: who is in another set too shows by images alone"
        )
    if unread := images.unreadable(pretrained.hash):
        lines.append(
            f"the pixels of {unread} of {len(pretrained)} pretraining scans cannot be read: near-copies of theirs are found by "
            "hash alone, and never for sure"
        )
    if tiny := int(((test.edge > 0) & (test.edge <= TINY)).sum()):
        lines.append(
            f"{tiny} test scans have at most {TINY} pixels along an edge: near-copies of such are found, but not all that are "
            "very noisy"
        )
    return lines


def scan_set_from_store(name: str, store: Store, rows: np.ndarray) -> ScanSet:
    """The scans `rows` of a store under a name: "training", "validation" or "test"."""
    patient, scan, content, phash = (store.column(c)[rows].astype(str) for c in WORDS)
    edge = np.array([max(shape[-2:]) for shape in store.column("shape")[rows]], np.int64)
    named = store.column("patient_known")[rows].astype(bool)
    return ScanSet(
        name, store.info["key_id"], patient, scan, content, phash, named, edge, lambda i: _middle(store, int(rows[i]))
    )


def read_pretrained_on(path: Path, key: str, store: Store | None = None) -> ScanSet:
    """What an encoder has seen, from its run's pretrained_on.parquet; `key` is the key_id in its encoder.json.

    store: the one it was pretrained on, where it is still there: near-copies are then confirmed by pixels.

    Raises UserError when the file is missing or damaged.
    """
    try:
        table = pq.read_table(path, columns=list(PRETRAINED_ON_COLUMNS))
    except (OSError, pa.ArrowException) as e:
        raise UserError(f"{path} is missing or damaged; pretrain again") from e
    patient, scan, content, phash = (np.array(table[c].to_pylist(), str) for c in WORDS)
    named = np.array(table["patient_known"].to_pylist(), bool)
    if store is None:
        return ScanSet("pretraining", key, patient, scan, content, phash, named, np.zeros(len(named), np.int64))
    place = {both: row for row, both in enumerate(zip(store.column("scan"), store.column("hash"), strict=True))}
    rows = [place.get(both, -1) for both in zip(scan.tolist(), content.tolist(), strict=True)]
    shape = store.column("shape")
    edge = np.array([max(shape[r][-2:]) if r >= 0 else 0 for r in rows], np.int64)

    def image(i: int) -> np.ndarray | None:
        with suppress(UserError):
            return _middle(store, rows[i])
        return None

    return ScanSet("pretraining", key, patient, scan, content, phash, named, edge, image)


def _middle(store: Store, row: int) -> np.ndarray:
    """(H, W) in the unit range: an image, or the middle slice of a volume; the first channel, as `settle` looks at it."""
    _, *shape = store.table["shape"][row].as_py()
    low, high = (store.table[name][row].as_py() for name in ("low", "high"))
    if len(shape) == 2:
        return to_unit_range(store[row][0], low, high)
    return to_unit_range(store.crop(row, (shape[0] // 2, 0, 0), (1, *shape[1:]))[0, 0], low, high)
