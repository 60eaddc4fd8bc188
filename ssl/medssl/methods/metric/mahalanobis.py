"""A Mahalanobis distance on the encoder's features, learned with the loss of large margin nearest neighbours.

Weinberger & Saul, 2009, "Distance metric learning for large margin nearest neighbor classification", equations 11 to 13,
with d(x, y) = ||L (x - y)||. The encoder is trained too; L is a linear projector.
"""

from typing import Any

import torch
from torch import Tensor

from medssl.errors import UserError
from medssl.losses.distances import Mahalanobis as Distance
from medssl.losses.pairs import lmnn
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.heads import groups_of, target_of


class Mahalanobis(Method):
    """Encoder (B, C, *spatial) -> (B, dim), L (out, dim), all triplets of 2B views.

    out: rank of the distance. push: weight of the triplets in (0, 1], against 1 - push for the positive pairs. margin: of
    squared distances. positives: which views attract: those of one scan, patient, study or label.
    """

    views = 2
    compares_scans = True

    def __init__(self, encoder: Any, out: int, push: float, margin: float, positives: str, target_loss: Any = None):
        super().__init__()
        if not 0 < push <= 1 or margin <= 0:
            raise UserError(f"needs 0 < method.push <= 1 and method.margin > 0, got {push} and {margin}")
        self.encoder, self.distance = encoder, Distance.learned(encoder.dim, min(out, encoder.dim))
        self.push, self.margin = push, margin
        self.positives, self.target = positives, target_of(positives, target_loss)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        h = self.encoder(torch.cat(batch["views"]))
        return {"loss": lmnn(h, groups_of(batch, self.positives), self.push, self.margin, self.distance)}
