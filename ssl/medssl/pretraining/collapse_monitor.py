"""A look at held-out scans during pretraining, so that collapse is seen early, said in words, and acted upon."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from medssl.augmentations.recipes import Recipe
from medssl.evals.embed import embed, embed_views, evaluating, standardised, views_of
from medssl.evals.label_free.collapse import RECENT, Collapse, diagnose, evidence
from medssl.evals.label_free.quality import MEASURES, measures
from medssl.evals.metrics.metrics import AUROC
from medssl.evals.probes.knn import knn_probe
from medssl.evals.stats.bootstrap import score
from medssl.methods.base import Method
from medssl.pretraining.held_out_subset import VIEWS_SEED, held_out_subset
from medssl.rng import generator
from medssl.runs.alarms import batch_of, write_alarm
from medssl.runs.config import PretrainConfig
from medssl.store.resampled import ResampledScans
from medssl.store.store import Store
from medssl.train.checkpoint import load
from medssl.train.stop import TrainingStopped

TRAIN, HELD_OUT = {2: 512, 3: 128}, {2: 256, 3: 64}  # scans looked at: enough for a trend, cheap enough to do often
VIEWS = 2
FEWEST = 8  # scans in the panel
RESAMPLES = 200
MOST_CLASSES = 20


class CollapseMonitor:
    """Called by the loop as monitor(method, rows logged so far) -> scalars for the log, a warning, and what to do.

    Label-free measures (`evals.label_free.quality`) of a panel of held-out scans that never changes; where the store has labels,
    kNN AUROC with its interval on held-out scans, for the first label; and causes of collapse
    (`evals.label_free.collapse`). Validation patients only, never the test. What it says at a step depends on the weights and
    the log at that step alone, so a run that was stopped and goes on says the same.

    An alarm is printed, is the "warning" of its row, and goes to RUN/alarm.json with the names of the step's batch. With
    on_collapse=stop it ends the run; with rollback it ends the run too, and `fall_back` hands over the encoder of the last
    look without an alarm, which the loop keeps in checkpoints/healthy.ckpt.
    """

    def __init__(
        self,
        store: Store,
        resampled: ResampledScans,
        recipe: Recipe,
        untrained: Method,
        config: PretrainConfig,
        device: str,
        run: Path,
        writes: bool = True,
    ):
        self.store, self.resampled, self.recipe, self.config = store, resampled, recipe, config
        self.device, self.run, self.writes = device, run, writes
        self.rows = held_out_subset(store, HELD_OUT[store.dims]).rows
        self.pixels: dict[str, float] | None = None
        self.length, self.spread, self.teacher, self.ended = 0.0, 1.0, 0.0, False
        if config.monitor_every and len(self.rows) >= FEWEST:
            fresh = evidence(self._views(untrained.encoder, as_training=True))
            self.length, self.spread = fresh.get("length", 0.0), fresh.get("spread", 1.0)
            self.teacher = weight(pair[0]) if (pair := untrained.teacher_student()) else 0.0
        self.label = Labelled.of(store, config.seed)

    def __call__(self, method: Method, logged: list[dict[str, Any]]) -> dict[str, Any]:
        """Scalars for the log, a "warning" where there is something to say, and perhaps "do"."""
        if len(self.rows) < FEWEST:
            return {}
        out, alarms = self.look(method, logged)
        acts = self.config.on_collapse
        if alarms:
            step = logged[-1]["step"] if logged else 0
            self.raised(method, alarms, step, out["seen"])
            out["warning"] = alarms[0].words
            if acts != "warn":
                out |= {"warning": f"step {step}: {alarms[0].words}", "do": "end"}
                self.ended = True
        elif acts == "rollback":
            out["do"] = "keep"
        return out

    def look(self, method: Method, logged: list[dict[str, Any]]) -> tuple[dict[str, Any], list[Collapse]]:
        """Everything there is to see, and what is wrong."""
        last, encoder = logged[-1] if logged else {}, method.encoder
        x = embed(encoder, self.resampled, self.rows, device=self.device, quiet=True)
        views = self._views(encoder)
        out: dict[str, Any] = {}
        if np.isfinite(x).all() and np.isfinite(views).all():
            out = {} if self.label is None else dict(self.label.knn(encoder, self.resampled, self.device))
            out |= {MEASURES[k].key: v for k, v in measures(x, views).items() if np.isfinite(v)}
            out["rankme_of"] = float(min(len(x) - 1, x.shape[1]))
        if "grad_norm" not in last:  # nothing is trained by gradient, so nothing collapses
            return out, []
        seen, layer = self.evidence(method)
        seen |= {"grad_norm": max(row["grad_norm"] for row in logged[-RECENT:]), "chance": last.get("chance", 0.0)}
        out["seen"] = {k: v for k, v in seen.items() if np.isfinite(v)}
        return out, diagnose(seen, [row["loss"] for row in logged], layer)

    def evidence(self, method: Method) -> tuple[dict[str, float], str]:
        """What speaks for a collapse, and the name of the ReLU that is silent for the most channels, "" without any."""
        with silent_relus(method.encoder) as silent:
            views = self._views(method.encoder, as_training=True)
        head, projected = method.projector, None
        if head is not None:
            with evaluating(head, self.device, as_training=True):
                projected = head(torch.from_numpy(views[:, 0]).to(self.device)).float().cpu().numpy()
        layer = max(silent, key=lambda name: silent[name], default="")
        seen = evidence(views, projected) | self._pixels(method.views > 1) | self._teacher(method)
        seen |= {"dead_relu": silent[layer]} if layer else {}
        if "length" in seen:
            seen["growth"] = seen["length"] / max(self.length, 1e-12)
            seen["spread_untrained"] = self.spread
        return seen, layer

    def _views(self, encoder: nn.Module, as_training: bool = False) -> np.ndarray:
        """(N, 2, D) features of two views of the panel."""
        of = encoder, self.resampled, self.rows, self.recipe, VIEWS, VIEWS_SEED
        return embed_views(*of, device=self.device, quiet=True, as_training=as_training)

    def _pixels(self, compares: bool) -> dict[str, float]:
        """What the panel's own pixels say; they never change, so once is enough."""
        if self.pixels is None:
            each = [
                standardised(self.resampled, self.rows),
                *views_of(self.resampled, self.rows, self.recipe, VIEWS, VIEWS_SEED),
            ]
            scans, a, b = (x.flatten(1).double() for x in each)
            contrast = min(float(x.std(0).mean()) for x in (scans, a))
            self.pixels = {"scan_contrast": contrast * self.resampled.std}
            if compares:
                between = float((a - b.roll(1, 0)).square().mean())
                self.pixels["view_contrast"] = float((a - b).square().mean()) / max(between, 1e-12)
        return self.pixels

    def _teacher(self, method: Method) -> dict[str, float]:
        """How far the teacher is from the student, and whether it ever moved."""
        if (pair := method.teacher_student()) is None:
            return {}
        teacher, student = pair
        pairs = zip(teacher.parameters(), student.parameters(), strict=True)
        gap = sum(float((t.detach() - s.detach()).double().square().sum()) for t, s in pairs) ** 0.5
        moved = float(weight(teacher) != self.teacher)
        return {"teacher_gap": gap / max(weight(student), 1e-12), "teacher_moved": moved}

    def raised(self, method: Method, alarms: list[Collapse], step: int, evidence: dict[str, float]) -> None:
        """Say it, and keep it with the names of the batch of the last step."""
        if not self.writes:
            return
        print(f"step {step}: {alarms[0].words}", file=sys.stderr)
        batch = batch_of(self.store, self.config, method.views, max(0, step - 1))
        also = [alarm._asdict() for alarm in alarms[1:]]
        write_alarm(self.run, {"step": step, **alarms[0]._asdict(), "also": also, "evidence": evidence, "batch": batch})

    def fall_back(self, fabric: Fabric, method: Method, checkpoints: Path, broken: TrainingStopped) -> int:
        """After a run that broke: with on_collapse=rollback the method as it was at the last look without an alarm, and its step.

        Raises `broken` when that is not asked for, or when there was no such look.
        """
        if not self.ended:  # found by the loop, in the middle of a step
            self.raised(method, [Collapse("not finite", str(broken))], broken.step + 1, {})
        healthy = checkpoints / "healthy.ckpt"
        if self.config.on_collapse != "rollback":
            raise broken
        if not healthy.exists():
            raise TrainingStopped(
                f"{broken}. There was no healthy look before it, so nothing is handed over", broken.step
            )
        state: dict[str, Any] = {"method": method, "step": 0}
        load(fabric, healthy, state)
        if self.writes:
            words = f"{broken}. Handed over as it was at step {state['step']}, the last look without an alarm"
            print(words, file=sys.stderr)
        return int(state["step"])


