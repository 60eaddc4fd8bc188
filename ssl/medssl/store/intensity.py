"""Which physical values become 0 and 1. The store keeps the values; the window is one pair of numbers per scan."""

import numpy as np

from medssl.errors import UsageError, nearest
from medssl.scans.scan import Scan

RECIPES = {
    "auto": "by modality: CT as ct; MR as mr; CR, DX, MG, XA, RF as xray; anything else as neutral",
    "ct": "-1024 to 1500 HU",  # air to cortical bone; denser is metal
    "mr": "percentiles 0.5 to 99.5 of the foreground (above 10 % of the 99th percentile)",
    "xray": "percentiles 0.5 to 99.5; 8-bit images 0 to 255",
    "natural": "smallest to largest value; 8-bit images 0 to 255",
    "neutral": "smallest to largest value; 8-bit images 0 to 255",
}
BY_MODALITY = {"CT": "ct", "MR": "mr", "CR": "xray", "DX": "xray", "MG": "xray", "XA": "xray", "RF": "xray"}
SAMPLE = 1 << 20  # values a percentile is taken from


def check(recipe: str) -> str:
    """`recipe` itself. Raises UsageError when there is none of that name."""
    if recipe not in RECIPES:
        raise UsageError(f"recipe={recipe} does not exist.{nearest(recipe, RECIPES)}")
    return recipe


def resolve(recipe: str, modality: str) -> str:
    """The recipe that "auto" means for a DICOM modality code; any other recipe is itself."""
    return BY_MODALITY.get(modality, "neutral") if recipe == "auto" else recipe


def window(scan: Scan, recipe: str) -> tuple[float, float]:
    """(low, high) in the units of `scan.array`: low maps to 0, high to 1, and high > low always."""
    recipe = resolve(recipe, scan.modality)
    if recipe == "ct":
        return -1024.0, 1500.0
    x = scan.array.ravel()
    if recipe == "mr":
        x = x[:: _step(x.size)]
        foreground = x[x > 0.1 * np.percentile(x, 99)]
        low, high = np.percentile(foreground if foreground.size else x, [0.5, 99.5])
    elif x.dtype == np.uint8:
        return 0.0, 255.0
    elif recipe == "xray":
        low, high = np.percentile(x[:: _step(x.size)], [0.5, 99.5])
    else:
        low, high = x.min(), x.max()
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1.0)


def _step(n: int) -> int:
    """Thins n values to about SAMPLE. Odd, so that it never walks down one column of a power-of-two image."""
    return max(1, n // SAMPLE) | 1


def unit(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """x in [0, 1], float32."""
    return np.clip((x.astype(np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
