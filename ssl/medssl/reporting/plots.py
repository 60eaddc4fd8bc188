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
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image

from medssl.rng import generator

# The colour-blind safe palette of Okabe and Ito, without the yellow, which is too faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
GREY = "#B8B8B8"  # categories beyond the palette, and unknown values
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
SUFFIXES = ("_low", "_high", "_of")  # bounds and maximum of another number
POINTS = 600  # a curve is averaged down to about this many points


@dataclass(frozen=True)
class Interval:
    """A row of a forest plot; the rows of the run itself are marked."""

    name: str
    value: float
    low: float
    high: float
    marked: bool = False


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
    largest value that NAME can have, goes into its title.
    """
    found = list(dict.fromkeys(k for row in rows for k, v in row.items() if k != "step" and _is_number(v)))
    names = [name for name in found if not (name.endswith(SUFFIXES) and name.rpartition("_")[0] in found)]
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


def scatter(
    xy: NDArray[Any], values: Sequence[object] | NDArray[Any], *, seed: int = 0, unknown: str = "unknown"
) -> bytes:
    """Draw xy (n, 2) coloured by a categorical column, in random order so that no category hides another. PNG.

    The seven most frequent values have colours and the others are grey; empty values are `unknown`.
    """
    words = [unknown if is_empty(v) else str(v) for v in values]
    counts = Counter(words)
    known = sorted(counts.keys() - {unknown}, key=lambda name: (-counts[name], name))
    shown = sorted(known if len(known) <= len(COLOURS) else known[: len(COLOURS) - 1])
    colour = dict(zip(shown, COLOURS, strict=False))
    legend = [(name, counts[name], colour[name]) for name in shown]
    if rest := sum(counts[name] for name in known if name not in colour):
        legend.append((f"{len(known) - len(shown)} others", rest, GREY))
    if unknown in counts:
        legend.append((unknown, counts[unknown], GREY))
    order = torch.randperm(len(xy), generator=generator(seed, len(xy))).numpy()
    with mpl.rc_context(STYLE):
        lines = math.ceil(len(legend) / 2)
        fig = Figure(figsize=(WIDTH / 2 - 0.1, 3.7 + 0.19 * lines), layout="constrained")
        axes = fig.add_subplot(xticks=[], yticks=[])
        size = float(np.clip(5000 / max(len(xy), 1), 3, 22))
        paint = [colour.get(words[i], GREY) for i in order]
        axes.scatter(xy[order, 0], xy[order, 1], s=size, c=paint, alpha=0.75, linewidths=0)
        axes.set_aspect("equal", adjustable="datalim")
        axes.spines[["left", "bottom"]].set_visible(False)
        dots = [
            Line2D([], [], linestyle="", marker="o", markersize=6, color=c, label=f" {shorten(n, 24)}  ({k:,})")
            for n, k, c in legend
        ]
        fig.legend(handles=dots, loc="outside lower left", ncols=2, handletextpad=0.2, labelspacing=0.5)
        return png_bytes(fig)


def is_empty(value: object) -> bool:
    """Return whether a value of a column is missing: None, "" or NaN."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def shorten(text: str, most: int) -> str:
    """Return at most `most` characters of a text, ending with … where it was cut."""
    return text if len(text) <= most else text[: most - 1] + "…"


def forest(rows: Sequence[Interval], *, label: str) -> bytes:
    """Draw scores with their intervals in rows; `label` names the axis, marked rows have a colour. PNG."""
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
        axes.set_yticks(range(len(rows)), [shorten(row.name, 44) for row in rows])
        for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
            tick.set_color(COLOURS[1] if row.marked else INK)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color="#e3e6ea", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel(label)
        return png_bytes(fig)


def reliability(curve: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw observed frequency with its interval against predicted probability, for each bin of scans. PNG."""
    with mpl.rc_context(STYLE):
        fig = Figure(figsize=(3.2, 3.0))
        axes = fig.add_axes(
            (0.16, 0.15, 0.8, 0.8),
            xlim=(0, 1),
            ylim=(0, 1),
            xlabel="predicted probability",
            ylabel="observed frequency",
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
        axes = fig.add_subplot(xlabel="threshold probability", ylabel="net benefit")
        axes.axhline(0, color=SOFT, linewidth=0.8, label="treat none")
        axes.plot(x, treat_all, color=COLOURS[1], label="treat all")
        axes.plot(x, model, color=COLOURS[0], label="model")
        axes.fill_between(x, low, high, color=COLOURS[0], alpha=0.18, linewidth=0)
        # treating all costs more and more at high thresholds, which would hide the rest
        axes.set_ylim(min(0.0, np.nanmin(model)) - 0.05, max(0.0, np.nanmax(high), np.nanmax(treat_all)) + 0.05)
        fig.legend(loc="outside upper right", ncols=3)
        return png_bytes(fig)
