"""What a map is worth: does it change when the weights do, and does it lie where the finding is.

The check by random weights: Adebayo et al., 2018, https://arxiv.org/abs/1810.03292. Energy in a mask: Wang et al., 2020,
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

from medssl.evals.stats.bootstrap import FEW
from medssl.evals.stats.score import Score

Floats = NDArray[np.float64]
UNCHANGED = (
    0.5  # mean rank correlation to the maps of random weights from which on a map says little of what was learnt
)


def randomised(encoder: Any, fresh: Any) -> Iterator[Any]:
    """Copies of `encoder` whose last 1, 2, … all groups of layers are those of `fresh`, from the output to the input.

    fresh: the same architecture with other initial weights, and with buffers such as running means that go with a group's
    parameters. Neither encoder is touched.
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
    """Spearman's correlation of the pixels of each pair of maps (N, *size): (N,). 0 where one map is flat, 1 where both are."""
    x, y = (rankdata(m.reshape(len(m), -1), axis=1) for m in (a, b))
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    norm = np.sqrt((x * x).sum(1) * (y * y).sum(1))
    both_flat = (x == 0).all(1) & (y == 0).all(1)
    return np.where(both_flat, 1.0, np.divide((x * y).sum(1), norm, out=np.zeros(len(x)), where=norm > 0))


@dataclass(frozen=True)
class MaskEnergy:
    """How maps lie to masks, a number per scan, (N,) float64 each.

    energy: share of the map that lies in the mask. area: share of the scan that does, which is the energy of a map that is the
    same everywhere. hit: share of the mask in the voxel where the map is highest, a mean where several are; 1 inside, 0 outside.
    A map that is zero everywhere counts as one that is the same everywhere; `empty` (N,) bool marks it.
    """

    energy: Floats
    area: Floats
    hit: Floats
    empty: NDArray[np.bool_]


def mask_energy(maps: NDArray[Any], masks: NDArray[Any], inside: NDArray[np.bool_] | None = None) -> MaskEnergy:
    """Maps (N, *size), 0 or more, against masks, alike, the share of every voxel that is in the mask, 0 to 1.

    inside: (N, *size), where there is a scan and no padding. Raises ValueError for other maps and masks, and for empty masks.
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


def trusted(unlearnt: Score) -> bool:
    """Whether the mean rank correlation of maps with those of random weights lies below UNCHANGED with all its interval."""
    return unlearnt.high < UNCHANGED and unlearnt.patients >= FEW


def verdict(unlearnt: Score) -> str:
    """What the same number says of the maps, in words."""
    if unlearnt.patients < FEW:
        return "It is not known whether these maps depend on what was learnt: too few patients. Do not trust them."
    if unlearnt.low > UNCHANGED:
        return (
            "Do not trust these maps: random weights give nearly the same ones, so they show the scan and the architecture, not "
            "what was learnt."
        )
    if not trusted(unlearnt):
        return (
            "It is not clear that these maps depend on what was learnt: those of random weights may be nearly the same."
        )
    return "These maps depend on what was learnt: random weights give others. That does not make them right."
