"""The model card of an exported encoder: README.md in its folder. No patient, scan, path or key stands in it."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from medssl.encoders.config import EncoderConfig
from medssl.evals.stats.score import Score
from medssl.runs.predictions import in_words
from medssl.store.store import Store

NOT_SHOWN = ("classes", "task")  # of a table's settings; they stand elsewhere


def model_card(
    name: str,
    config: EncoderConfig,
    store: Store,
    seen: pa.Table,
    tables: Sequence[dict[str, Any]],
    form: str,
    usage: str,
    unchecked: Iterable[str],
) -> str:
    """Return the text of the card.

    Args:
        name: of the run.
        config: the encoder's.
        store: the training store.
        seen: the run's pretrained_on.parquet.
        tables: the run's score tables.
        form: onnx, timm or nnunet.
        usage: how the files are used, as Markdown.
        unchecked: sentences about what was not checked, for this form.
    """
    known = np.array(seen["patient_known"].to_pylist(), bool)
    patients = len(set(np.array(seen["patient"].to_pylist(), object)[known]))
    unnamed = f", and {int((~known).sum()):,} scans that name no patient" if (~known).any() else ""
    rows = store.rows("train")
    kinds = "; ".join(Store(store.path, store.info, store.table.take(rows)).kinds)
    earlier = f", from the weights {_origin(config.init)}" if config.init else ""
    grid = f"{'x'.join(map(str, config.size))} pixels, {config.channels} channel{'s'[: config.channels > 1]}"
    placed = f"{config.spacing:g} mm per pixel" if config.spacing else "each scan's largest extent fills the grid"
    parts = [
        f"# {name}",
        f"An encoder of medical scans, pretrained with {config.method} by medssl and exported as {form}. It turns a scan into "
        f"{config.dim} numbers; it makes no diagnosis.",
        "## Files and use",
        usage.strip(),
        "## Training data",
        _bullets(
            f"{len(seen):,} scans of {patients:,} patients{unnamed}",
            f"of the training split: {kinds}",
            f"data fingerprint: `{config.store}`",
            f"method {config.method}, encoder {config.encoder}, {config.step:,} steps{earlier}",
            f"weights: `{config.weights}` (BLAKE2b-128 of encoder.safetensors)",
        ),
        "## Input",
        _bullets(
            f"grid: {grid}; {placed}; {config.orientation}",
            f"intensities: {config.intensity}, mapped to 0 to 1 and clipped"
            + ("; histograms equalised before" if config.equalise else ""),
            f"then (value - {config.mean:.6g}) / {config.std:.6g}",
        ),
        "## Intended use",
        "Research: features for classifiers and retrieval, or a start for training, on scans like those above, and scored on "
        "patients of the place where it will be used. It is not a medical device, and no decision about a patient may rest "
        "on it alone.",
        "## Scores",
        *([_table(t) for t in tables] or ["The run has no scores: nothing is known of the use of its features."]),
        "## Not checked",
        _bullets(*_unchecked(tables), *unchecked),
    ]
    return "\n\n".join(parts) + "\n"


def _bullets(*lines: str) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _origin(about: dict[str, Any]) -> str:
    named = about.get("file") or f"of {about.get('method')} {about.get('encoder')}"
    return f"{named} (`{about['weights']}`)"


def _table(table: dict[str, Any]) -> str:
    """Return a score table as Markdown, with the warnings that stand above it."""
    names = list(dict.fromkeys(k for row in table["rows"] for k in row["scores"]))
    head = ["features", "probe", "labels", *names]
    lines = [head, ["---"] * len(head)]
    for row in table["rows"]:
        marked = " (!)" if table["overlap"] and row["source"] == "run" else ""
        scores = [str(Score.from_dict(row["scores"][k])) if k in row["scores"] else "" for k in names]
        lines.append([row["features"] + marked, row["probe"], row["label_budget"], *scores])
    asked = {k: v for k, v in table["asked"].items() if k not in NOT_SHOWN and " scans" not in k}
    settings = "".join(f"; {k} {in_words(v)}" for k, v in asked.items())
    about = (
        f"`{table['command']}` of {table['target']}: {table['n_train']:,} training scans of {table['patients_train']:,} "
        f"patients, "
        f"{table['n_test']:,} test scans of {table['patients_test']:,} patients ({table['test']}){settings}. Brackets are 95 % "
        "intervals over patients."
    )
    warnings = [f"- warning: {flag}" for flag in table["flags"]]
    rows = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return "\n\n".join([about, *(["\n".join(warnings)] if warnings else []), rows])


def _unchecked(tables: Sequence[dict[str, Any]]) -> list[str]:
    """Return what no score table of the run covers."""
    out = []
    if not any(t["test"].startswith("all patients of") for t in tables):
        out.append("other hospitals: no score is from a store of its own (`test_store=`)")
    if not any(t.get("subgroups") for t in tables):
        out.append("subgroups by sex, age, scanner or site")
    return [
        *out,
        "whether features depend on scanner, site or marks in the image, unless `medssl audit` was run for the target",
        "whether training scans can be recognised or rebuilt from the weights",
        "other modalities, sizes, spacings and devices than above",
    ]
