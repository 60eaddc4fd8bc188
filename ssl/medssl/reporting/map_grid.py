"""Maps of the same scans side by side, laid over one another, each with how faithful it is written under it."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image

from medssl.errors import UserError, nearest
from medssl.reporting.embeddings import read_embeddings
from medssl.reporting.explorer import Map, columns_of
from medssl.reporting.faithfulness import faithfulness
from medssl.reporting.maps import NAMES, align, check_points, choose_maps, lay_out
from medssl.reporting.plots import GREY, SOFT, STYLE, WIDTH, legend, shorten
from medssl.reporting.tsne import place
from medssl.rng import generator
from medssl.store.query import select
from medssl.store.store import Store

LEGEND = 1.7  # inches beside a row of maps
IN_MAP, PLACED = "in the map", "placed later"


class Picture(bytes):
    """A PNG, which a notebook shows."""

    def __repr__(self) -> str:
        return f"<PNG of {len(self):,} bytes>"

    def _repr_png_(self) -> bytes:
        return bytes(self)


@dataclass(frozen=True)
class MapGrid:
    """Maps of the same N scans.

    Attributes:
        maps: each with its faithfulness; all moved, turned, mirrored and scaled as a whole onto the first (Procrustes).
        columns: name -> (N,) values to colour by, floats with NaN or text with "" where unknown: labels, metadata, site, scanner,
            split, patient, and `place` where scans were placed into a finished map.
    """

    maps: list[Map]
    columns: Mapping[str, NDArray[Any]]

    def by(self, *columns: str) -> Picture:
        """Draw all maps in a row for each column, in its colours. Raises UserError for a column that is not there."""
        for name in columns:
            if name not in self.columns:
                raise UserError(
                    f"there is no column {name!r}; there are {', '.join(self.columns)}.{nearest(name, self.columns)}"
                )
        side = min(2.9, (WIDTH - LEGEND) / len(self.maps))
        spread = [np.ptp(m.xy, axis=0) for m in self.maps]
        tall = side * float(np.clip(max(high / max(wide, 1e-9) for wide, high in spread), 0.5, 1))
        with mpl.rc_context(STYLE):
            fig = Figure(figsize=(side * len(self.maps) + LEGEND, len(columns) * (tall + 0.55)), layout="constrained")
            panels = fig.subplots(len(columns), len(self.maps), squeeze=False)
            for name, row in zip(columns, panels, strict=True):
                for m, axes in zip(self.maps, row, strict=True):
                    _paint(axes, m, self.columns[name])
                row[0].set_title(f"{name}: {self.maps[0].name}")
                _key(fig, row[-1], self.columns[name])
            return Picture(_png(fig))


def maps(
    runs: str | Path | Sequence[str | Path],
    store: str | Path | Store,
    *,
    kinds: Sequence[str] = ("tsne",),
    seeds: Sequence[int] = (0,),
    where: str | None = None,
    fit: str | None = None,
) -> MapGrid:
    """Lay out the embeddings of a store's scans: a map for each run, kind of map and seed of the map.

    Args:
        runs: run folders with the embeddings of these scans (`medssl.embed`).
        store: the scans.
        kinds: of tsne, pca and umap.
        seeds: of the maps. t-SNE starts from the principal components, so that its maps hardly depend on the seed.
        where: filter expression selecting scans; see `medssl.store.query`.
        fit: filter expression: t-SNE is fitted to these scans, and the others are placed into the finished map.

    Raises UserError without embeddings of all the scans, if they cannot be laid out, and for `fit` with a map other than tsne.
    """
    folders = [Path(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]
    chosen, scans = choose_maps(kinds), Store.open(store, where)
    if fit is not None and chosen != ["tsne"]:
        raise UserError("scans are placed into maps of kind tsne only; leave fit out, or give kinds=['tsne']")
    rows = np.arange(len(scans))
    fitted = np.full(len(scans), fit is None)
    if fit is not None:
        fitted[select(scans.table, fit)] = True
    found: list[Map] = []
    for folder in folders:
        x = _features(folder, scans)
        named = "" if len(folders) == 1 else f", {folder.resolve().name}"
        for kind in chosen:
            for seed in seeds:
                xy = lay_out(kind, x, seed) if fit is None else _placed(x, fitted, seed)
                xy = align(xy, found[0].xy) if found else xy
                several = f", seed {seed}" if len(seeds) > 1 else ""
                found.append(Map(NAMES[kind] + named + several, xy, faithfulness(x, [xy])[0]))
    columns = columns_of(scans, rows)[0] | {"patient": np.array([p[:6] + "…" for p in scans.column("patient")])}
    if fit is not None:
        columns["place"] = np.where(fitted, IN_MAP, PLACED)
    return MapGrid(found, columns)


def _features(folder: Path, scans: Store) -> NDArray[np.float32]:
    """Return the embeddings of all scans of a store in its order. Raises UserError if one has none."""
    embeddings = read_embeddings(folder, scans)
    at = {row: i for i, row in enumerate(embeddings.row.tolist())}
    lacking = sum(row not in at for row in range(len(scans)))
    if lacking:
        raise UserError(
            f"{folder} has no embedding of {lacking:,} of {len(scans):,} scans; embed them: "
            f"medssl embed run={folder} store={scans.path}"
        )
    x = embeddings.x[[at[row] for row in range(len(scans))]]
    check_points(x)
    return x


def _placed(x: NDArray[Any], fitted: NDArray[np.bool_], seed: int) -> NDArray[np.float64]:
    out = np.empty((len(x), 2))
    out[fitted], out[~fitted] = place(x[fitted], x[~fitted], seed=seed)
    return out


def _paint(axes: Axes, m: Map, values: NDArray[Any]) -> None:
    """Draw one map, its name above it and its faithfulness under it."""
    order = torch.randperm(len(m.xy), generator=generator(0, len(m.xy))).numpy()  # no value hides another
    look: dict[str, Any] = {"s": float(np.clip(3000 / len(m.xy), 2, 16)), "linewidths": 0, "alpha": 0.8}
    if values.dtype.kind == "f":
        unknown = np.isnan(values)
        axes.scatter(m.xy[unknown, 0], m.xy[unknown, 1], c=GREY, **look)
        axes.scatter(m.xy[order, 0], m.xy[order, 1], c=values[order], cmap="cividis", **look)
    else:
        colour = {entry.name: entry.colour for entry in legend(values)}
        paint = [colour.get(str(values[i]), GREY) for i in order]
        axes.scatter(m.xy[order, 0], m.xy[order, 1], c=paint, **look)
    axes.spines[:].set_visible(False)
    axes.set(title=m.name, xticks=[], yticks=[], aspect="equal", adjustable="datalim")
    f = m.faithful
    axes.set_xlabel(
        f"trustworthiness {f.trustworthiness:.2f}, continuity {f.continuity:.2f},\n{f.kept:.0%} of {f.k} neighbours kept",
        fontsize=6.5,
    )


def _png(fig: Figure) -> bytes:
    """Return a figure as a small PNG in whose palette the colours of few points survive."""
    drawn, out = io.BytesIO(), io.BytesIO()
    fig.savefig(drawn, format="png", dpi=110)
    Image.open(drawn).convert("RGB").quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        out, "PNG", optimize=True
    )
    return out.getvalue()


def _key(fig: Figure, axes: Axes, values: NDArray[Any]) -> None:
    """Put the legend of a row to the right of its last map."""
    if values.dtype.kind == "f":
        beside = axes.inset_axes((1.06, 0.2, 0.03, 0.6))
        fig.colorbar(axes.collections[-1], cax=beside)
        return
    marks = [
        Line2D([], [], marker="o", linestyle="", markersize=4, color=e.colour, label=f"{shorten(e.name, 20)} ({e.n})")
        for e in legend(values)
    ]
    axes.legend(
        handles=marks, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=6.5, labelcolor=SOFT, handletextpad=0.2
    )
