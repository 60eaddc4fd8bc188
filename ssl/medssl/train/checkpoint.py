"""Checkpoints that survive a kill."""

from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from medssl.errors import UserError
from medssl.files import disk_errors, follow_links


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
