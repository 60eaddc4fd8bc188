"""RUN/alarm.json: the collapses of a run, with the information from which `medssl replay` reconstructs each batch."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medssl.augmentations.loader import StepSampler
from medssl.errors import UserError
from medssl.files import write_json
from medssl.methods.base import Method
from medssl.runs.config import PretrainConfig
from medssl.store.partners import training_rows
from medssl.store.store import Store

FILE = "alarm.json"


def batch_of(store: Store, config: PretrainConfig, method: Method, step: int) -> dict[str, Any]:
    """Return the batch of a step (from 0) as JSON values; it depends on the seed and the step alone.

    "passes" lists, for each forward pass, the pseudonyms, rows and epochs of its scans over all processes; process r of R
    has the r-th of R equal parts. A view is a function of (seed, epoch, row, view). "small_views" is there if there are any.
    """
    window = step * config.accumulate, (step + 1) * config.accumulate
    scan = store.column("scan")
    passes = []
    rows = training_rows(store, method.paired_within, config.method.name)[0]
    for pairs in StepSampler(rows, config.batch // config.accumulate, *window, config.seed):
        row, epoch = (list(v) for v in zip(*pairs, strict=True))
        passes.append({"scan": scan[row].tolist(), "row": row, "epoch": epoch})
    small = {"small_views": asdict(method.small_views)} if method.small_views.count else {}
    same = {"seed": config.seed, "step": step, "store": store.fingerprint, "passes": passes}
    return same | {"views": method.views, "paired_within": method.paired_within} | small


def write_alarm(run: Path, alarm: dict[str, Any]) -> None:
    """Add a collapse to RUN/alarm.json, unless an earlier one has the same cause.

    Entries of later steps, left by a killed run, are dropped.
    """
    before = alarms_of(run)
    kept = [a for a in before if a["step"] < alarm["step"]]
    if alarm["cause"] not in [a["cause"] for a in kept]:
        write_json(run / FILE, {"alarms": [*kept, alarm]})


def alarms_of(run: Path) -> list[dict[str, Any]]:
    """Return the collapses of a run by step; [] without a file. Raises UserError for a damaged file."""
    path = run / FILE
    try:
        alarms = json.loads(path.read_text("utf-8"))["alarms"] if path.exists() else []
        return sorted(alarms, key=lambda a: a["step"])
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path} is damaged; delete it and run the same medssl pretrain command again") from e
