"""The log of a run: deterministic rows in metrics.jsonl, wall-clock rows in timing.jsonl, and wandb on request."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from medssl.files import disk_errors, write_text

SINKS = ("jsonl", "wandb", "wandb-online")


class Log:
    """Log rows to the folder `run`, and to wandb (`config` with them) if `sink` is not "jsonl".

    metrics.jsonl has no value that depends on the clock, so a resumed run writes the same bytes.
    """

    def __init__(self, run: Path, sink: str, config: dict[str, Any]):
        self.run = run
        self.wandb = None if sink == "jsonl" else _wandb(run, sink, config)

    def rewind(self, step: int, writes: bool) -> list[dict[str, Any]]:
        """Drop rows after `step`, which a killed run wrote past its last checkpoint, and unfinished lines.

        Returns the remaining rows of metrics.jsonl. writes: true on one rank; the others only read.
        """
        kept: list[str] = []
        for name in ("timing.jsonl", "metrics.jsonl"):
            path = self.run / name
            if path.exists():
                kept = [line for line in path.read_text("utf-8").splitlines() if _step(line) <= step]
                if writes:
                    write_text(path, "".join(line + "\n" for line in kept))
        return [json.loads(line) for line in kept]

    def write(self, row: dict[str, Any], timing: dict[str, Any]) -> None:
        """Append one row to each file."""
        for name, values in (("metrics.jsonl", row), ("timing.jsonl", timing)):
            with disk_errors(self.run / name), (self.run / name).open("a") as f:
                f.write(json.dumps(values) + "\n")
        if self.wandb is not None:
            self.wandb.log({k: v for k, v in (row | timing).items() if k != "step"}, step=row["step"])

    def close(self) -> None:
        """Finish the wandb run."""
        if self.wandb is not None:
            self.wandb.finish()


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _wandb(run: Path, sink: str, config: dict[str, Any]) -> Any:
    import wandb  # takes seconds

    path = run.resolve()
    identity = f"{path.name}-{hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()}"
    identity = os.environ.get("WANDB_RUN_ID") or identity  # the agent of a sweep gives one
    mode: Any = "online" if sink == "wandb-online" else "offline"
    return wandb.init(project="medssl", id=identity, resume="allow", mode=mode, dir=str(run), config=config)
