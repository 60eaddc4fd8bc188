"""K-means on patches: a bank of prototypes, fitted in seconds without gradients, as a strong baseline for pretraining.

Coates, Ng & Lee, 2011, "An analysis of single-layer networks in unsupervised feature learning", sections 3.1 (patches,
whitening) and 3.2.3 (k-means, triangle code). The first part of the run estimates the covariance of patches; rounds of
Lloyd's algorithm follow, each over the patches of several batches.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from medssl.errors import UserError
from medssl.methods.base import METHOD_SLOT, Batch, Clock, Method
from medssl.methods.parts.kmeans import KMeans
from medssl.rng import uniform


class KMeansBank(Method):
    """Fits the buffers of a PatchBank, or of each bank of a PatchPyramid.

    per_scan: patches of each size taken from a scan per step. whitening: share of the run spent on the covariance. rounds:
    of Lloyd's algorithm in the rest.
    """

    round: Tensor  # number of finished rounds; -1 before the first one

    def __init__(self, encoder: Any, per_scan: int, whitening: float, rounds: int):
        super().__init__()
        if not hasattr(encoder, "banks"):
            raise UserError(f"kmeans_bank fits encoder=patch_bank or patch_pyramid, not {type(encoder).__name__}")
        if not 0 < whitening < 1:
            raise UserError(f"method.whitening must lie between 0 and 1, got {whitening}")
        self.encoder = encoder.requires_grad_(False)
        self.per_scan, self.whitening, self.rounds = per_scan, whitening, rounds
        self.fits = nn.ModuleList(KMeans(bank) for bank in encoder.banks)
        self.register_buffer("round", torch.tensor(-1))

    @torch.no_grad()
    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (x,) = batch["views"]
        losses = []
        for i, (fit, bank) in enumerate(self._pairs()):
            place = uniform(batch["key"], 0, METHOD_SLOT + i, self.per_scan)
            patches = bank.patches_at(x, place).double()
            if clock.frac < self.whitening:
                losses.append(fit.add_covariance(patches))
                continue
            if self.round < 0:
                fit.start(bank, patches)
            losses.append(fit.assign(bank, patches))
        if clock.frac >= self.whitening:
            self.round.clamp_(min=0)
        return {"loss": torch.stack(losses).mean().float()}

    @torch.no_grad()
    def after_step(self, clock: Clock) -> None:
        done = ((clock.step + 1) / clock.steps - self.whitening) / (1 - self.whitening) * self.rounds
        if self.round < 0 or done < self.round + 1 - 1e-9:
            return
        for fit, bank in self._pairs():
            fit.update_centroids(bank)
        self.round += 1

    def _pairs(self) -> Iterator[tuple[Any, Any]]:
        return zip(self.fits, self.encoder.banks, strict=True)
