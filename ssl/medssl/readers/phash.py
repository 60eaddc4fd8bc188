"""Perceptual hashes: 256 bits that are similar for a re-saved image and differ between scans.

On chest X-rays of 224 pixels (benchmarks/quality_duplicates.py), the 99th percentile of the distance is 10 bits for the
same image saved as JPEG, resized or 10 % brighter, 26 after a gamma curve (0.7 or 1.4), 38 after a shift by two pixels. Of
seven million pairs of different patients, 3 were within 40 bits and 236 within 60. On images of 50 pixels, a shift by one
pixel already exceeds this.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy.fft import dctn

SIDE = 64  # pixels of the thumbnail
BAND = 16  # frequencies along each axis: 16 * 16 = 256 bits
FLAT = 1e-3  # standard deviation of a thumbnail (range 1) below which there is no structure to hash
BLANK = "0" * 64  # hash of such an image; it counts as similar to nothing


def phash(image: np.ndarray) -> str:
    """Return the hash of an image, or of the middle slice of a volume, as 64 hex digits.

    The lowest 16 x 16 frequencies (DCT-II) of a 64 x 64 thumbnail, each compared with their median: Zauner,
    "Implementation and benchmarking of perceptual image hash functions" (2010), with 256 bits instead of 64, because 64
    cannot distinguish neighbouring slices. The mean (frequency 0, 0) is not part of the median, so brightness has little
    effect.

    Args:
        image: (H, W) or (D, H, W), scaled to the unit range. Mirrored or inverted images differ: their hashes are about
            128 and 254 bits away.
    """
    x = thumbnail(image[len(image) // 2] if image.ndim == 3 else image)
    return _bits(_low_frequencies(x)).tobytes().hex() if x.std() >= FLAT else BLANK


def oriented_hashes(image: np.ndarray) -> np.ndarray:
    """Return the hashes of an image (H, W), mirrored and turned in all 8 ways, then of all these inverted: (16, 32) uint8.

    Mirroring changes the sign of every other frequency, transposing transposes them, inverting changes all signs.
    """
    band = _low_frequencies(thumbnail(image))
    sign = (-1.0) ** np.arange(BAND)
    turned = [
        b * down[:, None] * right for b in (band, band.T) for down in (sign**0, sign) for right in (sign**0, sign)
    ]
    return np.stack([_bits(b) for b in (*turned, *(-b for b in turned))])


def _low_frequencies(x: np.ndarray) -> np.ndarray:
    return dctn(x, norm="ortho")[:BAND, :BAND]


def _bits(band: np.ndarray) -> np.ndarray:
    """Return 256 bits as (32,) uint8."""
    flat = band.ravel()
    return np.packbits(flat > np.median(flat[1:]))


def thumbnail(image: np.ndarray, down: float = 0, right: float = 0) -> np.ndarray:
    """Resize (H, W) to (64, 64) float32, antialiased, ignoring the aspect ratio, shifted by `down`, `right` pixels."""
    x = np.asarray(image, np.float32)
    return resize_weights(x.shape[0], down) @ x @ resize_weights(x.shape[1], right).T


@lru_cache(maxsize=256)
def resize_weights(n: int, shift: float = 0) -> np.ndarray:
    """Return a (64, n) float32 resizing matrix: linear interpolation, widened to the step when shrinking.

    shift: offset in pixels.
    """
    step = n / SIDE
    centre = np.clip((np.arange(SIDE) + 0.5) * step - 0.5 + shift, 0, n - 1)
    w = np.clip(1 - np.abs(np.arange(n) - centre[:, None]) / max(step, 1.0), 0, None)
    return (w / w.sum(1, keepdims=True)).astype(np.float32)


def packed(hashes: Sequence[str]) -> np.ndarray:
    """Convert N hashes to (N, 32) uint8."""
    return np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(-1, 32)


def hamming(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the number of differing bits of (N, 32) or (32,) uint8, broadcast, as int64 (N,)."""
    return np.bitwise_count(a ^ b).sum(-1, dtype=np.int64)