class Labelled:
    """kNN on the first label of a store, where it has one that serves."""

    def __init__(self, known: np.ndarray, patient: np.ndarray, train: np.ndarray, held_out: np.ndarray, classes: int):
        self.known, self.patient, self.train, self.held_out, self.classes = known, patient, train, held_out, classes

    @classmethod
    def of(cls, store: Store, seed: int) -> "Labelled | None":
        """None unless 2 to 20 classes have both training and validation scans in the sample."""
        if not store.labels:
            return None
        label = store.column(f"label:{store.labels[0]}")
        train, held_out = ([r for r in store.rows(s) if label[r] is not None] for s in ("train", "val"))
        names = sorted({label[r] for r in train} & {label[r] for r in held_out})
        if not 2 <= len(names) <= MOST_CLASSES:
            return None
        known = np.array([names.index(v) if v in names else -1 for v in label])
        some = [
            _some(np.array([r for r in rows if known[r] >= 0]), n[store.dims], seed)
            for rows, n in ((train, TRAIN), (held_out, HELD_OUT))
        ]
        all_there = all(len(set(known[rows])) == len(names) for rows in some)
        return cls(known, store.column("patient"), some[0], some[1], len(names)) if all_there else None

    def knn(self, encoder: nn.Module, resampled: ResampledScans, device: str) -> dict[str, float]:
        """AUROC with its interval, for the log."""
        test, train = self.held_out, self.train
        x, x_train = (embed(encoder, resampled, rows, device=device, quiet=True) for rows in (test, train))
        p = knn_probe(x_train, self.known[train], self.patient[train], x, self.patient[test], self.classes)
        s = score(AUROC, self.known[test], p, self.patient[test], n=RESAMPLES)
        return {"knn_auroc": s.value, "knn_auroc_low": s.low, "knn_auroc_high": s.high}


