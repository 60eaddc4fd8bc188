"""Near-duplicates among small images, where noise and compression hide the detail that `is_near_duplicate` compares.

Images are resampled to a grid of 28 x 28 pixels, one of them at 25 shifts of its own pixels. Candidates are the nearest by a
low-frequency descriptor; a per-frequency log likelihood ratio says how much better one image explains the other than two
different scans would. Sizes and limits were chosen on chest X-rays of 28 pixels (benchmarks/quality_leaks.py).
"""

from dataclasses import dataclass
from functools import lru_cache

import faiss
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.signal.windows import tukey

Floats = NDArray[np.floating]

SIDE = 28  # pixels of the grid
MARGIN = 2  # pixels excluded on each side, where a shift brings in other content
REACH = 2  # pixels of the image that it may be shifted by, in each direction
TAPER = 0.35  # share of each axis that the Tukey window tapers
DESCRIPTOR_FREQUENCY = 4  # highest frequency of descriptors, in cycles per image
MAX_FREQUENCY = 13  # highest frequency of the likelihood ratio
FLOOR = 1e-4  # share of the power of both images: smaller differences count as none
CANDIDATES = 10  # nearest descriptors that are compared
RUNNER_UP = 3  # rank of the candidate that stands for another scan: up to so many near-duplicates may be in one set
# Excess over the runner-up, in nats for images of 28 pixels, and as a multiple of the excess typical within a set (simple images
# resemble each other by chance). benchmarks/results/ has the number of false pairs at these limits.
MAYBE_EXCESS, NEAR_EXCESS = 95.0, 150.0
MAYBE_FACTOR, NEAR_FACTOR = 3.5, 5.5
MIN_RATIO = 200.0  # nats needed for "near"
MAYBE_CORRELATION, NEAR_CORRELATION = 0.8, 0.9  # needed as well: noise may hide another scan
CERTAIN_RATIO = 600.0  # nats that need no excess over a runner-up
MAX_CONSTANT = (
    0.5  # an image with a larger share of one value is a shape on a background, on which none of this was tested
)


@lru_cache(maxsize=256)
def _weights(n: int, shift: int) -> NDArray[np.float32]:
    """Return cubic interpolation weights (SIDE, n) (Keys, 1981, a = -1/2), shifted by `shift` pixels, wider when shrinking."""
    step = n / SIDE
    centre = np.clip((np.arange(SIDE) + 0.5) * step - 0.5 + shift, 0, n - 1)
    d = np.abs(np.arange(n) - centre[:, None]) / max(step, 1.0)
    w = np.where(d < 1, (1.5 * d - 2.5) * d * d + 1, np.where(d < 2, ((2.5 - 0.5 * d) * d - 4) * d + 2, 0))
    return (w / w.sum(1, keepdims=True)).astype(np.float32)


def to_grid(image: Floats) -> NDArray[np.float32]:
    """Resample an image (H, W) in the unit range to (SIDE, SIDE)."""
    return _weights(image.shape[0], 0) @ np.asarray(image, np.float32) @ _weights(image.shape[1], 0).T


def shifted_grids(image: Floats) -> NDArray[np.float32]:
    """Resample an image (H, W) at every shift of up to REACH pixels: ((2 REACH + 1)^2, SIDE, SIDE)."""
    reach = range(-REACH, REACH + 1)
    columns = [np.asarray(image, np.float32) @ _weights(image.shape[1], right).T for right in reach]
    return np.stack([_weights(image.shape[0], down) @ c for down in reach for c in columns])


