"""Whitening and k-means for one patch bank, batch by batch and over all ranks."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from medssl.encoders.patch_bank import PatchBank
from medssl.errors import UserError
from medssl.losses.distributed import gather_rows, world_size


class KMeans(nn.Module):
    """Running totals for the whitening and the centroids of one bank."""

    first: Tensor  # (P,) sum of patches
    second: Tensor  # (P, P) sum of their outer products
    seen: Tensor  # number of patches
    sums: Tensor  # (K, P) sum of the whitened patches assigned to each centroid in this round
    counts: Tensor  # (K,) their number

    def __init__(self, bank: PatchBank):
        super().__init__()
        k, p = bank.centroids.shape
        for name, shape in {"first": (p,), "second": (p, p), "seen": (), "sums": (k, p), "counts": (k,)}.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    def add_covariance(self, patches: Tensor) -> Tensor:
        """Add patches (N, P) to the covariance and return their variance."""
        added = [patches.sum(0), patches.T @ patches, patches.new_full((), float(len(patches)))]
        for total, new in zip((self.first, self.second, self.seen), sum_over_ranks(added), strict=True):
            total += new
        return patches.var(0).sum()

    def start(self, bank: PatchBank, patches: Tensor) -> None:
        """Set the whitening, and as first centroids whitened patches of this batch, the same on every rank."""
        mean = self.first / self.seen
        bank.set_whitening(mean, self.second / self.seen - mean.outer(mean))
        white = (gather_rows(patches) - bank.mean) @ bank.whiten.double()
        k = len(self.counts)
        if len(white) < k:
            raise UserError(f"{len(white)} patches a batch cannot start {k} centroids; raise batch or method.per_scan")
        bank.centroids.copy_(white[torch.linspace(0, len(white) - 1, k, device=white.device).long()])

    def assign(self, bank: PatchBank, patches: Tensor) -> Tensor:
        """Assign patches (N, P) to their nearest centroids and return the mean squared distance."""
        white = (patches - bank.mean) @ bank.whiten.double()
        distance, nearest = torch.cdist(white, bank.centroids.double()).min(1)
        mine = torch.zeros_like(self.sums).index_add_(0, nearest, white)
        added = [mine, torch.bincount(nearest, minlength=len(self.counts)).double(), distance.square().sum()]
        sums, counts, error = sum_over_ranks(added)
        self.sums += sums
        self.counts += counts
        return error / counts.sum()

    def update_centroids(self, bank: PatchBank) -> None:
        """Move each centroid to the mean of its patches; one without patches stays."""
        used = self.counts > 0
        bank.centroids[used] = (self.sums / self.counts[:, None])[used].to(bank.centroids.dtype)
        self.sums.zero_(), self.counts.zero_()


def sum_over_ranks(parts: list[Tensor]) -> list[Tensor]:
    """Sum each tensor over ranks, in place."""
    if world_size() > 1:
        for part in parts:
            dist.all_reduce(part)
    return parts
