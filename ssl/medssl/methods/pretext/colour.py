"""Colour: hide one channel of a scan and predict it from the others, for stores with two or more channels.

After colourisation (Zhang et al., 2016, https://arxiv.org/abs/1603.08511), which predicts colour from grey, and its cross-channel
form (Zhang et al., 2017, https://arxiv.org/abs/1611.09842). Here any channel is predicted from all others, such as one MR
sequence from the rest, with the squared error.
"""

from typing import Any

import torch
from torch import Tensor

from medssl.errors import UserError
from medssl.losses.regression import masked_squared_error
from medssl.methods.base import METHOD_SLOT, Batch, Clock, Method
from medssl.methods.parts.decoder import ConvDecoder
from medssl.rng import uniform


class Colour(Method):
    """A random channel of each scan is set to 0, the mean, and reconstructed. width: of the decoder."""

    def __init__(self, encoder: Any, width: int):
        super().__init__()
        if encoder.channels < 2:
            raise UserError("colour predicts a channel from the others, and these scans have one; use another method")
        self.encoder, self.decoder = encoder, ConvDecoder(encoder, width)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (x,) = batch["views"]
        which = (uniform(batch["key"], 0, METHOD_SLOT) * x.shape[1]).long()  # (B, 1)
        hidden = (which == torch.arange(x.shape[1], device=x.device)).view(*x.shape[:2], *[1] * (x.ndim - 2))
        return {"loss": masked_squared_error(self.decoder(self.encoder, x * ~hidden), x, hidden)}
