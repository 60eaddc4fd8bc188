"""`medssl runs`: list the runs below a folder."""

from pathlib import Path
from typing import Any

from medssl.progress import duration
from medssl.reporting.text_table import aligned
from medssl.results import Result
from medssl.runs.listing import list_runs


def runs(folder: str | Path = ".") -> Result:
    """List the runs in a folder and below it: status, step, time of training, score with its interval, how to continue.

    Returns {"runs": one dict for each, see `medssl.runs.listing.list_runs`}. Raises UserError if there is none.
    """
    found = list_runs(folder)
    head = ["run", "method, encoder", "seed", "status", "step", "time", "score"]
    lines = aligned(head, [_cells(row) for row in found], indent="")
    for row in found:
        if row["problem"]:
            lines.append(f"! {row['run']}: {row['problem']}")
        if row["resume"]:
            lines.append(f"to continue {row['run']}: {row['resume']}")
    return Result({"runs": found}, "\n".join(lines))


def _cells(row: dict[str, Any]) -> list[Any]:
    """Return one line of the table."""
    status = row["status"] + ", collapsed" * row["collapsed"]
    step = "" if row["steps"] is None else f"{row['step']}/{row['steps']}"
    seed = "" if row["seed"] is None else str(row["seed"])
    return [row["run"], row["name"], seed, status, step, duration(row["seconds"]), _score(row)]


def _score(row: dict[str, Any]) -> str:
    score = row["score"]
    if score is None or score.get("value") is None:
        return ""
    interval = "" if score.get("low") is None else f" [{score['low']:.3f}, {score['high']:.3f}]"
    return f"{row['metric']} {score['value']:.3f}{interval} ({row['target']})"
