"""`medssl replay`: reconstruct the batch on which a collapse was found."""

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from medssl.files import atomic
from medssl.pretraining.replay_batch import replay_batch
from medssl.results import Result
from medssl.runs.alarms import alarms_of
from medssl.store.store import Store


def replay(run: str | Path, store: str | Path | Store, *, out: str | Path | None = None, alarm: int = 0) -> Result:
    """Reconstruct the batch of the step at which a collapse was found, and optionally save it.

    Args:
        run: a run folder with an alarm.json.
        store: the store that the run was trained on.
        out: a .safetensors file for the tensors pass{i}.view{v} (B, C, *size) float32, standardised as in training, small
            views last, and pass{i}.scan and pass{i}.epoch (B,) int64, rows of the store and epochs, which key all random numbers.
        alarm: which collapse in alarm.json, counted from 0.

    Raises UserError if there is no such alarm, or if the store has changed.
    """
    passes = replay_batch(run, store, alarm)
    found = alarms_of(Path(run).expanduser())[alarm]
    tensors: dict[str, Tensor] = {}
    for i, (views, key) in enumerate(passes):
        tensors |= {f"pass{i}.view{v}": view.contiguous() for v, view in enumerate(views)}
        tensors |= {f"pass{i}.scan": key.scan, f"pass{i}.epoch": key.epoch}
    scans = sum(len(key.scan) for _, key in passes)
    lines = [f"step {found['step']}, {found['cause']}: {scans} scans with {len(passes[0][0])} views each"]
    if out is not None:
        path = Path(out).expanduser()
        with atomic(path) as part:
            save_file(tensors, part)
        lines.append(f"saved to {path}")
    batch = {k: found["batch"][k] for k in ("seed", "step", "views")}
    return Result({"step": found["step"], "cause": found["cause"], "scans": scans, "batch": batch}, "\n".join(lines))
