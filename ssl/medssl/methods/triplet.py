"""Triplet loss: a view is closer to another view of its scan than to any view of another scan, by a margin.

Schroff et al., 2015, https://arxiv.org/abs/1503.03832, equation 3 and section 3.2 (mining).
"""

from typing import Any

import torch
from torch import Tensor

from medssl.errors import UserError, nearest
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts import mlp
from medssl.objectives.pairs import MINING, triplet


class Triplet(Method):
    """Encoder (B, C, *spatial) -> (B, dim), projector (B, dim) -> (B, out) on the unit sphere, triplets of 2B views.

    hidden, out: widths of the projector. margin: in Euclidean distance on the sphere. mining: all, easy, semihard, hard.
    """

    views = 2

    def __init__(self, encoder: Any, hidden: int, out: int, margin: float, mining: str):
        super().__init__()
        if mining not in MINING:
            raise UserError(f"method.mining is {mining!r}.{nearest(mining, MINING)}")
        if margin <= 0:
            raise UserError(f"method.margin must be positive, got {margin}")
        self.encoder, self.projector = encoder, mlp(encoder.dim, hidden, out)
        self.margin, self.mining = margin, mining

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        z = self.projector(self.encoder(torch.cat(batch["views"])))
        scan = batch["key"].scan.repeat(len(batch["views"]))
        return {"loss": triplet(z, scan, self.margin, self.mining), "chance": z.new_tensor(self.margin)}
