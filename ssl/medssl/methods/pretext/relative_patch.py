"""Relative patches: predict the position of a tile relative to its neighbour.

Doersch et al., 2015, https://arxiv.org/abs/1505.05192, sections 3 and 3.1 (a gap and jitter against trivial solutions). 8
positions in 2D, 26 in 3D. The paper subtracts the mean of a patch; here each is standardised, as the tiles of `jigsaw`. Colour
dropping is omitted, since most scans are grey.
"""

import itertools
from typing import Any

import torch
from torch import Tensor

from medssl.errors import UserError
from medssl.methods.base import METHOD_SLOT, Batch, Clock, Method
from medssl.methods.parts.heads import classify, mlp
from medssl.methods.parts.patches import standardise, tile_size, tiles
from medssl.rng import uniform

PLACE_SLOT, TILE_SLOT = METHOD_SLOT, METHOD_SLOT + 1


class RelativePatch(Method):
    """Predict the position of a tile relative to the central one of a grid of 3 per axis; each is encoded alone.

    keep: share of a tile's edge that is shown. edge: pixels of a tile as a share of the encoder's input, see `tile_size`.
    hidden: width of the network over both.
    """

    others: Tensor  # (positions,) indices of the tiles around the central one

    def __init__(self, encoder: Any, keep: float, edge: float, hidden: int):
        super().__init__()
        if not 0 < keep <= 1 or keep * min(encoder.size) / 3 < 2:
            raise UserError(f"method.keep={keep} of a tile of {min(encoder.size) / 3:.1f} pixels leaves less than 2")
        if not 0 < edge <= 1:
            raise UserError(f"method.edge is a share of the encoder's input, above 0 and at most 1, got {edge}")
        dims = len(encoder.size)
        self.middle = 3**dims // 2
        around = [i for i, place in enumerate(itertools.product(range(3), repeat=dims)) if place != (1,) * dims]
        self.register_buffer("others", torch.tensor(around), persistent=False)
        self.encoder, self.keep, self.size = encoder, keep, tile_size(encoder, edge)
        self.head = mlp(2 * encoder.dim, hidden, len(around))

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (x,) = batch["views"]
        answer = (uniform(batch["key"], 0, PLACE_SLOT)[:, 0] * len(self.others)).long()
        pair = torch.stack([torch.full_like(answer, self.middle), self.others[answer]], 1)
        shown = tiles(x, pair, 3, self.keep, self.size, batch["key"], TILE_SLOT)
        scores = self.head(self.encoder(standardise(shown)).view(len(x), -1))
        return classify(scores, answer)
