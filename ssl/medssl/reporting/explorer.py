"""The page of `medssl explore`: maps of embeddings that a person can point at, in one file that loads nothing.

Drawn by plotly, whose Python package ships its JavaScript as one file, draws points by WebGL, and has lasso, box and hover.
bokeh does the same in a smaller file, but took more than twice as long for each frame of 50,000 points. embedding-atlas
writes a folder that needs a web server, and installs a hundred megabytes of language models' libraries.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from markupsafe import Markup
from numpy.typing import NDArray

from medssl.errors import UserError
from medssl.progress import Progress
from medssl.reporting.faithfulness import Faithfulness
from medssl.reporting.plots import COLOURS, GREY, is_empty
from medssl.reporting.render import render
from medssl.reporting.thumbnails import ACROSS, Thumbnails
from medssl.results import ShownPath
from medssl.store.label_values import number
from medssl.store.store import Store

NEIGHBOURS = 8  # shown of a scan
CLASSES = 12  # a text column of numbers with more values than this is coloured as a number
BLOCK = 1 << 24  # similarities held at once


@dataclass(frozen=True)
class Map:
    """One map: its name, xy (N, 2), how faithful it is to the features that it was made of, and NaN rows for absent scans."""

    name: str
    xy: NDArray[np.float64]
    faithful: Faithfulness


@dataclass(frozen=True)
class Neighbours:
    """The nearest scans by cosine distance of their features: rows (N, k) int32, -1 for none, and distances (N, k) float32."""

    rows: NDArray[np.int32]
    distances: NDArray[np.float32]


@dataclass(frozen=True)
class Exploration:
    """What the page shows of N scans.

    Attributes:
        title: of the page; the name of the run.
        scan, patient: (N,) pseudonyms.
        columns: name -> (N,) values: floats with NaN, or text with "" where unknown.
        maps: at least one.
        others, every: nearest scans of other patients, and of all.
        pictures: None leaves them out.
        notes: sentences about what is left out.
    """

    title: str
    scan: NDArray[Any]
    patient: NDArray[Any]
    columns: Mapping[str, NDArray[Any]]
    maps: list[Map]
    others: Neighbours
    every: Neighbours
    pictures: Thumbnails | None = None
    notes: list[str] = field(default_factory=list)


def check_installed() -> None:
    """Raise UserError without plotly."""
    if find_spec("plotly") is None:
        raise UserError("medssl explore needs plotly: pip install 'medssl[explore]'")


def nearest_scans(x: NDArray[Any], patient: NDArray[Any], k: int = NEIGHBOURS) -> tuple[Neighbours, Neighbours]:
    """Return the k nearest scans of other patients, and of all, by cosine distance (0 to 2) of x (N, D), nearest first."""
    n = len(x)
    k = min(k, n - 1)
    unit = torch.nn.functional.normalize(torch.from_numpy(np.asarray(x, np.float64)))
    who = torch.from_numpy(np.unique(patient, return_inverse=True)[1])
    parts: tuple[list[Any], list[Any]] = [], []
    step = max(1, BLOCK // n)
    with Progress("neighbours", total=n, unit="scan") as bar:
        for start in range(0, n, step):
            rows = torch.arange(start, min(start + step, n))
            like = unit[rows] @ unit.T
            like[torch.arange(len(rows)), rows] = -torch.inf
            parts[1].append(like.topk(k))
            parts[0].append(like.masked_fill_(who[rows, None] == who, -torch.inf).topk(k))
            bar.update(len(rows))
    others, every = (
        Neighbours(
            np.where(np.isfinite(near), torch.cat([p.indices for p in part]).numpy(), -1).astype(np.int32),
            (1 - near).clip(0).astype(np.float32),
        )
        for part in parts
        for near in [torch.cat([p.values for p in part]).numpy()]
    )
    return others, every


def columns_of(store: Store, rows: NDArray[np.int64]) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Return {name: values of the scans `rows`} of labels, metadata, site, scanner, modality and split; and those left out.

    Left out are columns of one value, and text with nearly as many values as scans, which may name a person.
    """
    plain = [c for c in ("split", "site", "scanner", "modality") if c in store.table.column_names]
    named = [c for c in store.table.column_names if c.startswith(("label:", "fact:")) and c != "fact:steps"]
    found: dict[str, NDArray[Any]] = {}
    left_out = []
    for column in sorted(named, key=lambda c: not c.startswith("label:")) + plain:
        short = column.rpartition(":")[2]
        name = f"{short} (metadata)" if short in found else short
        values = store.column(column)[rows]
        if pa.types.is_floating(store.table.schema.field(column).type):
            found[name] = values.astype(np.float32)
        else:
            words = np.array(["" if is_empty(v) else str(v) for v in values], object)
            distinct = set(words) - {""}
            numbers = [number(v) for v in distinct]
            if len(distinct) > CLASSES and None not in numbers:
                found[name] = np.array([np.nan if w == "" else number(w) for w in words], np.float32)
            elif len(distinct) > max(20, len(rows) // 2):
                left_out.append(name)
                continue
            else:
                found[name] = words
        if len({v for v in found[name].tolist() if not is_empty(v)}) < 1:
            del found[name]
    return found, left_out


def explorer_page(shown: Exploration) -> Markup:
    """Return the page as HTML. Its policy lets a browser load nothing from anywhere; ids in it are pseudonyms."""
    from plotly.offline import get_plotlyjs  # an extra

    # "<" could end the script that the data are in
    data = json.dumps(_data(shown), separators=(",", ":")).replace("<", "\\u003c")
    return render("explorer.html.j2", title=shown.title, library=Markup(get_plotlyjs()), data=Markup(data))


def _data(shown: Exploration) -> dict[str, Any]:
    patients, patient = np.unique(shown.patient.astype(str), return_inverse=True)
    return {
        "title": shown.title,
        "n": len(shown.scan),
        "scan": shown.scan.tolist(),
        "patients": patients.tolist(),
        "patient": _packed(patient.astype("<u4")),
        "columns": [{"name": name} | _column(values) for name, values in shown.columns.items()],
        "maps": [
            {"name": m.name, "x": _packed(m.xy[:, 0].astype("<f4")), "y": _packed(m.xy[:, 1].astype("<f4"))}
            | {"trustworthiness": m.faithful.trustworthiness, "continuity": m.faithful.continuity}
            | {"kept": m.faithful.kept, "k": m.faithful.k, "placed": _packed(m.faithful.placed.astype("<f4"))}
            for m in shown.maps
        ],
        "neighbours": {
            name: {
                "rows": _packed(found.rows.astype("<i4")),
                "distances": _packed(found.distances.astype("<f4")),
                "k": found.rows.shape[1],
            }
            for name, found in (("others", shown.others), ("every", shown.every))
        },
        "pictures": None
        if shown.pictures is None
        else {
            "sheets": shown.pictures.sheets,
            "height": shown.pictures.height,
            "width": shown.pictures.width,
            "across": ACROSS,
        },
        "notes": shown.notes,
        "palette": COLOURS,
        "grey": GREY,
    }


def _column(values: NDArray[Any]) -> dict[str, Any]:
    """Return a column as numbers, or as the number of each value in a list of values, the most frequent first."""
    if values.dtype.kind == "f":
        return {"numbers": _packed(values.astype("<f4"))}
    words, inverse, counts = np.unique(values.astype(str), return_inverse=True, return_counts=True)
    order = np.lexsort((words, -counts, words == ""))  # unknown is the last
    rank = np.empty(len(order), np.uint32)
    rank[order] = np.arange(len(order))
    return {"values": words[order].tolist(), "counts": counts[order].tolist(), "codes": _packed(rank[inverse])}


def _packed(values: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


class Page(ShownPath):
    """The path of a page; a notebook shows the page itself."""

    def _repr_html_(self) -> str:
        page = self.read_text("utf-8")
        return str(
            Markup(
                '<iframe srcdoc="{}" style="width:100%;height:760px;border:0" title="medssl explore"></iframe>'
            ).format(page)
        )
