"""Figures as pure functions from numbers to PNG bytes: no window, no pyplot, no state left behind."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image

from medssl.resample import apply_axes, axis_weights
from medssl.rng import generator

# Okabe and Ito's colours for every kind of colour vision, without the yellow, which is too faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
GREY = "#B8B8B8"  # categories beyond the palette, and unknown ones
INK, SOFT = "#1b1f24", "#5b6470"
STYLE: Any = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so the same bytes everywhere
    "font.size": 8,
    "text.color": INK,
    "axes.edgecolor": "#9aa3ad",
    "axes.labelcolor": SOFT,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "figure.dpi": 144,
    "savefig.dpi": 144,
    "text.parse_math": False,  # a label may hold a dollar sign
}
WIDTH = 8.2  # inches, the text width of the page
SUFFIXES = ("_low", "_high", "_of")  # of numbers that belong to another one
POINTS = 600  # a curve is averaged down to about this many points


@dataclass(frozen=True)
class Interval:
    """A row of a forest plot."""

    name: str
    value: float
    low: float
    high: float
    marked: bool = False  # the row the page is about


def _png(fig: Figure) -> bytes:
    """The figure with an adaptive palette: far fewer bytes than full colour, and exact for what these figures hold."""
    resampled = FigureCanvasAgg(fig)
    resampled.draw()
    rgb = Image.fromarray(np.asarray(resampled.buffer_rgba())[..., :3])
    out = io.BytesIO()
    rgb.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    fig.clear()
    return out.getvalue()


def curves(rows: Sequence[Mapping[str, Any]], *, max_panels: int = 12) -> bytes:
    """One small panel per number in the rows of metrics.jsonl against `step`, the loss first. PNG.

    Long curves are averaged in bins of steps. NAME_low and NAME_high shade an interval around NAME, and NAME_of, the
    most that NAME can be, goes into its title.
    """
    every = list(dict.fromkeys(k for row in rows for k, v in row.items() if k != "step" and _is_number(v)))
    names = [name for name in every if not (name.endswith(SUFFIXES) and name.rpartition("_")[0] in every)]
    names = sorted(names, key=lambda name: (name != "loss", "loss" not in name))[:max_panels]
    columns = min(3, max(1, len(names)))
    lines = max(1, math.ceil(len(names) / columns))
    with mpl.rc_context(STYLE):
        fig = Figure(figsize=(WIDTH, 1.75 * lines), layout="constrained")
        for i, name in enumerate(names):
            axes = fig.add_subplot(lines, columns, i + 1)
            x, y = _series(rows, name)
            most = {row[f"{name}_of"] for row in rows if f"{name}_of" in row}
            axes.set_title(name.replace("_", " ") + (f" (of {max(most)})" if most else ""))
            axes.plot(*_thin(x, y), color=COLOURS[0], marker="o" if len(x) <= 30 else "", markersize=2.5)
            (at, low), (_, high) = _series(rows, f"{name}_low"), _series(rows, f"{name}_high")
            if len(low) and len(low) == len(high):
                axes.fill_between(at, low, high, color=COLOURS[0], alpha=0.18, linewidth=0)
            axes.margins(x=0.02)
            axes.locator_params(axis="both", nbins=4)
            if i + columns >= len(names):
                axes.set_xlabel("step")
        return _png(fig)


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """(steps, values) of the rows where NAME is a finite number."""
    at = [(row.get("step", i), row[name]) for i, row in enumerate(rows) if _is_number(row.get(name))]
    pairs = np.array(at, float).reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs[:, 1])]
    return pairs[:, 0], pairs[:, 1]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _thin(x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Means over runs of neighbouring points, so that at most about POINTS are left."""
    if len(x) <= POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), POINTS)
    return np.array([x[p].mean() for p in parts]), np.array([y[p].mean() for p in parts])


