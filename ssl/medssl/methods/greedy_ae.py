"""Greedy layer-wise denoising autoencoders: each layer learns to undo noise in what the layer below says, then is frozen.

Bengio et al., 2007, "Greedy layer-wise training of deep networks", algorithm 1; the noise is the masking of Vincent et al.,
2008, https://doi.org/10.1145/1390156.1390294, section 2.3. With h the output of the layer below and m a random mask,

    loss = mean (decoder(layer(m * h)) - h)^2

with a linear decoder at every layer, as Vincent et al., 2010 (section 3.3), have it for real-valued inputs.
"""

from typing import Any

import torch
from torch import Tensor, nn

from medssl.errors import UserError
from medssl.methods.base import Batch, Clock, Method
from medssl.objectives.regression import squared_error
from medssl.rng import uniform_field

MASK_SLOT = 1000  # views use the slots below


class GreedyAE(Method):
    """Layer k of `encoder.layers` trains alone during the k-th of equal parts of the run; the layers below are frozen.

    corruption: share of a layer's inputs set to 0, which is the mean of standardised pixels. 0 is a plain autoencoder.
    """

    views = 1

    def __init__(self, encoder: Any, corruption: float):
        super().__init__()
        if not hasattr(encoder, "layers"):
            raise UserError(
                f"greedy_ae needs an encoder made of layers, not {type(encoder).__name__}; use encoder=mlp or cnn"
            )
        if not 0 <= corruption < 1:
            raise UserError(f"method.corruption must lie in [0, 1), got {corruption}")
        self.encoder, self.corruption, self.parts = encoder, corruption, len(encoder.layers)
        self.decoders = nn.ModuleList()
        with torch.no_grad():
            h = torch.zeros(2, encoder.channels, *encoder.size)
            for layer in encoder.layers:
                below, h = h, layer(h)
                self.decoders.append(Decoder(h.shape[1:], below.shape[1:]))

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (h,) = batch["views"]
        layers = self.encoder.layers
        at = clock.part(self.parts)
        with torch.no_grad():
            for layer in layers[:at]:
                h = layer.eval()(h)
        seen = uniform_field(batch["key"], 0, MASK_SLOT + at, tuple(h.shape[1:])) >= self.corruption
        return {"loss": squared_error(self.decoders[at](layers[at](h * seen)), h), "layer": h.new_tensor(at)}


class Decoder(nn.Module):
    """One linear map from a layer's output back to its input: dense, or a convolution after nearest-neighbour upsampling."""

    def __init__(self, source: tuple[int, ...], target: tuple[int, ...]):
        super().__init__()
        self.target = tuple(target)
        if len(source) == 1:
            self.map: nn.Module = nn.Sequential(
                nn.Linear(source[0], torch.Size(target).numel()), nn.Unflatten(1, target)
            )
        else:
            convolution = nn.Conv3d if len(source) == 4 else nn.Conv2d
            self.map = nn.Sequential(nn.Upsample(self.target[1:]), convolution(source[0], target[0], 3, padding=1))

    def forward(self, code: Tensor) -> Tensor:
        """(B, *source) -> (B, *target)."""
        return self.map(code)
