"""SimMIM: reconstruct the pixels of hidden patches with a linear layer; the encoder sees a learned token in their place.

Xie et al., 2022, https://arxiv.org/abs/2111.09886, in two or three dimensions: random squares of several patches are hidden,
and the loss is the absolute error of their standardised intensities.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from medssl.errors import UserError
from medssl.losses.regression import masked_absolute_error
from medssl.methods.base import METHOD_SLOT, Batch, Clock, Method
from medssl.methods.parts.token_masks import hide_squares


class SimMIM(Method):
    """Encoder tokens of all N patches (B, N, dim), hidden or not -> a linear layer -> their values (B, N, P).

    ratio: share of hidden squares. edge: of a square, in patches.
    """

    def __init__(self, encoder: Any, ratio: float, edge: int):
        super().__init__()
        if not hasattr(encoder, "tokens"):
            raise UserError(
                f"simmim needs an encoder with tokens, and {type(encoder).__name__} has none; use encoder=vit, "
                "or method=spark for convolutions"
            )
        if not 0 < ratio < 1 or not 1 <= edge < max(encoder.grid):
            raise UserError(
                f"needs method.ratio between 0 and 1 and method.edge from 1 to {max(encoder.grid) - 1} patches, got "
                f"{ratio} and {edge}"
            )
        squares = math.prod(math.ceil(n / edge) for n in encoder.grid)
        if int(squares * ratio) == 0:
            raise UserError(
                f"method.ratio={ratio} of {squares} squares hides none; raise it, or take smaller squares or patches"
            )
        self.encoder, self.ratio, self.edge = encoder, ratio, edge
        self.hole = nn.Parameter(torch.zeros(encoder.dim))
        self.head = nn.Linear(encoder.dim, encoder.channels * math.prod(encoder.patch))

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (x,) = batch["views"]
        hidden = hide_squares(batch["key"], 0, METHOD_SLOT, self.encoder.grid, self.ratio, self.edge)
        rebuilt = self.head(self.encoder.tokens(x, hidden_BN=hidden, hole=self.hole))
        return {"loss": masked_absolute_error(rebuilt, self.encoder.patchify(x), hidden[..., None])}
