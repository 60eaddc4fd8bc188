"""The held-out subset: the scans that label-free measures are computed on, the same for every evaluation and run."""

from dataclasses import dataclass

import numpy as np

from medssl.rng import seed_from
from medssl.store.sampling import sample_of_patients
from medssl.store.store import Store

HELD_OUT = {2: 256, 3: 64}  # most scans by dimension during pretraining
ENOUGH = 16  # validation scans; with fewer, training scans are used: a rank estimate needs scans more than new patients
VIEWS_SEED = seed_from(0, 0x7061)  # seed of the subset's views; no run uses it, so no run has trained on these views


@dataclass(frozen=True)
class HeldOutSubset:
    """Scans of one split.

    Attributes:
        rows: (N,) int64 rows of the store, sorted.
        split: val, or train if there are too few validation scans.
    """

    rows: np.ndarray
    split: str


def held_out_subset(store: Store, most: int, seed: int = 0) -> HeldOutSubset:
    """Sample at most `most` validation scans, from as many patients as possible, and never a test scan.

    The sample depends on the store and `seed` alone. With fewer than 16 validation scans, training scans are sampled.
    """
    split = "val" if len(store.rows("val")) >= ENOUGH else "train"
    return HeldOutSubset(sample_of_patients(store, store.rows(split), most, seed), split)
