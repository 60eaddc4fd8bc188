"""Lifted structure: each positive pair is compared with all negatives of both its views.

Oh Song et al., 2016, https://arxiv.org/abs/1511.06452, equation 4.
"""

from typing import Any

import torch
from torch import Tensor

from medssl.errors import UserError
from medssl.losses.distances import distance_named
from medssl.losses.pairs import lifted_structure
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.heads import groups_of, mlp, target_of


class Lifted(Method):
    """Encoder (B, C, *spatial) -> (B, dim), projector (B, dim) -> (B, out) on the unit sphere, all pairs of 2B views.

    hidden, out: widths of the projector. margin: distance beyond which negatives are pushed. distance: euclidean, manhattan
    or cosine. positives: which views attract: those of one scan, patient, study or label.
    """

    views = 2
    compares_scans = True

    def __init__(
        self, encoder: Any, hidden: int, out: int, margin: float, distance: str, positives: str, target_loss: Any = None
    ):
        super().__init__()
        if margin <= 0:
            raise UserError(f"method.margin must be positive, got {margin}")
        self.encoder, self.projector = encoder, mlp(encoder.dim, hidden, out)
        self.margin, self.distance = margin, distance_named(distance)
        self.positives, self.target = positives, target_of(positives, target_loss)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        z = self.projector(self.encoder(torch.cat(batch["views"])))
        return {"loss": lifted_structure(z, groups_of(batch, self.positives), self.margin, self.distance)}
