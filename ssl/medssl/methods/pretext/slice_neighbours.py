"""Neighbouring slices: adjacent slabs of a volume attract, slabs of different scans repel.

InfoNCE as in SimCLR (Chen et al., 2020, equation 1), with the neighbour as the second view, similar to the partition-based
contrast of Chaitanya et al., 2020, https://arxiv.org/abs/2006.10511. In 2D, slabs are bands of rows.
"""

import math
from typing import Any

import torch
from torch import Tensor

from medssl.errors import UserError
from medssl.losses.distributed import world_size
from medssl.losses.infonce import nt_xent
from medssl.methods.base import METHOD_SLOT, Batch, Clock, Method
from medssl.methods.parts.heads import mlp
from medssl.methods.parts.patches import slab
from medssl.rng import uniform


class SliceNeighbours(Method):
    """A slab of one view of a scan and the adjacent slab of another view, each resized to the encoder's input.

    share: thickness of a slab as a share of the axis, at most a half. hidden, out: widths of the projector. temperature:
    of the similarities.
    """

    views = 2
    compares_scans = True

    def __init__(self, encoder: Any, share: float, hidden: int, out: int, temperature: float):
        super().__init__()
        if not 1 / encoder.size[0] <= share <= 0.5:
            raise UserError(f"method.share must lie between one slice of {encoder.size[0]} and 0.5, got {share}")
        if temperature <= 0:
            raise UserError(f"method.temperature must be positive, got {temperature}")
        self.encoder, self.projector = encoder, mlp(encoder.dim, hidden, out)
        self.share, self.temperature = share, temperature

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        first, second = batch["views"]
        start = uniform(batch["key"], 0, METHOD_SLOT)[:, 0] * (1 - 2 * self.share)
        both = torch.cat([slab(first, start, self.share), slab(second, start + self.share, self.share)])
        a, b = self.projector(self.encoder(both)).chunk(2)
        chance = math.log(2 * len(a) * world_size() - 1)  # the loss of constant features
        return {"loss": nt_xent(a, b, self.temperature), "chance": a.new_full((), chance)}
