"""Which scans must share a split: one group per set of scans tied by patient, study, series, or by their pixels."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.ndimage import uniform_filter

from medssl.readers.phash import BLANK, FLAT, packed, resize_weights, thumbnail

Row = Mapping[str, Any]

NEAR = 40  # bits: what a shift, a gamma curve, noise and JPEG together reach at the 99th percentile, see phash.py
CHUNKS, ROUNDS = 16, 4  # two hashes that agree on one of 4 * 16 chunks of 16 bits are compared
ENOUGH = 64  # near rows after which a row asks no further, so that look-alikes by the thousand stay affordable
ALIKE, DETAIL = 0.98, 0.85  # correlation of two small images, and of what is left of them without their low frequencies
REACH = 2  # pixels by which one of two equal images may be shifted
EDGE = 4  # of 64 pixels on each side that are not compared: a shift brings in something else there
STUDIES = 50  # studies of one patient from which on a conflict of sex or of birth date alone says it is several people
CHAIN = 0.2  # share of all rows in one group from which on something is wrong


def near_hash_pairs(hashes: np.ndarray, limit: int = NEAR) -> np.ndarray:
    """Rows whose hashes are at most `limit` bits apart.

    Multi-index hashing (Norouzi, Punjani and Fleet, CVPR 2012): the bits are dealt into 16 chunks of 16, in 4 orders, and rows
    that share a chunk are compared. By the pigeonhole principle every pair at most 15 bits apart is found; at 36 bits 1 in
    200 is missed, at 40 bits 1 in 100. Blank hashes are near nothing. Of rows with one and the same hash each is
    paired with the first only, and a row with 64 near rows asks no further. Mirrored and inverted copies are not looked for:
    right lungs look like mirrored left lungs, and no exporter mirrors.

    Args:
        hashes: (N, 32) uint8.
        limit: bits.

    Returns:
        (P, 2) int64, rows i < j, sorted.
    """
    rows = np.flatnonzero(hashes.any(1))
    if len(rows) < 2:
        return np.empty((0, 2), np.int64)
    kinds, first, kind = np.unique(hashes[rows], axis=0, return_index=True, return_inverse=True)
    twins = np.stack([rows[first[kind.ravel()]], rows], 1)
    n = len(kinds)
    words = np.ascontiguousarray(kinds).view(np.uint64)
    bits = np.unpackbits(kinds, axis=1)
    found = np.empty(0, np.int64)  # i * n + j of two kinds
    for seed in range(ROUNDS):
        order = np.random.default_rng(seed).permutation(256)
        dealt = np.ascontiguousarray(np.packbits(bits[:, order], axis=1)).view(np.uint16)
        for chunk in range(CHUNKS):
            done = np.bincount(found // n, minlength=n)
            found = np.sort(np.concatenate([found, _share(dealt[:, chunk], words, limit, done)]))
            found = found[np.diff(found, prepend=-1) > 0]
    i, j = first[found // n], first[found % n]
    pairs = np.concatenate([twins[twins[:, 0] != twins[:, 1]], np.sort(np.stack([rows[i], rows[j]], 1), 1)])
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))].astype(np.int64)


def _share(key: np.ndarray, words: np.ndarray, limit: int, done: np.ndarray) -> np.ndarray:
    """i * n + j, i < j, of what shares its key and is near. done: how many near ones each has already."""
    n = len(key)
    order = np.argsort(key, kind="stable")
    key, done = key[order], done[order]
    at, hits = np.arange(n), []
    for step in range(1, n):
        at = at[: np.searchsorted(at, n - step)]
        at = at[(key[at] == key[at + step]) & (done[at] < ENOUGH)]
        if not len(at):
            break
        i, j = order[at], order[at + step]
        close = np.bitwise_count(words[i] ^ words[j]).sum(1) <= limit
        done[at] += close
        hits.append(i[close] * n + j[close])
    return np.concatenate(hits) if hits else np.empty(0, np.int64)


def is_near_duplicate(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two images show the same scan: shifted by at most 2 pixels, under any monotone grey curve.

    Both are shrunk to 64 x 64, b (the one with fewer pixels) at 25 shifts; at the best one b takes a's histogram, and then
    the two correlate by 0.98, and by 0.85 without their low frequencies (minus the mean over 7 x 7). Of volumes the slices at
    a quarter, half and three quarters must all be similar.

    Args:
        a, b: (H, W) or (D, H, W), in the unit range.
    """
    if a.ndim != b.ndim:
        return False
    if a.ndim == 3:
        return all(is_near_duplicate(a[len(a) * k // 4], b[len(b) * k // 4]) for k in (1, 2, 3))
    if a.size < b.size:
        a, b = b, a
    inner = np.s_[EDGE:-EDGE, EDGE:-EDGE]
    x = thumbnail(a)[inner]
    columns = [np.asarray(b, np.float32) @ resize_weights(b.shape[1], right).T for right in range(-REACH, REACH + 1)]
    shifted = [(resize_weights(b.shape[0], down) @ c)[inner] for down in range(-REACH, REACH + 1) for c in columns]
    y = max(shifted, key=lambda y: _correlation(x, y))
    if x.std() < FLAT or y.std() < FLAT:
        return bool(x.std() < FLAT and y.std() < FLAT)
    y.ravel()[np.argsort(y, axis=None, kind="stable")] = np.sort(x, axis=None)
    return _correlation(x, y) >= ALIKE and _correlation(_detail(x), _detail(y)) >= DETAIL


def _detail(x: np.ndarray) -> np.ndarray:
    return x - uniform_filter(x, 7)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / max(float(np.sqrt((x * x).sum() * (y * y).sum())), 1e-12))


def near_duplicate_pairs(
    rows: Sequence[Row], image: Callable[[int], np.ndarray], limit: int = NEAR
) -> list[tuple[int, int]]:
    """Pairs of rows that show the same scan though no identifier says so: near by their hashes, and `similar`.

    Args:
        rows: see `groups`.
        image: reads a row's (H, W) or (D, H, W) in the unit range. Asked for candidates only.
        limit: bits.
    """
    tied = _Forest(patient_identities(rows))
    exact: dict[str, int] = {}
    for i, row in enumerate(rows):
        if row["phash"] != BLANK:
            tied.join(exact.setdefault(row["hash"], i), i)
    kept = lru_cache(maxsize=256)(image)  # pairs come sorted by their first row
    found = []
    for i, j in near_hash_pairs(packed([row["phash"] for row in rows]), limit).tolist():
        if tied.root(i) != tied.root(j) and is_near_duplicate(kept(i), kept(j)):
            tied.join(i, j)
            found.append((i, j))
    return found


class _Forest:
    """Union-find over rows. The root of a tree is its smallest row."""

    def __init__(self, names: Sequence[Hashable]):
        first: dict[Hashable, int] = {}
        self.up = [first.setdefault(name, i) for i, name in enumerate(names)]

    def root(self, i: int) -> int:
        while self.up[i] != i:
            self.up[i] = i = self.up[self.up[i]]
        return i

    def join(self, i: int, j: int) -> None:
        i, j = self.root(i), self.root(j)
        self.up[max(i, j)] = min(i, j)

    def names(self, who: Sequence[str]) -> list[str]:
        """For every row the smallest name in its tree."""
        roots = [self.root(i) for i in range(len(self.up))]
        least: dict[int, str] = {}
        for root, name in zip(roots, who, strict=True):
            least[root] = min(name, least.get(root, name))
        return [least[root] for root in roots]


def shared_patient_ids(rows: Sequence[Row]) -> set[str]:
    """Patients that are several people ("ANON", "0"): their scans disagree in sex and in birth date, or in one of the two
    over more than 50 studies.
    """
    sex: defaultdict[str, set[str]] = defaultdict(set)
    born: defaultdict[str, set[str]] = defaultdict(set)
    study: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row["patient_known"]:
            for seen, value in ((sex, row.get("fact:sex")), (born, row.get("born")), (study, row["study"])):
                if value:
                    seen[row["patient"]].add(value)
    torn = Counter(p for seen in (sex, born) for p, values in seen.items() if len(values) > 1)
    return {p for p, conflicts in torn.items() if conflicts == 2 or len(study[p]) > STUDIES}


def patient_identities(rows: Sequence[Row]) -> list[str]:
    """Of every row the smallest pseudonym it is tied to by patient, study and series: who it is, pixels aside.

    A patient that is several people ties nothing; its studies do, or its series, or the scan stands alone.
    """
    shared = shared_patient_ids(rows)
    who = [
        row["patient"] if row["patient"] not in shared else row["study"] or row["series"] or row["scan"] for row in rows
    ]
    tied = _Forest(who)
    for column in ("study", "series"):
        first: dict[str, int] = {}
        for i, row in enumerate(rows):
            if row[column]:
                tied.join(first.setdefault(row[column], i), i)
    return tied.names(who)


def group_scans(rows: Sequence[Row], pairs: Iterable[tuple[int, int]] = ()) -> tuple[list[str], dict[str, Any]]:
    """The group of every row: what is tied by identifiers, by equal pixels, or by a confirmed pair. And a report.

    Args:
        rows: with patient, study, series, scan, hash, phash (str), patient_known (bool), and where known born and fact:sex.
        pairs: from `confirmed`.

    Returns:
        The smallest pseudonym in each row's group, and counts: rows, groups; by: how many rows are known by their patient,
        study or file only; placeholders: patient ids that are several people; merged: identities that equal or similar
        pixels put into another one's group; largest: rows of the largest group; warning: "", or what to look at.
    """
    who = patient_identities(rows)
    tied = _Forest(who)
    exact: dict[str, int] = {}
    for i, row in enumerate(rows):
        if row["phash"] != BLANK:  # two empty images are equal without being the same scan
            tied.join(exact.setdefault(row["hash"], i), i)
    for i, j in pairs:
        tied.join(i, j)
    names = tied.names(who)
    shared = shared_patient_ids(rows)
    known = [bool(row["patient_known"]) and row["patient"] not in shared for row in rows]
    by = Counter("patient" if k else "study" if row["study"] else "file" for k, row in zip(known, rows, strict=True))
    name, largest = Counter(names).most_common(1)[0] if names else ("", 0)
    people = len({w for w, n in zip(who, names, strict=True) if n == name})
    warning = ""
    if people > 1 and largest > CHAIN * len(rows):
        warning = (
            f"{people} patients with {largest} of {len(rows)} scans are one group, tied by equal or similar images: "
            "look at some of them; images that all look alike (phantoms, blanks, masks) are better left out"
        )
    report = {
        "rows": len(rows),
        "groups": len(set(names)),
        "by": {source: by[source] for source in ("patient", "study", "file")},
        "placeholders": len(shared),
        "merged": len(set(who)) - len(set(names)),
        "largest": largest,
        "warning": warning,
    }
    return names, report
