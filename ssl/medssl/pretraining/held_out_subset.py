"""The scans that label-free measures are of: the same for every look and every run, and what an encoder makes of them."""

from dataclasses import dataclass

import numpy as np
import torch

from medssl.rng import generator, seed_from
from medssl.store.store import Store

ENOUGH = 16  # validation scans; with fewer, the panel is of training scans: a rank needs scans more than new patients
VIEWS_SEED = seed_from(0, 0x7061)  # of the panel's views: no run's own, so that no run has trained on just these


@dataclass(frozen=True)
class Panel:
    """rows: (N,) rows of the store, int64, sorted. split: whose they are, val or train."""

    rows: np.ndarray
    split: str


def held_out_subset(store: Store, most: int, seed: int = 0) -> Panel:
    """At most `most` validation scans, never a test scan: as many patients as possible, and of each as few scans.

    A keyed sample that depends on the store and `seed` alone. Where fewer than 16 validate, training scans stand in.
    """
    split = "val" if len(store.rows("val")) >= ENOUGH else "train"
    rows = store.rows(split)
    rows = rows[torch.randperm(len(rows), generator=generator(seed, 1)).numpy()]
    before: dict[str, int] = {}  # scans of the same patient that come earlier
    turn = []
    for patient in store.column("patient")[rows].tolist():
        turn.append(before.get(patient, 0))
        before[patient] = turn[-1] + 1
    return Panel(np.sort(rows[np.argsort(turn, kind="stable")[:most]]), split)
