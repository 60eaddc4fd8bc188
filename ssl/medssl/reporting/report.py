"""The report on a run: a single file without scripts or outside addresses, which opens offline and prints.

It is written for a reader who is a clinician: the answer first, then what speaks against it, the numbers, pictures, what was
not checked, and last how it was made.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from medssl.errors import UserError
from medssl.files import write_text
from medssl.reporting import plots
from medssl.reporting.answer import answer
from medssl.reporting.clinical_use import meaning, subgroups
from medssl.reporting.data_sheet import data_sheet
from medssl.reporting.embeddings import read_embeddings
from medssl.reporting.glossary import explain
from medssl.reporting.limits import limits
from medssl.reporting.map_sheet import map_sheet
from medssl.reporting.messages import Messages, messages
from medssl.reporting.render import read_json, read_lines, render
from medssl.reporting.score_table import score_table
from medssl.reporting.sections import audit_section, cam_section, quality_section
from medssl.reporting.sheets import neighbour_sheet, sample_sheet, view_cells
from medssl.scoring.score_table import read_tables
from medssl.store.store import Store

VIEWS = 24  # training views shown
WARNINGS = 3  # warnings of a training that are shown
CONFIG = {
    "options": "network options",
    "channels": "channels",
    "size": "input size",
    "spacing": "spacing (mm)",
    "equalise": "histogram equalisation",
    "dim": "features per scan",
    "step": "training steps",
    "intensity": "intensity window",
    "store": "store fingerprint",
}
"""Facts in encoder.json that are shown, and their names."""
CHECKED = ("encoder.safetensors", "encoder.json", "resolved.yaml", "env.json", "metrics.jsonl", "scores.json",
           "audit.json", "cam.json", "cam.npz", "quality.json", "embeddings.parquet")  # fmt: skip
"""Files of a run whose checksums are shown."""


def write_report(
    run: Path,
    store: Store,
    *,
    out: Path | None = None,
    views: Sequence[tuple[str, NDArray[Any]]] = (),
    seed: int = 0,
    language: str = "en",
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
        language: en or ko.

    Raises UserError if `run` is not a folder, a file in it is damaged, or there is no such language.
    """
    run, t = Path(run), messages(language)
    if not run.is_dir():
        raise UserError(f"no run at {run}: name the folder that `medssl pretrain` wrote (run=…)")
    encoder, env, tables = (
        read_json(run / "encoder.json"),
        read_json(run / "env.json"),
        read_tables(run / "scores.json"),
    )
    embeddings = read_embeddings(run, store) if (run / "embeddings.parquet").exists() else None
    sites = len({site for site in store.column("site") if site})
    # pseudonyms of examples are left out, so two warnings may become one
    flags = list(dict.fromkeys(t.sentence(flag) for table in tables for flag in table["flags"]))
    trust = map_sheet(embeddings, seed, t)
    page = render(
        "report.html.j2",
        t=t,
        run=run.resolve().name,
        store=store,
        encoder=encoder,
        answer=answer(tables, sites, t),
        flags=flags,
        tables=tables,
        **how_trained(run, t),
        environment=[(t.phrase(name.removeprefix("libraries ")), value) for name, value in _flat(env or {})],
        data=data_sheet(store, t),
        samples=sample_sheet(store, seed, t),
        score_tables=[score_table(table, t, flags=False) for table in tables],
        meanings=[shown for table in tables if (shown := meaning(table, t)).strip()],
        subgroups=[shown for table in tables if (shown := subgroups(table, t)).strip()],
        audit=audit_section(run, t, flags),
        quality=quality_section(run, t, flags),
        cam=cam_section(run, t, flags),
        tsne=trust,
        views=view_cells(views[:VIEWS], t),
        neighbours=neighbour_sheet(embeddings, store, seed, t),
        limits=limits(run, store, tables, trust.get("trust"), t),
    )
    path = out or run / "report.html"
    write_text(path, explain(page, t.glossary()))
    return path


def how_trained(run: Path, t: Messages) -> dict[str, Any]:
    """Return the facts, settings, curves and checksums of a run, each empty where its file is missing."""
    encoder = read_json(run / "encoder.json")
    return {
        "config": [(t.phrase(name), t.phrase(_plain(encoder.get(key)))) for key, name in CONFIG.items()]
        if encoder
        else [],
        # a path may name people
        "settings": [line for line in _lines(run / "resolved.yaml") if not line.startswith("store: ")],
        "checksums": [(name, _checksum(run / name)) for name in CHECKED if (run / name).exists()],
        **_curves(run / "metrics.jsonl", t),
    }


def _checksum(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8").strip().splitlines() if path.exists() else []


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    if value is True or value is False:
        return "yes" if value else ""
    if isinstance(value, list):
        return " x ".join(map(str, value))
    return "" if value is None else str(value)


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, v in value.items():
        if isinstance(v, dict):
            yield from _flat(v, f"{prefix}{key} ")
        else:
            yield prefix + key, _plain(v)


def _curves(path: Path, t: Messages) -> dict[str, Any]:
    """Return the training curves, the last step and the warnings in metrics.jsonl."""
    rows = read_lines(path)
    warnings = [t.sentence(f"Step {row.get('step', '?')}: {row['warning']}") for row in rows if row.get("warning")]
    return {
        "curves": plots.curves(rows) if rows else b"",
        "last_step": rows[-1].get("step", len(rows) - 1) if rows else 0,
        "warnings": warnings[-WARNINGS:],
        "all_warnings": len(warnings),
    }
