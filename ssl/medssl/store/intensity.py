"""Which physical values become 0 and 1. The store keeps the values; the window is one pair of numbers per scan."""

import math
from collections.abc import Iterator

import numpy as np

from medssl.errors import UsageError, UserError, nearest
from medssl.readers.scan import Scan

DISPLAY = "smallest to largest value; 8-bit images 0 to 255"
INTENSITIES = {
    "auto": "by modality: CT, MR, PET, X-ray, ultrasound, fundus and photographs as below; anything else as neutral",
    "ct": "-1024 to 1500 HU",  # air to cortical bone; denser is metal
    "mr": "percentiles 0.5 to 99.5 of the foreground (above 10 % of the 99th percentile)",
    "pet": "0 to 20 SUV where body weight and dose are known, else percentiles 0.5 to 99.5",
    "xray": "the window of the file where it fits the values; else 8-bit images 0 to 255, others percentiles 0.5 to 99.5",
    "us": DISPLAY,
    "fundus": DISPLAY,
    "natural": DISPLAY,
    "neutral": DISPLAY,
}
BY_MODALITY = {
    "CT": "ct",
    "MR": "mr",
    "PT": "pet",
    **dict.fromkeys(("CR", "DX", "MG", "XA", "RF", "IO", "PX", "RG"), "xray"),
    **dict.fromkeys(("US", "IVUS"), "us"),
    "OP": "fundus",
    **dict.fromkeys(("XC", "ES", "GM", "SM"), "natural"),
}
# Level and width in HU, in common clinical use; hospitals differ by a little.
CT_WINDOWS: dict[str, tuple[float, float]] = {
    "lung": (-600.0, 1500.0),
    "mediastinum": (40.0, 400.0),
    "abdomen": (50.0, 400.0),
    "liver": (30.0, 150.0),
    "brain": (40.0, 80.0),
    "stroke": (40.0, 40.0),
    "subdural": (75.0, 215.0),
    "bone": (400.0, 1800.0),
    "temporal": (600.0, 2800.0),
    "cta": (170.0, 600.0),
}
SUV = 20.0  # brighter than nearly all disease; brain and bladder may exceed it
SAMPLE = 1 << 20  # values a percentile is taken from, at most
CHUNK = 1 << 20  # values in floating point at once
FIT = 0.1  # share of a file's own window, and of the values, that must overlap for the window to be believed; ours


def check_intensity(recipe: str) -> str:
    """`recipe` itself. Raises UsageError when there is none of that name."""
    if recipe not in INTENSITIES:
        raise UsageError(f"intensity={recipe} does not exist.{nearest(recipe, INTENSITIES)}")
    return recipe


def resolve_intensity(recipe: str, modality: str) -> str:
    """The recipe that "auto" means for a DICOM modality code; any other recipe is itself."""
    return BY_MODALITY.get(modality, "neutral") if recipe == "auto" else recipe


def window(scan: Scan, recipe: str) -> tuple[float, float]:
    """(low, high) in the units of `scan.array`: low maps to 0, high to 1, and high > low always.

    Facts used: `suv_factor`, the SUVbw of one unit of the array (PET); `voi_low`, `voi_high`, the file's own window in
    units of the array (X-ray).
    """
    recipe = resolve_intensity(recipe, scan.modality)
    if recipe == "ct":
        return -1024.0, 1500.0
    if recipe == "mr":
        low, high = _percentiles(_foreground(_sample(scan.array)))
    elif recipe == "pet":
        factor = _number(scan, "suv_factor")
        low, high = (0.0, SUV / factor) if factor > 0 else _percentiles(_sample(scan.array))
    elif recipe == "xray":
        low, high = _own_window(scan) or _projection(scan.array)
    else:
        low, high = _range(scan.array)
    return (low, high) if high > low else (low, low + max(1.0, abs(low) * 1e-6))


def _number(scan: Scan, fact: str) -> float:
    """A fact as a number; NaN when it is absent, no number or not finite."""
    value = scan.metadata.get(fact)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def _sample(array: np.ndarray) -> np.ndarray:
    """At most SAMPLE values, evenly spread: the step shares no factor with any axis, so it never walks down a column."""
    step = -(-array.size // SAMPLE)
    while math.gcd(step, array.size) > 1:
        step += 1
    return array.reshape(-1)[::step]


def _percentiles(x: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(x, [0.5, 99.5])
    return float(low), float(high)


def _range(array: np.ndarray) -> tuple[float, float]:
    return (0.0, 255.0) if array.dtype == np.uint8 else (float(array.min()), float(array.max()))


def _projection(array: np.ndarray) -> tuple[float, float]:
    return (0.0, 255.0) if array.dtype == np.uint8 else _percentiles(_sample(array))


def _foreground(x: np.ndarray) -> np.ndarray:
    """Values above 10 % of the way from 0 (from the darkest, where values are signed) to the 99th percentile."""
    darkest, bright = np.percentile(x, [0.5, 99])
    floor = min(0.0, float(darkest))
    inside = x[x > floor + 0.1 * (float(bright) - floor)]
    return inside if inside.size else x


def _own_window(scan: Scan) -> tuple[float, float] | None:
    """The window that the file brings (PS3.3 C.11.2), unless it shows next to nothing of the values, or is far wider."""
    low, high = _number(scan, "voi_low"), _number(scan, "voi_high")
    if not high > low:
        return None
    dark, bright = _percentiles(_sample(scan.array))
    seen = min(high, bright) - max(low, dark)
    return (low, high) if seen > 0 and seen >= FIT * max(high - low, bright - dark) else None


def to_unit_range(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """x in [0, 1], float32."""
    return np.clip((x.astype(np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)


def unit_moments(array: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """(mean of u, mean of u²) over all values of the array, where u = unit(array, low, high)."""
    total = square = 0.0
    for part in _parts(array):
        u = to_unit_range(part, low, high).astype(np.float64)
        total += float(u.sum())
        square += float(u @ u)
    return total / array.size, square / array.size


def to_uint8(array: np.ndarray, level: float, width: float) -> np.ndarray:
    """The array as uint8 through a window, by VOI LUT Function LINEAR (PS3.3 C.11.2.1.2.1) with output 0 to 255.

    Raises:
        UserError: for a width below 1, where the formula is not defined.
    """
    if not (width >= 1 and math.isfinite(level) and math.isfinite(width)):
        raise UserError(f"a window of level {level:g} and width {width:g} does not exist; the width must be at least 1")
    centre, span = level - 0.5, width - 1
    out = np.empty(array.size, np.uint8)
    for start, part in zip(range(0, array.size, CHUNK), _parts(array), strict=True):
        x = part.astype(np.float64) - centre
        out[start : start + CHUNK] = np.rint(np.clip(x / span + 0.5, 0, 1) * 255) if span else 255 * (x > 0)
    return out.reshape(array.shape)


def _parts(array: np.ndarray) -> Iterator[np.ndarray]:
    """The values in order, CHUNK at a time."""
    flat = array.reshape(-1)
    return (flat[start : start + CHUNK] for start in range(0, flat.size, CHUNK))
