"""DeepCluster: predict the cluster of a scan, found by k-means of the features of all training scans, again and again.

Caron et al., 2018, https://arxiv.org/abs/1807.05520. Features are kept from each scan's last step, k-means is by cosine and
the centroids are the classifier, as in DeepCluster-v2 (Caron et al., 2020, https://arxiv.org/abs/2006.09882, appendix),
where 2018 has a pass over all scans and a new classifier for each clustering. From 2018 are the equal weight of all
clusters, however small, and that none is empty. K-means starts from its last centroids (ours): a cluster keeps its number.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medssl.errors import UserError
from medssl.losses.distributed import gather_rows
from medssl.losses.supervised import weighted_cross_entropy
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.heads import mlp
from medssl.methods.parts.spherical_kmeans import nearest, spherical_kmeans


class DeepCluster(Method):
    """Encoder, projector -> (B, out), and the cosines with the centroids (clusters, out) as scores.

    hidden, out: widths of the projector. temperature: of the scores. clusters: their number, at most that of the training
    scans. rounds: of k-means, evenly over the run. iterations: of k-means in a round. rows: (N,) int64, the training scans'
    rows in the store, as in the batch's key.

    A scan without a cluster, before the first round, has the centroid nearest to its own features.
    """

    views = 2
    compares_scans = True
    place: Tensor  # (largest row + 1,): the place of a row of the store in the next two, or -1
    features: Tensor  # (N, out): unit features of each scan at its last step, the mean of its views; 0 before that
    cluster: Tensor  # (N,): the cluster of each scan, -1 if it has none yet
    centroids: Tensor  # (clusters, out), unit vectors

    def __init__(
        self, encoder: Any, hidden: int, out: int, temperature: float, clusters: int, rounds: int, iterations: int,
        rows: Tensor,
    ):  # fmt: skip
        super().__init__()
        if temperature <= 0:
            raise UserError(f"method.temperature must be positive, got {temperature}")
        if rounds < 1 or iterations < 1:
            raise UserError(f"method.rounds={rounds} and method.iterations={iterations} must be at least 1")
        if not 2 <= clusters <= len(rows):
            raise UserError(f"method.clusters={clusters} must be at least 2 and at most the {len(rows)} training scans")
        self.encoder, self.temperature, self.rounds, self.iterations = encoder, temperature, rounds, iterations
        self.projector = nn.Sequential(mlp(encoder.dim, hidden, out, bias=False), nn.BatchNorm1d(out, affine=False))
        place = torch.full((int(rows.max()) + 1,), -1).index_copy_(0, rows, torch.arange(len(rows)))
        self.register_buffer("place", place)
        self.register_buffer("features", torch.zeros(len(rows), out))
        self.register_buffer("cluster", torch.full((len(rows),), -1))
        self.register_buffer("centroids", F.normalize(torch.randn(clusters, out), dim=1))
        self.waiting: list[tuple[Tensor, Tensor]] = []  # places and features since the last step

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        z = self.projector(self.encoder(torch.cat(batch["views"])))
        with torch.autocast(z.device.type, enabled=False):
            z = F.normalize(z.to(self.centroids.dtype), dim=1)
            scores = z @ self.centroids.T / self.temperature
            mine = F.normalize(z.detach().unflatten(0, (2, -1)).sum(0), dim=1)
        at = self.place[batch["key"].scan.to(self.place.device)]
        self.waiting.append((gather_rows(at), gather_rows(mine)))
        cluster = torch.where(self.cluster[at] < 0, nearest(mine, self.centroids)[0], self.cluster[at])
        weight = self.weights()[cluster]
        loss = weighted_cross_entropy(scores, cluster.repeat(2), weight.repeat(2))
        accuracy = (scores.argmax(1) == cluster.repeat(2)).float().mean()
        chance = weight.mean() * math.log(len(self.centroids))  # the loss of constant features
        return {"loss": loss, "accuracy": accuracy, "chance": chance}

    def weights(self) -> Tensor:
        """Return the weight (clusters,) of a scan of each cluster, by which all clusters count the same (section 3.3)."""
        sizes = torch.bincount(self.cluster[self.cluster >= 0], minlength=len(self.centroids)).to(self.centroids.dtype)
        return sizes.sum() / (len(sizes) * sizes) if sizes.all() else torch.ones_like(sizes)

    @torch.no_grad()
    def after_step(self, clock: Clock) -> None:
        for at, features in self.waiting:
            self.features[at] = features
        self.waiting.clear()
        if (clock.step + 1) * self.rounds // clock.steps == clock.step * self.rounds // clock.steps:
            return
        seen = self.features.any(1).nonzero()[:, 0]
        if len(seen) >= len(self.centroids):
            rows = self.features[seen]
            if (self.cluster < 0).all():
                even = torch.linspace(0, len(seen) - 1, len(self.centroids), device=seen.device).long()
                self.centroids.copy_(rows[even])
            centroids, self.cluster[seen] = spherical_kmeans(rows, self.centroids, self.iterations)
            self.centroids.copy_(centroids)
