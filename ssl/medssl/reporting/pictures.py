"""Scans as pictures, and pictures in rows, as PNG."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion

from medssl.reporting.plots import SOFT, STYLE, WIDTH, png_bytes, shorten
from medssl.resample import apply_axes, axis_weights

OUTLINE = to_rgb("#00E5FF")  # of a mask


def grid(
    images: Sequence[Sequence[NDArray[Any] | None]],
    *,
    captions: Sequence[Sequence[str]] | None = None,
    heads: Sequence[str] | None = None,
    cell: float = 1.36,
) -> bytes:
    """Draw rows of pictures (H, W) or (H, W, 3) in [0, 1], None for a gap. PNG.

    captions: below each picture. heads: above the columns. cell: the largest side of a picture in inches.
    """
    columns = max(len(row) for row in images)
    cell = min(cell, WIDTH / columns)
    gap, under, over = 0.03, 0.22 if captions else 0.03, 0.25 if heads else 0.0  # inches
    width, height = columns * cell, len(images) * (cell + under) + over
    with mpl.rc_context(STYLE):
        fig = Figure(figsize=(width, height))
        # one for all pictures, since adding axes is slow
        axes = fig.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        for r, row in enumerate(images):
            for c, image in enumerate(row):
                if image is None:
                    continue
                middle, top = (c + 0.5) * cell, over + r * (cell + under)
                scale = (cell - 2 * gap) / max(image.shape[:2])
                half_h, half_w = image.shape[0] * scale / 2, image.shape[1] * scale / 2
                box = (middle - half_w, middle + half_w, top + cell / 2 + half_h, top + cell / 2 - half_h)
                look: Any = {"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest", "aspect": "auto"}
                axes.imshow(np.clip(image, 0, 1), extent=box, **look)
                if captions:
                    words = shorten(captions[r][c], int(cell * 17))
                    axes.text(middle, top + cell, words, ha="center", va="top", fontsize=6.5, color=SOFT)
                if heads and r == 0:
                    axes.text(middle, over - 0.06, shorten(heads[c], int(cell * 15)), ha="center", fontsize=7.5)
        axes.set(xlim=(0, width), ylim=(height, 0))
        return png_bytes(fig)


def view_sheet(views: Sequence[tuple[str, NDArray[Any]]], *, columns: int = 6) -> bytes:
    """Draw (name, array (H, W) or (D, H, W)) on one common grey scale; for a volume its middle slice. PNG."""
    flat = [(name, a[len(a) // 2] if a.ndim == 3 else a) for name, a in views]
    low, high = min(float(a.min()) for _, a in flat), max(float(a.max()) for _, a in flat)
    lines = [flat[i : i + columns] for i in range(0, len(flat), columns)]
    images = [[(a - low) / max(high - low, 1e-12) for _, a in line] for line in lines]
    return grid(images, captions=[[name for name, _ in line] for line in lines])


def picture(
    scan: NDArray[Any], low: float, high: float, spacing: Sequence[float] | None = None, *, most: int = 144
) -> NDArray[Any]:
    """Return a scan in [0, 1] in its physical proportions; for a volume the middle slice of the first axis.

    Args:
        scan: (C, H, W) or (C, D, H, W); three channels are shown as colours, otherwise the first channel as grey.
        low, high: the intensity window.
        spacing: mm per voxel along the spatial axes.
        most: the largest side of the result.

    Returns (h, w) or (h, w, 3) float32.
    """
    if scan.ndim == 4:
        scan = scan[:, scan.shape[1] // 2]
    scan = scan if len(scan) == 3 else scan[:1]
    x = torch.from_numpy(np.clip((scan.astype(np.float32) - low) / max(high - low, 1e-12), 0, 1))
    mm = list(spacing or (1.0, 1.0))[-2:]
    extents = [n * m for n, m in zip(x.shape[1:], mm, strict=True)]
    pixel = max(min(mm), max(extents) / most)
    sides = [max(1, round(e / pixel)) for e in extents]
    if sides != list(x.shape[1:]):
        zero = torch.zeros(1)
        ways = [axis_weights(zero, zero + n, n, m) for n, m in zip(x.shape[1:], sides, strict=True)]
        x = apply_axes(x[None], ways)[0]
    return x.permute(1, 2, 0).squeeze(-1).numpy()


def outlined(image: NDArray[Any], mask: NDArray[np.bool_], thick: int = 1) -> NDArray[Any]:
    """Return a picture (H, W) or (H, W, 3) in [0, 1] as colours (H, W, 3) with the inner edge of a mask (H, W) drawn."""
    out = np.array(image if image.ndim == 3 else np.repeat(image[..., None], 3, 2))
    out[mask & ~binary_erosion(mask, iterations=thick, border_value=1)] = OUTLINE
    return out
