"""Copies of scans between two sets: candidates by hash, by pixels and by embedding, confirmed by pixels where they can be read.

An exact copy has the same content hash. A near-copy is the same image shifted by at most 2 pixels, under any grey curve, with
noise and compression: `groups.similar`, or of tiny images `small_images.verdict`. Blank images are copies of nothing. How much is
found: benchmarks/quality_leaks.py.
"""

from dataclasses import dataclass, field

import faiss
import numpy as np
from numpy.typing import NDArray

from medssl.leakage import small_images
from medssl.leakage.image_sets import ImageComparer, Rows, ScanSet, Strings
from medssl.readers.phash import BLANK, hamming, packed

BITS = 48  # hashes that near make a candidate; on X-rays of 224 pixels every near-copy that `similar` confirms is one
SURE = 32  # bits within which a pair deserves a look, whatever its pixels say: no X-rays of two patients were so near
NEAREST = 8  # hashes looked at per scan
SAMPLE = 100  # scans of a set that say what is usual in it
NEIGHBOURS = 2  # looked at per scan, by outline and by embedding
COSINE = 0.9  # of embeddings minus their mean; less is not worth a look at the pixels


@dataclass(frozen=True)
class Duplicates:
    """Scans of a set b that are in a set a too: row of b -> row of a. Each scan of b is in one of the three at most.

    exact: same content. near: confirmed by pixels. maybe: hashes within SURE bits, and pixels that cannot be read or differ in
    detail; or tiny images that are more alike than others, and not enough to be sure.
    """

    exact: dict[int, int]
    near: dict[int, int]
    maybe: dict[int, int]


def find_duplicates(
    a: ScanSet, b: ScanSet, images: ImageComparer, features: tuple[np.ndarray, np.ndarray] | None = None
) -> Duplicates:
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
    if not len(rows_a) or not len(rows_b):
        return Duplicates(exact, {}, {})
    pairs = [_by_hash(a.phash[rows_a], b.phash[rows_b])]
    found = _Small() if inside else _small(a, b, rows_a, rows_b, images)
    near, maybe = found.near, found.maybe
    pairs += found.pairs
    if features is not None and not inside:
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
            if (i, j) not in found.judged and images.alike(a.hash[i], b.hash[j]):
                near[j] = i
            elif apart <= SURE:
                maybe.setdefault(j, i)
    return Duplicates(exact, near, {j: i for j, i in maybe.items() if j not in near})


@dataclass
class _Small:
    """What small images say at once. pairs: (P, 2) positions that deserve a look; judged: (row of a, row of b) that do not."""

    near: dict[int, int] = field(default_factory=dict)
    maybe: dict[int, int] = field(default_factory=dict)
    pairs: list[Rows] = field(default_factory=list)
    judged: set[tuple[int, int]] = field(default_factory=set)


def _small(a: ScanSet, b: ScanSet, rows_a: Rows, rows_b: Rows, images: ImageComparer) -> _Small:
    out = _Small()
    (at_a, x_a), (at_b, x_b) = images.outlines(a.hash[rows_a]), images.outlines(b.hash[rows_b], shifted=True)
    if not len(at_a) or not len(at_b):
        return out
    usual = _usual(a, rows_a[at_a], x_a, images)
    for at, found in zip(at_b.tolist(), small_images.nearest(x_a, x_b), strict=True):
        j, some = int(rows_b[at]), at_a[found]
        tell = [i for i in some.tolist() if images.is_tiny(a.hash[rows_a[i]])] if images.is_tiny(b.hash[j]) else []
        some = some[:NEIGHBOURS]
        if tell:
            best, kind = small_images.verdict(*images.weigh(a.hash[rows_a[tell]].tolist(), b.hash[j]), usual)
            {"near": out.near, "maybe": out.maybe}.get(kind, {})[j] = int(rows_a[tell[best]])
            if kind == "look":
                some = np.append(some, tell.pop(best))
            out.judged |= {(int(rows_a[i]), j) for i in tell}
        out.pairs.append(np.stack([some, np.full_like(some, at)], 1))
    return out


def _usual(a: ScanSet, rows: Rows, outlines: NDArray[np.float32], images: ImageComparer) -> float:
    """The upper quartile of `small_images.excess` of some tiny scans of a set over its other patients, clear copies left out."""
    some = [int(i) for i in np.flatnonzero([images.is_tiny(h) for h in a.hash[rows].tolist()])]
    some = [some[i] for i in np.unique(np.linspace(0, len(some) - 1, min(SAMPLE, len(some))).astype(int))]
    if not some:
        return 0.0
    shifts = images.outlines(a.hash[rows[some]], shifted=True)[1]
    found = []
    for i, near in zip(some, small_images.nearest(outlines, shifts), strict=True):
        others = [h for j in rows[near] if a.patient[j] != a.patient[rows[i]] and images.is_tiny(h := str(a.hash[j]))]
        if len(others) > small_images.RIVAL:
            evidence, alike, rings = images.weigh(others, str(a.hash[rows[i]]))
            if small_images.verdict(evidence, alike, rings, 0.0)[1] != "near":
                found.append(small_images.excess(evidence, rings))
    return float(np.percentile(found, 75)) if found else 0.0


def _exact(a: ScanSet, b: ScanSet, inside: bool) -> dict[int, int]:
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
