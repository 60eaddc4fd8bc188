"""Copies of scans that were mirrored, turned, cropped, padded, shifted, inverted, partly covered or changed in contrast."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medssl.leakage.equalised_grid import HALF_SIDE, SIDE, EqualisedGrid, as_tensors, normalise_contrast, smoothed
from medssl.leakage.registration import Affine, agreement, register
from medssl.leakage.transformed_search import Candidates, TransformedSearch, Transforms

Grids = tuple[tuple[Tensor, Tensor], ...]  # values and weights (N, n, n) of queries, then of images

QUERIES = 64  # compared at once
COARSE_STEPS, FINE_STEPS = 4, 4  # steps of registration at half and at full resolution
FINALISTS = 2  # candidates per query that are compared at full resolution
MIN_COARSE = 0.5  # correlation at half resolution for that
SIGMA_SHARP, SIGMA_SMALL = (
    2.5,
    4.0,
)  # pixels over which contrast is normalised for that: all details, or those of small images
SMOOTHING = 1.0  # standard deviation, in pixels, that brings a sharp image to the resolution of a small one
RUNNER_UP = 3  # rank of the candidate that stands for another scan: up to so many copies may be in one set


@dataclass(frozen=True)
class AgreeingPairs:
    """Pairs of a query and an image that agree after registration.

    Attributes:
        query, image: (P,) int64, positions; the best image of a query comes first.
        score: (P,) float32, their correlation.
        evidence: (P,) float32, see `registration.agreement`.
        runner_up: (P,) float32, the correlation of the query with the RUNNER_UP-th next image after its best; 0 if there is none.
        sharp: (P,) bool, whether both images resolve all pixels of the grid.
    """

    query: NDArray[np.int64]
    image: NDArray[np.int64]
    score: NDArray[np.float32]
    evidence: NDArray[np.float32]
    runner_up: NDArray[np.float32]
    sharp: NDArray[np.bool_]


def agreeing_pairs(
    queries: list[EqualisedGrid],
    images: list[EqualisedGrid],
    transforms: Transforms,
    floor: float,
    scan: Sequence[int] | None = None,
) -> AgreeingPairs:
    """Return the pairs of queries and scans whose correlation after registration is at least `floor`.

    Args:
        queries, images: what is compared.
        transforms: under which queries are searched.
        floor: least correlation.
        scan: the scan that each image shows, ascending from 0, where several are slices of one; by default all differ. A pair
            names the scan, whose best slice counts.
    """
    of = torch.arange(len(images)) if scan is None else torch.tensor(scan)
    search = TransformedSearch(np.stack([g.ranks for g in images]), of, transforms)
    ranks = np.stack([g.ranks for g in queries])
    sharp = torch.tensor([g.sharp for g in queries]), torch.tensor([g.sharp for g in images])
    found, parts = search.candidates(ranks), []
    for start in range(0, len(queries), QUERIES):
        at = torch.arange(*torch.searchsorted(found.query, torch.tensor([start, start + QUERIES])).tolist())
        some = found[at]
        pairs = _Pairs(ranks, search, some, sharp)
        kept, *scores = best_pairs(some, of[some.image], pairs.coarse, pairs.final, floor)
        parts.append((some.query[kept], of[some.image[kept]], *scores, pairs.sharp[kept]))
    return AgreeingPairs(*(torch.cat(x).numpy() for x in zip(*parts, strict=True)))


def _registered(grids: Grids, maps: Affine, sigma: float, steps: int) -> tuple[Affine, Tensor]:
    moving, fixed = ((normalise_contrast(value, weight, sigma), weight) for value, weight in grids)
    return register(moving, fixed, maps, steps)


class _Pairs:
    """Some queries and their candidates, registered at half resolution."""

    def __init__(
        self, ranks: NDArray[np.uint8], search: TransformedSearch, found: Candidates, sharp: tuple[Tensor, Tensor]
    ):
        self.ranks, self.search, self.found = ranks, search, found
        self.each_sharp = sharp[0][found.query], sharp[1][found.image]
        self.sharp = self.each_sharp[0] & self.each_sharp[1]
        maps, everything = search.transforms.maps[found.transform], torch.arange(len(found.query))
        self.maps, self.coarse = _registered(self._grids(everything, HALF_SIDE), maps, 2.0, COARSE_STEPS)

    def _grids(self, at: Tensor, side: int) -> Grids:
        """Return values and weights of the queries, inverted if need be, and of the images of pairs."""
        value, weight = as_tensors(self.ranks[self.found.query[at].numpy()], side)
        value = torch.where(self.found.sign[at, None, None] < 0, 1 - value, value) * weight
        return (value, weight), as_tensors(self.search.ranks[self.found.image[at].numpy()], side)

    def final(self, at: Tensor) -> Tensor:
        """Return the agreement (2, P), correlation and evidence, of pairs at the resolution that both images have."""
        found = torch.zeros(2, len(at))
        for sigma, use in ((SIGMA_SHARP, self.sharp[at]), (SIGMA_SMALL, ~self.sharp[at])):
            if use.any():
                some = at[use]
                grids = self._grids(some, SIDE)
                if sigma == SIGMA_SMALL:
                    finer = (sharp[some, None, None] for sharp in self.each_sharp)
                    grids = tuple(
                        (torch.where(f, smoothed(v, w, SMOOTHING), v), w)
                        for f, (v, w) in zip(finer, grids, strict=True)
                    )
                maps, _ = _registered(grids, self.maps[some], sigma, FINE_STEPS)
                found[:, use] = torch.stack(agreement(grids[0], grids[1], maps, sigma))
        return found


def best_pairs(
    found: Candidates, owner: Tensor, coarse: Tensor, final: Callable[[Tensor], Tensor], floor: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the pairs that agree: positions among the candidates, correlations, evidence and runners-up, each (P,).

    Args:
        found: the candidates.
        owner: (C,), the scan that each candidate's image shows: a query is paired with the best image of each scan.
        coarse: (C,), the agreement at half resolution, which decides what is compared further.
        final: positions (P,) -> agreement (2, P) at full resolution.
        floor: least agreement of a pair.
    """
    query, agreeing = found.query, torch.full((2, len(coarse)), torch.nan)
    score = agreeing[0]
    order = torch.argsort(coarse, descending=True, stable=True)
    _, best_transforms = np.unique(torch.stack([query, found.image])[:, order], axis=1, return_index=True)
    order = order[np.sort(best_transforms)]
    order = order[torch.argsort(query[order], stable=True)]
    rank = torch.arange(len(order)) - torch.searchsorted(query[order], query[order])
    first = order[(rank < FINALISTS) & (coarse[order] >= MIN_COARSE)]
    if len(first):
        agreeing[:, first] = final(first)
    hit = torch.isin(query, query[first[score[first] >= floor]])
    rest = order[(hit & score.isnan())[order]]  # compared as well, for the runner-up and other copies
    if len(rest):
        agreeing[:, rest] = final(rest)
    kept, runner_up = [], torch.zeros(len(score))
    for q in query[hit].unique().tolist():
        at = torch.nonzero((query == q) & ~score.isnan())[:, 0]
        at = at[torch.argsort(score[at], descending=True, stable=True)]
        first_of = {int(scan): int(pair) for pair, scan in zip(at.flip(0), owner[at].flip(0), strict=True)}
        best = sorted(first_of.values(), key=lambda pair: -float(score[pair]))  # one pair per scan
        runner_up[best] = float(score[best[RUNNER_UP]]) if len(best) > RUNNER_UP else 0.0
        kept += [pair for pair in best if score[pair] >= floor]
    pairs = torch.tensor(kept, dtype=torch.int64)
    return pairs, score[pairs], agreeing[1, pairs], runner_up[pairs]
