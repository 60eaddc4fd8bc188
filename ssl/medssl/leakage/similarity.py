"""Near-duplicates within one set of images: candidates by perceptual hash, confirmed by comparing pixels."""

import numpy as np
from scipy.ndimage import uniform_filter

from medssl.readers.phash import FLAT, resize_weights, thumbnail

NEAR = 40  # bits; the 99th percentile under shift, gamma curve, noise and JPEG together, see readers/phash.py
CHUNKS, ROUNDS = 16, 4  # hashes that agree in one of 4 * 16 chunks of 16 bits are compared
MAX_NEAR = 64  # near rows after which a row is not compared further, so that thousands of look-alikes stay affordable
CORRELATION, DETAIL_CORRELATION = 0.98, 0.85  # minimum for two thumbnails, and for both without low frequencies
REACH = 2  # pixels that one of two equal images may be shifted by, in each direction
EDGE = 4  # pixels of 64 excluded on each side, where a shift brings in other content


def near_hash_pairs(hashes: np.ndarray, limit: int = NEAR) -> np.ndarray:
    """Return the pairs of rows whose hashes differ in at most `limit` bits.

    Multi-index hashing (Norouzi, Punjani and Fleet, CVPR 2012): the bits are divided into 16 chunks of 16, in 4 orders, and
    rows that share a chunk are compared. By the pigeonhole principle every pair at most 15 bits apart is found; of pairs 36
    bits apart 1 in 200 is missed, of pairs 40 bits apart 1 in 100. Blank hashes are near nothing. Rows with the same hash are
    paired only with the first of them, and a row with 64 near rows is not compared further. Mirrored and inverted copies are
    not searched: right lungs look like mirrored left lungs, and exporters do not mirror.

    Args:
        hashes: (N, 32) uint8.
        limit: bits.

    Returns:
        (P, 2) int64, rows i < j, sorted.
    """
    rows = np.flatnonzero(hashes.any(1))
    if len(rows) < 2:
        return np.empty((0, 2), np.int64)
    unique, first, index = np.unique(hashes[rows], axis=0, return_index=True, return_inverse=True)
    equal = np.stack([rows[first[index.ravel()]], rows], 1)
    n = len(unique)
    words = np.ascontiguousarray(unique).view(np.uint64)
    bits = np.unpackbits(unique, axis=1)
    found = np.empty(0, np.int64)  # i * n + j, indices into `unique`
    for seed in range(ROUNDS):
        order = np.random.default_rng(seed).permutation(256)
        shuffled = np.ascontiguousarray(np.packbits(bits[:, order], axis=1)).view(np.uint16)
        for chunk in range(CHUNKS):
            near = np.bincount(found // n, minlength=n)
            found = np.sort(np.concatenate([found, _near_with_equal_key(shuffled[:, chunk], words, limit, near)]))
            found = found[np.diff(found, prepend=-1) > 0]
    i, j = first[found // n], first[found % n]
    pairs = np.concatenate([equal[equal[:, 0] != equal[:, 1]], np.sort(np.stack([rows[i], rows[j]], 1), 1)])
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))].astype(np.int64)


def _near_with_equal_key(key: np.ndarray, words: np.ndarray, limit: int, near: np.ndarray) -> np.ndarray:
    """Return i * n + j, i < j, of near rows with equal keys. near: how many near rows each row has already."""
    n = len(key)
    order = np.argsort(key, kind="stable")
    key, near = key[order], near[order]
    at, hits = np.arange(n), []
    for step in range(1, n):
        at = at[: np.searchsorted(at, n - step)]
        at = at[(key[at] == key[at + step]) & (near[at] < MAX_NEAR)]
        if not len(at):
            break
        i, j = order[at], order[at + step]
        close = np.bitwise_count(words[i] ^ words[j]).sum(1) <= limit
        near[at] += close
        hits.append(i[close] * n + j[close])
    return np.concatenate(hits) if hits else np.empty(0, np.int64)


def is_near_duplicate(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether two images show the same scan, shifted by at most 2 pixels or under a mild grey-value curve.

    Both are shrunk to 64 x 64, the one with fewer pixels at 25 shifts. At the best shift they must correlate by 0.98, and by
    0.85 without their low frequencies (minus the mean over 7 x 7). For volumes the slices at a quarter, half and three
    quarters must all agree.

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
    return _correlation(x, y) >= CORRELATION and _correlation(_detail(x), _detail(y)) >= DETAIL_CORRELATION


def _detail(x: np.ndarray) -> np.ndarray:
    return x - uniform_filter(x, 7)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / max(float(np.sqrt((x * x).sum() * (y * y).sum())), 1e-12))
