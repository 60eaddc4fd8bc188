"""A contact sheet: many scans at a glance, each with its row number."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from medssl.reporting.pictures import picture
from medssl.store.store import Store

MOST = 200  # scans on a sheet
CELL, CAPTION, GAP = 192, 14, 4  # pixels


def contact_sheet(store: Store, rows: NDArray[np.int64]) -> Image.Image:
    """Return an RGB picture of the scans `rows`, windowed to [low, high]; for a volume the middle slice of its first axis.

    Captions are the row numbers in this `store` and nothing else. Only what is shown is read from disk.
    """
    low, high, spacing, shape = (store.column(name) for name in ("low", "high", "spacing", "shape"))
    columns = max(1, min(len(rows), round((len(rows) * 1.3) ** 0.5)))
    wide, tall = CELL + GAP, CELL + CAPTION + GAP
    sheet = Image.new("RGB", (columns * wide + GAP, -(-len(rows) // columns) * tall + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for k, row in enumerate(rows):
        x, y = GAP + k % columns * wide, GAP + k // columns * tall
        scan = _middle(store, int(row), shape[row])
        shown = picture(scan, float(low[row]), float(high[row]), spacing[row], most=CELL)
        image = Image.fromarray(np.round(255 * shown).astype(np.uint8)).convert("RGB")
        scale = CELL / max(image.size)
        image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
        sheet.paste(image, (x + (CELL - image.width) // 2, y + (CELL - image.height) // 2))
        draw.text((x, y + CELL), str(row), fill="#5b6470")
    return sheet


def _middle(store: Store, row: int, shape: tuple[int, ...]) -> NDArray[np.generic]:
    """Return a scan (C, H, W), or the middle slice of a volume as (C, 1, H, W)."""
    if len(shape) == 3:
        return store[row]
    return store.crop(row, (shape[1] // 2, 0, 0), (1, *shape[2:]))
