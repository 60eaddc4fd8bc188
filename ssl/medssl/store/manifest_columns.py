"""The manifest: one row per scan with everything that is stored about it besides its voxels."""

import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa

from medssl.readers.phash import phash
from medssl.readers.quality_flags import flags
from medssl.readers.scan import Scan, Unreadable
from medssl.store.intensity_windows import modality_of_values, to_unit_range, unit_moments, window

SCHEMA_VERSION = 3
Row = dict[str, Any]
MASK = "mask"  # the reason a mask is quarantined: it belongs to an image and is never a scan of its own
DTYPES = ("uint8", "int16", "uint16", "float32")
COLUMNS = {
    **dict.fromkeys(("scan", "patient", "study", "series", "group"), pa.string()),
    "patient_known": pa.bool_(),
    **dict.fromkeys(("site", "scanner", "modality", "split", "held", "mask"), pa.string()),
    "flags": pa.list_(pa.string()),
    "shape": pa.list_(pa.int32()),
    "spacing": pa.list_(pa.float32()),
    "affine": pa.list_(pa.float64()),
    "dtype": pa.string(),
    "file": pa.string(),
    "offset": pa.int64(),
    "length": pa.int64(),
    **dict.fromkeys(("low", "high", "unit_mean", "unit_square"), pa.float64()),
    "hash": pa.string(),
    "phash": pa.string(),
}


def content_hash(array: np.ndarray) -> str:
    """Return BLAKE2b-128 of dtype, shape and little-endian bytes: equal only for equal arrays."""
    h = hashlib.blake2b(f"{array.dtype.name}{array.shape}".encode(), digest_size=16)
    h.update(np.ascontiguousarray(array).data)
    return h.hexdigest()


def fingerprint(table: pa.Table) -> str:
    """Return BLAKE2b-128 of every row's content, ids, split, window, metadata and labels, but not of where its bytes are."""
    kept = [c for c in table.column_names if c not in {"file", "offset", "length"}]
    h = hashlib.blake2b(json.dumps([SCHEMA_VERSION, kept]).encode(), digest_size=16)
    for batch in table.select(kept).to_batches(4096):
        h.update(json.dumps(batch.to_pylist(), sort_keys=True).encode())
    return h.hexdigest()


def prepare_array(scan: Scan) -> np.ndarray:
    """Return the scan's array as it is stored: contiguous, in native byte order.

    Raises:
        Unreadable: NO_PIXELS or NON_FINITE.
    """
    array = np.ascontiguousarray(scan.array, scan.array.dtype.newbyteorder("="))
    assert array.dtype.name in DTYPES, array.dtype
    assert array.ndim in {3, 4}, array.shape
    if array.size == 0:
        raise Unreadable("NO_PIXELS", "the image has no pixels")
    if array.dtype.kind == "f" and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        raise Unreadable("NON_FINITE", "it has values that are not finite")
    return array


def manifest_row(scan: Scan, array: np.ndarray, intensity: str) -> Row:
    """Return the manifest row of a scan, without the address of its bytes, as values that JSON can hold.

    Args:
        scan: as read.
        array: `prepare_array(scan)`.
        intensity: how the intensity window is chosen, a name in `intensity_windows.INTENSITIES`.
    """
    low, high = window(scan, intensity)
    mean, square = unit_moments(array, low, high)
    middle = array[0] if array.ndim == 3 else array[0, array.shape[1] // 2]
    return (
        {name: getattr(scan, name) for name in ("scan", "patient", "study", "series", "patient_known")}
        | {name: getattr(scan, name) for name in ("site", "scanner", "modality", "split")}
        | {
            "held": scan.quarantined,
            "born": scan.birth_date_hash,
            "similar_id": scan.similar_id,
            "flags": list(
                flags(array, low, high, modality_of_values(scan.modality, scan.metadata.get("rescale_type")))
            ),
            "shape": list(array.shape),
            "spacing": None if scan.spacing is None else [float(v) for v in scan.spacing],
            "affine": None if scan.affine is None else [float(v) for v in np.ravel(scan.affine)],
            "dtype": array.dtype.name,
            "low": low,
            "high": high,
            "unit_mean": mean,
            "unit_square": square,
            "hash": content_hash(array),
            "phash": phash(to_unit_range(middle, low, high)),
        }
        | {f"fact:{k}": v if isinstance(v, str) else float(v) for k, v in scan.metadata.items()}
        | ({"fact:steps": "; ".join(scan.steps)} if scan.steps else {})
        | {f"label:{k}": v for k, v in scan.labels.items()}
    )
