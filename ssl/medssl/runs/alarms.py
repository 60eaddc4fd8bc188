"""RUN/alarm.json: what was wrong, at which step, and the names of that step's batch, from which `replay` makes it again."""

import json
from pathlib import Path
from typing import Any

from medssl.augmentations.loader import StepSampler
from medssl.errors import UserError
from medssl.files import write_json
from medssl.runs.config import PretrainConfig
from medssl.store.store import Store

FILE = "alarm.json"


def batch_of(store: Store, config: PretrainConfig, views: int, step: int) -> dict[str, Any]:
    """What step `step` (from 0) of a run with these settings was given, for JSON: a function of (seed, step) alone.

    seed, step, views: of each scan. passes: for each forward pass of the step its scans' pseudonyms, rows and epochs, over all
    processes: process r of R has the r-th of R equal parts. A view is a function of (seed, epoch, row, view).
    """
    window = step * config.accumulate, (step + 1) * config.accumulate
    scan = store.column("scan")
    passes = []
    for pairs in StepSampler(store.rows("train"), config.batch // config.accumulate, *window, config.seed):
        row, epoch = (list(v) for v in zip(*pairs, strict=True))
        passes.append({"scan": scan[row].tolist(), "row": row, "epoch": epoch})
    return {"seed": config.seed, "step": step, "views": views, "store": store.fingerprint, "passes": passes}


def write_alarm(run: Path, alarm: dict[str, Any]) -> None:
    """Add an alarm to RUN/alarm.json: of each cause the first. What a killed run wrote of later steps goes."""
    before = alarms_of(run)
    kept = [a for a in before if a["step"] < alarm["step"]]
    if alarm["cause"] not in [a["cause"] for a in kept]:
        write_json(run / FILE, {"alarms": [*kept, alarm]})


def alarms_of(run: Path) -> list[dict[str, Any]]:
    """Those of a run, in the order they were raised; none when there is no file. UserError for a damaged one."""
    path = run / FILE
    try:
        alarms = json.loads(path.read_text())["alarms"] if path.exists() else []
        return sorted(alarms, key=lambda a: a["step"])
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path} is damaged; delete it and run the same medssl pretrain command again") from e
