"""Charts as pure functions from numbers to PNG bytes: no window, no pyplot, no global state."""

import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from numpy.typing import NDArray
from PIL import Image

from medssl.rng import generator

# The colour-blind safe palette of Okabe and Ito, without the yellow, which is too faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
GREY = "#B8B8B8"  # categories beyond the palette, and unknown values
HANGUL = ("Noto Sans CJK KR", "Noto Sans KR", "NanumGothic", "Malgun Gothic", "AppleGothic")
INK, SOFT = "#1b1f24", "#5b6470"
STYLE: Any = {
    # DejaVu Sans ships with matplotlib, so the same bytes everywhere; Hangul needs a font of the machine
    "font.family": ["DejaVu Sans", *[name for name in HANGUL if name in get_font_names()]],
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
NAMES = {
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "knn_auroc": "kNN AUROC (validation)",
    "rankme": "RankMe, centred",
    "rankme_raw": "RankMe",
    "rankme_share": "RankMe, share",
    "lidar": "LiDAR",
    "lidar_share": "LiDAR, share",
    "alpha": "alpha-ReQ",
    "alpha_r2": "alpha-ReQ, fit (R2)",
}
"""Titles of curves, where the name in metrics.jsonl is short."""
CHANCE = "chance"  # the loss of a guess, drawn as a line in the panel of the loss
SUFFIXES = ("_low", "_high", "_of")  # bounds and maximum of another number
POINTS = 600  # a curve is averaged down to about this many points


@dataclass(frozen=True)
class Entry:
    """A value in a legend: its name, how often it occurs, and its colour."""

    name: str
    n: int
    colour: str


def png_bytes(fig: Figure) -> bytes:
    """Return a figure as PNG with an adaptive palette: far fewer bytes than full colour, without a visible difference."""
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    rgb = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    out = io.BytesIO()
    rgb.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    fig.clear()
    return out.getvalue()


def curves(rows: Sequence[Mapping[str, Any]], *, max_panels: int = 12) -> bytes:
    """Draw every number in the rows of metrics.jsonl against `step`, one panel each, the loss first. PNG.

    Long curves are averaged in bins of steps. NAME_low and NAME_high shade an interval around NAME, and NAME_of, the
    largest value that NAME can have, goes into its title. A dashed line in the panel of the loss is the loss of a guess.
    """
    found = list(dict.fromkeys(k for row in rows for k, v in row.items() if k != "step" and _is_number(v)))
    names = [name for name in found if not (name.endswith(SUFFIXES) and name.rpartition("_")[0] in found)]
    if "loss" in names and CHANCE in names:
        names.remove(CHANCE)
    names = sorted(names, key=lambda name: (name != "loss", "loss" not in name))[:max_panels]
    columns = min(3, max(1, len(names)))
    lines = max(1, math.ceil(len(names) / columns))
    with mpl.rc_context(STYLE):
        fig = Figure(figsize=(WIDTH, 1.75 * lines), layout="constrained")
        for i, name in enumerate(names):
            axes = fig.add_subplot(lines, columns, i + 1)
            x, y = _series(rows, name)
            most = {row[f"{name}_of"] for row in rows if f"{name}_of" in row}
            title = NAMES.get(name, name.replace("_", " "))
            axes.set_title(title + (f" (of {max(most):g})" if most else ""))
            axes.plot(*_thin(x, y), color=COLOURS[0], marker="o" if len(x) <= 30 else "", markersize=2.5)
            if name == "loss":
                axes.plot(*_thin(*_series(rows, CHANCE)), color=SOFT, linewidth=0.8, linestyle="--")
            (at, low), (_, high) = _series(rows, f"{name}_low"), _series(rows, f"{name}_high")
            if len(low) and len(low) == len(high):
                axes.fill_between(at, low, high, color=COLOURS[0], alpha=0.18, linewidth=0)
            axes.margins(x=0.02)
            axes.locator_params(axis="both", nbins=4)
            if i + columns >= len(names):
                axes.set_xlabel("step")
        return png_bytes(fig)


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return (steps, values) of the rows in which `name` is a finite number."""
    at = [(row.get("step", i), row[name]) for i, row in enumerate(rows) if _is_number(row.get(name))]
    pairs = np.array(at, float).reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs[:, 1])]
    return pairs[:, 0], pairs[:, 1]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _thin(x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Average neighbouring points so that at most POINTS are left."""
    if len(x) <= POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), POINTS)
    return np.array([x[p].mean() for p in parts]), np.array([y[p].mean() for p in parts])


