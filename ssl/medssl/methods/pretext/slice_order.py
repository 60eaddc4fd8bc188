"""Slice order: identify the order in which slabs along the first axis of a scan were shuffled.

Zhang et al., 2017, "Self supervised deep representation learning for fine-grained body part recognition", ISBI, predict
which of two slices comes first; here the classes are all orders of a few slabs. In 2D, slabs are bands of rows.
"""

from typing import Any

import torch
from torch import Tensor, nn

from medssl.errors import UserError
from medssl.methods.base import METHOD_SLOT, Batch, Clock, Method
from medssl.methods.parts.heads import classify
from medssl.methods.parts.patches import distant_permutations
from medssl.rng import uniform


class SliceOrder(Method):
    """Encoder (B, C, *spatial) of the shuffled scan -> scores of the orders. slabs: their number, 2 to 5."""

    orders: Tensor  # (slabs!, slabs)

    def __init__(self, encoder: Any, slabs: int):
        super().__init__()
        if not 2 <= slabs <= 5 or slabs > encoder.size[0]:
            raise UserError(f"method.slabs must lie between 2 and {min(5, encoder.size[0])}, got {slabs}")
        self.encoder = encoder
        self.register_buffer("orders", distant_permutations(slabs, 120), persistent=False)
        self.head = nn.Linear(encoder.dim, len(self.orders))

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (x,) = batch["views"]
        count = self.orders.shape[1]
        answer = (uniform(batch["key"], 0, METHOD_SLOT)[:, 0] * len(self.orders)).long()
        thick = x.shape[2] // count  # remaining slices stay at the end
        at = (self.orders[answer] * thick)[..., None] + torch.arange(thick, device=x.device)
        rest = torch.arange(count * thick, x.shape[2], device=x.device).expand(len(x), -1)
        at = torch.cat([at.flatten(1), rest], 1).view(len(x), 1, -1, *[1] * (x.ndim - 3))
        return classify(self.head(self.encoder(x.gather(2, at.expand_as(x)))), answer)
