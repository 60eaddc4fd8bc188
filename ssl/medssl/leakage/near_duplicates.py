"""Duplicates between two sets of scans: candidates by hash and by descriptor, confirmed by pixels where they can be read.

An exact duplicate has the same content hash. A near-duplicate is the same image shifted by at most 2 pixels, under a grey-value
curve, noise or compression: `is_near_duplicate`, or `small_images.classify` for tiny images; or it was transformed
(`transformed_duplicates`). Blank images are duplicates of nothing. benchmarks/quality_leaks.py and quality_transformed_copies.py
measure how many are found.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import faiss
import numpy as np
from numpy.typing import NDArray

from medssl.leakage import small_images
from medssl.leakage.hash_copies import SURE_BITS, copies_by_hash
from medssl.leakage.image_sets import ImageComparer, Rows, ScanSet, Strings
from medssl.readers.phash import BLANK, hamming, packed

BITS = 48  # candidates have hashes at most this far apart; on X-rays of 224 pixels these include every near-duplicate
NEAREST = 8  # candidates per scan by hash
NEIGHBOURS = 2  # candidates per scan by descriptor
SAMPLE = 100  # scans from which the typical excess of a set is estimated


@dataclass(frozen=True)
class Duplicates:
    """Scans of a set b that are also in a set a: row of b -> row of a. Each scan of b is in at most one of the three.

    Attributes:
        exact: the same content.
        near: confirmed by pixels; or hashes within SURE_BITS of images with texture, if the pixels of a cannot be read.
        maybe: other hashes within SURE_BITS, for example if pixels differ in detail; or images that are more alike than others,
            but not enough to be certain.
    """

    exact: dict[int, int]
    near: dict[int, int]
    maybe: dict[int, int]


def find_duplicates(
    a: ScanSet, b: ScanSet, images: ImageComparer, transformed: Mapping[str, Mapping[str, str]] = MappingProxyType({})
) -> Duplicates:
    """Find the scans of `b` that are also in `a`; if a is b, the scans that equal an earlier scan of another patient.

    Inside one set (a is b) near-duplicates are searched by hash only, and blank images are left out. Volumes whose middle slice
    is blank are compared as a whole, in `transformed`.

    Args:
        a, b: the sets.
        images: compares them.
        transformed: the copies that were transformed, see `transformed_duplicates.Transformed`.
    """
    inside = a is b
    exact = _exact(a, b, inside)
    near, maybe = _alike(a, b, exact, images)
    first = dict(zip(a.hash[::-1].tolist(), range(len(a) - 1, -1, -1), strict=True))  # the first row of each content
    for j, content in enumerate(b.hash.tolist()):
        copied = {first[h]: kind for h, kind in transformed.get(content, {}).items() if h in first and j not in exact}
        for row, kind in copied.items():
            (near if kind == "near" else maybe).setdefault(j, row)
    return Duplicates(exact, near, {j: i for j, i in maybe.items() if j not in near})


def _alike(
    a: ScanSet, b: ScanSet, exact: Mapping[int, int], images: ImageComparer
) -> tuple[dict[int, int], dict[int, int]]:
    """Return the near-duplicates, certain and possible, among images that are not blank and not `exact`."""
    inside = a is b
    first = np.sort(np.unique(a.hash, return_index=True)[1])
    rows_a = first[a.phash[first] != BLANK]
    rows_b = rows_a if inside else np.flatnonzero(b.phash != BLANK)
    rows_b = rows_b[~np.isin(rows_b, list(exact))]
    if not len(rows_a) or not len(rows_b):
        return {}, {}
    small = _SmallImageMatches() if inside else _match_small_images(a, b, rows_a, rows_b, images)
    near, maybe = small.near, small.maybe
    at = np.unique(np.concatenate([_near_by_hash(a.phash[rows_a], b.phash[rows_b]), *small.candidates]), axis=0)
    at = np.stack([rows_a[at[:, 0]], rows_b[at[:, 1]]], 1)
    if inside:
        at = np.unique(np.sort(at, 1), axis=0)
        at = at[a.patient[at[:, 0]] != a.patient[at[:, 1]]]
    bits = hamming(packed(a.phash[at[:, 0]].tolist()), packed(b.phash[at[:, 1]].tolist()))
    order = np.lexsort((at[:, 0], bits, at[:, 1]))
    for (i, j), apart in zip(at[order].tolist(), bits[order].tolist(), strict=True):
        if j not in near:
            if (i, j) not in small.decided and images.are_near_duplicates(a.hash[i], b.hash[j]):
                near[j] = i
            elif apart <= SURE_BITS:
                maybe.setdefault(j, i)
    for j, (i, certain) in ({} if inside else copies_by_hash(a, b, rows_a, rows_b, images)).items():
        (near if certain else maybe).setdefault(j, i)
    return near, maybe


@dataclass
class _SmallImageMatches:
    """The duplicates found by comparing small images; near, maybe: as in `Duplicates`.

    candidates: (P, 2) positions still to be compared by pixels; decided: (row of a, row of b) not to be compared.
    """

    near: dict[int, int] = field(default_factory=dict)
    maybe: dict[int, int] = field(default_factory=dict)
    candidates: list[Rows] = field(default_factory=list)
    decided: set[tuple[int, int]] = field(default_factory=set)


def _match_small_images(
    a: ScanSet, b: ScanSet, rows_a: Rows, rows_b: Rows, images: ImageComparer
) -> _SmallImageMatches:
    out = _SmallImageMatches()
    at_a, x_a = images.descriptors(a.hash[rows_a])
    at_b, x_b = images.descriptors(b.hash[rows_b], shifted=True)
    if not len(at_a) or not len(at_b):
        return out
    typical = _typical_excess(a, rows_a[at_a], x_a, images)
    for at, found in zip(at_b.tolist(), small_images.nearest_candidates(x_a, x_b), strict=True):
        j, near = int(rows_b[at]), at_a[found]
        comparable = images.has_likelihood(b.hash[j])
        tiny = [i for i in near.tolist() if comparable and images.has_likelihood(a.hash[rows_a[i]])]
        near = near[:NEIGHBOURS]
        if tiny:
            ratios = images.log_likelihood_ratio(a.hash[rows_a[tiny]].tolist(), b.hash[j])
            best, kind = small_images.classify(*ratios, typical)
            if kind == "near":
                out.near[j] = int(rows_a[tiny[best]])
            elif kind == "maybe":
                out.maybe[j] = int(rows_a[tiny[best]])
            elif kind == "compare":
                near = np.append(near, tiny.pop(best))
            out.decided |= {(int(rows_a[i]), j) for i in tiny}
        out.candidates.append(np.stack([near, np.full_like(near, at)], 1))
    return out


def _typical_excess(a: ScanSet, rows: Rows, descriptors: NDArray[np.float32], images: ImageComparer) -> float:
    """Return the upper quartile of `small_images.excess` of tiny scans of a set over its other patients, without copies."""
    tiny = [int(i) for i in np.flatnonzero([images.has_likelihood(h) for h in a.hash[rows].tolist()])]
    tiny = [tiny[i] for i in np.unique(np.linspace(0, len(tiny) - 1, min(SAMPLE, len(tiny))).astype(int))]
    if not tiny:
        return 0.0
    shifted = images.descriptors(a.hash[rows[tiny]], shifted=True)[1]
    found = []
    for i, near in zip(tiny, small_images.nearest_candidates(descriptors, shifted), strict=True):
        others = [str(a.hash[j]) for j in rows[near] if a.patient[j] != a.patient[rows[i]]]
        others = [h for h in others if images.has_likelihood(h)]
        if len(others) > small_images.RUNNER_UP:
            ratios, correlation, frequencies = images.log_likelihood_ratio(others, str(a.hash[rows[i]]))
            if small_images.classify(ratios, correlation, frequencies, 0.0)[1] != "near":
                found.append(small_images.excess(ratios, frequencies))
    return float(np.percentile(found, 75)) if found else 0.0


def _exact(a: ScanSet, b: ScanSet, inside: bool) -> dict[int, int]:
    """Return row of b -> first row of a with equal content; inside one set, an earlier row of another patient."""
    same: dict[str, list[int]] = {}
    for i, (content, blank) in enumerate(zip(a.hash.tolist(), (a.phash == BLANK).tolist(), strict=True)):
        if not blank:
            same.setdefault(content, []).append(i)
    if not inside:
        return {j: same[h][0] for j, h in enumerate(b.hash.tolist()) if h in same}
    found = {}
    for rows in same.values():
        others = [i for i in rows if a.patient[i] != a.patient[rows[0]]]
        for j in rows[1:]:
            i = rows[0] if a.patient[j] != a.patient[rows[0]] else (others or [j])[0]
            if i < j:
                found[j] = i
    return found


def _near_by_hash(a: Strings, b: Strings) -> Rows:
    """Return positions (P, 2) in a and b of hashes at most BITS apart, among the NEAREST of each of b; exact search."""
    index = faiss.IndexBinaryFlat(256)
    index.add(packed(a.tolist()))
    bits, found = index.search(packed(b.tolist()), min(NEAREST, len(a)))
    return np.stack([found[bits <= BITS], np.nonzero(bits <= BITS)[0]], 1).astype(np.int64)
