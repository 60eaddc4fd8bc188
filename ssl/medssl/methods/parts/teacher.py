"""Teachers of self-distillation: a frozen copy of the student that follows it as a moving average."""

import copy

import torch
from torch import nn


def make_teacher(module: nn.Module) -> nn.Module:
    """Return a copy with the same weights and without gradients."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Set teacher <- momentum * teacher + (1 - momentum) * student in place. Buffers are copied."""
    for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
        old.lerp_(new, 1 - momentum)
    for kept, now in zip(teacher.buffers(), student.buffers(), strict=True):
        kept.copy_(now)
