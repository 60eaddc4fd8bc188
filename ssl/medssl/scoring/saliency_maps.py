"""How maps of test scans are made: of a probe's score, of what makes two views alike, or of attention."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from medssl import catalog
from medssl.augmentations.loader import RawScans, make_views
from medssl.encoders.config import InputConfig
from medssl.errors import UserError, nearest
from medssl.evals.embed import embed, standardised
from medssl.evals.explain.saliency import gradcam, rollout, similarity_weight
from medssl.evals.probes.linear import linear_probes
from medssl.evals.probes.linear_fit import fit_linear
from medssl.resample import apply_axes, axis_weights
from medssl.runs.config import PretrainConfig
from medssl.scoring.eval_splits import EvalSplits
from medssl.scoring.features import FeatureSource
from medssl.scoring.targets import Target
from medssl.store.resampled import ResampledScans, field_of_view
from medssl.store.store import Store

METHODS = {
    "gradcam": "Grad-CAM of a linear probe",
    "similarity": "what makes two views of a scan alike and unlike other scans",
    "rollout": "attention rollout",
}
BATCH = 32
FOIL, VIEWS = 128, 4  # training scans that a scan shall be unlike, views of it


@dataclass(frozen=True)
class SaliencyMaker:
    """Makes maps of one method for any encoder of one architecture.

    Attributes:
        method: one of METHODS.
        test: the canvas whose rows are looked at. foil: the canvas of training scans, with their rows.
        config: the run's settings, for the views of `similarity`. seed: of those views.
    """

    method: str
    test: ResampledScans
    foil: tuple[ResampledScans, np.ndarray]
    config: PretrainConfig
    seed: int
    device: str

    def __call__(self, encoder: nn.Module, rows: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
        """(n, *size) float32 of 0 or more. weight (n, dim): of each scan the score to explain, for `gradcam` alone."""
        encoder = encoder.to(self.device)
        out = []
        unlike = self._foil(encoder) if self.method == "similarity" else None
        for start in range(0, len(rows), BATCH):
            some = rows[start : start + BATCH]
            x = standardised(self.test, some, self.device)
            if self.method == "rollout":
                maps = rollout(encoder, x)
            elif unlike is not None:
                maps = gradcam(encoder, x, self._alike(encoder, some, x, unlike))
            else:
                assert weight is not None
                maps = gradcam(encoder, x, torch.from_numpy(weight[start : start + BATCH]).to(x))
            out.append(maps.cpu().numpy())
        return np.concatenate(out)

    def _foil(self, encoder: nn.Module) -> torch.Tensor:
        """The mean direction of training scans."""
        z = torch.from_numpy(embed(encoder, *self.foil, device=self.device, quiet=True))
        return torch.nn.functional.normalize(z, dim=1).mean(0).to(self.device)

    @torch.no_grad()
    def _alike(self, encoder: nn.Module, rows: np.ndarray, x: torch.Tensor, foil: torch.Tensor) -> torch.Tensor:
        """(n, dim), the mean over views as the run's own recipe makes them."""
        recipe = catalog.build(self.config.augment.spec("augment"), size=self.test.size)
        raw = {
            k: v.to(self.device) if k == "image" else v
            for k, v in RawScans(self.test).__getitems__([(int(row), 0) for row in rows]).items()
        }
        views, _ = make_views(raw, recipe, VIEWS, self.seed, self.test.mean, self.test.std)
        z = encoder.eval()(x)
        return torch.stack([similarity_weight(z, encoder(view), foil) for view in views]).mean(0)


def head_of(source: FeatureSource, splits: EvalSplits, seed: int) -> np.ndarray:
    """(dim, outputs) weights of the linear probe on raw features, its penalty chosen as `evals.probes.linear` says."""
    train, val, target = splits.train, splits.val, splits.target
    x = source(train.store, train.rows)
    chooses = (source(val.store, val.rows), val.y) if len(val) else None
    options: dict[str, Any] = {"task": target.task, "classes": len(target.names) or None}
    probe = linear_probes((x, train.y), chooses, [], patient=train.patient, seed=seed, **options)[0]
    model = fit_linear(x, train.y, [np.arange(len(x))], [probe.C], **options)[0]
    return (model.scale[:, None] * model.weights[0]).astype(np.float32)


def outputs(target: Target, explain: str | None, y: np.ndarray) -> tuple[str, np.ndarray, np.ndarray]:
    """What is explained: (in words, the output of the probe for each scan (n,), its sign (n,)).

    Of two classes the second, or the one named; of several the one named, or each scan's own; of findings the one named; of a
    number the number. Raises UserError when `explain` names nothing that the target has.
    """
    names, n = target.names, len(y)
    if target.task in ("ordinal", "regression", "survival"):
        if explain is not None or target.task == "survival":
            raise UserError(f"{target} is a number; leave explain out" if explain else "there are no maps of survival")
        return f"a high {target}", np.zeros(n, np.int64), np.ones(n)
    if explain is not None and explain not in names:
        raise UserError(f"{target} has no {explain!r}.{nearest(explain, names)}")
    if target.task == "multilabel":
        if explain is None and len(names) > 1:
            raise UserError(f"{target} has several findings; choose one with explain=, of {', '.join(names)}")
        return explain or names[0], np.full(n, names.index(explain) if explain else 0), np.ones(n)
    if len(names) == 2:
        k = names.index(explain) if explain else 1
        return f"{target} = {names[k]}", np.zeros(n, np.int64), np.full(n, 2.0 * k - 1)
    if explain:
        return f"{target} = {explain}", np.full(n, names.index(explain)), np.ones(n)
    return f"each scan's own {target}", y.astype(np.int64), np.ones(n)


def masks_on_grid(
    store: Store, rows: np.ndarray, wanted: InputConfig, part: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The masks with label `part` on the encoder's grid: (positions among rows (m,), masks, insides), the latter (m, *size).

    A mask holds the share of every voxel of the grid that is in it, float32; inside is where the scan is, and no padding, bool.
    """
    size = wanted.size
    shapes, voxels = store.column("shape"), store.column("spacing")
    found: list[tuple[int, np.ndarray, np.ndarray]] = []
    for i, row in enumerate(rows):
        mask = store.mask(int(row))
        if mask is None or not (mask == part).any():
            continue
        starts, extents = field_of_view(shapes[row][1:], voxels[row] or (1.0,) * len(size), size, wanted.spacing)
        ways, inside = [], np.ones(size, bool)
        for axis, (start, extent, n, m) in enumerate(zip(starts, extents, mask.shape[1:], size, strict=True)):
            ways.append(axis_weights(torch.tensor([start]), torch.tensor([extent]), n, m))
            centre = start + (np.arange(m) + 0.5) * extent / m
            there = (centre >= 0) & (centre < n)
            inside &= there.reshape([-1 if k == axis else 1 for k in range(len(size))])
        share = apply_axes(torch.from_numpy((mask == part).astype(np.float32))[None], ways)[0, 0].numpy() * inside
        if share.any():
            found.append((i, share.clip(0, 1), inside))
    if not found:
        return np.empty(0, np.int64), np.empty((0, *size), np.float32), np.empty((0, *size), bool)
    at, masks, insides = zip(*found, strict=True)
    return np.array(at, np.int64), np.stack(masks), np.stack(insides)
