"""Small pictures of many scans, packed into sheets that a page shows parts of."""

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medssl.errors import UserError
from medssl.progress import track
from medssl.reporting.pictures import picture
from medssl.store.store import Store

EDGE = (
    (2_000, 96),
    (10_000, 64),
    (50_000, 40),
)  # up to so many scans: pixels along an edge, so that a page stays small
ACROSS = 16  # pictures along a row of a sheet, and rows of a sheet
QUALITY = 82  # of WebP


@dataclass(frozen=True)
class Thumbnails:
    """Pictures of scans in order, each in a cell of (height, width) pixels, `ACROSS` x `ACROSS` cells in each sheet.

    Attributes:
        sheets: WebP files in base64.
        height, width: of a cell, in pixels.
    """

    sheets: list[str]
    height: int
    width: int


def thumbnails(store: Store, rows: NDArray[np.int64]) -> Thumbnails:
    """Return pictures of the scans `rows` in their intensity windows; of a volume the middle planes of its three axes.

    Raises UserError if the pixels of a scan are missing or damaged.
    """
    edge = next((pixels for most, pixels in EDGE if len(rows) <= most), EDGE[-1][1])
    low, high = store.column("low"), store.column("high")
    shape, spacing = store.column("shape"), store.column("spacing")
    pictures = []
    for row in track(rows, "thumbnails", unit="scan"):
        try:
            planes = _planes(store, int(row), shape[row], spacing[row])
        except UserError as e:
            raise UserError(f"{e}; or leave the pictures out: thumbnails=false") from e
        pictures.append([_bytes(picture(p, float(low[row]), float(high[row]), mm, most=edge)) for p, mm in planes])
    side = max(max(p.shape[:2]) for found in pictures for p in found)
    across = max(len(found) for found in pictures)
    width = across * side + (across - 1)
    colour = any(p.ndim == 3 for found in pictures for p in found)
    sheets = []
    for start in range(0, len(pictures), ACROSS**2):
        part = pictures[start : start + ACROSS**2]
        sheet = Image.new("RGB" if colour else "L", (ACROSS * width, -(-len(part) // ACROSS) * side))
        for i, found in enumerate(part):
            x, y = i % ACROSS * width + (width - len(found) * (side + 1) + 1) // 2, i // ACROSS * side
            for p in found:
                sheet.paste(Image.fromarray(p), (x + (side - p.shape[1]) // 2, y + (side - p.shape[0]) // 2))
                x += side + 1
        out = io.BytesIO()
        sheet.save(out, "WEBP", quality=QUALITY)
        sheets.append(base64.b64encode(out.getvalue()).decode())
    return Thumbnails(sheets, side, width)


def _planes(store: Store, row: int, shape: tuple[int, ...], spacing: Any) -> list[tuple[NDArray[Any], Any]]:
    """Return (array (C, H, W), its mm per pixel) of an image, or of the three middle planes of a volume.

    The first axis of a volume points up, as towards the head; only the planes are read.
    """
    if len(shape) == 3:
        return [(store[row], spacing)]
    out = []
    for axis in range(3):
        start, size = [0, 0, 0], [*shape[1:]]
        start[axis], size[axis] = shape[1 + axis] // 2, 1
        plane = store.crop(row, start, size).squeeze(1 + axis)
        mm = None if spacing is None else tuple(v for i, v in enumerate(spacing) if i != axis)
        out.append((plane if axis == 0 else plane[:, ::-1], mm))
    return out


def _bytes(shown: NDArray[Any]) -> NDArray[np.uint8]:
    return np.round(255 * shown).astype(np.uint8)
