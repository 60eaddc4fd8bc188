"""SimCLR: two views of a scan attract, views of other scans repel.

Chen et al., 2020, https://arxiv.org/abs/2002.05709: encoder, projector (section 2.1), NT-Xent (equation 1). With
pairs=patient the two views are of two scans of a patient, as in the multi-instance contrastive learning of Azizi et al., 2021,
https://arxiv.org/abs/2101.05224, section 3.2.
"""

import math
from typing import Any

import torch
from torch import Tensor

from medssl.errors import UserError
from medssl.losses.distributed import world_size
from medssl.losses.infonce import nt_xent
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.heads import mlp, pairs_of


class SimCLR(Method):
    """Encoder (B, C, *spatial) -> (B, dim), projector (B, dim) -> (B, out), NT-Xent.

    hidden, out: widths of the projector, discarded after training. temperature: of the similarities; lower weights hard
    negatives more. pairs: "scan", or "patient" or "study": the second view is of another scan of the same patient or study,
    if there is one.
    """

    views = 2
    compares_scans = True

    def __init__(self, encoder: Any, hidden: int, out: int, temperature: float, pairs: str = "scan"):
        super().__init__()
        if temperature <= 0:
            raise UserError(f"method.temperature must be positive, got {temperature}")
        self.encoder, self.projector = encoder, mlp(encoder.dim, hidden, out)
        self.temperature, self.paired_within = temperature, pairs_of(pairs)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        a, b = self.projector(self.encoder(torch.cat(batch["views"]))).chunk(2)
        chance = math.log(2 * len(a) * world_size() - 1)  # the loss of constant features
        return {"loss": nt_xent(a, b, self.temperature), "chance": a.new_full((), chance)}
