"""SupCon: InfoNCE with all views of one class, or of one patient, as positives.

Khosla et al., 2020, https://arxiv.org/abs/2004.11362, equation 2 (the loss outside the log). With positives=patient it is
the multi-instance contrastive learning of Azizi et al., 2021, https://arxiv.org/abs/2101.05224, section 3.2, with all images
of a patient in the batch as positives instead of one random pair.
"""

import math
from typing import Any

import torch
from torch import Tensor

from medssl.errors import UserError
from medssl.losses.distributed import world_size
from medssl.losses.similarity import sup_con
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.heads import groups_of, mlp, target_of


class SupCon(Method):
    """Encoder (B, C, *spatial) -> (B, dim), projector (B, dim) -> (B, out) on the unit sphere, all pairs of 2B views.

    hidden, out: widths of the projector. temperature: of the similarities. positives: which views attract: those of one
    scan, patient, study or label.
    """

    views = 2
    compares_scans = True

    def __init__(
        self, encoder: Any, hidden: int, out: int, temperature: float, positives: str, target_loss: Any = None
    ):
        super().__init__()
        if temperature <= 0:
            raise UserError(f"method.temperature must be positive, got {temperature}")
        self.encoder, self.projector = encoder, mlp(encoder.dim, hidden, out)
        self.temperature, self.positives, self.target = temperature, positives, target_of(positives, target_loss)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        z = self.projector(self.encoder(torch.cat(batch["views"])))
        chance = math.log(len(z) * world_size() - 1)  # the loss of constant features
        return {
            "loss": sup_con(z, groups_of(batch, self.positives), self.temperature),
            "chance": z.new_full((), chance),
        }
