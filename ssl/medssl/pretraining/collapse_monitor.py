"""Evaluate held-out scans during pretraining, so that a collapse is detected early, explained, and acted upon."""

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
from medssl.losses.distributed import whole
from medssl.methods.base import Method
from medssl.pretraining.held_out_knn import HeldOutKnn
from medssl.pretraining.held_out_subset import HELD_OUT, VIEWS_SEED, held_out_subset
from medssl.progress import say
from medssl.runs.alarms import batch_of, write_alarm
from medssl.runs.config import PretrainConfig
from medssl.store.resampled import ResampledScans
from medssl.store.store import Store
from medssl.train.checkpoint import load
from medssl.train.stop import TrainingStopped

VIEWS = 2
FEWEST = 8  # scans in the held-out subset


class CollapseMonitor:
    """Called by the training loop with the method and the rows logged so far.

    It computes label-free measures (`evals.label_free.quality`) of a fixed held-out subset, kNN AUROC with its interval
    for the store's first label if it has one, and evidence of collapse (`evals.label_free.collapse`). It uses validation
    patients, never test patients. Its output depends on the weights and the log at that step alone, so a run that was
    stopped and continued logs the same.

    A collapse is printed, becomes the "warning" of its row, and is written to RUN/alarm.json with the pseudonyms of the
    batch. on_collapse=stop ends the run; on_collapse=rollback ends it too, and `fall_back` restores the method from the
    last evaluation without a collapse, which the loop keeps in checkpoints/healthy.ckpt.

    Args:
        untrained: the method at its initial weights, against which growth is measured.
        run: the run folder.
        writes: whether this process writes files (rank 0).
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
            self.teacher = weight_norm(pair[0]) if (pair := untrained.teacher_student()) else 0.0
        self.knn = HeldOutKnn.of(store, config.seed)

    def __call__(self, method: Method, logged: list[dict[str, Any]]) -> dict[str, Any]:
        """Return scalars for the log, a "warning" if there is a collapse, and under "do" what the loop shall do."""
        if len(self.rows) < FEWEST:
            return {}
        out, found = self.evaluate(method, logged)
        action = self.config.on_collapse
        if found:
            step = logged[-1]["step"] if logged else 0
            self.report(method, found, step, out["seen"])
            out["warning"] = found[0].words
            if action != "warn":
                out |= {"warning": f"step {step}: {found[0].words}", "do": "end"}
                self.ended = True
        elif action == "rollback":
            out["do"] = "keep"
        return out

    def evaluate(self, method: Method, logged: list[dict[str, Any]]) -> tuple[dict[str, Any], list[Collapse]]:
        """Return the scalars of the held-out subset, and the collapses found."""
        last, encoder = logged[-1] if logged else {}, method.encoder
        x = embed(encoder, self.resampled, self.rows, device=self.device, quiet=True)
        views = self._views(encoder)
        out: dict[str, Any] = {}
        if np.isfinite(x).all() and np.isfinite(views).all():
            out = {} if self.knn is None else self.knn.score(encoder, self.resampled, self.device)
            out |= {MEASURES[k].key: v for k, v in measures(x, views).items() if np.isfinite(v)}
            out["rankme_of"] = float(min(len(x) - 1, x.shape[1]))
        if "grad_norm" not in last:  # not trained by gradient, so it cannot collapse
            return out, []
        seen, layer = self.evidence(method)
        seen |= {"grad_norm": max(row["grad_norm"] for row in logged[-RECENT:]), "chance": last.get("chance", 0.0)}
        out["seen"] = {k: v for k, v in seen.items() if np.isfinite(v)}
        return out, diagnose(seen, [row["loss"] for row in logged], layer)

    def evidence(self, method: Method) -> tuple[dict[str, float], str]:
        """Return the evidence for a collapse, and the name of the ReLU with the most dead channels ("" without ReLUs)."""
        with dead_relus(method.encoder) as dead:
            views = self._views(method.encoder, as_training=True)
        head, projected = method.projector, None
        if head is not None:
            with evaluating(head, self.device, as_training=True):
                projected = head(torch.from_numpy(views[:, 0]).to(self.device)).float().cpu().numpy()
        layer = max(dead, key=lambda name: dead[name], default="")
        seen = (
            evidence(views, projected)
            | self._pixels(method.views > 1 and not method.paired_within)
            | self._teacher(method)
        )
        seen |= {"dead_relu": dead[layer]} if layer else {}
        if "length" in seen:
            seen["growth"] = seen["length"] / max(self.length, 1e-12)
            seen["spread_untrained"] = self.spread
        return seen, layer

    def _views(self, encoder: nn.Module, as_training: bool = False) -> np.ndarray:
        """Return features (N, 2, D) of two views of the held-out subset."""
        of = encoder, self.resampled, self.rows, self.recipe, VIEWS, VIEWS_SEED
        return embed_views(*of, device=self.device, quiet=True, as_training=as_training)

    def _pixels(self, compares: bool) -> dict[str, float]:
        """Return the contrast between scans and between views in pixels; computed once, since they do not change."""
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
        """Return the distance between teacher and student, and whether the teacher has moved."""
        if (pair := method.teacher_student()) is None:
            return {}
        teacher, student = pair
        pairs = zip(teacher.parameters(), student.parameters(), strict=True)
        gap = sum(float(whole((t.detach() - s.detach()).double().square().sum())) for t, s in pairs) ** 0.5
        moved = float(weight_norm(teacher) != self.teacher)
        return {"teacher_gap": gap / max(weight_norm(student), 1e-12), "teacher_moved": moved}

    def report(self, method: Method, found: list[Collapse], step: int, evidence: dict[str, float]) -> None:
        """Print the first collapse, and write all of them to RUN/alarm.json with the batch of the last step."""
        if not self.writes:
            return
        say(f"step {step}: {found[0].words}")
        batch = batch_of(self.store, self.config, method, max(0, step - 1))
        also = [other._asdict() for other in found[1:]]
        write_alarm(self.run, {"step": step, **found[0]._asdict(), "also": also, "evidence": evidence, "batch": batch})

    def fall_back(self, fabric: Fabric, method: Method, checkpoints: Path, stopped: TrainingStopped) -> int:
        """Restore the method from the last evaluation without a collapse, and return its step.

        Raises `stopped` unless on_collapse=rollback and there was such an evaluation.
        """
        if not self.ended:  # the loop itself found it, within a step
            self.report(method, [Collapse("not finite", str(stopped))], stopped.step + 1, {})
        healthy = checkpoints / "healthy.ckpt"
        if self.config.on_collapse != "rollback":
            raise stopped
        if not healthy.exists():
            raise TrainingStopped(f"{stopped}. No evaluation before it was healthy; nothing is exported", stopped.step)
        state: dict[str, Any] = {"method": method, "step": 0}
        load(fabric, healthy, state)
        if self.writes:
            say(f"{stopped}. Exported the encoder of step {state['step']}, the last evaluation without a collapse")
        return int(state["step"])


@contextmanager
def dead_relus(encoder: nn.Module) -> Iterator[dict[str, float]]:
    """Record, while open, the share of channels (axis 1) that never exceed 0, for each ReLU of `encoder` by name."""
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


def weight_norm(module: nn.Module) -> float:
    """Return the Euclidean norm of all weights."""
    return sum(float(whole(p.detach().double().square().sum())) for p in module.parameters()) ** 0.5
