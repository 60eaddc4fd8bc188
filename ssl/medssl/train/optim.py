"""Optimisers and their parameter groups. Learning rates are schedules of progress, set by the loop at every step."""

from dataclasses import dataclass

import torch
from timm.optim import Lars
from torch import nn

from medssl.errors import UserError, nearest
from medssl.schedule import warmup_cosine

OPTIMISERS = ("adamw", "lars", "sgd")


@dataclass(frozen=True)
class Optim:
    """How the weights are updated.

    name: adamw, lars (You et al., 2017, https://arxiv.org/abs/1708.03888) or sgd. lr: the highest learning rate, taken as
    it is, never scaled by the batch. warmup: share of the run with a linearly rising rate. lr_end: share of lr left at the
    end of half a cosine; 1 keeps it constant. weight_decay: not on biases and norms. momentum: of lars and sgd.
    clip: the largest gradient norm.
    """

    name: str = "adamw"
    lr: float = 1e-3
    warmup: float = 0.05
    lr_end: float = 0.0
    weight_decay: float = 1e-4
    momentum: float = 0.9
    clip: float = 10.0

    def __post_init__(self) -> None:
        if self.name not in OPTIMISERS:
            raise UserError(f"optimizer is {self.name!r}.{nearest(self.name, OPTIMISERS)}")
        for key in ("lr", "clip"):
            if getattr(self, key) <= 0:
                raise UserError(f"{key} must be positive, got {getattr(self, key)}")

    def build(self, module: nn.Module) -> torch.optim.Optimizer | None:
        """None when nothing in `module` is trained by gradient."""
        trained = [p for p in module.parameters() if p.requires_grad]
        if not trained:
            return None
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        groups = [g for g in groups if g["params"]]
        if self.name == "adamw":
            return torch.optim.AdamW(groups, lr=self.lr)
        if self.name == "sgd":
            return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum)
        return Lars(groups, lr=self.lr, momentum=self.momentum)

    def lr_at(self, frac: float) -> float:
        """The learning rate at a share of the run."""
        return self.lr * warmup_cosine(frac, self.warmup, self.lr_end)
