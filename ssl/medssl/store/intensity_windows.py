"""Intensity windows: the values that map to 0 and 1, one pair per scan, and the mapping. The store keeps the values themselves.

An ingest chooses the window of each scan (`window`) and writes it to the manifest as `low` and `high`; wherever scans are
shown to a network or a person, `to_unit_range` applies it. `CT_WINDOWS` are the named windows in HU, of the augmentation
`intensity.Window` and of `medssl png`.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from medssl.errors import UsageError, UserError, nearest
from medssl.readers.scan import Scan

if TYPE_CHECKING:  # the workers of an ingest do without torch, which takes a second to import
    from pyarrow import Table
    from torch import Tensor

DISPLAY = "smallest to largest value; 8-bit images 0 to 255"
INTENSITIES = {
    "auto": "by modality: CT, MR, PET, X-ray, ultrasound, fundus and photographs as below; others as neutral",
    "ct": "-1024 to 1500 HU",
    "mr": "percentiles 0.5 to 99.5 of the foreground (above 10 % of the 99th percentile)",
    "pet": "0 to 20 SUV where body weight and dose are known, else percentiles 0.5 to 99.5",
    "xray": "the window of the file where it fits the values; else 8-bit images 0 to 255, others percentiles 0.5 to 99.5",
    "us": DISPLAY,
    "fundus": DISPLAY,
    "natural": DISPLAY,
    "neutral": "percentiles 0.5 to 99.5; 8-bit images 0 to 255",
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
CT_RANGE = (-1024.0, 1500.0)  # HU; air to cortical bone, only metal is denser
# Level and width in HU as commonly used in clinics; hospitals differ slightly.
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
SUV_MAX = 20.0  # above nearly all disease; brain and bladder may exceed it
SAMPLE = 1 << 20  # values used for a percentile, at most
CHUNK = 1 << 20  # values converted to floating point at once
MIN_OVERLAP = 0.1  # the file's own window is used if it overlaps the values by this share of both; our choice


def check_intensity(intensity: str) -> str:
    """Return `intensity`. Raises UsageError if there is none of that name."""
    if intensity not in INTENSITIES:
        raise UsageError(f"intensity={intensity} does not exist.{nearest(intensity, INTENSITIES)}")
    return intensity


def modality_of_values(modality: str, rescale_type: object) -> str:
    """Return the modality if it tells the units of the values, else "": CT in other units than HU is of no known kind.

    rescale_type: the metadata of that name, which such scans have (PS3.3 C.11.1.1.2).
    """
    return "" if rescale_type else modality


def modalities_of_values(table: "Table") -> list[str]:
    """Return `modality_of_values` of every row of a manifest."""
    column = "fact:rescale_type"
    units = table[column].to_pylist() if column in table.column_names else [None] * table.num_rows
    return [modality_of_values(m, u) for m, u in zip(table["modality"].to_pylist(), units, strict=True)]


def resolve_intensity(intensity: str, modality: str) -> str:
    """Return what "auto" means for a DICOM modality code; any other name is returned unchanged."""
    return BY_MODALITY.get(modality, "neutral") if intensity == "auto" else intensity


def window(scan: Scan, intensity: str) -> tuple[float, float]:
    """Return (low, high) in the units of `scan.array`: low maps to 0, high to 1. Always high > low.

    Metadata used: `suv_factor`, the SUVbw of one unit of the array (PET); `voi_low`, `voi_high`, the file's own window in units
    of the array (X-ray); `rescale_type`, the units of CT if they are not HU.
    """
    intensity = resolve_intensity(intensity, modality_of_values(scan.modality, scan.metadata.get("rescale_type")))
    if intensity == "ct":
        return CT_RANGE
    if intensity == "mr":
        low, high = _percentiles(_foreground(_sample(scan.array)))
    elif intensity == "pet":
        factor = _number(scan, "suv_factor")
        low, high = (0.0, SUV_MAX / factor) if factor > 0 else _percentiles(_sample(scan.array))
    elif intensity == "xray":
        low, high = _own_window(scan) or _projection(scan.array)
    elif intensity == "neutral" and scan.quarantined != "label map":
        low, high = _projection(scan.array)
        if not high > low:  # hardly any pixel differs from the background
            low, high = _range(scan.array)
    else:
        low, high = _range(scan.array)
    return (low, high) if high > low else (low, low + max(1.0, abs(low) * 1e-6))


def _number(scan: Scan, field: str) -> float:
    """Return a metadata field as a number; NaN if it is absent, not a number or not finite."""
    value = scan.metadata.get(field)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def _sample(array: np.ndarray) -> np.ndarray:
    """Return at most SAMPLE values, evenly spread. The step is coprime to the size, so it does not follow one column."""
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
    """Return values above 10 % of the way from 0 (or from the darkest, if values are signed) to the 99th percentile."""
    darkest, bright = np.percentile(x, [0.5, 99])
    floor = min(0.0, float(darkest))
    inside = x[x > floor + 0.1 * (float(bright) - floor)]
    return inside if inside.size else x


def _own_window(scan: Scan) -> tuple[float, float] | None:
    """Return the window given in the file (PS3.3 C.11.2); None if it shows hardly any of the values or is far wider."""
    low, high = _number(scan, "voi_low"), _number(scan, "voi_high")
    if not high > low:
        return None
    dark, bright = _percentiles(_sample(scan.array))
    seen = min(high, bright) - max(low, dark)
    return (low, high) if seen > 0 and seen >= MIN_OVERLAP * max(high - low, bright - dark) else None


@overload
def to_unit_range(x: np.ndarray, low: float, high: float) -> np.ndarray: ...
@overload
def to_unit_range(x: "Tensor", low: "Tensor", high: "Tensor") -> "Tensor": ...
def to_unit_range(x: Any, low: Any, high: Any) -> Any:
    """Map [low, high] to [0, 1], float32; values outside are clipped, and a window without width gives 0 up to its value.

    x: an array, or a tensor with tensors `low` and `high` of a shape that broadcasts to it.
    """
    if isinstance(x, np.ndarray):
        x, low, high = x.astype(np.float32), float(low), float(high)  # a float64 scalar would widen the result
    y, width = x - low, high - low
    y /= width + (width == 0)
    return y.clip(0, 1)


def unit_moments(array: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Return (mean of u, mean of u²) over the array, where u = to_unit_range(array, low, high)."""
    total = square = 0.0
    for part in _parts(array):
        u = to_unit_range(part, low, high).astype(np.float64)
        total += float(u.sum())
        square += float(u @ u)
    return total / array.size, square / array.size


def to_uint8(array: np.ndarray, level: float, width: float) -> np.ndarray:
    """Window the array to uint8 by VOI LUT Function LINEAR (PS3.3 C.11.2.1.2.1) with output 0 to 255.

    Raises:
        UserError: if the width is below 1, for which the formula is not defined.
    """
    if not (width >= 1 and math.isfinite(level) and math.isfinite(width)):
        raise UserError(f"a window of level {level:g} and width {width:g} is not valid; the width must be at least 1")
    centre, span = level - 0.5, width - 1
    out = np.empty(array.size, np.uint8)
    for start, part in zip(range(0, array.size, CHUNK), _parts(array), strict=True):
        x = part.astype(np.float64) - centre
        out[start : start + CHUNK] = np.rint(np.clip(x / span + 0.5, 0, 1) * 255) if span else 255 * (x > 0)
    return out.reshape(array.shape)


def _parts(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the values in order, CHUNK at a time."""
    flat = array.reshape(-1)
    return (flat[start : start + CHUNK] for start in range(0, flat.size, CHUNK))