def resolved_frequencies(image: Floats) -> int:
    """Return the highest frequency, in cycles per image, that the pixels of an image can show."""
    return int(np.clip(min(image.shape) // 2 - 1, 1, MAX_FREQUENCY))


def has_texture(image: Floats) -> bool:
    """Return whether an image is more than a shape on a background."""
    return bool(np.unique(image, return_counts=True)[1].max() <= MAX_CONSTANT * image.size)


@dataclass(frozen=True)
class SmallImage:
    """The features of a small image that are compared.

    Attributes:
        descriptor: (D,), see `descriptor`.
        grid: (SIDE, SIDE); None if the likelihood ratio does not apply to the image.
        frequencies: see `resolved_frequencies`.
    """

    descriptor: NDArray[np.float32]
    grid: NDArray[np.float16] | None
    frequencies: int

    @classmethod
    def from_image(cls, image: Floats, max_side: int) -> "SmallImage":
        """Describe (H, W) in the unit range. The ratio applies to images of at most `max_side` pixels with texture."""
        x = to_grid(image)
        comparable = max(image.shape) <= max_side and has_texture(image)
        return cls(descriptor(x), x.astype(np.float16) if comparable else None, resolved_frequencies(image))


_INNER = SIDE - 2 * MARGIN
_WINDOW = np.outer(tukey(_INNER, TAPER), tukey(_INNER, TAPER))
_Y, _X = np.meshgrid(*2 * [np.fft.fftfreq(_INNER) * SIDE], indexing="ij")  # cycles per grid
_RADIUS = np.hypot(_Y, _X)
_HALF = (_X > 0) | ((_X == 0) & (_Y > 0))  # the spectrum of a real image is symmetric


def _spectrum(x: Floats) -> NDArray[np.complex128]:
    x = x - (x * _WINDOW).sum((-2, -1), keepdims=True) / _WINDOW.sum()
    return np.fft.fft2(x * _WINDOW)


def _inside(x: Floats) -> Floats:
    return x[..., MARGIN:-MARGIN, MARGIN:-MARGIN]


def descriptor(x: Floats) -> NDArray[np.float32]:
    """Return low-frequency descriptors (..., D) of length 1 of grids (..., SIDE, SIDE).

    A power curve first maps the median to 1/2, so that gamma curves change little.
    """
    middle = np.clip(np.median(x, (-2, -1), keepdims=True), 0.02, 0.98)
    low = _HALF & (_RADIUS <= DESCRIPTOR_FREQUENCY)
    z = _spectrum(_inside(np.clip(x, 1e-3, 1) ** (np.log(0.5) / np.log(middle))))[..., low] * np.sqrt(_RADIUS[low])
    z = np.concatenate([z.real, z.imag], -1)
    return (z / np.maximum(np.linalg.norm(z, axis=-1, keepdims=True), 1e-9)).astype(np.float32)


def nearest_candidates(a: NDArray[np.float32], b: NDArray[np.float32]) -> list[NDArray[np.int64]]:
    """Return for each of b (M, S, D) the CANDIDATES nearest of a (N, D) at the best of S shifts, nearest first."""
    index = faiss.IndexFlatIP(a.shape[1])
    index.add(np.ascontiguousarray(a))
    k, out = min(CANDIDATES, len(a)), []
    for start in range(0, len(b), 1024):
        part = np.ascontiguousarray(b[start : start + 1024])
        cosine, found = (x.reshape(len(part), -1) for x in index.search(part.reshape(-1, part.shape[-1]), k))
        rows = np.take_along_axis(found, np.argsort(-cosine, axis=1, kind="stable"), axis=1)
        out += [row[np.sort(np.unique(row, return_index=True)[1])[:k]] for row in rows]
    return out


_RING = np.where(_HALF & (_RADIUS < MAX_FREQUENCY + 0.5), np.round(_RADIUS), 0).astype(int).ravel()
_IN_RING = np.stack([r == _RING for r in range(1, MAX_FREQUENCY + 1)], 1).astype(
    np.float64
)  # (_INNER^2, MAX_FREQUENCY)
COUNT = _IN_RING.sum(0)  # frequencies in each ring


def _power(x: Floats) -> Floats:
    """Return the mean power in each ring of frequencies, (N, MAX_FREQUENCY), of x (N, _INNER, _INNER)."""
    z = _spectrum(x)
    return (z.real**2 + z.imag**2).reshape(len(x), -1) @ (_IN_RING / COUNT)


def log_likelihood_ratio(a: Floats, b: Floats, frequencies: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Return the log likelihood ratio (N,), in nats, that grids b show the same scans as grids a, and their correlation (N,).

    b takes the histogram of a, so that monotone grey-value curves do not matter. If b is a copy, the difference is noise, from
    compression or the scanner, whose power per frequency R does not fall with frequency; if it is another scan, the powers of
    both add up to P. Frequencies are taken as independent normal variables with one variance per ring, so the log ratio is the
    sum over rings of count * log(P / N), where N is the isotonic fit to R.

    Args:
        a, b: (N, SIDE, SIDE).
        frequencies: (N,), the number of rings that count.
    """
    x, y = _inside(a).astype(np.float64), _inside(b)
    flat = y.reshape(len(y), -1)
    matched = np.empty(flat.shape)
    np.put_along_axis(matched, np.argsort(flat, 1, kind="stable"), np.sort(x.reshape(len(x), -1), 1), 1)
    y = matched.reshape(x.shape)
    both = _power(x) + _power(y) + 1e-12
    noise = np.array([isotonic_regression(r, weights=COUNT).x for r in _power(y - x) + FLOOR * both])
    gain = COUNT * np.log(both / np.minimum(noise, both))
    u, v = (i.reshape(len(i), -1) - i.mean((1, 2))[:, None] for i in (x, y))
    correlation = (u * v).sum(1) / np.maximum(np.sqrt((u * u).sum(1) * (v * v).sum(1)), 1e-12)
    return (gain * (np.arange(1, MAX_FREQUENCY + 1) <= frequencies[:, None])).sum(1), correlation


def _relative_spread(frequencies: int) -> float:
    """Return the spread of the log ratio relative to that at 28 pixels: the root of the number of frequencies."""
    return float(np.sqrt(COUNT[:frequencies].sum() / COUNT.sum()))


def excess(ratios: Floats, frequencies: int) -> float:
    """Return the best of the ratios (K,) minus the RUNNER_UP-th next, over the relative spread; 0 for fewer candidates."""
    if len(ratios) <= RUNNER_UP:
        return 0.0
    return float(ratios.max() - np.sort(ratios)[-1 - RUNNER_UP]) / _relative_spread(frequencies)


def classify(ratios: Floats, correlation: Floats, frequencies: int, typical: float) -> tuple[int, str]:
    """Return the best of an image's K candidates, and whether it is a copy: "near", "maybe", "compare" or "".

    Images of one organ are all similar, so the `excess` counts. "compare" means that so many candidates are similar that they
    may be copies too, and only comparing pixels can tell.

    Args:
        ratios, correlation: (K,), from `log_likelihood_ratio`.
        frequencies: the number of rings that counted.
        typical: upper quartile of the excess among scans that are not copies.
    """
    best, above = int(ratios.argmax()), excess(ratios, frequencies)
    top = float(ratios[best]) / _relative_spread(frequencies)
    clear = above >= max(NEAR_EXCESS, NEAR_FACTOR * typical) and top >= MIN_RATIO
    if (clear or top >= CERTAIN_RATIO) and correlation[best] >= NEAR_CORRELATION:
        return best, "near"
    maybe = above >= max(MAYBE_EXCESS, MAYBE_FACTOR * typical) and correlation[best] >= MAYBE_CORRELATION
    return best, "maybe" if maybe else "compare" if top >= MIN_RATIO else ""
