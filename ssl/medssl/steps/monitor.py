"""A look at held-out scans during pretraining, so that collapse is seen early and said in words."""

import sys
from typing import Any

import numpy as np
from torch import nn

from medssl.evals.bootstrap import score
from medssl.evals.embed import embed
from medssl.evals.knn import knn_probe
from medssl.evals.metrics import AUROC
from medssl.evals.rank import flat_at_chance, rankme, verdict
from medssl.rng import generator
from medssl.store.canvas import Canvas
from medssl.store.store import Store

TRAIN, HELD_OUT = {2: 512, 3: 128}, {2: 256, 3: 64}  # scans looked at: enough for a trend, cheap enough to do often
RESAMPLES = 200


class Monitor:
    """Called by the loop as monitor(encoder, rows logged so far) -> scalars for the log.

    RankMe of the features of held-out scans; where the store has labels, kNN AUROC with its interval on them, for the
    first label. The scans are a keyed sample and never change during a run. Validation patients only, never the test.
    """

    def __init__(self, store: Store, canvas: Canvas, seed: int, device: str):
        self.canvas, self.device = canvas, device
        looked_at = (("train", TRAIN), ("val", HELD_OUT))
        self.train, self.held_out = (_some(store.rows(s), n[store.info["dims"]], seed) for s, n in looked_at)
        self.patient = store.column("patient")
        self.label: np.ndarray | None = None
        if store.labels:
            label = store.column(f"label:{store.labels[0]}")
            self.train, self.held_out = (
                [r for r in rows if label[r] is not None] for rows in (self.train, self.held_out)
            )
            names = sorted({label[r] for r in self.train} & {label[r] for r in self.held_out})
            if 2 <= len(names) <= 20:
                self.held_out = [r for r in self.held_out if label[r] in names]
                self.train = [r for r in self.train if label[r] in names]
                self.label = np.array([names.index(v) if v in names else -1 for v in label])
                self.classes = len(names)

    def __call__(self, encoder: nn.Module, logged: list[dict[str, Any]]) -> dict[str, Any]:
        """Scalars for the log, and a "warning" where there is something to say."""
        rows = [*self.held_out, *self.train] if self.label is not None else self.held_out or self.train
        if len(rows) < 3:
            return {}
        features = embed(encoder, self.canvas, np.array(rows), device=self.device, quiet=True)
        n = len(self.held_out) or len(rows)
        rank = rankme(features[:n])
        out: dict[str, Any] = {"rankme": rank["centred"], "rankme_of": rank["of"]}
        if self.label is not None and len(set(self.label[self.held_out])) == self.classes:
            test, train = np.array(self.held_out), np.array(self.train)
            p = knn_probe(
                features[n:], self.label[train], self.patient[train], features[:n], self.patient[test], self.classes
            )
            s = score(AUROC, self.label[test], p, self.patient[test], n=RESAMPLES)
            out |= {"knn_auroc": s.value, "knn_auroc_low": s.low, "knn_auroc_high": s.high}
        words = verdict(features[:n])
        if logged and "chance" in logged[-1]:
            words = words or flat_at_chance([row["loss"] for row in logged], logged[-1]["chance"])
        if words:
            out["warning"] = words
            print(f"step {logged[-1]['step'] if logged else 0}: {words}", file=sys.stderr)
        return out


def _some(rows: np.ndarray, n: int, seed: int) -> list[int]:
    import torch

    return sorted(rows[torch.randperm(len(rows), generator=generator(seed, 1)).numpy()[:n]].tolist())
