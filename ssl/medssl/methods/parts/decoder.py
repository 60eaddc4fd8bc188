"""Decoders from an encoder's features back to pixels: without skip connections for reconstruction, with them for segmentation."""

from typing import Any

import torch
from torch import Tensor, nn

from medssl.encoders.unet_decoder import UNetDecoder
from medssl.errors import UserError
from medssl.methods.parts.layers import dry_run

MIN_CHANNELS = 8  # channels of the finest maps


class ConvDecoder(nn.Module):
    """Scans (B, C, *size) -> encoder -> scans (B, C, *size).

    Starts from the encoder's maps if it has any, else from its features through a linear layer to an eighth of the
    resolution, and doubles the resolution with one convolution per step. Each doubling halves the channels, mirroring
    encoders, so that fine maps cost no more than in the encoder. There are no skip connections: the reconstruction uses
    only the features that are kept. It is discarded after training.
    """

    def __init__(self, encoder: Any, width: int):
        super().__init__()
        size, dims = encoder.size, len(encoder.size)
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        self.dense: nn.Module = nn.Identity()
        if hasattr(encoder, "maps"):
            with dry_run(encoder):
                at = tuple(encoder.maps(torch.zeros(1, encoder.channels, *size)).shape[2:])
            layers: list[nn.Module] = [conv(encoder.dim, width, 1)]
        else:
            at = tuple(max(1, n // 8) for n in size)
            self.dense = nn.Sequential(
                nn.Linear(encoder.dim, width * torch.Size(at).numel()), nn.Unflatten(1, (width, *at))
            )
            layers = []
        self.layers = nn.Sequential(*layers, *enlarging(at, size, width, encoder.channels))

    def forward(self, encoder: Any, x: Tensor) -> Tensor:
        return self.layers(self.dense(encoder.maps(x) if hasattr(encoder, "maps") else encoder(x)))


def enlarging(at: tuple[int, ...], size: tuple[int, ...], width: int, channels: int) -> list[nn.Module]:
    """Return the layers from maps (B, width, *at) to (B, channels, *size): each doubling halves the width."""
    conv = nn.Conv2d if len(size) == 2 else nn.Conv3d
    layers: list[nn.Module] = []
    while at != tuple(size):
        at = tuple(min(2 * a, n) for a, n in zip(at, size, strict=True))
        coarse, width = width, max(width // 2, MIN_CHANNELS)
        layers += [nn.Upsample(at), conv(coarse, width, 3, padding=1), nn.GroupNorm(1, width), nn.ReLU()]
    return [*layers, conv(width, channels, 3, padding=1)]


def decoder_for(encoder: Any, classes: int, width: int) -> UNetDecoder:
    """Return the decoder with skip connections that fits an encoder: its `stages` and the scan -> (B, classes, *size).

    width: channels of the finest level. Raises UserError for an encoder without stages, and for a width below 1.
    """
    if width < 1:
        raise UserError(f"the width of a decoder must be 1 or more, got {width}")
    with dry_run(encoder):
        stages = encoder.stages(torch.zeros(1, encoder.channels, *encoder.size))
    whole = tuple(stages[0].shape[2:]) == tuple(encoder.size)
    image = 0 if whole else encoder.channels
    return UNetDecoder([s.shape[1] for s in stages], image, len(encoder.size), classes, width)
