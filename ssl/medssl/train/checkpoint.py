"""Checkpoints that survive a kill, and the error of a run whose loss or gradient is not finite."""

from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from medssl.errors import UserError
from medssl.files import disk_errors, follow_links
from medssl.methods.base import Method
from medssl.train.stop import TrainingStopped


def save(fabric: Fabric, path: Path, state: dict[str, Any]) -> None:
    """Save `state` atomically: a kill leaves the old checkpoint or the new one. Call on every rank."""
    path = follow_links(path)
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
    """Fill `state` from a checkpoint of tensors and numbers; pickled code is refused."""
    try:
        fabric.load(path, state, weights_only=True)
    except Exception as e:  # torch raises many types for damaged bytes
        why = f"{path} is damaged or belongs to another run ({type(e).__name__}); delete it to start again"
        raise UserError(why) from e


def not_finite(method: Method, step: int, last: Path) -> TrainingStopped:
    """Return the error that names the last parameter without a finite gradient, the nearest to the loss, and the remedy."""
    bad = [n for n, p in method.named_parameters() if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
    good = f"The last good checkpoint is {last}. " if last.exists() else ""
    return TrainingStopped(
        f"step {step}: {f'the gradient of {bad[-1]}' if bad else 'the loss'} is not finite; nothing was updated. {good}"
        "Lower lr or clip, use precision=32-true, or look for scans with extreme values",
        step,
    )
