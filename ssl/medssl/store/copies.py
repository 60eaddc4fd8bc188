"""Copies of scans between two sets: candidates by hash, by pixels and by embedding, confirmed by pixels where they can be read.

An exact copy has the same content hash. A near-copy is the same image shifted by at most 2 pixels, under any grey curve, with
noise and compression: `groups.similar`, or of tiny images `tiny.verdict`. Blank images are copies of nothing. How much is
found: benchmarks/quality_leaks.py.
"""

import zipfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from medssl.errors import UserError
from medssl.files import atomic
from medssl.scans.phash import BLANK, hamming, packed
from medssl.store import tiny
from medssl.store.groups import similar

Strings = NDArray[np.str_]
Rows = NDArray[np.int64]

BITS = 48  # hashes that near make a candidate; on X-rays of 224 pixels every near-copy that `similar` confirms is one
SURE = 32  # bits within which a pair deserves a look, whatever its pixels say: no X-rays of two patients were so near
NEAREST = 8  # hashes looked at per scan
SMALL = 224  # pixels of the longest side below which a shift by two pixels is too much for the hash
TINY = 64  # pixels up to which noise and compression hide a copy from `similar`
SAMPLE = 100  # scans of a set that say what is usual in it
NEIGHBOURS = 2  # looked at per scan, by outline and by embedding
COSINE = 0.9  # of embeddings minus their mean; less is not worth a look at the pixels
CACHED = 512  # images in memory
VERSION = 1  # of `similar`: answers of another one are forgotten


@dataclass(frozen=True)
class Scans:
    """One set of scans on the way to a score, as plain arrays.

    Attributes:
        name: what it is called in sentences: "pretraining", "training", "validation", "test".
        key: id of the key that its pseudonyms were made with.
        patient, scan, hash, phash: (N,) str, as in a store's manifest.
        named: (N,) bool, whether the source says who the patient is.
        edge: (N,) int64, pixels of the image's longest side; 0 where the image cannot be read.
        image: row -> (H, W) in the unit range, of a volume the middle slice; None where that fails.
    """

    name: str
    key: str
    patient: Strings
    scan: Strings
    hash: Strings
    phash: Strings
    named: NDArray[np.bool_]
    edge: Rows
    image: Callable[[int], np.ndarray | None] | None = None

    def __len__(self) -> int:
        return len(self.hash)


@dataclass(frozen=True)
class Copies:
    """Scans of a set b that are in a set a too: row of b -> row of a. Each scan of b is in one of the three at most.

    exact: same content. near: confirmed by pixels. maybe: hashes within SURE bits, and pixels that cannot be read or differ in
    detail; or tiny images that are more alike than others, and not enough to be sure.
    """

    exact: dict[int, int]
    near: dict[int, int]
    maybe: dict[int, int]


@dataclass(frozen=True)
class Sketch:
    """What is kept of a small image: its outline (D,) and, where `tiny.evidence` can judge it, its canvas (float16)."""

    outline: NDArray[np.float32]
    canvas: NDArray[np.float16] | None
    rings: int


