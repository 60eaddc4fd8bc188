"""MAE: hide most patches of a scan and reconstruct them from the visible ones.

He et al., 2021, https://arxiv.org/abs/2111.06377, section 3, in two or three dimensions.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from medssl.encoders.vit import Block, sincos
from medssl.errors import UserError
from medssl.losses.regression import masked_patch_error
from medssl.methods.base import METHOD_SLOT, Batch, Clock, Method
from medssl.rng import uniform


class MAE(Method):
    """Encoder tokens of the visible patches (B, K, dim) -> a narrow decoder over all N patches -> their values.

    ratio: share of hidden patches. width, depth, heads: of the decoder, discarded after training; width is a multiple of
    2 * spatial dimensions (sine-cosine positions) and of heads.
    """

    positions: Tensor  # (N, width)

    def __init__(self, encoder: Any, ratio: float, width: int, depth: int, heads: int):
        super().__init__()
        if not hasattr(encoder, "tokens"):
            raise UserError(f"mae needs an encoder with tokens, and {type(encoder).__name__} has none; use encoder=vit")
        if not 0 < ratio < 1:
            raise UserError(f"method.ratio must lie between 0 and 1, got {ratio}")
        if encoder.channels * math.prod(encoder.patch) < 2:
            raise UserError(
                "a patch of one value cannot be standardised; use a multiple of 8 as size, or set encoder.patch"
            )
        patches = math.prod(encoder.grid)
        if int(patches * ratio) == 0:
            raise UserError(
                f"method.ratio={ratio} of {patches} patches hides none; raise method.ratio, or take smaller patches"
            )
        self.encoder, self.ratio = encoder, ratio
        self.narrow = nn.Linear(encoder.dim, width)
        self.hole = nn.Parameter(torch.zeros(width))
        self.register_buffer("positions", sincos(encoder.grid, width), persistent=False)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(depth)])
        self.rebuild = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, encoder.channels * math.prod(encoder.patch)))

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (x,) = batch["views"]
        truth = self.encoder.patchify(x)  # (B, N, P)
        B, N, _ = truth.shape
        order = uniform(batch["key"], 0, METHOD_SLOT, N).argsort(1)
        keep, hidden = order.split([N - int(N * self.ratio), int(N * self.ratio)], dim=1)
        seen = self.narrow(self.encoder.tokens(x, keep))
        holes = self.hole.to(seen.dtype).expand(B, N, -1)
        tokens = holes.scatter(1, keep[..., None].expand_as(seen), seen) + self.positions
        return {"loss": masked_patch_error(self.rebuild(self.blocks(tokens)), truth, hidden)}
