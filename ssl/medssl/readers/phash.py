"""Perceptual hashes: 256 bits that stay close when an image is saved again, and differ between two scans.

Measured on chest X-rays of 224 pixels, see benchmarks/quality_duplicates.py, at the 99th percentile: the same image saved as
JPEG, resized or 10 % brighter is 10 bits away, after a gamma curve (0.7 or 1.4) 26, after a shift by two pixels 38. Of seven
million pairs of two patients 3 were within 40 bits, 236 within 60. On images of 50 pixels a shift by one is already too far.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy.fft import dctn

SIDE = 64  # pixels of the small image
BAND = 16  # frequencies along each axis: 16 * 16 = 256 bits
FLAT = 1e-3  # a small image that spreads less (standard deviation, of a range of 1) has no structure to hash
BLANK = "0" * 64  # the hash of such an image: near nothing, not even another one


def phash(image: np.ndarray) -> str:
    """The hash of an image, or of the middle slice of a volume, as 64 hex digits.

    The lowest 16 x 16 frequencies (DCT-II) of a 64 x 64 small image, each against their median: Zauner, "Implementation and
    benchmarking of perceptual image hash functions" (2010), with 256 bits in place of 64 since 64 cannot tell an image from
    the next slice. The mean (frequency 0, 0) counts as one bit and not for the median, so brightness does not matter.

    Args:
        image: (H, W) or (D, H, W), in the unit range: the value window is the caller's. A mirrored or inverted image is a
            different image: its hash is about 128 and 254 bits away.
    """
    x = thumbnail(image[len(image) // 2] if image.ndim == 3 else image)
    if not x.std() >= FLAT:
        return BLANK
    band = dctn(x, norm="ortho")[:BAND, :BAND].ravel()
    return np.packbits(band > np.median(band[1:])).tobytes().hex()


def thumbnail(image: np.ndarray, down: float = 0, right: float = 0) -> np.ndarray:
    """(H, W) -> (64, 64) float32, antialiased, the aspect not kept; seen from `down`, `right` pixels further on."""
    x = np.asarray(image, np.float32)
    return resize_weights(x.shape[0], down) @ x @ resize_weights(x.shape[1], right).T


@lru_cache(maxsize=256)
def resize_weights(n: int, shift: float = 0) -> np.ndarray:
    """(64, n) float32: linear interpolation at `shift` pixels further on, a triangle as wide as the step when shrinking."""
    step = n / SIDE
    centre = np.clip((np.arange(SIDE) + 0.5) * step - 0.5 + shift, 0, n - 1)
    w = np.clip(1 - np.abs(np.arange(n) - centre[:, None]) / max(step, 1.0), 0, None)
    return (w / w.sum(1, keepdims=True)).astype(np.float32)


def packed(hashes: Sequence[str]) -> np.ndarray:
    """N hashes -> (N, 32) uint8."""
    return np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(-1, 32)


def hamming(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How many bits differ: (N, 32) or (32,) uint8 each -> (N,) int64, broadcast."""
    return np.bitwise_count(a ^ b).sum(-1, dtype=np.int64)
