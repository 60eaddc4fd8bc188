"""Context restoration: reconstruct a scan in which pairs of patches were swapped.

Chen et al., 2019, "Self-supervised learning for medical image analysis using image context restoration",
https://doi.org/10.1016/j.media.2019.101539, algorithm 1 and the squared error of section 3.
"""

from typing import Any

import torch
from torch import Tensor

from medssl.errors import UserError
from medssl.losses.regression import squared_error
from medssl.methods.base import METHOD_SLOT, Batch, Clock, Method
from medssl.methods.parts.decoder import ConvDecoder
from medssl.rng import Key, uniform


class ContextRestoration(Method):
    """Encoder and decoder see the scan after `swaps` swaps of two patches, and reconstruct the original.

    patch: edge of a patch, as a share of the scan's. width: of the decoder. Intensities keep their values and change place.
    """

    def __init__(self, encoder: Any, swaps: int, patch: float, width: int):
        super().__init__()
        self.edge = tuple(max(1, round(patch * n)) for n in encoder.size)
        if swaps < 1 or not 0 < patch <= 0.5:
            raise UserError(f"needs method.swaps of 1 or more and method.patch in (0, 0.5], got {swaps} and {patch}")
        self.encoder, self.decoder, self.swaps = encoder, ConvDecoder(encoder, width), swaps

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (x,) = batch["views"]
        at = swapped(batch["key"], tuple(x.shape[2:]), self.edge, self.swaps).to(x.device)
        wrong = x.flatten(2).gather(2, at[:, None].expand(-1, x.shape[1], -1)).view_as(x)
        return {"loss": squared_error(self.decoder(self.encoder, wrong), x)}


def swapped(key: Key, size: tuple[int, ...], edge: tuple[int, ...], swaps: int) -> Tensor:
    """Return (B, pixels) int64, the source of each pixel after the swaps. Pairs of patches that overlap are not swapped."""
    shape, box = torch.tensor(size), torch.tensor(edge)
    strides = torch.tensor([torch.Size(size[i + 1 :]).numel() for i in range(len(size))])
    offsets = (torch.cartesian_prod(*[torch.arange(n) for n in edge]).view(-1, len(size)) * strides).sum(1)
    u = uniform(Key(key.seed, key.epoch.cpu(), key.scan.cpu()), 0, METHOD_SLOT, swaps * 2 * len(size))
    corner = (u.view(-1, swaps, 2, len(size)) * (shape - box + 1)).long()
    apart = ((corner[:, :, 0] - corner[:, :, 1]).abs() >= box).any(-1)
    at = torch.arange(torch.Size(size).numel()).repeat(len(u), 1)
    base = (corner * strides).sum(-1)
    base = torch.where(apart[..., None], base, base[..., :1])
    for i in range(swaps):
        one, two = (base[:, i, j, None] + offsets for j in (0, 1))
        held = at.gather(1, one)
        at.scatter_(1, one, at.gather(1, two)).scatter_(1, two, held)
    return at
