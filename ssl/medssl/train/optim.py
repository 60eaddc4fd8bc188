"""Optimisers and their parameter groups. Learning rates are schedules of progress, set by the loop at every step."""

from dataclasses import dataclass
from typing import Any, cast

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
    clip: the largest gradient norm. layer_decay: what each block of the encoder multiplies the rate of the block above it
    by, the last block that of the heads, which have `lr` (Clark et al., 2020, https://arxiv.org/abs/2003.10555, appendix B;
    as Bao et al., 2021, https://arxiv.org/abs/2106.08254, and timm count blocks); 1 gives all the same.
    """

    name: str = "adamw"
    lr: float = 1e-3
    warmup: float = 0.05
    lr_end: float = 0.0
    weight_decay: float = 1e-4
    momentum: float = 0.9
    clip: float = 10.0
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in OPTIMISERS:
            raise UserError(f"optimizer is {self.name!r}.{nearest(self.name, OPTIMISERS)}")
        for key in ("lr", "clip"):
            if getattr(self, key) <= 0:
                raise UserError(f"{key} must be positive, got {getattr(self, key)}")
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"layer_decay must be above 0 and at most 1, got {self.layer_decay}")

    def build(self, module: nn.Module) -> torch.optim.Optimizer | None:
        """None when nothing in `module` is trained by gradient. A group's rate is `lr_at` times its "lr_scale".

        With a layer_decay below 1 `module` has an `encoder` with `by_depth`.
        """
        trained = [p for p in module.parameters() if p.requires_grad]
        if not trained:
            return None
        scale = self._scales(module) if self.layer_decay < 1 else {}
        groups: list[dict[str, Any]] = []
        for s in sorted({scale.get(p, 1.0) for p in trained}):
            of_scale = [p for p in trained if scale.get(p, 1.0) == s]
            groups += [
                {"params": [p for p in of_scale if p.ndim > 1], "weight_decay": self.weight_decay, "lr_scale": s},
                {"params": [p for p in of_scale if p.ndim <= 1], "weight_decay": 0.0, "lr_scale": s},
            ]
        groups = [g for g in groups if g["params"]]
        if self.name == "adamw":
            return torch.optim.AdamW(groups, lr=self.lr)
        if self.name == "sgd":
            return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum)
        return Lars(groups, lr=self.lr, momentum=self.momentum)

    def _scales(self, module: nn.Module) -> dict[nn.Parameter, float]:
        """The share of the rate that each parameter of the encoder has."""
        groups = cast(Any, module).encoder.by_depth()
        return {p: self.layer_decay ** (len(groups) - i) for i, group in enumerate(groups) for p in group}

    def lr_at(self, frac: float) -> float:
        """The learning rate at a share of the run."""
        return self.lr * warmup_cosine(frac, self.warmup, self.lr_end)
