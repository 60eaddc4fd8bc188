"""Figures as pure functions from numbers to PNG bytes: no window, no pyplot, no state left behind."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
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
    "path.simplify": True,
}
WIDTH = 7.2  # inches, the text width of the page
POINTS = 600  # a curve is averaged down to about this many points


@dataclass(frozen=True)
class Interval:
    """A row of a forest plot."""

    name: str
    value: float
    low: float
    high: float
    marked: bool = False  # the row the page is about


def _png(fig: Figure, colours: int = 96) -> bytes:
    """The figure with an adaptive palette: a quarter of the bytes of full colour, and nothing to see of it."""
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    rgb = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    out = io.BytesIO()
    rgb.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    fig.clear()
    return out.getvalue()


def curves(rows: Sequence[Mapping[str, Any]], *, max_panels: int = 12) -> bytes:
    """One small panel per number in the rows of metrics.jsonl against `step`, the loss first. PNG.

    Long curves are averaged in bins of steps; a number that appears on some rows only is drawn with its points.
    """
    names = list(dict.fromkeys(k for row in rows for k, v in row.items() if k != "step" and _is_number(v)))
    names = sorted(names, key=lambda name: (name != "loss", "loss" not in name))[:max_panels]
    columns = min(3, max(1, len(names)))
    lines = max(1, math.ceil(len(names) / columns))
    with mpl.rc_context(STYLE):
        fig = Figure(figsize=(WIDTH, 1.75 * lines), layout="constrained")
        for i, name in enumerate(names):
            at = [row for row in rows if _is_number(row.get(name)) and math.isfinite(row[name])]
            x, y = np.array([r.get("step", j) for j, r in enumerate(at)], float), np.array([r[name] for r in at], float)
            axes = fig.add_subplot(lines, columns, i + 1)
            axes.set_title(name.replace("_", " "))
            axes.plot(*_thin(x, y), color=COLOURS[0], marker="o" if len(at) <= 30 else "", markersize=2.5)
            axes.margins(x=0.02)
            axes.locator_params(axis="both", nbins=4)
            if i + columns >= len(names):
                axes.set_xlabel("step")
        return _png(fig, 48)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _thin(x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Means over runs of neighbouring points, so that at most about POINTS are left."""
    if len(x) <= POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), POINTS)
    return np.array([x[p].mean() for p in parts]), np.array([y[p].mean() for p in parts])


def scatter(xy: NDArray[Any], values: Sequence[object], *, seed: int = 0, unknown: str = "unknown") -> bytes:
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
        fig = Figure(figsize=(WIDTH, 4.1), layout="constrained")
        axes = fig.add_subplot()
        size = float(np.clip(4000 / max(len(xy), 1), 4, 26))
        paint = [colour.get(words[i], GREY) for i in order]
        axes.scatter(xy[order, 0], xy[order, 1], s=size, c=paint, alpha=0.75, linewidths=0)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_aspect("equal", adjustable="datalim")
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        dots = [
            Line2D([], [], linestyle="", marker="o", markersize=6, color=c, label=f"{_short(n, 28)}  ({k:,})")
            for n, k, c in legend
        ]
        axes.legend(handles=dots, loc="center left", bbox_to_anchor=(1.0, 0.5), handletextpad=0.3, labelspacing=0.8)
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
    cell: float = 1.2,
) -> bytes:
    """Rows of pictures (H, W) or (H, W, 3) in [0, 1], None for a gap; captions below, heads above the columns. PNG."""
    columns = max(len(row) for row in images)
    cell = min(cell, WIDTH / columns)
    under = 0.2 if captions else 0.05
    height = len(images) * (cell + under) + (0.25 if heads else 0)
    tight = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.0, hspace=0.0)
    with mpl.rc_context(STYLE):
        fig = Figure(figsize=(columns * cell, height), layout=tight)
        for r, row in enumerate(images):
            for c, image in enumerate(row):
                axes: Axes = fig.add_subplot(len(images), columns, r * columns + c + 1)
                axes.set_axis_off()
                if image is None:
                    continue
                axes.imshow(np.clip(image, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                if captions:
                    axes.text(
                        0.5, -0.03, _short(captions[r][c], 22), transform=axes.transAxes, ha="center", va="top",
                        fontsize=6.5, color=SOFT,
                    )  # fmt: skip
                if heads and r == 0:
                    axes.set_title(_short(heads[c], 24), fontsize=7.5, loc="center", pad=3)
        return _png(fig, 128)


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
        return _png(fig, 48)


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
