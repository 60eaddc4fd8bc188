"""Barlow Twins: each feature of a view correlates with the same feature of the other view, and with no other feature.

Zbontar et al., 2021, https://arxiv.org/abs/2103.03230: a projector on the encoder, and its loss.
"""

from typing import Any

import torch
from torch import Tensor

from medssl.errors import UserError
from medssl.losses.redundancy import barlow_twins
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.heads import mlp


class BarlowTwins(Method):
    """Encoder (B, C, *spatial) -> (B, dim), projector (B, dim) -> (B, out), correlations over the scans of all ranks.

    hidden, out: widths of the projector, discarded after training. redundancy: weight of the correlations between different
    features, lambda in the paper.
    """

    views = 2
    compares_scans = True

    def __init__(self, encoder: Any, hidden: int, out: int, redundancy: float):
        super().__init__()
        if redundancy < 0:
            raise UserError(f"method.redundancy must be 0 or more, got {redundancy}")
        self.encoder, self.projector = encoder, mlp(encoder.dim, hidden, hidden, out, bias=False)
        self.redundancy = redundancy

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        a, b = self.projector(self.encoder(torch.cat(batch["views"]))).chunk(2)
        chance = a.new_full((), float(a.shape[1]))  # the loss of constant features
        return {"loss": barlow_twins(a, b, self.redundancy), "chance": chance}
