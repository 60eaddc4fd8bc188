"""Groups of scans that must share a split: tied by patient, study or series, or by equal or near-duplicate pixels."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from medssl.leakage.similarity import is_near_duplicate, near_hash_pairs
from medssl.readers.phash import BLANK, packed

Row = Mapping[str, Any]

STUDIES = 50  # with more studies, a patient with conflicting sex or birth dates is taken as several people
CHAIN = 0.2  # share of all rows in one group above which something is wrong


def near_duplicate_pairs(rows: Sequence[Row], image: Callable[[int], np.ndarray]) -> list[tuple[int, int]]:
    """Return pairs of near-duplicate rows that are not tied by identifiers or equal pixels.

    Args:
        rows: see `group_scans`.
        image: returns a row's (H, W) or (D, H, W) in the unit range. Called for candidates only.
    """
    _, tied = _tied_rows(rows)
    cached = lru_cache(maxsize=256)(image)  # pairs are sorted by their first row
    found = []
    for i, j in near_hash_pairs(packed([row["phash"] for row in rows])).tolist():
        if tied.root(i) != tied.root(j) and is_near_duplicate(cached(i), cached(j)):
            tied.join(i, j)
            found.append((i, j))
    return found


class _UnionFind:
    """Disjoint sets of rows. The root of a set is its smallest row."""

    def __init__(self, n: int):
        self.parent = list(range(n))

    def root(self, i: int) -> int:
        while self.parent[i] != i:
            self.parent[i] = i = self.parent[self.parent[i]]
        return i

    def join(self, i: int, j: int) -> None:
        i, j = self.root(i), self.root(j)
        self.parent[max(i, j)] = min(i, j)

    def join_equal(self, keys: Iterable[Hashable | None]) -> None:
        """Join rows with the same key; None is equal to nothing."""
        first: dict[Hashable, int] = {}
        for i, key in enumerate(keys):
            if key is not None:
                self.join(first.setdefault(key, i), i)

    def smallest_names(self, names: Sequence[str]) -> list[str]:
        """Return for every row the smallest name in its set."""
        roots = [self.root(i) for i in range(len(self.parent))]
        smallest: dict[int, str] = {}
        for root, name in zip(roots, names, strict=True):
            smallest[root] = min(name, smallest.get(root, name))
        return [smallest[root] for root in roots]


def _tied_rows(rows: Sequence[Row]) -> tuple[list[str], _UnionFind]:
    """Return the patient identities, and the rows joined by identity and by equal pixels."""
    identities = patient_identities(rows)
    tied = _UnionFind(len(rows))
    tied.join_equal(identities)
    tied.join_equal(row["hash"] if row["phash"] != BLANK else None for row in rows)  # blank images tie nobody
    return identities, tied


def shared_patient_ids(rows: Sequence[Row]) -> set[str]:
    """Return patient ids used for several people, such as "ANON" or "0".

    Their scans disagree in sex and birth date, or in one of the two over more than 50 studies.
    """
    sex: defaultdict[str, set[str]] = defaultdict(set)
    birth: defaultdict[str, set[str]] = defaultdict(set)
    study: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row["patient_known"]:
            for seen, value in ((sex, row.get("fact:sex")), (birth, row.get("born")), (study, row["study"])):
                if value:
                    seen[row["patient"]].add(value)
    conflicts = Counter(p for seen in (sex, birth) for p, values in seen.items() if len(values) > 1)
    return {p for p, n in conflicts.items() if n == 2 or len(study[p]) > STUDIES}


def patient_identities(rows: Sequence[Row]) -> list[str]:
    """Return for every row the smallest pseudonym it is tied to by patient, study and series, regardless of pixels.

    A patient id shared by several people ties nothing; the studies then count, else the series, else each scan by itself.
    """
    shared = shared_patient_ids(rows)
    names = [
        row["patient"] if row["patient"] not in shared else row["study"] or row["series"] or row["scan"] for row in rows
    ]
    tied = _UnionFind(len(rows))
    tied.join_equal(names)
    for column in ("study", "series"):
        tied.join_equal(row[column] or None for row in rows)
    return tied.smallest_names(names)


def group_scans(rows: Sequence[Row], pairs: Iterable[tuple[int, int]] = ()) -> tuple[list[str], dict[str, Any]]:
    """Group rows that are tied by identifiers, by equal pixels or by a pair of near-duplicates.

    Args:
        rows: with patient, study, series, scan, hash, phash (str), patient_known (bool) and, if known, born and fact:sex.
        pairs: from `near_duplicate_pairs`.

    Returns:
        The smallest pseudonym in each row's group, and a report. rows, groups: counts; by: rows identified by patient, study or
        only by file; placeholders: patient ids shared by several people; merged: identities put into another one's group by
        equal or near-duplicate pixels; largest: rows of the largest group; warning: "", or what to look at.
    """
    identities, tied = _tied_rows(rows)
    for i, j in pairs:
        tied.join(i, j)
    names = tied.smallest_names(identities)
    shared = shared_patient_ids(rows)
    known = [bool(row["patient_known"]) and row["patient"] not in shared for row in rows]
    by = Counter("patient" if k else "study" if row["study"] else "file" for k, row in zip(known, rows, strict=True))
    name, largest = Counter(names).most_common(1)[0] if names else ("", 0)
    people = len({identity for identity, n in zip(identities, names, strict=True) if n == name})
    warning = ""
    if people > 1 and largest > CHAIN * len(rows):
        warning = (
            f"{people} patients with {largest} of {len(rows)} scans form one group, tied by equal or near-duplicate images: "
            "look at some of them; images that all look alike (phantoms, blanks, masks) are better left out"
        )
    report = {
        "rows": len(rows),
        "groups": len(set(names)),
        "by": {source: by[source] for source in ("patient", "study", "file")},
        "placeholders": len(shared),
        "merged": len(set(identities)) - len(set(names)),
        "largest": largest,
        "warning": warning,
    }
    return names, report
