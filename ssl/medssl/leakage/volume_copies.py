"""Copies of volumes that were mirrored, turned, cropped, padded, shifted, inverted, re-windowed, resampled or thinned out."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medssl.leakage.equalised_grid import as_tensors, normalise_contrast
from medssl.leakage.registration import Affine, agreement, register
from medssl.leakage.transformed_copies import AgreeingPairs, best_pairs
from medssl.leakage.transformed_search import Candidates
from medssl.leakage.volume_grid import HALF_SIDE, SIDE, VolumeGrid, smoothed_to
from medssl.leakage.volume_search import VolumeSearch, VolumeTransforms

Grids = tuple[tuple[Tensor, Tensor], ...]  # values and weights (N, n, n, n) of queries, then of volumes

COARSE_STEPS, FINE_STEPS = 5, 4  # steps of registration at half and at full resolution
SIGMA = 3.0  # voxels over which contrast is normalised at full resolution
SMOOTHING = (
    0.5  # standard deviation, relative to the distance of slices, to which both volumes are smoothed along an axis
)
PAIRS = 16  # registered at once
QUERIES = 64  # compared at once


def agreeing_volumes(
    queries: list[VolumeGrid], volumes: list[VolumeGrid], transforms: VolumeTransforms, floor: float
) -> AgreeingPairs:
    """Return the pairs of queries and volumes whose correlation after registration is at least `floor`.

    `sharp` says whether no axis of the two has fewer than SIDE voxels.
    """
    search = VolumeSearch(np.stack([g.ranks for g in volumes]), transforms)
    ranks = np.stack([g.ranks for g in queries])
    voxels = [torch.tensor([g.voxels for g in part], dtype=torch.float32) for part in (queries, volumes)]
    parts = []
    for start in range(0, len(queries), QUERIES):
        found = search.candidates(ranks[start : start + QUERIES])
        found = Candidates(found.query + start, *(getattr(found, k) for k in ("image", "transform", "sign")))
        pairs = _VolumePairs(ranks, search, found, voxels)
        kept, *scores = best_pairs(found, found.image, pairs.coarse, pairs.final, floor)
        sharp = torch.minimum(voxels[0][found.query[kept]].amin(1), voxels[1][found.image[kept]].amin(1)) >= SIDE
        parts.append((found.query[kept], found.image[kept], *scores, sharp))
    return AgreeingPairs(*(torch.cat(x).numpy() for x in zip(*parts, strict=True)))


class _VolumePairs:
    """Some queries and their candidates, registered at half resolution."""

    def __init__(self, ranks: NDArray[np.uint8], search: VolumeSearch, found: Candidates, voxels: list[Tensor]):
        self.ranks, self.search, self.found, self.voxels = ranks, search, found, voxels
        self.maps, self.coarse = self._registered()

    def _registered(self) -> tuple[Affine, Tensor]:
        maps, scores = [], []
        for at in torch.arange(len(self.found.query)).split(QUERIES):
            grids = self._grids(at, HALF_SIDE)
            moving, fixed = ((normalise_contrast(value, weight, 2.0), weight) for value, weight in grids)
            some, score = register(moving, fixed, self.search.transforms.maps[self.found.transform[at]], COARSE_STEPS)
            maps.append(some)
            scores.append(score)
        return Affine(torch.cat([m.matrix for m in maps]), torch.cat([m.shift for m in maps])), torch.cat(scores)

    def _grids(self, at: Tensor, side: int) -> Grids:
        """Return values and weights of the queries, inverted if need be, and of the volumes of pairs."""
        value, weight = as_tensors(self.ranks[self.found.query[at].numpy()], side)
        value = torch.where(self.found.sign[at, None, None, None] < 0, 1 - value, value) * weight
        return (value, weight), as_tensors(self.search.ranks[self.found.image[at].numpy()], side)

    def final(self, pairs: Tensor) -> Tensor:
        """Return the agreement (2, P), correlation and evidence, of pairs, at the resolution that both have along each axis."""
        out = torch.zeros(2, len(pairs))
        for at in torch.arange(len(pairs)).split(PAIRS):
            some = pairs[at]
            grids, start = self._grids(some, SIDE), self.maps[some]
            axis = start.matrix.abs().argmax(1)  # of the query, for each axis of the volume
            query, volume = self.voxels[0][self.found.query[some]], self.voxels[1][self.found.image[some]]
            step = SIDE / torch.minimum(query.gather(1, axis), volume)
            sigma = torch.where(step > 1, SMOOTHING * step, 0.0)
            of_query = torch.zeros_like(sigma).scatter_(1, axis, sigma)
            (x, x_weight), (y, y_weight) = grids
            grids = (smoothed_to(x, x_weight, of_query), x_weight), (smoothed_to(y, y_weight, sigma), y_weight)
            moving, fixed = ((normalise_contrast(value, weight, SIGMA), weight) for value, weight in grids)
            maps, _ = register(moving, fixed, start, FINE_STEPS)
            out[:, at] = torch.stack(agreement(grids[0], grids[1], maps, SIGMA))
        return out
