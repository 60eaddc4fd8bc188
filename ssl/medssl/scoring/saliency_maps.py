"""Saliency maps of test scans: of a probe's score, of the similarity of two views, or of attention."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from medssl import catalog
from medssl.augmentations.loader import RawScans, images_to, make_views
from medssl.encoders.config import InputConfig
from medssl.errors import UserError, nearest
from medssl.evals.embed import embed, standardised
from medssl.evals.explain.saliency import gradcam, rollout, similarity_weight
from medssl.evals.probes.linear import linear_probes
from medssl.evals.probes.linear_fit import fit_linear
from medssl.resample import apply_axes, axis_weights
from medssl.runs.config import PretrainConfig
from medssl.scoring.baselines import FeatureSources
from medssl.scoring.eval_splits import EvalSplits
from medssl.scoring.features import FeatureSource, from_encoder
from medssl.scoring.targets import Target
from medssl.store.label_values import canonical_value
from medssl.store.query import evenly_spaced
from medssl.store.resampled import ResampledScans, field_of_view, resampled_for_encoder
from medssl.store.store import Store

GRADCAM, SIMILARITY, ROLLOUT = "gradcam", "similarity", "rollout"
METHODS = {
    GRADCAM: "Grad-CAM of a linear probe",
    SIMILARITY: "what makes two views of a scan similar, and dissimilar to other scans",
    ROLLOUT: "attention rollout",
}
BATCH = 32
REFERENCES, VIEWS = 128, 4  # training scans that views are compared with, and views per scan

Maps = Callable[[nn.Module, np.ndarray | None, np.ndarray], np.ndarray]
"""(encoder, weights of its probe or None, positions among the test scans) -> maps (n, *size) float32 of 0 or more."""


@dataclass(frozen=True)
class SaliencyMaker:
    """Makes the maps of one method for encoders of one architecture.

    Attributes:
        method: a key of METHODS.
        test: the test scans.
        reference: training scans and their rows, which the views of `similarity` are compared with.
        config: the run's settings, for the augmentation of these views. seed: for drawing these views.
    """

    method: str
    test: ResampledScans
    reference: tuple[ResampledScans, np.ndarray]
    config: PretrainConfig
    seed: int
    device: str

    def __call__(self, encoder: nn.Module, rows: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
        """Return maps (n, *size) float32 of 0 or more. weight (n, dim): for gradcam, the score of each scan to explain."""
        encoder = encoder.to(self.device)
        out = []
        reference = self._mean_direction(encoder) if self.method == SIMILARITY else None
        for start in range(0, len(rows), BATCH):
            some = rows[start : start + BATCH]
            x = standardised(self.test, some, self.device)
            if self.method == ROLLOUT:
                maps = rollout(encoder, x)
            elif reference is not None:
                maps = gradcam(encoder, x, self._similarity(encoder, some, x, reference))
            else:
                assert weight is not None
                maps = gradcam(encoder, x, torch.from_numpy(weight[start : start + BATCH]).to(x))
            out.append(maps.cpu().numpy())
        return np.concatenate(out)

    def _mean_direction(self, encoder: nn.Module) -> torch.Tensor:
        """Return the mean unit feature of the reference scans."""
        z = torch.from_numpy(embed(encoder, *self.reference, device=self.device, quiet=True))
        return torch.nn.functional.normalize(z, dim=1).mean(0).to(self.device)

    @torch.no_grad()
    def _similarity(
        self, encoder: nn.Module, rows: np.ndarray, x: torch.Tensor, reference: torch.Tensor
    ) -> torch.Tensor:
        """Return weights (n, dim), averaged over views made by the run's own augmentation recipe."""
        recipe = catalog.build(self.config.augment.spec("augment"), size=self.test.size)
        raw = RawScans(self.test).__getitems__([(int(row), 0) for row in rows])
        views, _ = make_views(images_to(raw, self.device), recipe, VIEWS, self.seed, self.test.mean, self.test.std)
        z = encoder.eval()(x)
        return torch.stack([similarity_weight(z, encoder(view), reference) for view in views]).mean(0)


