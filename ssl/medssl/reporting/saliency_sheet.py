"""Saliency maps over their scans, as a sheet of pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from medssl.reporting.pictures import grid, outlined

LEAST = 160  # pixels of a picture's longer side: small scans are enlarged so that outlines stay thin
STRENGTH = 0.65  # opacity at the map's maximum
THICK = 2  # pixels of an outline
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

    scan, heat = in_colours(big(each.scan)), _heat(big(each.map))
    mask = None if each.mask is None else big(each.mask)
    return [scan, colormaps["magma"](heat)[..., :3], overlaid(scan, big(each.map), mask)]


def in_colours(scan: NDArray[Any]) -> NDArray[Any]:
    """Return a scan (H, W) or (H, W, 3) as (H, W, 3)."""
    return scan if scan.ndim == 3 else np.repeat(scan[..., None], 3, 2)


def overlaid(scan: NDArray[Any], map_: NDArray[Any], mask: NDArray[Any] | None) -> NDArray[Any]:
    """Return a scan with its map on the map's own scale, and the outline of the mask (H, W) in [0, 1]; all of one size."""
    heat = _heat(map_)
    opacity = STRENGTH * heat[..., None]
    over = in_colours(scan) * (1 - opacity) + colormaps["magma"](heat)[..., :3] * opacity
    return over if mask is None or not mask.any() else outlined(over, mask >= min(0.5, float(mask.max())), THICK)


def _heat(map_: NDArray[Any]) -> NDArray[Any]:
    return map_ / max(float(map_.max()), 1e-12)
