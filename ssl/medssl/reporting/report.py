"""The report on a run: a single file without scripts or outside addresses, which opens offline and prints."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medssl.errors import UserError
from medssl.files import write_text
from medssl.reporting import plots
from medssl.reporting.conclusions import conclusions
from medssl.reporting.data_sheet import data_sheet
from medssl.reporting.embeddings import Embeddings, neighbours, read_embeddings
from medssl.reporting.pictures import grid, picture, view_sheet
from medssl.reporting.render import read_json, read_lines, render
from medssl.reporting.score_table import score_table
from medssl.reporting.sections import audit_section, cam_section, quality_section
from medssl.reporting.tsne import FEWEST, trustworthiness, tsne
from medssl.rng import generator
from medssl.scoring.score_table import read_tables
from medssl.store.store import Store

LABELS = 4  # labels that get a t-SNE of their own
QUERIES, NEIGHBOURS, SAMPLES, VIEWS = 5, 6, 12, 24  # pictures shown
WARNINGS = 3  # warnings of a training that are shown
CONFIG = ("options", "channels", "size", "spacing", "equalise", "dim", "step", "intensity", "store")


def write_report(
    run: Path,
    store: Store,
    *,
    out: Path | None = None,
    views: Sequence[tuple[str, NDArray[Any]]] = (),
    seed: int = 0,
) -> Path:
    """Write RUN/report.html (or `out`) atomically from the files in the run folder, and return its path.

    A section whose file is missing names the command that makes it. The page holds no id of a patient, study or scan.
    The same files give the same bytes.

    Args:
        run: a run folder, finished or not.
        store: the store that the run was trained on.
        out: the file to write; None is RUN/report.html.
        views: (name, array (H, W) or (D, H, W)), training views to show on a common grey scale.
        seed: for t-SNE and the choice of scans.

    Raises UserError if `run` is not a folder or a file in it is damaged.
    """
    run = Path(run)
    if not run.is_dir():
        raise UserError(f"no run at {run}: name the folder that `medssl pretrain` wrote (run=…)")
    encoder, env, tables = (
        read_json(run / "encoder.json"),
        read_json(run / "env.json"),
        read_tables(run / "scores.json"),
    )
    resolved = run / "resolved.yaml"
    embeddings = read_embeddings(run, store) if (run / "embeddings.parquet").exists() else None
    page = render(
        "report.html.j2",
        run=run.resolve().name,
        store=store,
        encoder=encoder,
        config=[(key, _plain(encoder.get(key))) for key in CONFIG] if encoder else [],
        # a path may name people
        settings=[line for line in _lines(resolved) if not line.startswith("store: ")],
        environment=list(_flat(env)) if env else [],
        data=data_sheet(store),
        samples=_samples(store, seed),
        **_curves(run / "metrics.jsonl"),
        tables=tables,
        conclusions=[" ".join(conclusions(table)) for table in tables],
        flags=list(dict.fromkeys(flag for table in tables for flag in table["flags"])),
        score_tables=[score_table(table) for table in tables],
        audit=audit_section(run),
        quality=quality_section(run),
        cam=cam_section(run),
        tsne=_tsne(embeddings, seed),
        views=[name for name, _ in views[:VIEWS]],
        view_sheet=view_sheet(views[:VIEWS]) if views else b"",
        neighbours=_neighbours(embeddings, store, seed),
        sites=len({site for site in store.column("site") if site}),
        unknown=int((~np.asarray(store.column("patient_known"), bool)).sum()),
    )
    path = out or run / "report.html"
    write_text(path, page)
    return path


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8").strip().splitlines() if path.exists() else []


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    if isinstance(value, list):
        return " x ".join(map(str, value))
    return "" if value is None else str(value)


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, v in value.items():
        if isinstance(v, dict):
            yield from _flat(v, f"{prefix}{key} ")
        else:
            yield prefix + key, _plain(v)


def _curves(path: Path) -> dict[str, Any]:
    """Return the training curves, the last step and the warnings in metrics.jsonl."""
    rows = read_lines(path)
    warnings = [f"Step {row.get('step', '?')}: {row['warning']}" for row in rows if row.get("warning")]
    return {
        "curves": plots.curves(rows) if rows else b"",
        "last_step": rows[-1].get("step", len(rows) - 1) if rows else 0,
        "warnings": warnings[-WARNINGS:],
        "all_warnings": len(warnings),
    }


def _samples(store: Store, seed: int) -> bytes:
    """Return some scans in two rows, each with its split and site below."""
    rows = _draw(np.arange(len(store)), SAMPLES, seed, 1)
    if len(rows) < 2:
        return b""
    half = -(-len(rows) // 2)
    halves = rows[:half], rows[half:]
    split, site = store.column("split"), store.column("site")
    captions = [[" ".join(filter(None, (split[i], site[i]))) for i in part] for part in halves]
    return grid([[_picture(store, i) for i in part] for part in halves], captions=captions)


def _picture(store: Store, row: int) -> NDArray[Any]:
    low, high, spacing = (store.column(name)[row] for name in ("low", "high", "spacing"))
    return picture(store[int(row)], float(low), float(high), spacing)


def _tsne(embeddings: Embeddings | None, seed: int) -> dict[str, Any]:
    """Return the layout coloured by each column, and the columns that are not drawn, with the reason."""
    if embeddings is None:
        return {}
    if len(embeddings.x) < FEWEST:
        return {"few": FEWEST}
    try:
        xy, rows = tsne(embeddings.x, seed=seed)
    except UserError as e:
        return {"error": str(e)}
    drawn: dict[str, tuple[bytes, str]] = {}
    left_out: dict[str, str] = {}
    for column, values in embeddings.columns.items():
        if column in embeddings.labels[LABELS:]:
            continue
        counts = Counter(str(v) for v in values[rows] if not plots.is_empty(v))
        if len(counts) < 2:
            left_out[column] = f"has one value only, {next(iter(counts))}" if counts else "is not recorded"
        else:
            legend = ", ".join(f"{name} {n}" for name, n in counts.most_common(8))
            drawn[column] = plots.scatter(xy, values[rows], seed=seed), legend
    shown, all_rows = len(xy), len(embeddings.x)
    return {
        "trust": trustworthiness(embeddings.x[rows], xy),
        "shown": f"all {shown:,}" if shown == all_rows else f"{shown:,} of {all_rows:,}",
        "drawn": drawn,
        "left_out": left_out,
    }


def _neighbours(embeddings: Embeddings | None, store: Store, seed: int) -> dict[str, Any]:
    """Return some scans, each beside its nearest neighbours among other patients."""
    if embeddings is None:
        return {}
    known = np.flatnonzero(embeddings.row >= 0)
    if len(set(embeddings.patient[known])) < 2:
        return {"few": True}
    held_out = known[embeddings.columns["split"][known] == "test"]
    label = next(iter(embeddings.labels), "site")
    images: list[list[NDArray[Any] | None]] = []
    captions: list[list[str]] = []
    for query in _draw(held_out if len(held_out) else known, QUERIES, seed, 2):
        rows = [query, *neighbours(embeddings, query, NEIGHBOURS)]
        gap = NEIGHBOURS + 1 - len(rows)
        shown = [embeddings.columns[label][i] for i in rows]
        images.append([*(_picture(store, int(embeddings.row[i])) for i in rows), *[None] * gap])
        captions.append([*("unknown" if plots.is_empty(v) else str(v) for v in shown), *[""] * gap])
    heads = ["query", *(f"neighbour {i + 1}" for i in range(NEIGHBOURS))]
    return {
        "png": grid(images, captions=captions, heads=heads),
        "queries": len(images),
        "k": NEIGHBOURS,
        "label": label,
        "held_out": bool(len(held_out)),
    }


def _draw(rows: NDArray[Any], n: int, seed: int, stream: int) -> NDArray[np.int64]:
    """Return at most n of the rows at random, keyed by the seed and a number for each use."""
    return rows[torch.randperm(len(rows), generator=generator(seed, stream, len(rows)))[:n].numpy()]
