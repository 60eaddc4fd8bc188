"""Contrastive loss: views of one group closer than one margin, views of different groups further apart than another.

Hadsell et al., 2006, https://doi.org/10.1109/CVPR.2006.100, equation 4.
"""

from typing import Any

import torch
from torch import Tensor

from medssl.errors import UserError
from medssl.losses.distances import distance_named
from medssl.losses.pairs import contrastive
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.heads import groups_of, mlp, target_of


class Contrastive(Method):
    """Encoder (B, C, *spatial) -> (B, dim), projector (B, dim) -> (B, out) on the unit sphere, all pairs of 2B views.

    hidden, out: widths of the projector. positive_margin, negative_margin: distances in [0, 2]. distance: euclidean,
    manhattan or cosine. positives: which views attract: those of one scan, patient, study or label.
    """

    views = 2
    compares_scans = True

    def __init__(
        self, encoder: Any, hidden: int, out: int, positive_margin: float, negative_margin: float, distance: str,
        positives: str, target_loss: Any = None
    ):  # fmt: skip
        super().__init__()
        if not 0 <= positive_margin < negative_margin <= 2:
            words = f"{positive_margin} and {negative_margin}"
            raise UserError(f"margins need 0 <= method.positive_margin < method.negative_margin <= 2, got {words}")
        self.encoder, self.projector = encoder, mlp(encoder.dim, hidden, out)
        self.margins = positive_margin, negative_margin
        self.distance, self.positives = distance_named(distance), positives
        self.target = target_of(positives, target_loss)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        z = self.projector(self.encoder(torch.cat(batch["views"])))
        chance = z.new_full((), self.margins[1] ** 2)
        return {
            "loss": contrastive(z, groups_of(batch, self.positives), *self.margins, self.distance),
            "chance": chance,
        }
