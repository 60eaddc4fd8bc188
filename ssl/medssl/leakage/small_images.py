"""Copies among images of few pixels, where noise and compression hide what `groups.similar` looks at.

All is done on a canvas of 28 x 28 pixels, the one image at 25 shifts of its own pixels. Candidates are the nearest by `outline`;
`evidence` says how much better one image explains the other than two different scans would. Sizes and limits were chosen on
chest X-rays of 28 pixels (benchmarks/quality_leaks.py).
"""

from dataclasses import dataclass
from functools import lru_cache

import faiss
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.signal.windows import tukey

Floats = NDArray[np.floating]

SIDE = 28  # pixels of the canvas
MARGIN = 2  # of these at each side that are not compared: a shift brings in something else there
REACH = 2  # pixels of the image by which it may be shifted, each way
SOFT = 0.35  # share of each axis that the window softens
COARSE = 4  # cycles per image up to which an outline looks
FINE = 13  # and up to which evidence does
EXACT = 1e-4  # of the power of both: differences below this are the same as none
CANDIDATES = 10  # nearest outlines that are looked at
RIVAL = 3  # the candidate whose evidence counts as that of another scan: up to so many near-copies may be in one set
# nats above that rival's, of images of 28 pixels, and times what is usual among scans of one set (where images are simple,
# chance alone makes two of them alike): how many false pairs that leaves is in benchmarks/results/
PERHAPS, SURELY = 95.0, 150.0
TIMES_PERHAPS, TIMES_SURELY = 3.5, 5.5
LEAST = 200.0  # nats without which nothing is sure
# correlations without which nothing is perhaps, or surely, a copy: noise may hide another scan
MAYBE_ALIKE, ALIKE = 0.8, 0.9
ALONE = 600.0  # nats which need no rival
FLAT = 0.5  # share of pixels of one value above which an image is a shape on a background, for which none of this was tried


@lru_cache(maxsize=256)
def _weights(n: int, shift: int) -> NDArray[np.float32]:
    """(SIDE, n): cubic interpolation (Keys, 1981, a = -1/2) at `shift` pixels further on, wider where it shrinks."""
    step = n / SIDE
    centre = np.clip((np.arange(SIDE) + 0.5) * step - 0.5 + shift, 0, n - 1)
    d = np.abs(np.arange(n) - centre[:, None]) / max(step, 1.0)
    w = np.where(d < 1, (1.5 * d - 2.5) * d * d + 1, np.where(d < 2, ((2.5 - 0.5 * d) * d - 4) * d + 2, 0))
    return (w / w.sum(1, keepdims=True)).astype(np.float32)


def resampled(image: Floats) -> NDArray[np.float32]:
    """(H, W) in the unit range -> (SIDE, SIDE)."""
    return _weights(image.shape[0], 0) @ np.asarray(image, np.float32) @ _weights(image.shape[1], 0).T


def shifted(image: Floats) -> NDArray[np.float32]:
    """(H, W) -> ((2 REACH + 1)^2, SIDE, SIDE): the canvas, seen from up to REACH pixels up and left to as many down and right."""
    reach = range(-REACH, REACH + 1)
    columns = [np.asarray(image, np.float32) @ _weights(image.shape[1], right).T for right in reach]
    return np.stack([_weights(image.shape[0], down) @ c for down in reach for c in columns])


