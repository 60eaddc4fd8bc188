"""Checkpoints that survive a kill, and the words for a run that cannot go on."""

from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from medssl.errors import UserError
from medssl.files import disk_errors
from medssl.methods.base import Method
from medssl.train.stop import TrainingStopped


def save(fabric: Fabric, path: Path, state: dict[str, Any]) -> None:
    """Write beside, then rename: a kill leaves the old checkpoint or the new one. Called on every rank."""
    part = path.with_suffix(".part")
    try:
        with disk_errors(path):
            fabric.save(part, state)
            fabric.barrier()
            if fabric.is_global_zero:
                part.replace(path)
    finally:
        if fabric.is_global_zero:
            part.unlink(missing_ok=True)


def load(fabric: Fabric, path: Path, state: dict[str, Any]) -> None:
    """Fill `state` from a checkpoint; tensors and numbers only, no pickled code."""
    try:
        fabric.load(path, state, weights_only=True)
    except Exception as e:  # whatever torch makes of damaged bytes
        raise UserError(
            f"{path} is damaged or belongs to another run ({type(e).__name__}); delete it to start again"
        ) from e


def not_finite(method: Method, step: int, last: Path) -> TrainingStopped:
    """Names the last parameter whose gradient is broken, which is nearest to the loss, and the way out."""
    bad = [n for n, p in method.named_parameters() if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
    good = f"The last good checkpoint is {last}. " if last.exists() else ""
    return TrainingStopped(
        f"step {step}: {f'the gradient of {bad[-1]}' if bad else 'the loss'} is not finite; nothing was updated. {good}"
        "Lower lr or clip, use precision=32-true, or look for scans with extreme values",
        step,
    )
