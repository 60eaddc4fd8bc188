"""Optimisers and their parameter groups. The loop sets the learning rates at every step."""

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
    """Optimiser settings.

    name: adamw, lars (You et al., 2017, https://arxiv.org/abs/1708.03888) or sgd. lars scales the rate of every matrix, with
    or without weight decay, and not that of biases and norms.
    lr: peak learning rate, not scaled by the batch.
    warmup: fraction of the run with a linearly rising rate.
    lr_end: fraction of lr at the end of the cosine decay; 1 keeps it constant.
    weight_decay: not applied to biases and norms.
    momentum: for lars and sgd.
    clip: maximum gradient norm.
    layer_decay: ratio of a block's rate to that of the block above it; the heads above the last block have `lr` (Clark et
    al., 2020, https://arxiv.org/abs/2003.10555, appendix B; blocks as in Bao et al., 2021, https://arxiv.org/abs/2106.08254,
    and timm). 1 gives all blocks the same rate.
    encoder_lr: peak learning rate of the encoder's last block; None: lr * layer_decay. `lr` is then that of the heads alone.
    """

    name: str = "adamw"
    lr: float = 1e-3
    warmup: float = 0.05
    lr_end: float = 0.0
    weight_decay: float = 1e-4
    momentum: float = 0.9
    clip: float = 10.0
    layer_decay: float = 1.0
    encoder_lr: float | None = None

    def __post_init__(self) -> None:
        if self.name not in OPTIMISERS:
            raise UserError(f"optimizer is {self.name!r}.{nearest(self.name, OPTIMISERS)}")
        for key in ("lr", "clip"):
            if getattr(self, key) <= 0:
                raise UserError(f"{key} must be positive, got {getattr(self, key)}")
        if self.encoder_lr is not None and self.encoder_lr <= 0:
            raise UserError(f"encoder_lr must be positive, got {self.encoder_lr}")
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"layer_decay must be above 0 and at most 1, got {self.layer_decay}")

    def build(self, module: nn.Module) -> torch.optim.Optimizer | None:
        """Return the optimiser of `module`, or None if it has no parameter to train by gradient.

        The rate of a group is `lr_at` times its "lr_scale". For a layer_decay below 1 or an encoder_lr, `module` needs an
        `encoder` with `by_depth`.
        """
        trained = [p for p in module.parameters() if p.requires_grad]
        if not trained:
            return None
        scale = self._scales(module) if self.layer_decay < 1 or self.encoder_lr is not None else {}
        groups: dict[tuple[float, bool], dict[str, Any]] = {}
        for p in sorted(trained, key=lambda p: (scale.get(p, 1.0), p.ndim <= 1)):
            s, flat = scale.get(p, 1.0), p.ndim <= 1
            decay = 0.0 if flat else self.weight_decay
            group = {"params": [], "weight_decay": decay, "lr_scale": s}
            if self.name == "lars":  # timm's default adapts the rate only where there is weight decay
                group["always_adapt"] = not flat
            groups.setdefault((s, flat), group)["params"].append(p)
        if self.name == "adamw":
            return torch.optim.AdamW(groups.values(), lr=self.lr)
        if self.name == "sgd":
            return torch.optim.SGD(groups.values(), lr=self.lr, momentum=self.momentum)
        return Lars(groups.values(), lr=self.lr, momentum=self.momentum)

    def _scales(self, module: nn.Module) -> dict[nn.Parameter, float]:
        """Return the fraction of the rate for each parameter of the encoder."""
        groups = cast(Any, module).encoder.by_depth()
        last = self.layer_decay if self.encoder_lr is None else self.encoder_lr / self.lr
        return {p: last * self.layer_decay**i for i, group in enumerate(reversed(groups)) for p in group}

    def lr_at(self, frac: float) -> float:
        """Return the learning rate at the fraction `frac` of the run."""
        return self.lr * warmup_cosine(frac, self.warmup, self.lr_end)