def detail(image: Floats) -> int:
    """Cycles per image up to which so few pixels show anything."""
    return int(np.clip(min(image.shape) // 2 - 1, 1, FINE))


def telling(image: Floats) -> bool:
    """Whether an image is more than a shape on a background."""
    return bool(np.unique(image, return_counts=True)[1].max() <= FLAT * image.size)


@dataclass(frozen=True)
class Sketch:
    """What is kept of a small image: its outline (D,) and, where `evidence` can judge it, its canvas; see `detail` for rings."""

    outline: NDArray[np.float32]
    resampled: NDArray[np.float16] | None
    rings: int

    @classmethod
    def of(cls, image: Floats, largest: int) -> "Sketch":
        """From (H, W) in the unit range; judged are images of at most `largest` pixels that are `telling`."""
        x = resampled(image)
        judged = max(image.shape) <= largest and telling(image)
        return cls(outline(x), x.astype(np.float16) if judged else None, detail(image))


_INNER = SIDE - 2 * MARGIN
_WINDOW = np.outer(tukey(_INNER, SOFT), tukey(_INNER, SOFT))
_Y, _X = np.meshgrid(*2 * [np.fft.fftfreq(_INNER) * SIDE], indexing="ij")  # cycles per canvas
_RADIUS = np.hypot(_Y, _X)
_HALF = (_X > 0) | ((_X == 0) & (_Y > 0))  # of a real image's spectrum the other half says nothing new


def _spectrum(x: Floats) -> NDArray[np.complex128]:
    x = x - (x * _WINDOW).sum((-2, -1), keepdims=True) / _WINDOW.sum()
    return np.fft.fft2(x * _WINDOW)


def _inside(x: Floats) -> Floats:
    return x[..., MARGIN:-MARGIN, MARGIN:-MARGIN]


def outline(x: Floats) -> NDArray[np.float32]:
    """(..., SIDE, SIDE) canvases -> (..., D) of length 1: low frequencies, after the power curve that makes the median 1/2."""
    middle = np.clip(np.median(x, (-2, -1), keepdims=True), 0.02, 0.98)
    low = _HALF & (_RADIUS <= COARSE)
    z = _spectrum(_inside(np.clip(x, 1e-3, 1) ** (np.log(0.5) / np.log(middle))))[..., low] * np.sqrt(_RADIUS[low])
    z = np.concatenate([z.real, z.imag], -1)
    return (z / np.maximum(np.linalg.norm(z, axis=-1, keepdims=True), 1e-9)).astype(np.float32)


def nearest(a: NDArray[np.float32], b: NDArray[np.float32]) -> list[NDArray[np.int64]]:
    """Of outlines a (N, D) the CANDIDATES nearest to each of b (M, S, D) at the best of S shifts, nearest first."""
    index = faiss.IndexFlatIP(a.shape[1])
    index.add(np.ascontiguousarray(a))
    k, out = min(CANDIDATES, len(a)), []
    for start in range(0, len(b), 1024):
        part = np.ascontiguousarray(b[start : start + 1024])
        cosine, found = (x.reshape(len(part), -1) for x in index.search(part.reshape(-1, part.shape[-1]), k))
        rows = np.take_along_axis(found, np.argsort(-cosine, axis=1, kind="stable"), axis=1)
        out += [row[np.sort(np.unique(row, return_index=True)[1])[:k]] for row in rows]
    return out


_RING = np.where(_HALF & (_RADIUS < FINE + 0.5), np.round(_RADIUS), 0).astype(int).ravel()
_IN_RING = np.stack([r == _RING for r in range(1, FINE + 1)], 1).astype(np.float64)  # (_INNER^2, FINE)
COUNT = _IN_RING.sum(0)  # frequencies in each ring


def _power(x: Floats) -> Floats:
    """(N, _INNER, _INNER) -> (N, FINE), mean over each ring of frequencies."""
    z = _spectrum(x)
    return (z.real**2 + z.imag**2).reshape(len(x), -1) @ (_IN_RING / COUNT)


def evidence(a: Floats, b: Floats, rings: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Log likelihood ratio (N,), in nats, that canvases b (N, SIDE, SIDE) show the scans of a (N, SIDE, SIDE); correlation (N,).

    b takes the histogram of a, so that no monotone grey curve matters. If it is a copy, the difference is noise, of
    compression or of a scanner, whose power per frequency R does not fall as frequencies rise; if it is another scan, the
    powers of both add up to P. Frequencies are taken as normal and independent, those of one ring as equally strong: the
    log ratio is the sum over rings of count * log(P / N), N the isotonic fit to R. rings: (N,) how many rings count.
    """
    x, y = _inside(a).astype(np.float64), _inside(b)
    flat = y.reshape(len(y), -1)
    taken = np.empty(flat.shape)
    np.put_along_axis(taken, np.argsort(flat, 1, kind="stable"), np.sort(x.reshape(len(x), -1), 1), 1)
    y = taken.reshape(x.shape)
    both = _power(x) + _power(y) + 1e-12
    noise = np.array([isotonic_regression(r, weights=COUNT).x for r in _power(y - x) + EXACT * both])
    gain = COUNT * np.log(both / np.minimum(noise, both))
    u, v = (i.reshape(len(i), -1) - i.mean((1, 2))[:, None] for i in (x, y))
    alike = (u * v).sum(1) / np.maximum(np.sqrt((u * u).sum(1) * (v * v).sum(1)), 1e-12)
    return (gain * (np.arange(1, FINE + 1) <= rings[:, None])).sum(1), alike


def scale(rings: int) -> float:
    """How far evidence spreads, in units of its spread at 28 pixels: as the root of the number of frequencies."""
    return float(np.sqrt(COUNT[:rings].sum() / COUNT.sum()))


def excess(found: Floats, rings: int) -> float:
    """By how much, over `scale`, the best evidence of (K,) exceeds the rest (its RIVAL-th next); 0 for fewer candidates."""
    return float(found.max() - np.sort(found)[-1 - RIVAL]) / scale(rings) if len(found) > RIVAL else 0.0


def verdict(found: Floats, alike: Floats, rings: int, usual: float) -> tuple[int, str]:
    """Of the evidence (K,) and correlation (K,) of one image's candidates: which is its copy, and whether "near", "maybe" or "".

    The images of one organ are all alike, so what counts is `excess`. "look": so many are so like it that they may be
    copies as well, and only a look at their pixels can tell. usual: the upper quartile of the excess of scans that are no copies.
    """
    best, above = int(found.argmax()), excess(found, rings)
    top = float(found[best]) / scale(rings)
    clear = above >= max(SURELY, TIMES_SURELY * usual) and top >= LEAST
    if (clear or top >= ALONE) and alike[best] >= ALIKE:
        return best, "near"
    maybe = above >= max(PERHAPS, TIMES_PERHAPS * usual) and alike[best] >= MAYBE_ALIKE
    return best, "maybe" if maybe else "look" if top >= LEAST else ""
