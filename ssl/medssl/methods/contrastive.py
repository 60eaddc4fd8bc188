"""Contrastive loss with margins: views of a scan closer than one margin, views of two scans further than another.

Hadsell et al., 2006, https://doi.org/10.1109/CVPR.2006.100, equation 4.
"""

from typing import Any

import torch
from torch import Tensor

from medssl.errors import UserError
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts import mlp
from medssl.objectives.pairs import contrastive


class Contrastive(Method):
    """Encoder (B, C, *spatial) -> (B, dim), projector (B, dim) -> (B, out) on the unit sphere, all pairs of 2B views.

    hidden, out: widths of the projector. positive_margin, negative_margin: distances on the sphere, in [0, 2].
    """

    views = 2

    def __init__(self, encoder: Any, hidden: int, out: int, positive_margin: float, negative_margin: float):
        super().__init__()
        if not 0 <= positive_margin < negative_margin <= 2:
            raise UserError(
                "margins must satisfy 0 <= method.positive_margin < method.negative_margin <= 2, "
                f"got {positive_margin} and {negative_margin}"
            )
        self.encoder, self.projector = encoder, mlp(encoder.dim, hidden, out)
        self.margins = positive_margin, negative_margin

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        z = self.projector(self.encoder(torch.cat(batch["views"])))
        scan = batch["key"].scan.repeat(len(batch["views"]))
        return {"loss": contrastive(z, scan, *self.margins), "chance": z.new_tensor(self.margins[1] ** 2)}
