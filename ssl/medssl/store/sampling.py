"""Samples of the scans of a store."""

import numpy as np
import torch

from medssl.rng import generator
from medssl.store.store import Store


def sample_of_patients(store: Store, rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Return at most `most` of the scans `rows`, from as many patients as possible, sorted.

    The sample depends on the store, `rows` and `seed` alone.
    """
    rows = rows[torch.randperm(len(rows), generator=generator(seed, 1)).numpy()]
    earlier: dict[str, int] = {}  # scans of the same patient so far
    rank = []
    for patient in store.column("patient")[rows].tolist():
        rank.append(earlier.get(patient, 0))
        earlier[patient] = rank[-1] + 1
    return np.sort(rows[np.argsort(rank, kind="stable")[:most]])
