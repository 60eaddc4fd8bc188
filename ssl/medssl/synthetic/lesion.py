"""Synthetic close-ups of a lung lesion: one of eight shapes, seen from another angle in every image.

Whether a lesion is malignant depends on its shape alone: four shapes are, four are not, and either half has compact and thin
shapes, so that no edge, size or brightness is enough to tell. All else (angle, size, stretch, outline, ribs, background,
exposure, noise) is drawn anew for every image of a patient, but the contrast, which is the patient's, and the scanner.
"""

import numpy as np
from scipy import ndimage

from medssl.rng import seed_from
from medssl.synthetic.chest import MAX, SCANNERS

BENIGN = ("round", "oval", "ring", "strands")
MALIGNANT = ("satellites", "spiculated", "lobulated", "crescent")


def lesion_shape(seed: int, patient: int, malignant: bool) -> str:
    """Return the shape of a patient's lesion, one of `MALIGNANT` or of `BENIGN`."""
    shapes = MALIGNANT if malignant else BENIGN
    return shapes[np.random.default_rng(seed_from(seed, patient, 3)).integers(len(shapes))]


def draw_lesion(seed: int, patient: int, image: int, size: int, malignant: bool, scanner: str) -> np.ndarray:
    """Return (size, size) uint16 in [0, 4095], lesion bright: one image of the patient's lesion from one scanner."""
    contrast = 0.45 * np.random.default_rng(seed_from(seed, patient, 4)).uniform(0.7, 1.2)
    day = np.random.default_rng(seed_from(seed, patient, 100 + image))
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    lesion = _density(lesion_shape(seed, patient, malignant), *_pose(day, x, y))
    background = ndimage.gaussian_filter(day.standard_normal((size, size)), size / 12)
    tilt, pitch, phase = day.uniform(-0.6, 0.6), day.uniform(5, 8), day.uniform(0, 6.3)
    ribs = np.maximum(np.sin(pitch * (y * np.cos(tilt) + x * np.sin(tilt)) + phase), 0) ** 3
    picture = 0.35 + 0.06 * background / background.std() + day.uniform(0.05, 0.2) * ribs + contrast * lesion
    _, _, noise, blur, gain, brightness = SCANNERS[scanner]
    if blur:
        picture = ndimage.gaussian_filter(picture, blur * size / 96)
    picture = (picture - 0.4) * gain * day.uniform(0.85, 1.15) + 0.4 + brightness + day.uniform(-0.06, 0.06)
    picture += noise * day.standard_normal((size, size))
    return np.clip(np.round(picture * MAX), 0, MAX).astype(np.uint16)


def _pose(day: np.random.Generator, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates in radii of a lesion that is shifted, turned by any angle, resized, stretched and bent."""
    dx, dy = day.uniform(-0.15, 0.15, 2)
    angle, radius = day.uniform(-np.pi, np.pi), day.uniform(0.42, 0.58)
    stretch, shear = np.exp(day.normal(0, 0.12)), day.normal(0, 0.15)
    u = np.cos(angle) * (x - dx) + np.sin(angle) * (y - dy)
    v = np.cos(angle) * (y - dy) - np.sin(angle) * (x - dx)
    bend = ndimage.gaussian_filter(day.standard_normal((2, *x.shape)), (0, len(x) / 8, len(x) / 8))
    bend *= 0.05 / bend.std()
    return (u * stretch + shear * v + bend[0]) / radius, (v / stretch + bend[1]) / radius


def _density(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return a lesion's density in [0, 1] at coordinates in radii."""
    rho, angle = np.hypot(u, v), np.arctan2(v, u)
    match shape:
        case "round":
            return _inside(rho - 1)
        case "oval":
            return _inside(np.hypot(u / 1.35, v / 0.7) - 1)
        case "ring":
            return _inside(np.abs(rho - 0.85) - 0.22, 14)
        case "strands":
            across = np.hypot(u / 1.2, v / 0.3), np.hypot(u / 0.3, v / 1.2)
            return _inside(np.minimum(*across) - 1, 6)
        case "satellites":
            return _inside(np.minimum(np.hypot(u - 0.62, v), np.hypot(u + 0.62, v)) / 0.5 - 1, 8)
        case "spiculated":
            return _inside(rho - 0.62 - 0.42 * np.cos(5 * angle))
        case "lobulated":
            return _inside(rho - 0.8 - 0.28 * np.cos(3 * angle))
        case _:  # crescent
            return np.maximum(_inside(rho - 1) - _inside(np.hypot(u - 0.55, v) / 0.75 - 1), 0)


def _inside(distance: np.ndarray, sharpness: float = 10.0) -> np.ndarray:
    """Return 1 where a signed distance is negative, 0 where it is positive, with a soft edge."""
    return 1 / (1 + np.exp(np.clip(sharpness * distance, -40, 40)))
