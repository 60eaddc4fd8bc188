"""Pictures of a report with their words in HTML below them, so that every script can be read and a phone can wrap them."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from medssl.reporting.embeddings import Embeddings, neighbours
from medssl.reporting.messages import Messages
from medssl.reporting.pictures import outlined, picture
from medssl.reporting.plots import is_empty
from medssl.rng import generator
from medssl.store.store import Store

QUERIES, NEIGHBOURS, SAMPLES = 5, 6, 12  # pictures shown
FLAGS = 2  # quality flags named below a picture


@dataclass(frozen=True)
class Cell:
    """A picture with the lines below it. `alt` describes it in words; `same` marks a neighbour of the same value."""

    png: bytes
    lines: tuple[str, ...]
    alt: str
    head: str = ""
    same: bool = False


def png_of(image: NDArray[Any]) -> bytes:
    """Return a picture (H, W) or (H, W, 3) in [0, 1] as PNG; colours get a palette, which takes far fewer bytes."""
    shown = Image.fromarray(np.round(255 * np.clip(image, 0, 1)).astype(np.uint8))
    if shown.mode == "RGB":
        shown = shown.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    out = io.BytesIO()
    shown.save(out, "PNG", optimize=True)
    return out.getvalue()


def sample_sheet(store: Store, seed: int, t: Messages) -> list[Cell]:
    """Return some scans of a store with their mask outlined, each with its split, site, labels and quality flags."""
    cells = []
    labels = {name: store.column(f"label:{name}") for name in store.labels[:FLAGS]}
    for row in _drawn(np.arange(len(store)), SAMPLES, seed, 1):
        where = [t.phrase(str(store.column("split")[row] or "")), str(store.column("site")[row] or "")]
        known = [f"{name}: {values[row]}" for name, values in labels.items() if not is_empty(values[row])]
        flags = [t.phrase(str(flag)) for flag in (store.column("flags")[row] or ())]
        lines = (", ".join(filter(None, where)), *known, *(f"! {flag}" for flag in flags[:FLAGS]))
        alt = t("sample_alt", words=", ".join(filter(None, lines)))
        cells.append(Cell(png_of(_picture(store, int(row))), tuple(filter(None, lines)), alt))
    return cells


def neighbour_sheet(embeddings: Embeddings | None, store: Store, seed: int, t: Messages) -> dict[str, Any]:
    """Return some scans, each beside its nearest neighbours among other patients, and how many share the query's label."""
    if embeddings is None:
        return {}
    known = np.flatnonzero(embeddings.row >= 0)
    if len(set(embeddings.patient[known])) < 2:
        return {"few": True}
    held_out = known[embeddings.columns["split"][known] == "test"]
    label = next(iter(embeddings.labels), "site")
    values = embeddings.columns[label]
    rows, same = [], Counter[bool]()
    for query in _drawn(held_out if len(held_out) else known, QUERIES, seed, 2):
        cells = []
        for k, i in enumerate([query, *neighbours(embeddings, query, NEIGHBOURS)]):
            word = t("unknown") if is_empty(values[i]) else str(values[i])
            agrees = k > 0 and not is_empty(values[i]) and values[i] == values[query]
            same[agrees] += k > 0
            head = t("neighbour", k=k) if k else t("query")
            cells.append(
                Cell(png_of(_picture(store, int(embeddings.row[i]))), (word,), f"{head}: {label} {word}", head, agrees)
            )
        rows.append(cells)
    return {
        "rows": rows,
        "k": NEIGHBOURS,
        "label": label,
        "held_out": bool(len(held_out)),
        "same": same[True],
        "all": same.total(),
    }


def view_cells(views: Sequence[tuple[str, NDArray[Any]]], t: Messages) -> list[Cell]:
    """Return (name, array (H, W) or (D, H, W)) on one common grey scale; for a volume its middle slice."""
    if not views:
        return []
    flat = [(t.phrase(name), a[len(a) // 2] if a.ndim == 3 else a) for name, a in views]
    low, high = min(float(a.min()) for _, a in flat), max(float(a.max()) for _, a in flat)
    return [Cell(png_of((a - low) / max(high - low, 1e-12)), (name,), t("view_alt", name=name)) for name, a in flat]


def cam_cells(found: Mapping[str, Any], pictures: Mapping[str, NDArray[Any]], t: Messages) -> dict[str, list[Cell]]:
    """Return the scans of cam.json and their maps by kind: hit, miss, doubtful or other."""
    groups: dict[str, list[Cell]] = {}
    for i, each in enumerate(found["shown"]):
        words = each["caption"]
        if each["called"] is not None:
            words = t("cam_predicted", label=each["label"], called=each["called"], p=each["p"])
        cells = groups.setdefault(each["kind"], [])
        cells.append(Cell(png_of(pictures[f"scan{i}"] / 255), (words,), t("cam_alt", words=words)))
        cells.append(Cell(png_of(pictures[f"over{i}"] / 255), (each["caption"],), t("cam_over_alt", words=words)))
    return groups


def _picture(store: Store, row: int) -> NDArray[Any]:
    low, high, spacing = (store.column(name)[row] for name in ("low", "high", "spacing"))
    shown = picture(store[row], float(low), float(high), spacing)
    mask = store.mask(row)
    return shown if mask is None or not mask.any() else outlined(shown, picture(mask > 0, 0, 1, spacing) >= 0.5)


def _drawn(rows: NDArray[Any], n: int, seed: int, stream: int) -> NDArray[np.int64]:
    """Return at most n of the rows at random, keyed by the seed and a number for each use."""
    return rows[torch.randperm(len(rows), generator=generator(seed, stream, len(rows)))[:n].numpy()]
