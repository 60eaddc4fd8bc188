"""A look at held-out scans during pretraining, so that collapse is seen early and said in words."""

import sys
from typing import Any

import numpy as np
import torch

from medssl.evals.alarm import diagnose, evidence
from medssl.evals.bootstrap import score
from medssl.evals.embed import embed
from medssl.evals.knn import knn_probe
from medssl.evals.metrics import AUROC
from medssl.evals.rank import rankme
from medssl.methods.base import Method
from medssl.rng import generator
from medssl.store.canvas import Canvas
from medssl.store.store import Store

TRAIN, HELD_OUT = {2: 512, 3: 128}, {2: 256, 3: 64}  # scans looked at: enough for a trend, cheap enough to do often
RESAMPLES = 200
ENOUGH = 16
MOST_CLASSES = 20


class Monitor:
    """Called by the loop as monitor(method, rows logged so far) -> scalars for the log.

    RankMe of the features of held-out scans; where the store has labels, kNN AUROC with its interval on them, for the
    first label. The scans are a keyed sample and never change during a run. Validation patients only, never the test.
    """

    def __init__(self, store: Store, canvas: Canvas, seed: int, device: str):
        self.canvas, self.device = canvas, device
        dims = store.dims
        # a rank needs some scans more than it needs new patients
        source = "val" if len(store.rows("val")) >= ENOUGH else "train"
        self.watched = _some(store.rows(source), HELD_OUT[dims], seed)
        self.patient = store.column("patient")
        self.label: np.ndarray | None = None
        if store.labels:
            label = store.column(f"label:{store.labels[0]}")
            train, held_out = ([r for r in store.rows(s) if label[r] is not None] for s in ("train", "val"))
            names = sorted({label[r] for r in train} & {label[r] for r in held_out})
            if 2 <= len(names) <= MOST_CLASSES:
                known = np.array([names.index(v) if v in names else -1 for v in label])
                self.train, self.held_out = (
                    _some(np.array([r for r in rows if known[r] >= 0]), n[dims], seed)
                    for rows, n in ((train, TRAIN), (held_out, HELD_OUT))
                )
                all_there = len(set(known[self.held_out])) == len(names) == len(set(known[self.train]))
                self.label, self.classes = known if all_there else None, len(names)

    def __call__(self, method: Method, logged: list[dict[str, Any]]) -> dict[str, Any]:
        """Scalars for the log, and a "warning" where there is something to say."""
        encoder = method.encoder
        if len(self.watched) < 3:
            return {}
        features = embed(encoder, self.canvas, np.array(self.watched), device=self.device, quiet=True)
        rank = rankme(features)
        out: dict[str, Any] = {"rankme": rank["centred"], "rankme_of": rank["of"]}
        if self.label is not None:
            test, train = np.array(self.held_out), np.array(self.train)
            x, x_train = (embed(encoder, self.canvas, rows, device=self.device, quiet=True) for rows in (test, train))
            p = knn_probe(x_train, self.label[train], self.patient[train], x, self.patient[test], self.classes)
            s = score(AUROC, self.label[test], p, self.patient[test], n=RESAMPLES)
            out |= {"knn_auroc": s.value, "knn_auroc_low": s.low, "knn_auroc_high": s.high}
        losses, last = [row["loss"] for row in logged], logged[-1] if logged else {}
        alarms = diagnose(evidence(features) | {"chance": last.get("chance", 0)}, losses)
        words = alarms[0].words if alarms else None
        if words:
            out["warning"] = words
            print(f"step {logged[-1]['step'] if logged else 0}: {words}", file=sys.stderr)
        return out


def _some(rows: np.ndarray, n: int, seed: int) -> list[int]:
    return sorted(rows[torch.randperm(len(rows), generator=generator(seed, 1)).numpy()[:n]].tolist())