def legend(
    values: Sequence[object] | NDArray[Any], *, unknown: str = "unknown", others: str = "{n} others"
) -> list[Entry]:
    """Return the legend of a categorical column: the seven most frequent values in colours, the others and the unknown grey."""
    words = [unknown if is_empty(v) else str(v) for v in values]
    counts = Counter(words)
    known = sorted(counts.keys() - {unknown}, key=lambda name: (-counts[name], name))
    shown = sorted(known if len(known) <= len(COLOURS) else known[: len(COLOURS) - 1])
    found = [Entry(name, counts[name], colour) for name, colour in zip(shown, COLOURS, strict=False)]
    if rest := [name for name in known if name not in shown]:
        found.append(Entry(others.format(n=len(rest)), sum(counts[name] for name in rest), GREY))
    if unknown in counts:
        found.append(Entry(unknown, counts[unknown], GREY))
    return found


def scatter(xy: NDArray[Any], values: Sequence[object] | NDArray[Any], *, seed: int = 0) -> bytes:
    """Draw xy (n, 2) in the colours of `legend(values)`, in random order so that no category hides another. PNG."""
    colour = {entry.name: entry.colour for entry in legend(values)}
    order = torch.randperm(len(xy), generator=generator(seed, len(xy))).numpy()
    low, high = xy.min(0), xy.max(0)
    wide, tall = np.maximum(high - low, 1e-9 + 0.3 * (high - low).max())
    with mpl.rc_context(STYLE):
        width = WIDTH / 2 - 0.1
        fig = Figure(figsize=(width, width * float(tall / wide)))
        axes = fig.add_axes((0, 0, 1, 1), xticks=[], yticks=[])
        axes.set_axis_off()
        size = float(np.clip(5000 / max(len(xy), 1), 3, 22))
        paint = [colour.get(str(values[i]), GREY) for i in order]
        axes.scatter(xy[order, 0], xy[order, 1], s=size, c=paint, alpha=0.75, linewidths=0)
        middle = (low + high) / 2
        for axis, at, side in ((axes.set_xlim, middle[0], wide), (axes.set_ylim, middle[1], tall)):
            axis(at - 0.52 * side, at + 0.52 * side)
        return png_bytes(fig)


def is_empty(value: object) -> bool:
    """Return whether a value of a column is missing: None, "" or NaN."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def shorten(text: str, most: int) -> str:
    """Return at most `most` characters of a text, ending with … where it was cut."""
    return text if len(text) <= most else text[: most - 1] + "…"


def reliability(curve: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw observed frequency with its interval against predicted probability, for each bin of scans. PNG."""
    with mpl.rc_context(STYLE):
        fig = Figure(figsize=(3.2, 3.0))
        axes = fig.add_axes(
            (0.1, 0.08, 0.86, 0.88),
            xlim=(0, 1),
            ylim=(0, 1),
        )
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.6)
        for found in curve:
            x, y = found["predicted"]["value"], found["observed"]
            axes.plot([x], [y["value"]], "o", color=COLOURS[0], markersize=3)
            if y["low"] is not None:
                axes.plot([x, x], [y["low"], y["high"]], color=COLOURS[0], linewidth=0.8)
        return png_bytes(fig)


def decision_curve(curve: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw the net benefit of a model with its interval, of treating all and of treating none, against the threshold. PNG.

    Vickers & Elkin, 2006, https://doi.org/10.1177/0272989X06295361.
    """
    x, model, low, high, treat_all = (
        np.array(column, float)
        for column in zip(
            *(
                (p["threshold"], *(p["model"][k] for k in ("value", "low", "high")), p["treat_all"]["value"])
                for p in curve
            ),
            strict=True,
        )
    )
    with mpl.rc_context(STYLE):
        fig = Figure(figsize=(WIDTH / 2, 3.0), layout="constrained")
        axes = fig.add_subplot()
        axes.axhline(0, color=SOFT, linewidth=0.8)
        axes.plot(x, treat_all, color=COLOURS[1])
        axes.plot(x, model, color=COLOURS[0])
        axes.fill_between(x, low, high, color=COLOURS[0], alpha=0.18, linewidth=0)
        # treating all costs more and more at high thresholds, which would hide the rest
        axes.set_ylim(min(0.0, np.nanmin(model)) - 0.05, max(0.0, np.nanmax(high), np.nanmax(treat_all)) + 0.05)
        return png_bytes(fig)
