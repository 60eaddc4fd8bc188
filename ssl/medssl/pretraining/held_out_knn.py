"""kNN AUROC on held-out patients during pretraining, where the store has labels."""

import math

import numpy as np
import torch
from torch import nn

from medssl.evals.embed import embed
from medssl.evals.metrics.metrics import AUROC
from medssl.evals.probes.knn import knn_probe
from medssl.evals.stats.bootstrap import score
from medssl.pretraining.held_out_subset import HELD_OUT
from medssl.rng import generator
from medssl.store.label_values import chosen_spellings
from medssl.store.resampled import ResampledScans
from medssl.store.store import Store

TRAIN = {2: 512, 3: 128}  # training scans by dimension: enough for a trend, cheap enough to repeat
RESAMPLES = 200
MOST_CLASSES = 20


class HeldOutKnn:
    """kNN from a sample of training scans to a sample of validation scans, for the first label of a store.

    Args:
        y: (rows of the store,) classes, -1 where unknown.
        patient: (rows of the store,) pseudonyms.
        train, held_out: rows of the two samples.
        classes: number of classes.
    """

    def __init__(self, y: np.ndarray, patient: np.ndarray, train: np.ndarray, held_out: np.ndarray, classes: int):
        self.y, self.patient, self.train, self.held_out, self.classes = y, patient, train, held_out, classes

    @classmethod
    def of(cls, store: Store, seed: int) -> "HeldOutKnn | None":
        """Return None unless 2 to 20 classes occur in both samples."""
        if not store.labels:
            return None
        label = store.column(f"label:{store.labels[0]}")
        spelled = chosen_spellings(v for v in label if v is not None) | {None: None}
        label = np.array([spelled[v] for v in label], object)
        train, held_out = ([r for r in store.rows(s) if label[r] is not None] for s in ("train", "val"))
        names = sorted({label[r] for r in train} & {label[r] for r in held_out})
        if not 2 <= len(names) <= MOST_CLASSES:
            return None
        y = np.array([names.index(v) if v in names else -1 for v in label])
        samples = [
            _sample(np.array([r for r in rows if y[r] >= 0]), n[store.dims], seed)
            for rows, n in ((train, TRAIN), (held_out, HELD_OUT))
        ]
        if any(len(set(y[rows])) < len(names) for rows in samples):
            return None
        return cls(y, store.column("patient"), samples[0], samples[1], len(names))

    def score(self, encoder: nn.Module, resampled: ResampledScans, device: str) -> dict[str, float]:
        """Return the AUROC and its 95 % interval over patients, if it has one, under the keys of metrics.jsonl."""
        test, train = self.held_out, self.train
        x, x_train = (embed(encoder, resampled, rows, device=device, quiet=True) for rows in (test, train))
        p = knn_probe(x_train, self.y[train], self.patient[train], x, self.patient[test], self.classes)
        s = score(AUROC, self.y[test], p, self.patient[test], n=RESAMPLES)
        found = {"knn_auroc": s.value, "knn_auroc_low": s.low, "knn_auroc_high": s.high}
        return {k: v for k, v in found.items() if not math.isnan(v)}


def _sample(rows: np.ndarray, n: int, seed: int) -> np.ndarray:
    return np.sort(rows[torch.randperm(len(rows), generator=generator(seed, 1)).numpy()[:n]])
