"""Checks of saliency maps: dependence on the learned weights, and agreement with masks of the finding.

Randomisation of weights: Adebayo et al., 2018, https://arxiv.org/abs/1810.03292. Energy in a mask: Wang et al., 2020,
https://arxiv.org/abs/1910.01279, section 4.3. Pointing game: Zhang et al., 2016, https://arxiv.org/abs/1608.00507.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from medssl.evals.stats.resampling import FEW
from medssl.evals.stats.score import Score

Floats = NDArray[np.float64]
# mean rank correlation with maps of random weights; above this, the randomisation check fails
UNCHANGED = 0.5


def randomised(encoder: Any, fresh: Any) -> Iterator[Any]:
    """Yield copies of `encoder` with the last 1, 2, … all groups of layers replaced by those of `fresh`, output to input.

    fresh: the same architecture with other initial weights; buffers such as running means are replaced with their parameters.
    Neither encoder is changed.
    """
    out = copy.deepcopy(encoder)
    for ours, theirs in reversed(list(zip(out.by_depth(), fresh.by_depth(), strict=True))):
        with torch.no_grad():
            for mine, new in zip(ours, theirs, strict=True):
                mine.copy_(new)
        taken = {id(p) for p in ours}
        for mine, new in zip(out.modules(), fresh.modules(), strict=True):
            if any(id(p) in taken for p in mine.parameters(recurse=False)):
                for kept, other in zip(mine.buffers(recurse=False), new.buffers(recurse=False), strict=True):
                    kept.copy_(other)
        yield out


def rank_correlation(a: NDArray[Any], b: NDArray[Any]) -> Floats:
    """Return Spearman's correlation (N,) of pixels, for pairs of maps (N, *size); 0 if one is constant, 1 if both are."""
    x, y = (rankdata(m.reshape(len(m), -1), axis=1) for m in (a, b))
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    norm = np.sqrt((x * x).sum(1) * (y * y).sum(1))
    both_flat = (x == 0).all(1) & (y == 0).all(1)
    return np.where(both_flat, 1.0, np.divide((x * y).sum(1), norm, out=np.zeros(len(x)), where=norm > 0))


@dataclass(frozen=True)
class MaskEnergy:
    """Agreement of maps with masks, (N,) float64 each.

    energy: share of the map's sum inside the mask. area: share of the scan inside the mask, which is the energy of a constant
    map. hit: share of the mask in the voxel with the highest value, the mean if there are several; 1 inside, 0 outside. A map
    of zeros counts as a constant map; `empty` (N,) bool marks it.
    """

    energy: Floats
    area: Floats
    hit: Floats
    empty: NDArray[np.bool_]


def mask_energy(maps: NDArray[Any], masks: NDArray[Any], inside: NDArray[np.bool_] | None = None) -> MaskEnergy:
    """Compare maps (N, *size), not negative, with masks (N, *size), the share of every voxel in the mask.

    inside: (N, *size), False in padding. Raises ValueError for other values and for empty masks.
    """
    m, mask = (np.asarray(a, np.float64).reshape(len(maps), -1) for a in (maps, masks))
    here = np.ones_like(m) if inside is None else np.asarray(inside, np.float64).reshape(len(m), -1)
    if mask.shape != m.shape or not (np.isfinite(m) & (m >= 0) & (mask >= 0) & (mask <= 1)).all():
        raise ValueError(f"needs maps of 0 or more and masks of 0 to 1, got {maps.shape} and {masks.shape}")
    m, mask = m * here, mask * here
    if not mask.any(1).all():
        raise ValueError(f"{(~mask.any(1)).sum()} masks are empty")
    empty = m.sum(1) == 0
    m = np.where(empty[:, None], here, m)
    top = m == m.max(1, keepdims=True)
    return MaskEnergy((m * mask).sum(1) / m.sum(1), mask.sum(1) / here.sum(1), (top * mask).sum(1) / top.sum(1), empty)


def depends_on_weights(correlation: Score) -> bool:
    """Return whether the mean rank correlation with maps of random weights is below UNCHANGED with its whole interval."""
    return correlation.high < UNCHANGED and correlation.patients >= FEW


def randomisation_check(correlation: Score) -> str:
    """Return the conclusion from the mean rank correlation with maps of random weights."""
    if correlation.patients < FEW:
        return "It is unknown whether these maps depend on the learned weights: too few patients. Do not trust them."
    if correlation.low > UNCHANGED:
        return (
            "Do not trust these maps: random weights give nearly the same ones, so they show the scan and the architecture, not "
            "what the encoder learned."
        )
    if not depends_on_weights(correlation):
        return "It is not shown that these maps depend on the learned weights: maps of random weights may be nearly the same."
    return (
        "These maps depend on the learned weights: random weights give different ones. That does not make them correct."
    )
