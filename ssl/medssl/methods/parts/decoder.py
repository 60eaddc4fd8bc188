"""From what an encoder says back to the scan: the decoder that tasks of reconstruction throw away afterwards."""

from typing import Any

import torch
from torch import Tensor, nn

THINNEST = 8  # channels of the finest maps at least


class ConvDecoder(nn.Module):
    """Scans (B, C, *size) -> encoder -> scans (B, C, *size).

    From the encoder's maps, where it has them, by doubling their resolution with a convolution at each step; from its features
    through a linear layer to an eighth of the resolution where it has none. Each doubling halves the channels, as encoders do
    the other way round, so that fine maps do not cost more than the encoder does. No skip connections: all that is rebuilt has
    gone through the features that are kept.
    """

    def __init__(self, encoder: Any, width: int):
        super().__init__()
        size, dims = encoder.size, len(encoder.size)
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        self.dense: nn.Module = nn.Identity()
        if hasattr(encoder, "maps"):
            training = encoder.training
            with torch.no_grad():
                at = tuple(encoder.eval().maps(torch.zeros(1, encoder.channels, *size)).shape[2:])
            encoder.train(training)
            layers: list[nn.Module] = [conv(encoder.dim, width, 1)]
        else:
            at = tuple(max(1, n // 8) for n in size)
            self.dense = nn.Sequential(
                nn.Linear(encoder.dim, width * torch.Size(at).numel()), nn.Unflatten(1, (width, *at))
            )
            layers = []
        while at != size:
            at = tuple(min(2 * a, n) for a, n in zip(at, size, strict=True))
            coarse, width = width, max(width // 2, THINNEST)
            layers += [nn.Upsample(at), conv(coarse, width, 3, padding=1), nn.GroupNorm(1, width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, conv(width, encoder.channels, 3, padding=1))

    def forward(self, encoder: Any, x: Tensor) -> Tensor:
        return self.layers(self.dense(encoder.maps(x) if hasattr(encoder, "maps") else encoder(x)))
