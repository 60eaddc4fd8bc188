"""Triplet loss: a view lies closer, by a margin, to another view of its group than to views of other groups.

Schroff et al., 2015, https://arxiv.org/abs/1503.03832, equation 3 and section 3.2 (mining).
"""

from typing import Any

import torch
from torch import Tensor

from medssl.errors import UserError, nearest
from medssl.losses.distances import distance_named
from medssl.losses.pairs import MINING, triplet
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.heads import groups_of, mlp, target_of


class Triplet(Method):
    """Encoder (B, C, *spatial) -> (B, dim), projector (B, dim) -> (B, out) on the unit sphere, triplets of 2B views.

    hidden, out: widths of the projector. margin: of the distance. mining: all, easy, semihard, hard. distance: euclidean,
    manhattan or cosine. positives: which views attract: those of one scan, patient, study or label.
    """

    views = 2
    compares_scans = True

    def __init__(
        self, encoder: Any, hidden: int, out: int, margin: float, mining: str, distance: str, positives: str,
        target_loss: Any = None
    ):  # fmt: skip
        super().__init__()
        if mining not in MINING:
            raise UserError(f"method.mining is {mining!r}.{nearest(mining, MINING)}")
        if margin <= 0:
            raise UserError(f"method.margin must be positive, got {margin}")
        self.encoder, self.projector = encoder, mlp(encoder.dim, hidden, out)
        self.margin, self.mining, self.distance = margin, mining, distance_named(distance)
        self.positives, self.target = positives, target_of(positives, target_loss)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        z = self.projector(self.encoder(torch.cat(batch["views"])))
        loss = triplet(z, groups_of(batch, self.positives), self.margin, self.mining, self.distance)
        return {"loss": loss, "chance": z.new_full((), self.margin)}
