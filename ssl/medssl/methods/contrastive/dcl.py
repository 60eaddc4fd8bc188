"""Decoupled contrastive learning: SimCLR without the positive in the denominator, for small batches.

Yeh et al., 2022, https://arxiv.org/abs/2110.06848. With few negatives, easy positives shrink the gradient of
InfoNCE; without the positive in its denominator they do not.
"""

import math
from typing import Any

import torch
from torch import Tensor

from medssl.errors import UserError
from medssl.losses.distributed import world_size
from medssl.losses.infonce import decoupled
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.heads import mlp


class DCL(Method):
    """Encoder (B, C, *spatial) -> (B, dim), projector (B, dim) -> (B, out), decoupled contrastive loss.

    hidden, out: widths of the projector, discarded after training. temperature: of the similarities; lower weights hard
    negatives more.
    """

    views = 2
    compares_scans = True

    def __init__(self, encoder: Any, hidden: int, out: int, temperature: float):
        super().__init__()
        if temperature <= 0:
            raise UserError(f"method.temperature must be positive, got {temperature}")
        self.encoder, self.projector = encoder, mlp(encoder.dim, hidden, out)
        self.temperature = temperature

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        a, b = self.projector(self.encoder(torch.cat(batch["views"]))).chunk(2)
        chance = math.log(2 * len(a) * world_size() - 2)  # the loss of constant features
        return {"loss": decoupled(a, b, self.temperature), "chance": a.new_full((), chance)}
