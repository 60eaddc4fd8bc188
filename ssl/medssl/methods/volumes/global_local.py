"""Global and local contrast: first the encoder learns which slab of a scan it sees, then the decoder tells places apart.

Chaitanya et al., 2020, https://arxiv.org/abs/2006.10511: the first half of the run trains the encoder on slabs at corresponding
positions, the second half the decoder on places of its output, with the encoder frozen. Segmentation then starts from both.
Their slices of a volume are slabs here, resized to the encoder's input; in 2D, bands of rows.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from medssl.errors import UserError
from medssl.losses.distributed import world_size
from medssl.losses.local_global import partition_contrast, place_contrast
from medssl.methods.base import METHOD_SLOT, Batch, Clock, Method
from medssl.methods.parts.decoder import UNetDecoder, decoder_for
from medssl.methods.parts.heads import mlp
from medssl.methods.parts.patches import slab
from medssl.methods.parts.spatial_maps import pool_places
from medssl.rng import uniform


class GlobalLocal(Method):
    """Two views, cut into slabs, through encoder and projector; then one view at two contrasts, through encoder and decoder.

    partitions: number of slabs along the first axis. across: whether slabs at one position of different scans attract too.
    hidden, out: widths of the projector, and of the layers that embed a place. temperature: of the similarities. contrast,
    brightness: the second part shows x (1 + c) + b, with c in +- contrast and b in +- brightness standard deviations. width:
    of the decoder.
    """

    views = 2
    parts = 2

    def __init__(
        self, encoder: Any, partitions: int, across: bool, hidden: int, out: int, temperature: float, contrast: float,
        brightness: float, width: int,
    ):  # fmt: skip
        super().__init__()
        if not 2 <= partitions <= encoder.size[0]:
            raise UserError(f"method.partitions must lie between 2 and {encoder.size[0]} slices, got {partitions}")
        if temperature <= 0:
            raise UserError(f"method.temperature must be positive, got {temperature}")
        if not 0 <= contrast < 1 or brightness < 0:
            raise UserError(
                f"needs 0 <= method.contrast < 1 and method.brightness >= 0, got {contrast} and {brightness}"
            )
        self.encoder, self.projector = encoder, mlp(encoder.dim, hidden, out)
        self.decoder = decoder_for(encoder, out, width)  # its last layer embeds places and is not kept
        self.embed = nn.Sequential(nn.ReLU(), nn.Linear(out, out))
        self.partitions, self.across, self.temperature = partitions, across, temperature
        self.contrast, self.brightness = contrast, brightness

    def kept_decoder(self) -> UNetDecoder:
        return self.decoder

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        return self.globally(batch) if clock.part(2) == 0 else self.locally(batch)

    def globally(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of the first part."""
        n, share = len(batch["key"].scan), 1 / self.partitions
        starts = torch.arange(self.partitions, device=batch["views"][0].device) * share
        slabs = [slab(x, start.expand(n), share) for start in starts for x in batch["views"]]
        z = self.projector(self.encoder(torch.cat(slabs)))
        rows = z.unflatten(0, (self.partitions, len(batch["views"]), n)).movedim(2, 0)  # (B, partitions, views, out)
        chance = math.log(1 + (self.partitions - 1) * len(batch["views"]) * n * world_size())
        loss = partition_contrast(rows, self.temperature, self.across)
        return {"loss": loss, "chance": loss.new_full((), chance)}

    def locally(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of the second part."""
        x = batch["views"][0]
        u = (uniform(batch["key"], 0, METHOD_SLOT, 4) * 2 - 1).to(x.dtype).view(len(x), 4, *[1] * (x.ndim - 2))
        versions = [x * (1 + self.contrast * u[:, i : i + 1]) + self.brightness * u[:, i + 1 : i + 2] for i in (0, 2)]
        both = torch.cat(versions)
        self.encoder.eval()
        with torch.no_grad():
            stages = self.encoder.stages(both)
        places = pool_places(self.decoder(both, stages)).flatten(2).transpose(1, 2)  # (2 B, L, out)
        a, b = self.embed(places).chunk(2)
        return {"loss": place_contrast(a, b, self.temperature), "chance": a.new_full((), math.log(a.shape[1]))}
