"""Jigsaw: identify the order in which the tiles of a scan were shuffled.

Noroozi & Favaro, 2016, https://arxiv.org/abs/1603.09246: section 3 (distant permutations; gaps between tiles; each tile with
its own mean and deviation, which would otherwise give its place away). Each tile passes through the encoder alone; a small
network combines the features of all. Tiles of a volume are cubes, as in Taleb et al., 2020, https://arxiv.org/abs/2006.03829.
"""

from typing import Any

from torch import Tensor, nn

from medssl.errors import UserError
from medssl.methods.base import METHOD_SLOT, Batch, Clock, Method
from medssl.methods.parts.heads import classify, mlp
from medssl.methods.parts.patches import distant_permutations, standardise, tile_size, tiles
from medssl.rng import uniform

ORDER_SLOT, TILE_SLOT = METHOD_SLOT, METHOD_SLOT + 1


class Jigsaw(Method):
    """T = grid^dims tiles, each standardised and encoded -> (B, T * out) -> scores of the orders.

    grid: tiles per axis; None: 3 in 2D, 2 in 3D. permutations: number of orders, out of T!. keep: share of a tile's edge
    that is shown. edge: pixels of a tile as a share of the encoder's input, see `tile_size`. out, hidden: widths per tile
    and of the network over all tiles.
    """

    orders: Tensor  # (permutations, T)

    def __init__(
        self, encoder: Any, grid: int | None, permutations: int, keep: float, edge: float, out: int, hidden: int
    ):
        super().__init__()
        self.grid = (3 if len(encoder.size) == 2 else 2) if grid is None else grid
        if self.grid < 2 or permutations < 2:
            raise UserError(
                f"needs method.grid and method.permutations of 2 or more, got {self.grid} and {permutations}"
            )
        if not 0 < keep <= 1 or keep * min(encoder.size) / self.grid < 2:
            raise UserError(
                f"method.keep={keep} of tiles of {min(encoder.size) / self.grid:.1f} pixels leaves less than 2"
            )
        if not 0 < edge <= 1:
            raise UserError(f"method.edge is a share of the encoder's input, above 0 and at most 1, got {edge}")
        self.encoder, self.keep, self.size = encoder, keep, tile_size(encoder, edge)
        self.register_buffer(
            "orders", distant_permutations(self.grid ** len(encoder.size), permutations), persistent=False
        )
        self.each = nn.Linear(encoder.dim, out)
        self.head = mlp(out * self.orders.shape[1], hidden, len(self.orders))

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (x,) = batch["views"]
        answer = (uniform(batch["key"], 0, ORDER_SLOT)[:, 0] * len(self.orders)).long()
        shown = tiles(x, self.orders[answer], self.grid, self.keep, self.size, batch["key"], TILE_SLOT)
        scores = self.head(self.each(self.encoder(standardise(shown))).view(len(x), -1))
        return classify(scores, answer)
