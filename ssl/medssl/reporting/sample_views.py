"""Augmented views of a few scans, to inspect before a long pretraining."""

import numpy as np
from numpy.typing import NDArray

from medssl.augmentations.loader import RawScans, ResampledScans, apply_windows, make_views
from medssl.augmentations.recipes import Recipe


def sample_views(
    resampled: ResampledScans, recipe: Recipe, rows: NDArray[np.int64], *, views: int = 5, seed: int = 0
) -> list[tuple[str, NDArray[np.float32]]]:
    """Return scans, each followed by its first views: (name, first channel (H, W) or (D, H, W) in [0, 1]).

    The views are those of the first epoch of a run with this seed.
    """
    raw = RawScans(resampled).__getitems__([(int(row), 0) for row in rows])
    drawn, _ = make_views(raw, recipe, views, seed, mean=0.0, std=1.0)
    whole = apply_windows(raw)
    out = []
    for b in range(len(rows)):
        out.append((f"scan {b + 1}", whole[b, 0].numpy()))
        out += [(f"view {v + 1}", x_BC[b, 0].numpy()) for v, x_BC in enumerate(drawn)]
    return out
