"""Small parts that methods share: a projector, a teacher, and what attracts what."""

import copy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from medssl.errors import UserError, nearest
from medssl.methods.base import Batch

POSITIVES = ("scan", "patient", "study", "label")


def mlp(*dims: int) -> nn.Sequential:
    """Linear, BatchNorm, ReLU between every pair of `dims`, with a bare Linear last."""
    layers: list[nn.Module] = []
    for a, b in pairwise(dims[:-1]):
        layers += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(dims[-2], dims[-1]))


def make_teacher(module: nn.Module) -> nn.Module:
    """A copy with the same weights and no gradients."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, in place. Buffers are copied."""
    for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
        old.lerp_(new, 1 - momentum)
    for kept, now in zip(teacher.buffers(), student.buffers(), strict=True):
        kept.copy_(now)


def target_of(positives: str, target_loss: Any) -> str:
    """What `method.target` must be for `groups_of`. Raises UserError for classes that nobody named, and other labels."""
    if positives not in POSITIVES:
        raise UserError(f"method.positives is {positives!r}.{nearest(positives, POSITIVES)}")
    if positives == "label" and target_loss is None:
        raise UserError("method.positives=label takes scans of one class; name the label column with target=…")
    if positives == "label" and target_loss.name != "classification":
        raise UserError(
            f"method.positives=label takes scans of one class, and target=… gives {target_loss.name}; use a class"
        )
    return "" if positives == "scan" else positives


def groups_of(batch: Batch, positives: str, views: int) -> Tensor:
    """(views * B,) int64, view after view: rows of one number attract, whatever rank they are on.

    The scan itself, or its patient, study or class as batch["target"] has it; without one (-1) a scan is on its own.
    """
    scan = batch["key"].scan
    group = scan if positives == "scan" else torch.where(batch["target"] < 0, -1 - scan, batch["target"])
    return group.repeat(views)