class Images:
    """Pixels by content hash, read through whichever set can read them; remembers which pairs are alike.

    kept: a file, which may always be deleted, of what earlier comparisons found; `keep` adds those since then.
    """

    def __init__(self, sets: Iterable[Scans], kept: Path | None = None):
        self._at: dict[str, tuple[Callable[[int], np.ndarray | None], int]] = {}
        self._small: set[str] = set()
        for part in sets:
            if part.image is not None:
                for row, (content, edge) in enumerate(zip(part.hash.tolist(), part.edge.tolist(), strict=True)):
                    if edge:
                        self._at.setdefault(content, (part.image, row))
                    if 0 < edge < SMALL:
                        self._small.add(content)
        self._read = lru_cache(maxsize=CACHED)(self._fresh)
        self._kept, self._alike = kept, _remembered(kept)
        self._known = len(self._alike)
        self._sketches: dict[str, Sketch | None] = {}
        self._shifted: dict[str, NDArray[np.float32]] = {}

    def _fresh(self, content: str) -> np.ndarray | None:
        image, row = self._at.get(content, (None, 0))
        return None if image is None else image(row)

    def unreadable(self, hashes: Strings) -> int:
        """How many of these contents no set can read."""
        return sum(h not in self._at for h in hashes.tolist())

    def alike(self, a: str, b: str) -> bool:
        """Whether the images of two content hashes can be read and are `similar`."""
        pair = (a, b) if a < b else (b, a)
        if pair not in self._alike:
            x, y = map(self._read, pair)
            if x is None or y is None:
                return False
            self._alike[pair] = similar(x, y)
        return self._alike[pair]

    def keep(self) -> None:
        """Writes what was compared, where that can be written."""
        if self._kept is not None and len(self._alike) > self._known:
            pairs = np.array(sorted(self._alike), str).reshape(-1, 2)
            answers = np.array([self._alike[a, b] for a, b in pairs.tolist()], bool)
            with suppress(UserError, OSError), atomic(self._kept) as part, part.open("wb") as f:
                np.savez_compressed(f, version=VERSION, pairs=pairs, answers=answers)

    def outlines(self, hashes: Strings, shifted: bool = False) -> tuple[Rows, NDArray[np.float32]]:
        """Positions (S,) of the small images that can be read, and their outlines, (S, D) or at all shifts (S, 25, D)."""
        at = [i for i, content in enumerate(hashes.tolist()) if self.sketch(content)]
        of = self._shifts if shifted else self._outline
        found = [of(h) for h in hashes[at].tolist()]
        return np.array(at, np.int64), np.array(found, np.float32)

    def sketch(self, content: str) -> Sketch | None:
        """None for an image that is large or cannot be read."""
        if content not in self._small:
            return None
        if content not in self._sketches:
            image = self._fresh(content)
            self._sketches[content] = None if image is None else _sketch(image)
        return self._sketches[content]

    def _outline(self, content: str) -> NDArray[np.float32]:
        found = self.sketch(content)
        assert found is not None
        return found.outline

    def _canvas(self, content: str) -> tuple[NDArray[np.float16], int]:
        found = self.sketch(content)
        assert found is not None
        assert found.canvas is not None
        return found.canvas, found.rings

    def _shifts(self, content: str) -> NDArray[np.float32]:
        if content not in self._shifted:
            image = self._fresh(content)
            assert image is not None  # it was read before
            self._shifted[content] = tiny.outline(tiny.shifted(image))
        return self._shifted[content]

    def tiny(self, content: str) -> bool:
        """Whether `weigh` can weigh it."""
        found = self.sketch(content)
        return found is not None and found.canvas is not None

    def weigh(self, a: Sequence[str], b: str) -> tuple[NDArray[np.floating], NDArray[np.floating], int]:
        """`tiny.evidence` that the tiny image b shows the scan of each of the tiny images `a`; rings of the poorest of them."""
        image, some, own = self._read(b), [self._canvas(h) for h in a], self._canvas(b)
        assert image is not None
        shift = (self._shifts(b) @ np.stack([self._outline(h) for h in a]).T).argmax(0)
        rings = np.minimum([r for _, r in some], own[1])
        return *tiny.evidence(np.stack([c for c, _ in some]), tiny.shifted(image)[shift], rings), int(rings.min())


def _sketch(image: np.ndarray) -> Sketch:
    x = tiny.canvas(image)
    judged = max(image.shape) <= TINY and tiny.telling(image)
    return Sketch(tiny.outline(x), x.astype(np.float16) if judged else None, tiny.detail(image))


def _remembered(kept: Path | None) -> dict[tuple[str, str], bool]:
    """Absent, damaged and of another version are the same: nothing is known."""
    with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        if kept is not None:
            with np.load(kept, allow_pickle=False) as f:
                if f["version"] == VERSION:
                    return {(a, b): bool(x) for (a, b), x in zip(f["pairs"].tolist(), f["answers"], strict=True)}
    return {}