@contextmanager
def silent_relus(encoder: nn.Module) -> Iterator[dict[str, float]]:
    """While it is open, of each ReLU of `encoder` by name the share of channels (axis 1) that never were above 0."""
    peak: dict[str, Tensor] = {}
    shares: dict[str, float] = {}

    def hook(name: str) -> Any:
        def note(module: nn.Module, given: Any, y: Tensor) -> None:
            top = y.detach().movedim(1, 0).flatten(1).amax(1)
            key = name if name not in peak or peak[name].shape == top.shape else f"{name} of {len(top)}"
            peak[key] = torch.maximum(peak[key], top) if key in peak else top

        return note

    handles = [m.register_forward_hook(hook(n)) for n, m in encoder.named_modules() if isinstance(m, nn.ReLU)]
    try:
        yield shares
    finally:
        for handle in handles:
            handle.remove()
        shares |= {name: float((top <= 0).float().mean()) for name, top in peak.items()}


def weight(module: nn.Module) -> float:
    """Euclidean length of all weights: equal only for weights that are the same."""
    return sum(float(p.detach().double().square().sum()) for p in module.parameters()) ** 0.5


def _some(rows: np.ndarray, n: int, seed: int) -> np.ndarray:
    return np.sort(rows[torch.randperm(len(rows), generator=generator(seed, 1)).numpy()[:n]])
