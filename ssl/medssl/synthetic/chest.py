"""Synthetic chest radiographs: lungs, ribs, a spine, a heart and vessels, with or without lung nodules."""

import numpy as np
from scipy import ndimage

from medssl.rng import seed_from

BITS = 12
MAX = (1 << BITS) - 1
SCANNERS = {  # name -> (manufacturer, model, noise, blur in pixels, contrast, brightness)
    "A": ("Synthetic A", "Clarity 100", 0.030, 0.0, 1.0, 0.0),
    "B": ("Synthetic B", "Nimbus 7", 0.050, 0.6, 0.8, 0.08),
}
NODULE, LUNG = 1, 2  # labels of a mask; nodule pixels are not LUNG


def draw_scan(seed: int, patient: int, image: int, size: int, lesion: bool, scanner: str) -> np.ndarray:
    """Return (size, size) uint16 in [0, 4095], bone bright: one image of the patient from one scanner."""
    picture, _, day = _anatomy(seed, patient, image, size, lesion)
    _, _, noise, blur, contrast, brightness = SCANNERS[scanner]
    if blur:
        picture = ndimage.gaussian_filter(picture, blur * size / 96)
    picture = (picture - 0.4) * contrast * day.uniform(0.85, 1.15) + 0.4 + brightness + day.uniform(-0.06, 0.06)
    picture += noise * day.standard_normal((size, size))
    return np.clip(np.round(picture * MAX), 0, MAX).astype(np.uint16)


def draw_mask(seed: int, patient: int, image: int, size: int, lesion: bool) -> np.ndarray:
    """Return the (size, size) uint8 mask of `draw_scan`: LUNG, NODULE within a nodule's half maximum, 0 elsewhere."""
    return _anatomy(seed, patient, image, size, lesion)[1]


def _anatomy(
    seed: int, patient: int, image: int, size: int, lesion: bool
) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    """Return the noise-free picture, its mask, and the random generator for further variation between images."""
    anatomy = np.random.default_rng(seed_from(seed, patient, 1))
    day = np.random.default_rng(seed_from(seed, patient, 2 + image))
    x, y = _pose(day, size)
    wide, tall, apart = anatomy.uniform(0.30, 0.38), anatomy.uniform(0.56, 0.68), anatomy.uniform(0.40, 0.46)
    lungs = [_ellipse(x - side * apart, y + 0.05, wide, tall) for side in (-1, 1)]
    lung = np.maximum(*lungs)
    body = _ellipse(x, y - 0.1, 0.95, 1.15)
    heart = _ellipse(
        x - anatomy.uniform(0.08, 0.16), y - 0.28, anatomy.uniform(0.22, 0.36), anatomy.uniform(0.26, 0.36)
    )
    spine = np.exp(-((x / 0.09) ** 2)) * (1 + 0.15 * np.sin(y * anatomy.uniform(22, 28)))
    bend, pitch, phase = anatomy.uniform(0.35, 0.6), anatomy.uniform(17, 23), anatomy.uniform(0, 6.3)
    ribs = np.maximum(np.sin(pitch * (y - bend * x**2) + phase), 0) ** 3
    vessels = ndimage.gaussian_filter(anatomy.standard_normal((size, size)), size / 60) * lung
    picture = (
        0.15
        + 0.45 * body
        - 0.34 * lung * body
        + 0.22 * heart
        + 0.13 * spine
        + anatomy.uniform(0.06, 0.12) * ribs * body
    )
    picture += anatomy.uniform(0.06, 0.12) * vessels
    mask = np.where(lung >= 0.5, LUNG, 0).astype(np.uint8)
    if lesion:
        added, inside = _nodules(anatomy, x, y, wide, tall, apart)
        picture += added
        mask[inside] = NODULE
    return picture, mask, day


def _pose(day: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates in about [-1, 1], with a small shift, rotation and zoom."""
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    angle, zoom = np.radians(day.uniform(-5, 5)), day.uniform(0.94, 1.06)
    dx, dy = day.uniform(-0.06, 0.06, 2)
    return (
        (np.cos(angle) * x - np.sin(angle) * y) / zoom + dx,
        (np.sin(angle) * x + np.cos(angle) * y) / zoom + dy,
    )


def _ellipse(x: np.ndarray, y: np.ndarray, a: float, b: float) -> np.ndarray:
    """Return 1 inside, 0 outside, with a soft edge."""
    return 1 / (1 + np.exp((np.hypot(x / a, y / b) - 1) * 14))


def _nodules(
    anatomy: np.random.Generator, x: np.ndarray, y: np.ndarray, wide: float, tall: float, apart: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return one to three Gaussian nodules, mostly in the upper half of a lung, and their mask."""
    added, inside = np.zeros_like(x), np.zeros(x.shape, bool)
    for _ in range(anatomy.integers(1, 4)):
        side = 1 if anatomy.random() < 0.6 else -1
        radius, angle = 0.75 * np.sqrt(anatomy.random()), anatomy.uniform(0, 2 * np.pi)
        cx = side * apart + wide * radius * np.cos(angle)
        cy = -0.05 + tall * radius * np.sin(angle) * 0.8 - 0.12
        width, contrast = anatomy.uniform(0.045, 0.085), anatomy.uniform(0.10, 0.24)
        nodule = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * width**2))
        added += contrast * nodule
        inside |= nodule >= 0.5
    return added, inside
