"""One page about a run: a single file without scripts or outside addresses, which opens offline and prints."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medssl.errors import UserError
from medssl.files import atomic
from medssl.reporting import card, plots, words
from medssl.reporting.audit import audit_section
from medssl.reporting.cam import cam_section
from medssl.reporting.embeddings import Embeddings, neighbours, read_embeddings
from medssl.reporting.quality import quality_section
from medssl.reporting.tags import Html, absent, bullets, element, facts, figure, page, paragraph
from medssl.reporting.tsne import FEWEST, trustworthiness, tsne
from medssl.reporting.use import use
from medssl.rng import generator
from medssl.store.store import Store

LABELS = 4  # at most so many labels get a t-SNE of their own
QUERIES, NEIGHBOURS, SAMPLES = 5, 6, 12
VIEWS = 24


def write_report(
    run: Path,
    store: Store,
    *,
    out: Path | None = None,
    views: Sequence[tuple[str, NDArray[Any]]] | None = None,
    seed: int = 0,
) -> Path:
    """Write RUN/report.html, or `out`, from what the run folder holds, and return its path. Atomic.

    A section whose file is missing says so in one line, with the command that makes it. No id of a patient, study or
    scan gets into the page. views: (name, array (H, W) or (D, H, W)), training views to show on one common grey scale.
    Same files, same bytes. Raises UserError when `run` is not a folder or a file in it is damaged.
    """
    run = Path(run)
    if not run.is_dir():
        raise UserError(f"no run at {run}: name the folder that `medssl pretrain` wrote (run=…)")
    name = run.resolve().name
    encoder, tables, rows = _json(run / "encoder.json"), _json(run / "scores.json"), _rows(run / "metrics.jsonl")
    all_tables = tables["tables"] if tables else []
    embeddings = read_embeddings(run, store) if (run / "embeddings.parquet").exists() else None
    near, trust = _tsne(embeddings, name, seed)
    sites = len({s for s in store.column("site") if s})
    unknown = int((~np.asarray(store.column("patient_known"), bool)).sum())
    sections = [
        ("data", "Data", _data(store, seed)),
        ("training", "How it was trained", _training(run, name, encoder)),
        ("curves", "Curves", _curves(rows, name)),
        ("scores", "Scores", _scores(all_tables, name)),
        ("audit", "Disease or shortcut", audit_section(run)),
        ("quality", "Without labels", quality_section(run)),
        ("tsne", "t-SNE of the embedding", near),
        ("cam", "Where it looks", cam_section(run)),
        ("views", "Views it learned from", _views(views, name)),
        ("neighbours", "Nearest neighbours", _neighbours(embeddings, store, name, seed)),
        (
            "limits",
            "What this report does not show",
            bullets(words.limits(all_tables, sites=sites, unknown_patients=unknown, trust=trust)),
        ),
    ]
    what = f"{encoder['method']}, {encoder['name']}" if encoder else "an unfinished run"
    top = Html(
        element("h1", f"{name}: {what}")
        + paragraph(f"{store.modality or 'Scans'} in {store.dims}D, store {store.fingerprint}", klass="under")
        + _headline(all_tables, name)
    )
    path = out or run / "report.html"
    whole = page(f"{name}: {what}", sections, top, "Made by medssl from the run folder and its store.")
    with atomic(path) as part:
        part.write_text(whole, "utf-8")
    return path


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged ({type(error).__name__}); remove it and run the step that writes it again")


def _json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as e:
        raise _damaged(path, e) from e


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]
    except ValueError as e:
        raise _damaged(path, e) from e


def _headline(tables: Sequence[words.Table], name: str) -> Html:
    if not tables:
        return absent(
            "No scores yet, so there is no result to state.", f"medssl probe run={name} store=STORE target=LABEL"
        )
    first = paragraph(" ".join(words.sentences(tables[0])), klass="headline")
    flags = [paragraph(flag, klass="flag") for flag in dict.fromkeys(f for t in tables for f in t.get("flags", []))]
    return Html(first + "".join(flags) + "".join(paragraph(" ".join(words.sentences(t))) for t in tables[1:]))


def _data(store: Store, seed: int) -> Html:
    rows = _some(np.arange(len(store)), SAMPLES, seed, 1)
    half = -(-len(rows) // 2)
    pictures = [_picture(store, i) for i in rows]
    captions = [" ".join(filter(None, (store.column("split")[i], store.column("site")[i]))) for i in rows]
    sheet = (
        plots.grid([pictures[:half], pictures[half:]], captions=[captions[:half], captions[half:]])
        if len(rows) > 1
        else b""
    )
    shown = figure(
        sheet, f"{len(rows)} scans of the store, drawn at random", "Scans drawn at random. " + _slice_note(store)
    )
    return Html(card.data_card(store) + (element("h3", "Sample scans") + shown if sheet else ""))


def _slice_note(store: Store) -> str:
    return "Of a volume, the middle slice of its first axis." if store.dims == 3 else ""


def _picture(store: Store, row: int) -> NDArray[Any]:
    low, high, spacing = (store.column(name)[row] for name in ("low", "high", "spacing"))
    return plots.picture(store[int(row)], float(low), float(high), spacing)


def _training(run: Path, name: str, encoder: dict[str, Any] | None) -> Html:
    make = f"medssl pretrain store=STORE out={name}"
    parts: list[Html] = []
    if encoder:
        keys = ("options", "channels", "size", "spacing", "equalise", "dim", "step", "intensity", "store")
        named = [("method", encoder["method"]), ("encoder", encoder["name"])]
        parts.append(facts([*named, *((key, _plain(encoder.get(key))) for key in keys)]))
    else:
        parts.append(absent("encoder.json is missing: pretraining has not finished.", make))
    resolved, env = run / "resolved.yaml", _json(run / "env.json")
    if resolved.exists():
        lines = resolved.read_text("utf-8").strip().splitlines()
        inside = element(
            "pre", "\n".join(line for line in lines if not line.startswith("store: "))
        )  # a path may name people
        parts.append(Html(element("h3", "Every setting") + "\n" + inside))
    else:
        parts.append(absent("resolved.yaml is missing, so the settings are unknown.", make))
    if env:
        parts.append(Html(element("h3", "Where it ran") + facts((k, _plain(v)) for k, v in _flat(env))))
    else:
        parts.append(absent("env.json is missing, so versions and hardware are unknown.", make))
    return Html("\n".join(parts))


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    if isinstance(value, list):
        return " x ".join(map(str, value))
    return "" if value is None else str(value)


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    nested = [_flat(v, f"{prefix}{k} ") if isinstance(v, dict) else [(prefix + k, v)] for k, v in value.items()]
    return [pair for pairs in nested for pair in pairs]


def _curves(rows: list[dict[str, Any]], name: str) -> Html:
    if not rows:
        return absent("metrics.jsonl is missing or empty.", f"medssl pretrain store=STORE out={name}")
    last = rows[-1].get("step", len(rows) - 1)
    drawn = figure(plots.curves(rows), f"Training curves up to step {last}", f"Up to step {last:,}.")
    warnings = [f"Step {row.get('step', '?')}: {row['warning']}" for row in rows if row.get("warning")]
    spoken = [paragraph(w, klass="flag") for w in warnings[-3:]]
    if len(warnings) > len(spoken):
        spoken.insert(0, paragraph(f"{len(warnings)} warnings in all; the last {len(spoken)}:"))
    return Html(drawn + "".join(spoken))


def _scores(tables: Sequence[words.Table], name: str) -> Html:
    if not tables:
        return absent("scores.json is missing.", f"medssl probe run={name} store=STORE target=LABEL")
    return Html("\n".join(part for t in tables for part in (card.score_table(t), use(t)) if part))


def _tsne(embeddings: Embeddings | None, name: str, seed: int) -> tuple[Html, float | None]:
    if embeddings is None:
        return absent("embeddings.parquet is missing.", f"medssl embed run={name} store=STORE"), None
    if len(embeddings.x) < FEWEST:
        return paragraph(f"Fewer than {FEWEST} embeddings: too few to lay out.", klass="absent"), None
    try:
        xy, chosen = tsne(embeddings.x, seed=seed)
    except UserError as e:
        return paragraph(f"Not drawn: {e}.", klass="flag"), None
    trust = trustworthiness(embeddings.x[chosen], xy)
    of = f"all {len(xy):,}" if len(xy) == len(embeddings.x) else f"{len(xy):,} of {len(embeddings.x):,}"
    parts = [
        paragraph(
            f"t-SNE of {of} embeddings. Trustworthiness {trust:.3f} (10 neighbours; 1 means that no point has a false "
            "neighbour). Only nearness can be read from it: sizes, gaps and directions mean nothing."
        )
    ]
    drawn: list[Html] = []
    for column, values in embeddings.columns.items():
        if column in embeddings.labels[LABELS:]:
            continue
        kinds = Counter(str(v) for i in chosen if not plots.is_empty(v := values[i]))
        if len(kinds) < 2:
            word = f"has one value only, {next(iter(kinds))}" if kinds else "is not recorded"
            parts.append(paragraph(f"By {column}: not drawn, since it {word}.", klass="note"))
            continue
        png = plots.scatter(xy, values[chosen], seed=seed)
        counts = ", ".join(f"{k} {n}" for k, n in kinds.most_common(8))
        drawn.append(Html(element("h3", f"By {column}") + figure(png, f"t-SNE coloured by {column}: {counts}")))
    parts.append(element("div", *(element("div", d) for d in drawn), klass="pair"))
    return Html("\n".join(parts)), trust


def _views(views: Sequence[tuple[str, NDArray[Any]]] | None, name: str) -> Html:
    if not views:
        return absent("No views were drawn for this page.", f"medssl report run={name}")
    png = plots.sheet(views[:VIEWS])
    note = "As the encoder sees them, all on one grey scale."
    return figure(
        png, f"{len(views[:VIEWS])} training views: " + ", ".join(dict.fromkeys(n for n, _ in views[:VIEWS])), note
    )


def _neighbours(embeddings: Embeddings | None, store: Store, name: str, seed: int) -> Html:
    if embeddings is None:
        return absent("embeddings.parquet is missing.", f"medssl embed run={name} store=STORE")
    there = np.flatnonzero(embeddings.row >= 0)
    held_out = there[embeddings.columns["split"][there] == "test"]
    if len(there) < 2 or len(set(embeddings.patient[there])) < 2:
        return paragraph("Too few scans of this store are embedded to look for neighbours.", klass="absent")
    label = next(iter(embeddings.labels), "site")
    images: list[list[NDArray[Any] | None]] = []
    captions: list[list[str]] = []
    for q in _some(held_out if len(held_out) else there, QUERIES, seed, 2):
        near = neighbours(embeddings, q, NEIGHBOURS)
        gap: list[NDArray[Any] | None] = [None] * (NEIGHBOURS - len(near))
        images.append([*(_picture(store, int(embeddings.row[i])) for i in (q, *near)), *gap])
        captions.append([*(_caption(embeddings.columns[label][i]) for i in (q, *near)), *[""] * len(gap)])
    heads = ["query", *(f"neighbour {i + 1}" for i in range(NEIGHBOURS))]
    alt = f"{len(images)} query scans, each with its {NEIGHBOURS} nearest neighbours, captioned by {label}"
    where = "held-out patients" if len(held_out) else "all patients (none is held out)"
    note = f"Queries are drawn at random from {where}; neighbours by cosine, never of the same patient. "
    note += f"Captions: {label}. "
    return figure(plots.grid(images, captions=captions, heads=heads), alt, note + _slice_note(store))


def _caption(value: object) -> str:
    return "unknown" if plots.is_empty(value) else str(value)


def _some(rows: NDArray[Any], n: int, seed: int, what: int) -> NDArray[np.int64]:
    """At most n of the rows, keyed."""
    return rows[torch.randperm(len(rows), generator=generator(seed, what, len(rows)))[:n].numpy()]
