"""A bank of patch prototypes by k-means: no gradient, seconds of work, and a baseline that embarrasses weak pretraining.

Coates, Ng & Lee, 2011, "An analysis of single-layer networks in unsupervised feature learning", sections 3.1 (patches,
whitening) and 3.2.3 (k-means, triangle code). The first part of the run gathers the covariance of patches; then come
rounds of Lloyd's algorithm, each over the patches of several batches.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from medssl.encoders.patch_bank import PatchBank
from medssl.errors import UserError
from medssl.methods.base import Batch, Clock, Method
from medssl.objectives.ranks import all_rows, world
from medssl.rng import uniform

PATCH_SLOT = 1000  # views use the slots below


class Lloyd(nn.Module):
    """What is known on the way to one bank's whitening and centroids."""

    first: Tensor  # (P,) sum of patches
    second: Tensor  # (P, P) sum of their outer products
    seen: Tensor  # how many
    sums: Tensor  # (K, P) whitened patches won by each centroid in this round
    counts: Tensor  # (K,) how many

    def __init__(self, bank: PatchBank):
        super().__init__()
        k, p = bank.centroids.shape
        for name, shape in {"first": (p,), "second": (p, p), "seen": (), "sums": (k, p), "counts": (k,)}.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    def gather(self, patches: Tensor) -> Tensor:
        """Add patches (N, P) to the covariance; their variance."""
        added = [patches.sum(0), patches.T @ patches, patches.new_tensor(float(len(patches)))]
        for total, new in zip((self.first, self.second, self.seen), summed(added), strict=True):
            total += new
        return patches.var(0).sum()

    def start(self, bank: PatchBank, patches: Tensor) -> None:
        """Whitening from the totals; the first centroids are whitened patches of this batch, the same on every rank."""
        mean = self.first / self.seen
        bank.set_whitening(mean, self.second / self.seen - mean.outer(mean))
        white = (all_rows(patches) - bank.mean) @ bank.whiten.double()
        k = len(self.counts)
        if len(white) < k:
            raise UserError(f"{len(white)} patches a batch cannot start {k} centroids; raise batch or method.per_scan")
        bank.centroids.copy_(white[torch.linspace(0, len(white) - 1, k, device=white.device).long()])

    def assign(self, bank: PatchBank, patches: Tensor) -> Tensor:
        """Give patches (N, P) to their nearest centroids; the mean squared distance."""
        white = (patches - bank.mean) @ bank.whiten.double()
        distance, nearest = torch.cdist(white, bank.centroids.double()).min(1)
        mine = torch.zeros_like(self.sums).index_add_(0, nearest, white)
        added = [mine, torch.bincount(nearest, minlength=len(self.counts)).double(), distance.square().sum()]
        sums, counts, error = summed(added)
        self.sums += sums
        self.counts += counts
        return error / counts.sum()

    def move(self, bank: PatchBank) -> None:
        """Centroids to the means of what they won; one that won nothing stays where it is."""
        used = self.counts > 0
        bank.centroids[used] = (self.sums / self.counts[:, None])[used].to(bank.centroids.dtype)
        self.sums.zero_(), self.counts.zero_()


class KMeansBank(Method):
    """Fits the buffers of an encoders.patch_bank.PatchBank, or of each of an encoders.patch_pyramid.PatchPyramid.

    per_scan: patches of each size taken from a scan at a step. whitening: share of the run spent on the covariance. rounds: of
    Lloyd's algorithm in the rest.
    """

    views = 1
    round: Tensor  # rounds finished; -1 before the first

    def __init__(self, encoder: Any, per_scan: int, whitening: float, rounds: int):
        super().__init__()
        if not hasattr(encoder, "banks"):
            raise UserError(f"kmeans_bank fits encoder=patch_bank or patch_pyramid, not {type(encoder).__name__}")
        if not 0 < whitening < 1:
            raise UserError(f"method.whitening must lie between 0 and 1, got {whitening}")
        self.encoder = encoder.requires_grad_(False)
        self.per_scan, self.whitening, self.rounds = per_scan, whitening, rounds
        self.fits = nn.ModuleList(Lloyd(bank) for bank in encoder.banks)
        self.register_buffer("round", torch.tensor(-1))

    @torch.no_grad()
    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (x,) = batch["views"]
        losses = []
        for i, (fit, bank) in enumerate(self._pairs()):
            place = uniform(batch["key"], 0, PATCH_SLOT + i, self.per_scan)
            patches = bank.patches_at(x, place).double()
            if clock.frac < self.whitening:
                losses.append(fit.gather(patches))
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
            fit.move(bank)
        self.round += 1

    def _pairs(self) -> Iterator[tuple[Any, Any]]:
        return zip(self.fits, self.encoder.banks, strict=True)


def summed(parts: list[Tensor]) -> list[Tensor]:
    """Each tensor summed over ranks, in place."""
    if world() > 1:
        for part in parts:
            dist.all_reduce(part)
    return parts
