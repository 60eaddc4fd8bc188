"""Is it learning? Effective rank and spread of features, and words for the two ways in which they collapse."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

EPS = 1e-7  # Garrido et al., 2023, for float32 features


def rankme(x: ArrayLike) -> dict[str, float]:
    """RankMe of features (N, D): `raw` as published, `centred` after removing the mean, both `of` at most min(N, D).

    Garrido et al., 2023 (https://arxiv.org/abs/2210.02885), eq. 1 and 2: exp(-sum p log p) with
    p = singular values / their sum + 1e-7. A common offset hides any number of directions from `raw`. Both grow with N
    until N is several times D, so compare them only at one N, and only within one method. Raises ValueError unless
    N >= 2, D >= 1 and all is finite.
    """
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or len(x) < 2 or not x.shape[1] or not np.isfinite(x).all():
        raise ValueError(f"needs finite features (N >= 2, D), got {x.shape}")
    return {"raw": _rank(x), "centred": _rank(x - x.mean(0)), "of": float(min(x.shape))}


def _rank(x: np.ndarray) -> float:
    s = np.linalg.svd(x, compute_uv=False)
    if not s[0] > 1e-12:
        return 0.0  # all rows are equal: no direction at all
    p = s / s.sum() + EPS
    return float(np.exp(-(p * np.log(p)).sum()))


def feature_std(x: ArrayLike) -> float:
    """Mean over dimensions of the standard deviation of unit rows, times sqrt(D): 1 spread evenly, 0 collapsed.

    Chen & He, 2021 (https://arxiv.org/abs/2011.10566), section 4.1 and figure 2, where evenly spread is 1 / sqrt(D).
    """
    x = np.asarray(x, np.float64)
    z = x / np.linalg.norm(x, axis=1, keepdims=True).clip(min=1e-30)
    return float(z.std(0).mean() * math.sqrt(x.shape[1]))


def verdict(x: ArrayLike) -> str | None:
    """One sentence when the features (N, D) have collapsed, else None.

    The thresholds, a spread below 1 % of even and fewer than 2 centred directions, are far below any working encoder.
    """
    spread, rank = feature_std(x), rankme(x)
    if spread < 0.01:
        return (
            f"features are almost the same for every scan (spread {spread:.4f}, where 1 is even): they have collapsed; "
            "try a lower learning rate, check the intensity window, and see that views of two scans look different"
        )
    if rank["of"] >= 4 and rank["centred"] < 2:
        return (
            f"features have collapsed onto about {rank['centred']:.1f} of {rank['of']:.0f} directions; try a lower "
            "learning rate, a larger batch, or a method that reconstructs and cannot collapse (mae)"
        )
    return None


def flat_at_chance(losses: Sequence[float], chance: float, tolerance: float = 0.02, last: int = 40) -> str | None:
    """A sentence when each of the `last` losses lies within `tolerance` * chance of `chance` > 0, else None."""
    recent = np.asarray(losses[-last:], np.float64)
    if len(recent) < last or chance <= 0 or not (np.abs(recent - chance) <= tolerance * chance).all():
        return None
    n = round(math.exp(min(chance, 30)))
    value = f"ln {n} = {chance:.3f}" if n > 1 and abs(math.log(n) - chance) < 1e-4 else f"{chance:.3f}"
    return (
        f"loss has stayed at {value} (chance) for the last {last} logged steps: collapsed or not learning; try another "
        "learning rate or a longer warm-up, and look at the views: they may have nothing in common"
    )
