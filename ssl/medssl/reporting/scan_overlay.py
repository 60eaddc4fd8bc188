"""A saliency map drawn on its scan as the scan is stored, not on the encoder's small grid."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medssl.encoders.config import InputConfig
from medssl.files import atomic
from medssl.reporting.pictures import picture
from medssl.reporting.saliency_sheet import in_colours, overlaid, strongest_slice
from medssl.resample import apply_axes, axis_weights
from medssl.store.resampled import field_of_view
from medssl.store.store import Store

MOST = 512  # pixels of a picture's longer side
LEAST = 192  # smaller scans are enlarged, so that an outline stays thin

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def on_stored_scan(store: Store, row: int, map_: NDArray[Any], wanted: InputConfig, label: int) -> Pair:
    """Return scan `row` in its intensity window and the same with its map and the outline of its mask, (h, w, 3) uint8 each.

    map_: (*size) on the encoder's grid; it is interpolated to the scan's own voxels, through the field of view that the grid
    had. Of a volume, the slice with the largest share of the map. label: the label in the mask.
    """
    scan, mask = store[row], store.mask(row)
    low, high = (float(store.column(name)[row]) for name in ("low", "high"))
    spacing = store.column("spacing")[row] or (1.0,) * store.dims
    heat = to_scan(map_, scan.shape[1:], spacing, wanted)
    inside = None if mask is None else (mask == label).astype(np.float32)
    if store.dims == 3:
        z = strongest_slice(heat)
        scan, heat, inside = scan[:, z], heat[z], None if inside is None else inside[:, z]
    heat = heat / max(float(heat.max()), 1e-12)
    flat = picture(scan, low, high, spacing, most=MOST)
    shown_heat = picture(heat[None], 0, 1, spacing, most=MOST)
    shown_mask = None if inside is None else picture(inside, 0, 1, spacing, most=MOST)
    factor = max(1, -(-LEAST // max(flat.shape[:2])))
    flat, shown_heat = (a.repeat(factor, 0).repeat(factor, 1) for a in (flat, shown_heat))
    shown_mask = None if shown_mask is None else shown_mask.repeat(factor, 0).repeat(factor, 1)
    return _bytes(in_colours(flat)), _bytes(overlaid(flat, shown_heat, shown_mask))


def to_scan(
    map_: NDArray[Any], shape: Sequence[int], spacing: Sequence[float], wanted: InputConfig
) -> NDArray[np.float32]:
    """Return a map (*size) of the encoder's grid on the voxels (*shape) of its scan, 0 where the grid did not see it."""
    starts, extents = field_of_view(shape, spacing, wanted.size, wanted.spacing)
    weights = []
    for start, extent, n, m in zip(starts, extents, shape, wanted.size, strict=True):
        # the scan's box [0, n) in places of the grid
        step = extent / m
        weights.append(axis_weights(torch.tensor([-start / step]), torch.tensor([n / step]), m, n))
    found = apply_axes(torch.from_numpy(np.asarray(map_, np.float32))[None, None], weights)
    return found[0, 0].numpy().clip(0)


def write_pictures(path: Path, pairs: Sequence[Pair]) -> None:
    """Write the pictures as scan0, over0, scan1, … to an .npz file."""
    arrays = {
        f"{name}{i}": each for i, pair in enumerate(pairs) for name, each in zip(("scan", "over"), pair, strict=True)
    }
    with atomic(path) as part, part.open("wb") as f:
        np.savez_compressed(f, **arrays)  # type: ignore[arg-type]


def _bytes(image: NDArray[Any]) -> NDArray[np.uint8]:
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
