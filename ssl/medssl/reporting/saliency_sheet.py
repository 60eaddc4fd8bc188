"""Saliency maps over their scans, as a sheet of pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion

from medssl.reporting.pictures import grid

LEAST = 160  # pixels of a picture's longer side: small scans are enlarged so that outlines stay thin
STRENGTH = 0.65  # opacity at the map's maximum
OUTLINE, THICK = to_rgb("#00E5FF"), 2  # pixels
COLUMNS = 2  # scans per row


@dataclass(frozen=True)
class ScanWithMap:
    """A scan (H, W) or (H, W, 3) in [0, 1], its map (H, W) >= 0, and its mask (H, W) in [0, 1] or None."""

    scan: NDArray[Any]
    map: NDArray[Any]
    mask: NDArray[Any] | None
    caption: str


def strongest_slice(map_: NDArray[Any]) -> int:
    """Return the slice of the first axis with the largest sum of a map (D, H, W); the middle one if the map is zero."""
    sums = map_.sum((1, 2))
    return int(sums.argmax()) if sums.any() else len(sums) // 2


def saliency_sheet(shown: Sequence[ScanWithMap]) -> bytes:
    """Draw each scan, its map on its own scale, and the map over the scan with the outline of the mask. PNG."""
    cells = [cell for each in shown for cell in _cells(each)]
    captions = [words for each in shown for words in (each.caption, "map", "over the scan")]
    gap, wide = -len(shown) % COLUMNS * 3, 3 * COLUMNS
    cells, captions = [*cells, *[None] * gap], [*captions, *[""] * gap]
    rows = range(0, len(cells), wide)
    return grid([cells[i : i + wide] for i in rows], captions=[captions[i : i + wide] for i in rows])


def _cells(each: ScanWithMap) -> list[NDArray[Any] | None]:
    factor = max(1, LEAST // max(each.scan.shape[:2]))

    def big(image: NDArray[Any]) -> NDArray[Any]:
        return image.repeat(factor, 0).repeat(factor, 1)

    scan = big(each.scan if each.scan.ndim == 3 else np.repeat(each.scan[..., None], 3, 2))
    heat = big(each.map / max(float(each.map.max()), 1e-12))
    colour = colormaps["magma"](heat)[..., :3]
    opacity = STRENGTH * heat[..., None]
    over = scan * (1 - opacity) + colour * opacity
    if each.mask is not None and each.mask.any():
        mask = big(each.mask >= min(0.5, float(each.mask.max())))
        over[mask & ~binary_erosion(mask, iterations=THICK, border_value=1)] = OUTLINE
    return [scan, colour, over]