def copies(a: Scans, b: Scans, images: Images, features: tuple[np.ndarray, np.ndarray] | None = None) -> Copies:
    """Of each scan of `b` whether `a` has it; of a is b, whether an earlier scan of another patient is the same.

    Args:
        a, b: the sets.
        images: of both, and of what else can be read.
        features: (len(a), D) and (len(b), D) embeddings, for further candidates.

    Inside one set (a is b) near-copies are looked for by hash alone.
    """
    inside = a is b
    exact = _exact(a, b, inside)
    first = np.sort(np.unique(a.hash, return_index=True)[1])
    rows_a = first[a.phash[first] != BLANK]
    rows_b = rows_a if inside else np.flatnonzero(b.phash != BLANK)
    rows_b = rows_b[~np.isin(rows_b, list(exact))]
    near: dict[int, int] = {}
    maybe: dict[int, int] = {}
    if not len(rows_a) or not len(rows_b):
        return Copies(exact, near, maybe)
    pairs = [_by_hash(a.phash[rows_a], b.phash[rows_b])]
    judged: set[tuple[int, int]] = set()
    if not inside:
        (at_a, x_a), (at_b, x_b) = images.outlines(a.hash[rows_a]), images.outlines(b.hash[rows_b], shifted=True)
        usual = _usual(a, rows_a[at_a], x_a, images) if len(at_b) else 0.0
        for at, found in zip(at_b.tolist(), tiny.nearest(x_a, x_b) if len(at_a) else (), strict=False):
            j, some = int(rows_b[at]), at_a[found]
            tell = [i for i in some.tolist() if images.tiny(a.hash[rows_a[i]]) and images.tiny(b.hash[j])]
            some = some[:NEIGHBOURS]
            if len(tell) > tiny.RIVAL:
                best, kind = tiny.verdict(*images.weigh(a.hash[rows_a[tell]].tolist(), b.hash[j]), usual)
                {"near": near, "maybe": maybe}.get(kind, {})[j] = int(rows_a[tell[best]])
                if kind == "look":
                    some = np.append(some, tell.pop(best))
                judged |= {(int(rows_a[i]), j) for i in tell}
            pairs.append(np.stack([some, np.full_like(some, at)], 1))
        if features is not None:
            pairs.append(_by_cosine(features[0][rows_a], features[1][rows_b], COSINE))
    at = np.unique(np.concatenate(pairs), axis=0)
    at = np.stack([rows_a[at[:, 0]], rows_b[at[:, 1]]], 1)
    if inside:
        at = np.unique(np.sort(at, 1), axis=0)
        at = at[a.patient[at[:, 0]] != a.patient[at[:, 1]]]
    bits = hamming(packed(a.phash[at[:, 0]].tolist()), packed(b.phash[at[:, 1]].tolist()))
    order = np.lexsort((at[:, 0], bits, at[:, 1]))
    for (i, j), apart in zip(at[order].tolist(), bits[order].tolist(), strict=True):
        if j not in near:
            if (i, j) not in judged and images.alike(a.hash[i], b.hash[j]):
                near[j] = i
            elif apart <= SURE:
                maybe.setdefault(j, i)
    return Copies(exact, near, {j: i for j, i in maybe.items() if j not in near})


def _usual(a: Scans, rows: Rows, outlines: NDArray[np.float32], images: Images) -> float:
    """The upper quartile of `tiny.excess` of some tiny scans of a set over its other patients, clear copies left out."""
    some = [int(i) for i in np.flatnonzero([images.tiny(h) for h in a.hash[rows].tolist()])]
    some = [some[i] for i in np.unique(np.linspace(0, len(some) - 1, min(SAMPLE, len(some))).astype(int))]
    if not some:
        return 0.0
    shifts = images.outlines(a.hash[rows[some]], shifted=True)[1]
    found = []
    for i, near in zip(some, tiny.nearest(outlines, shifts), strict=True):
        others = [h for j in rows[near] if a.patient[j] != a.patient[rows[i]] and images.tiny(h := str(a.hash[j]))]
        if len(others) > tiny.RIVAL:
            evidence, alike, rings = images.weigh(others, str(a.hash[rows[i]]))
            if tiny.verdict(evidence, alike, rings, 0.0)[1] != "near":
                found.append(tiny.excess(evidence, rings))
    return float(np.percentile(found, 75)) if found else 0.0


def _exact(a: Scans, b: Scans, inside: bool) -> dict[int, int]:
    """Row of b -> the first row of a with its content; inside one set the first of another patient, if before it."""
    seen: dict[str, list[int]] = {}
    for i, (content, blank) in enumerate(zip(a.hash.tolist(), (a.phash == BLANK).tolist(), strict=True)):
        if not blank:
            seen.setdefault(content, []).append(i)
    if not inside:
        return {j: seen[h][0] for j, h in enumerate(b.hash.tolist()) if h in seen}
    found = {}
    for rows in seen.values():
        others = [i for i in rows if a.patient[i] != a.patient[rows[0]]]
        for j in rows[1:]:
            i = rows[0] if a.patient[j] != a.patient[rows[0]] else (others or [j])[0]
            if i < j:
                found[j] = i
    return found


def _by_hash(a: Strings, b: Strings) -> Rows:
    """(P, 2) positions in a and in b of hashes at most BITS apart, the NEAREST of each of b: exact search."""
    index = faiss.IndexBinaryFlat(256)
    index.add(packed(a.tolist()))
    bits, found = index.search(packed(b.tolist()), min(NEAREST, len(a)))
    return np.stack([found[bits <= BITS], np.nonzero(bits <= BITS)[0]], 1).astype(np.int64)


def _by_cosine(a: NDArray[np.float32], b: NDArray[np.float32], least: float) -> Rows:
    """(P, 2) positions in a and b, the NEIGHBOURS of each of b whose cosine, the mean of a being taken off, is `least`."""
    centre = a.mean(0, dtype=np.float64)
    a, b = (np.ascontiguousarray(x - centre, np.float32) for x in (a, b))
    faiss.normalize_L2(a)
    faiss.normalize_L2(b)
    index = faiss.IndexFlatIP(a.shape[1])
    index.add(a)
    cosine, found = index.search(b, min(NEIGHBOURS, len(a)))
    return np.stack([found[cosine >= least], np.nonzero(cosine >= least)[0]], 1).astype(np.int64)
