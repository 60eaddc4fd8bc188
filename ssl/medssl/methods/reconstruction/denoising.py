"""Denoising: reconstruct a scan from a noisy copy, with the whole network at once (greedy_ae does it layer by layer).

Vincent et al., 2010, "Stacked denoising autoencoders", section 2.3: loss = mean (decoder(encoder(x + sigma * noise)) - x)^2.
"""

from typing import Any

from torch import Tensor

from medssl.errors import UserError
from medssl.losses.regression import squared_error
from medssl.methods.base import METHOD_SLOT, Batch, Clock, Method
from medssl.methods.parts.decoder import ConvDecoder
from medssl.rng import normal_field


class Denoising(Method):
    """sigma: standard deviation of the noise, in units of the store's pixels. width: of the decoder."""

    def __init__(self, encoder: Any, sigma: float, width: int):
        super().__init__()
        if sigma <= 0:
            raise UserError(f"method.sigma must be positive, got {sigma}")
        self.encoder, self.decoder, self.sigma = encoder, ConvDecoder(encoder, width), sigma

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (x,) = batch["views"]
        noise = normal_field(batch["key"], 0, METHOD_SLOT, tuple(x.shape[1:])).to(x.dtype)
        return {"loss": squared_error(self.decoder(self.encoder, x + self.sigma * noise), x)}
