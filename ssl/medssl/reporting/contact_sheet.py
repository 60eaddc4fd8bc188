"""A contact sheet: many scans at a glance, with row number, split, labels, quality flags and the outline of the mask."""

from functools import lru_cache

import numpy as np
from matplotlib.font_manager import FontProperties, findfont
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from medssl.reporting.pictures import outlined, picture
from medssl.reporting.plots import STYLE, is_empty
from medssl.store.store import Store

MOST = 200  # scans on a sheet
CELL, LINE, GAP = 192, 13, 4  # pixels
CAPTION = 2 * LINE + 2
SOFT, WARNING = "#5b6470", "#b35900"


def contact_sheet(store: Store, rows: NDArray[np.int64], cell: int = CELL) -> Image.Image:
    """Return an RGB picture of the scans `rows`, windowed to [low, high]; for a volume the middle slice of its first axis.

    Captions are the row numbers in this `store`, modality, split and labels, and the quality flags; no identifier. Masks are
    outlined. Only what is shown is read from disk. `cell`: pixels of the longer side of a picture.
    """
    low, high, spacing, shape = (store.column(name) for name in ("low", "high", "spacing", "shape"))
    captions = _captions(store, rows)
    columns = max(1, min(len(rows), round((len(rows) * 1.3) ** 0.5)))
    wide, tall = cell + GAP, cell + CAPTION + GAP
    sheet = Image.new("RGB", (columns * wide + GAP, -(-len(rows) // columns) * tall + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for k, row in enumerate(rows):
        x, y = GAP + k % columns * wide, GAP + k // columns * tall
        scan, mask = _middle(store, int(row), shape[row]), _middle_of_mask(store, int(row))
        shown = picture(scan, float(low[row]), float(high[row]), spacing[row], most=cell)
        image = Image.fromarray(np.round(255 * shown).astype(np.uint8)).convert("RGB")
        scale = cell / max(image.size)
        size = [max(1, round(side * scale)) for side in image.size]
        image = image.resize(size, Image.Resampling.BILINEAR)
        if mask is not None:
            inside = Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)
            over = outlined(np.asarray(image, np.float32) / 255, np.asarray(inside, bool), 1)
            image = Image.fromarray(np.round(255 * over).astype(np.uint8))
        sheet.paste(image, (x + (cell - image.width) // 2, y + (cell - image.height) // 2))
        first, second, flagged = captions[k]
        for text, down, colour in ((first, 0, SOFT), (second, LINE, WARNING if flagged else SOFT)):
            draw.text((x, y + cell + down), _fitting(text, cell), fill=colour, font=_font(text))
    return sheet


def _captions(store: Store, rows: NDArray[np.int64]) -> list[tuple[str, str, bool]]:
    """Return both lines of the caption of each row, and whether the second has quality flags."""
    modality, split, flags = (store.column(name)[rows] for name in ("modality", "split", "flags"))
    labels = {name: store.column(f"label:{name}")[rows] for name in store.labels}
    out = []
    for k, row in enumerate(rows):
        first = [str(row), str(modality[k]), str(split[k])]
        found = [f"{name} {v[k]}" if len(labels) > 1 else str(v[k]) for name, v in labels.items() if not is_empty(v[k])]
        noted = [str(flag) for flag in (flags[k] if flags[k] is not None else ())]
        out.append((", ".join(t for t in first if t), "; ".join([*noted, *found]), bool(noted)))
    return out


@lru_cache(maxsize=256)
def _font(text: str) -> ImageFont.FreeTypeFont:
    """Return the font of a caption: one of the machine that has Hangul, if that is needed and there is one."""
    family = STYLE["font.family"][0 if text.isascii() else -1]
    return ImageFont.truetype(findfont(FontProperties(family=family)), 10)


def _fitting(text: str, width: int) -> str:
    """Cut a caption to a width in pixels."""
    font = _font(text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def _middle(store: Store, row: int, shape: tuple[int, ...]) -> NDArray[np.generic]:
    """Return a scan (C, H, W), or the middle slice of a volume as (C, 1, H, W)."""
    if len(shape) == 3:
        return store[row]
    return store.crop(row, (shape[1] // 2, 0, 0), (1, *shape[2:]))


def _middle_of_mask(store: Store, row: int) -> NDArray[np.uint8] | None:
    """Return the mask (H, W) of an image or of the slice shown, 255 inside; None if there is none."""
    mask = store.mask(row)
    if mask is None:
        return None
    flat = mask[0] if mask.ndim == 3 else mask[0, mask.shape[1] // 2]
    return np.where(flat > 0, np.uint8(255), np.uint8(0)) if (flat > 0).any() else None