def make_maps(
    method: str, explain: str | None, sources: FeatureSources, splits: EvalSplits, encoders: list[nn.Module], seed: int
) -> tuple[Maps, list[np.ndarray | None], str, np.ndarray | None]:
    """Return the maps of a method, the weights of each encoder's probe (None without a probe), what is explained, and what the
    first encoder's probe predicts for the test scans (None without a probe).
    """
    wanted, home, test = sources.encoder.input, sources.store, splits.test
    training = home.rows("train")
    reference = resampled_for_encoder(home, wanted), training[evenly_spaced(len(training), REFERENCES)]
    grid = resampled_for_encoder(test.store, wanted)
    maker = SaliencyMaker(method, grid, reference, sources.config, seed, sources.device)
    if method != GRADCAM:
        return lambda encoder, _, at: maker(encoder, test.rows[at], None), [None] * len(encoders), "", None
    subject, output, sign = outputs(splits.target, explain, test.y)

    def maps(encoder: nn.Module, head: np.ndarray | None, at: np.ndarray) -> np.ndarray:
        assert head is not None
        return maker(encoder, test.rows[at], (head[:, output[at]] * sign[at]).T.astype(np.float32))

    probes = [fit_probe(from_encoder(encoder, wanted, sources.device), splits, seed) for encoder in encoders]
    return maps, [weights for weights, _ in probes], subject, probes[0][1]


def fit_probe(source: FeatureSource, splits: EvalSplits, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights (dim, outputs) of the linear probe for features that are not standardised, and its predictions for the
    test scans.
    """
    train, val, target = splits.train, splits.val, splits.target
    x = source(train.store, train.rows)
    validation = (source(val.store, val.rows), val.y) if len(val) else None
    options: dict[str, Any] = {"task": target.task, "classes": len(target.names) or None}
    test = [source(splits.test.store, splits.test.rows)]
    probe = linear_probes((x, train.y), validation, test, patient=train.patient, seed=seed, **options)[0]
    model = fit_linear(x, train.y, [np.arange(len(x))], [probe.C], **options)[0]
    return (model.scale[:, None] * model.weights[0]).astype(np.float32), probe.predictions[0]


def outputs(target: Target, explain: str | None, y: np.ndarray) -> tuple[str, np.ndarray, np.ndarray]:
    """Return what is explained in words, the output of the probe for each scan (n,), and its sign (n,).

    This is the second of two classes, or the class `explain`; with more classes each scan's own, or `explain`; the
    finding `explain`; or a number. Raises UserError if the target has no `explain`.
    """
    names, n, kind = target.names, len(y), target.kind
    if not kind.scored_by_class:
        if not kind.linear_model:
            raise UserError(f"there are no maps for {target.task}")
        if explain is not None:
            raise UserError(f"{target} is a number; leave explain out")
        return f"a high {target}", np.zeros(n, np.int64), np.ones(n)
    if explain is not None:
        meant = [name for name in names if canonical_value(name) == canonical_value(explain)]
        if not meant:
            raise UserError(f"{target} has no {explain!r}.{nearest(str(explain), names)}")
        explain = meant[0]
    if not target.has_classes:
        if explain is None and len(names) > 1:
            raise UserError(f"{target} has several findings; choose one with explain=, from {', '.join(names)}")
        return explain or names[0], np.full(n, names.index(explain) if explain else 0), np.ones(n)
    if len(names) == 2:
        k = names.index(explain) if explain else 1
        return f"{target} = {names[k]}", np.zeros(n, np.int64), np.full(n, 2.0 * k - 1)
    if explain:
        return f"{target} = {explain}", np.full(n, names.index(explain)), np.ones(n)
    return f"each scan's own {target}", y.astype(np.int64), np.ones(n)


def masks_on_grid(
    store: Store, rows: np.ndarray, wanted: InputConfig, label: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the masks with `label` on the encoder's grid: positions among `rows` (m,), masks and insides (m, *size).

    masks float32: the share of every voxel of the grid that is in the mask. insides bool: the scan without its padding.
    """
    size = wanted.size
    shapes, spacings = store.column("shape"), store.column("spacing")
    found: list[tuple[int, np.ndarray, np.ndarray]] = []
    for i, row in enumerate(rows):
        mask = store.mask(int(row))
        if mask is None or not (mask == label).any():
            continue
        starts, extents = field_of_view(shapes[row][1:], spacings[row] or (1.0,) * len(size), size, wanted.spacing)
        weights, inside = [], np.ones(size, bool)
        for axis, (start, extent, n, m) in enumerate(zip(starts, extents, mask.shape[1:], size, strict=True)):
            weights.append(axis_weights(torch.tensor([start]), torch.tensor([extent]), n, m))
            centre = start + (np.arange(m) + 0.5) * extent / m
            there = (centre >= 0) & (centre < n)
            inside &= there.reshape([-1 if k == axis else 1 for k in range(len(size))])
        voxels = torch.from_numpy((mask == label).astype(np.float32))[None]
        share = apply_axes(voxels, weights)[0, 0].numpy() * inside
        if share.any():
            found.append((i, share.clip(0, 1), inside))
    if not found:
        return np.empty(0, np.int64), np.empty((0, *size), np.float32), np.empty((0, *size), bool)
    at, masks, insides = zip(*found, strict=True)
    return np.array(at, np.int64), np.stack(masks), np.stack(insides)