def scatter(
    xy: NDArray[Any], values: Sequence[object] | NDArray[Any], *, seed: int = 0, unknown: str = "unknown"
) -> bytes:
    """xy (n, 2) coloured by a categorical column, drawn in a shuffled order so that no category hides another. PNG.

    The seven most frequent values have colours, the others are grey together; empty values are `unknown`.
    """
    words = np.array([unknown if is_empty(v) else str(v) for v in values], object)
    names, counts = np.unique(words.astype(str), return_counts=True)
    known = sorted((name for name in names if name != unknown), key=lambda n: (-counts[names == n][0], n))
    shown = sorted(known[: len(COLOURS)]) if len(known) <= len(COLOURS) else sorted(known[: len(COLOURS) - 1])
    colour = dict(zip(shown, COLOURS, strict=False))
    order = torch.randperm(len(xy), generator=generator(seed, len(xy))).numpy()
    legend = [(name, int(counts[names == name][0]), colour[name]) for name in shown]
    rest = int(sum(counts[names == name][0] for name in known if name not in colour))
    if rest:
        legend.append((f"{len(known) - len(shown)} others", rest, GREY))
    if unknown in names:
        legend.append((unknown, int(counts[names == unknown][0]), GREY))
    with mpl.rc_context(STYLE):
        lines = math.ceil(len(legend) / 2)
        fig = Figure(figsize=(WIDTH / 2 - 0.1, 3.7 + 0.19 * lines), layout="constrained")
        axes = fig.add_subplot()
        size = float(np.clip(5000 / max(len(xy), 1), 3, 22))
        paint = [colour.get(words[i], GREY) for i in order]
        axes.scatter(xy[order, 0], xy[order, 1], s=size, c=paint, alpha=0.75, linewidths=0)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_aspect("equal", adjustable="datalim")
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        dots = [
            Line2D([], [], linestyle="", marker="o", markersize=6, color=c, label=f" {_short(n, 24)}  ({k:,})")
            for n, k, c in legend
        ]
        fig.legend(handles=dots, loc="outside lower left", ncols=2, handletextpad=0.2, labelspacing=0.5)
        return _png(fig)


def is_empty(value: object) -> bool:
    """Whether a value of a column is missing: None, "" or NaN."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def grid(
    images: Sequence[Sequence[NDArray[Any] | None]],
    *,
    captions: Sequence[Sequence[str]] | None = None,
    heads: Sequence[str] | None = None,
    cell: float = 1.36,
) -> bytes:
    """Rows of pictures (H, W) or (H, W, 3) in [0, 1], None for a gap; captions below, heads above the columns. PNG."""
    columns = max(len(row) for row in images)
    cell = min(cell, WIDTH / columns)
    gap, under, over = 0.03, 0.22 if captions else 0.03, 0.25 if heads else 0.0  # inches, as everything below
    width, height = columns * cell, len(images) * (cell + under) + over
    with mpl.rc_context(STYLE):
        fig = Figure(figsize=(width, height))
        axes = fig.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))  # one for all: axes are what costs time
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
                    words = _short(captions[r][c], int(cell * 17))
                    axes.text(middle, top + cell, words, ha="center", va="top", fontsize=6.5, color=SOFT)
                if heads and r == 0:
                    axes.text(middle, over - 0.06, _short(heads[c], int(cell * 15)), ha="center", fontsize=7.5)
        axes.set(xlim=(0, width), ylim=(height, 0))
        return _png(fig)


def sheet(views: Sequence[tuple[str, NDArray[Any]]], *, columns: int = 6) -> bytes:
    """(name, array (H, W) or (D, H, W)) pictures on one common grey scale; of a volume the middle slice. PNG."""
    flat = [(name, a[len(a) // 2] if a.ndim == 3 else a) for name, a in views]
    low, high = min(float(a.min()) for _, a in flat), max(float(a.max()) for _, a in flat)
    lines = [flat[i : i + columns] for i in range(0, len(flat), columns)]
    images = [[(a - low) / max(high - low, 1e-12) for _, a in line] for line in lines]
    return grid(images, captions=[[name for name, _ in line] for line in lines])


def forest(rows: Sequence[Interval], *, label: str) -> bytes:
    """Scores with their intervals, one below the other; `label` names the axis, a marked row has a colour. PNG."""
    with mpl.rc_context(STYLE):
        fig = Figure(figsize=(WIDTH, 0.55 + 0.24 * len(rows)), layout="constrained")
        axes = fig.add_subplot()
        for i, row in enumerate(rows):
            colour = COLOURS[1] if row.marked else SOFT
            axes.plot([row.low, row.high], [i, i], color=colour, linewidth=2.2 if row.marked else 1.4)
            axes.plot(row.value, i, marker="D" if row.marked else "o", markersize=5, color=colour)
            text = f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]"
            axes.annotate(
                text, (1.0, i), xycoords=("axes fraction", "data"), xytext=(6, 0), textcoords="offset points",
                va="center", fontsize=7.5, color=INK,
            )  # fmt: skip
        axes.set_yticks(range(len(rows)), [_short(row.name, 44) for row in rows])
        for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
            tick.set_color(COLOURS[1] if row.marked else INK)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color="#e3e6ea", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel(label)
        return _png(fig)


def picture(
    scan: NDArray[Any], low: float, high: float, spacing: Sequence[float] | None = None, *, most: int = 144
) -> NDArray[Any]:
    """A scan as a picture in [0, 1] in its physical proportions; of a volume the middle slice of the first axis.

    scan: (C, H, W) or (C, D, H, W), of which three channels are shown as colours and else the first one; low, high: the
    intensity window; spacing: mm per voxel along the spatial axes. Returns (h, w) or (h, w, 3), at most `most` a side.
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
