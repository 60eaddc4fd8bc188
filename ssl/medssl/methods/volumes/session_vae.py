"""Session VAE: two sequences of one study share a code of the anatomy; each is reconstructed from its own and the other's.

After Gordaliza et al., 2026, https://arxiv.org/abs/2601.13166, whose networks were first in two challenges on brain MR; the
losses and numbers here are ours. Each sequence has two codes, of anatomy and of sequence, both variational (Kingma & Welling,
2014). Boxes of the input are hidden.
"""

from typing import Any

import torch
from torch import Tensor, nn

from medssl.errors import UserError
from medssl.losses.energy import negative_elbo
from medssl.methods.base import METHOD_SLOT, Batch, Clock, Method
from medssl.methods.parts.decoder import enlarging
from medssl.methods.parts.patches import random_boxes
from medssl.rng import normal_field

NOISE_SLOT, BOX_SLOT = METHOD_SLOT, METHOD_SLOT + 10


class SessionVAE(Method):
    """Encoder (B, C, *S) -> (B, dim) -> anatomy (B, anatomy) and sequence (B, sequence) -> decoder -> (B, C, *S).

    The loss is the mean of four terms |scan - rebuilt|^2 / 2 + beta KL: both scans, rebuilt from their own sequence code and
    the anatomy code of themselves and of the other. Only anatomy that both scans show helps all four.

    anatomy, sequence: sizes of the codes. beta: weight of the divergence. boxes, smallest, largest: number of hidden boxes and
    their edges, as shares of the scan's. width: of the decoder's coarsest maps, discarded after training.
    """

    views = 2
    paired_within = "series"

    def __init__(
        self, encoder: Any, anatomy: int, sequence: int, beta: float, boxes: int, smallest: float, largest: float, width: int
    ):  # fmt: skip
        super().__init__()
        if min(anatomy, sequence) < 1:
            raise UserError(f"method.anatomy and method.sequence must be 1 or more, got {anatomy} and {sequence}")
        if beta < 0:
            raise UserError(f"method.beta must not be negative, got {beta}")
        if boxes < 0 or not 0 < smallest <= largest < 1:
            words = f"{boxes}, {smallest} and {largest}"
            raise UserError(f"needs method.boxes >= 0 and 0 < method.smallest <= method.largest < 1, got {words}")
        self.encoder, self.codes, self.beta = encoder, (anatomy, sequence), beta
        self.boxes, self.edges = boxes, (smallest, largest)
        size = tuple(encoder.size)
        at = tuple(max(1, n // 8) for n in size)
        self.code = nn.Linear(encoder.dim, 2 * sum(self.codes))
        self.decoder = nn.Sequential(
            nn.Linear(sum(self.codes), width * torch.Size(at).numel()), nn.Unflatten(1, (width, *at)),
            *enlarging(at, size, width, encoder.channels),
        )  # fmt: skip

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        scans = batch["views"]
        hidden = torch.cat([self.visible(batch, i) * x for i, x in enumerate(scans)])
        mean, log_variance = self.code(self.encoder(hidden)).unflatten(1, (2, -1)).unbind(1)
        noise = torch.cat([normal_field(batch["key"], 0, NOISE_SLOT + i, (sum(self.codes),)) for i in range(2)])
        anatomy, sequence = (mean + (log_variance / 2).exp() * noise.to(mean.dtype)).split(self.codes, 1)
        other = torch.cat(anatomy.chunk(2)[::-1])
        rebuilt = self.decoder(torch.cat([torch.cat([a, sequence], 1) for a in (anatomy, other)]))
        truth = torch.cat(scans).repeat(2, *[1] * (scans[0].ndim - 1))
        codes = mean.repeat(2, 1), log_variance.repeat(2, 1)
        loss = negative_elbo(rebuilt.flatten(1), truth.flatten(1), *codes, self.beta)
        return {"loss": loss}

    def visible(self, batch: Batch, scan: int) -> Tensor:
        """Return (B, 1, *S), 0 in the hidden boxes of the first or second scan."""
        size = tuple(batch["views"][0].shape[2:])
        slots = range(BOX_SLOT + scan * self.boxes, BOX_SLOT + (scan + 1) * self.boxes)
        boxes = [random_boxes(batch["key"], slot, size, *self.edges) for slot in slots]
        seen = ~torch.stack(boxes).any(0) if boxes else torch.ones(len(batch["views"][0]), *size, dtype=torch.bool)
        return seen[:, None].to(batch["views"][0])
