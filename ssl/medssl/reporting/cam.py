"""Maps over scans as a sheet of pictures, and the section of a report about them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion

from medssl.errors import UserError
from medssl.reporting import plots, words
from medssl.reporting.tags import Html, absent, element, figure, paragraph, table

LEAST = 160  # pixels of a picture's longer side: small scans are enlarged so that outlines stay thin
STRENGTH = 0.65  # opacity of the map where it is highest
OUTLINE, THICK = to_rgb("#00E5FF"), 2  # pixels
COLUMNS = 2  # scans beside each other
CAPTION = (
    "Scans of test patients in their window, their maps, each on its own scale, and the maps over the scans with the outline of "
    "the mask where there is one. Of a volume, the slice that holds most of its map."
)


@dataclass(frozen=True)
class Shown:
    """One scan of the sheet: scan (H, W) or (H, W, 3) in [0, 1], map (H, W) of 0 or more, mask (H, W) of 0 to 1 or None."""

    scan: NDArray[Any]
    map: NDArray[Any]
    mask: NDArray[Any] | None
    caption: str


def slice_of(map_: NDArray[Any]) -> int:
    """Of a map (D, H, W), the slice of the first axis that holds most of it; the middle one of a map that is zero."""
    held = map_.sum((1, 2))
    return int(held.argmax()) if held.any() else len(held) // 2


def sheet(shown: Sequence[Shown]) -> bytes:
    """For each scan the scan, its map, and the map over it with the mask's outline; each map on its own scale. PNG."""
    cells = [cell for each in shown for cell in _cells(each)]
    captions = [words for each in shown for words in (each.caption, "map", "over the scan")]
    gap, wide = -len(shown) % COLUMNS * 3, 3 * COLUMNS
    cells, captions = [*cells, *[None] * gap], [*captions, *[""] * gap]
    rows = range(0, len(cells), wide)
    return plots.grid([cells[i : i + wide] for i in rows], captions=[captions[i : i + wide] for i in rows])


def _cells(each: Shown) -> list[NDArray[Any] | None]:
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


def cam_section(run: Path) -> Html:
    """What `medssl cam` has left in the folder of a run: the sheet, the numbers and what the check says of them.

    Raises UserError when a file is damaged.
    """
    path, picture = run / "cam.json", run / "cam.png"
    if not path.exists() or not picture.exists():
        return absent("cam.json is missing.", f"medssl cam run={run.resolve().name} store=STORE target=LABEL")
    try:
        result = json.loads(path.read_text("utf-8"))
        parts = [
            paragraph(result["about"]),
            *(paragraph(flag, klass="flag") for flag in result["flags"]),
            figure(picture.read_bytes(), f"Scans and maps of them. {result['about']}", CAPTION),
        ]
        if result["in_masks"]:
            parts += [element("h3", "In the mask"), _table(result["in_masks"], marked=[0])]
        parts += [
            element("h3", "With random weights instead of learnt ones"),
            paragraph(result["verdict"], klass="" if result["trusted"] else "flag"),
            _table(result["check"]),
        ]
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path} is damaged ({type(e).__name__}); remove it and run medssl cam again") from e
    return Html("\n".join(parts))


def _table(lines: Sequence[dict[str, Any]], marked: Sequence[int] = ()) -> Html:
    """Lines of words and scores, and how the intervals were made."""
    cells = [[v if isinstance(v, str) else _number(v) for v in line.values()] for line in lines]
    hows = dict.fromkeys(v["how"] for line in lines for v in line.values() if isinstance(v, dict))
    return Html(
        table(list(lines[0]), cells, marked=marked) + paragraph(f"In brackets: {'; '.join(hows)}.", klass="note")
    )


def _number(score: dict[str, Any] | None) -> Html:
    value, ends = words.number(score)
    return Html(f"{value} " + element("span", ends, klass="ci")) if ends else Html(value)
