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
        wrong = swapped(x, batch["key"], self.edge, self.swaps)
        return {"loss": squared_error(self.decoder(self.encoder, wrong), x)}


def swapped(x: Tensor, key: Key, edge: tuple[int, ...], swaps: int) -> Tensor:
    """Return scans (B, C, *S) after the swaps of two patches of `edge` pixels. Pairs of patches that overlap are not swapped."""
    size, device = tuple(x.shape[2:]), x.device
    each = size, edge, [torch.Size(size[i + 1 :]).numel() for i in range(len(size))]
    shape, box, strides = torch.tensor(each).to(device, non_blocking=True)
    steps = torch.cartesian_prod(*[torch.arange(n, device=device) for n in edge]).view(-1, len(size))
    offsets = (steps * strides).sum(1)
    u = uniform(key, 0, METHOD_SLOT, swaps * 2 * len(size)).to(device)
    corner = (u.view(-1, swaps, 2, len(size)) * (shape - box + 1)).long()
    apart = ((corner[:, :, 0] - corner[:, :, 1]).abs() >= box).any(-1)
    base = (corner * strides).sum(-1)
    base = torch.where(apart[..., None], base, base[..., :1])
    out = x.flatten(2).clone()
    for i in range(swaps):
        one, two = ((base[:, i, j, None] + offsets)[:, None].expand(-1, x.shape[1], -1) for j in (0, 1))
        held = out.gather(2, one)
        out.scatter_(2, one, out.gather(2, two)).scatter_(2, two, held)
    return out.view_as(x)
