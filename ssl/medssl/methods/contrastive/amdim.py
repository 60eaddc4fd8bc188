"""AMDIM: maximise the information that a view's features share with each place of the other view, at several scales.

Bachman et al., 2019, https://arxiv.org/abs/1906.00910. With f and f' the features of the two views, and the indices 1 for
the whole scan, 5 for the places of the last map and 7 for those of the map before it,

    loss = sum over (m, n) = (1, 5), (1, 7), (5, 5), averaged over both ways, of -InfoNCE(c tanh(s / c)) + penalty * mean s^2

with s = f_m . f'_n / sqrt(out), up to a constant. InfoNCE contrasts each place of the scan with all places of other scans.
(5, 5) uses one random place of each scan.
"""

import math
from typing import Any

import torch
from torch import Tensor

from medssl.errors import UserError
from medssl.losses.distributed import world_size
from medssl.losses.mutual_information import infonce, separable_scores
from medssl.methods.base import METHOD_SLOT, Batch, Clock, Method
from medssl.methods.parts.spatial_maps import PlaceEmbedding, pool_places, spatial_mean, stage_shapes
from medssl.rng import uniform


class AMDIM(Method):
    """Encoder stages of two views -> embeddings of the whole scan (B, out) and of the places of two maps (B, L, out).

    out: width of the embeddings. clip: c, the largest score. penalty: weight of squared scores before clipping.
    """

    views = 2
    compares_scans = True

    def __init__(self, encoder: Any, out: int, clip: float, penalty: float):
        super().__init__()
        if clip <= 0 or penalty < 0:
            raise UserError(f"method.clip={clip} must be positive and method.penalty={penalty} not negative")
        stages = stage_shapes(encoder, "amdim", 2)
        self.encoder, self.clip, self.penalty = encoder, clip, penalty
        self.whole, self.last, self.fine = (PlaceEmbedding(n, out) for n in (encoder.dim, stages[-1][0], stages[-2][0]))

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        *_, fine, last = self.encoder.stages(torch.cat(batch["views"]))
        whole = self.whole(spatial_mean(last)[..., None])[:, 0].chunk(2)
        five, seven = self.last(pool_places(last)).chunk(2), self.fine(pool_places(fine)).chunk(2)
        B, L, _ = five[0].shape
        scan, losses, squares, chance = torch.arange(B, device=last.device), [], [], 0.0
        for mine, other in ((0, 1), (1, 0)):
            at = (uniform(batch["key"], mine, METHOD_SLOT)[:, 0] * L).long()
            one = five[mine][scan, at]
            for features, places in ((whole[mine], five[other]), (whole[mine], seven[other]), (one, five[other])):
                scores = separable_scores(features, places)
                ceiling = math.log(1 + (B * world_size() - 1) * places.shape[1])
                losses.append(ceiling - infonce(self.clip * torch.tanh(scores / self.clip)))
                squares.append(scores.square().mean())
                chance += ceiling / 2
        loss, square = torch.stack(losses).sum() / 2, torch.stack(squares).sum() / 2
        return {"loss": loss + self.penalty * square, "square": square, "chance": loss.new_full((), chance)}
