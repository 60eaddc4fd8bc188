"""Dense probes: segmentation from frozen feature maps without a decoder, by a linear model and by nearest neighbours.

A pixel's feature is the hypercolumn of Hariharan et al., 2015 (https://arxiv.org/abs/1411.5752): all stages, interpolated to
the grid of the finest. Probes are fitted on a sample of training pixels with equally many of each class, and then corrected
for class frequency: with s_k the share of class k in the sample and r_k in the masks, p_k becomes p_k r_k / s_k, scaled to
sum to 1 (King & Zeng, 2001, https://doi.org/10.1093/oxfordjournals.pan.a004868, section 4.2).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from medssl.errors import UserError
from medssl.evals.embed import standardised
from medssl.evals.metrics.metrics import Floats
from medssl.evals.probes.knn import neighbours
from medssl.evals.sliding_window import Net
from medssl.progress import track
from medssl.rng import Key, uniform_field
from medssl.store.masks import resample_nearest
from medssl.store.resampled import ResampledScans

SLOT = 1000  # slot of the random numbers that choose pixels; augmentations use lower slots
MOST = 200_000  # maximum number of pixels in a sample
PENALTY = 1.0  # C of scikit-learn; with thousands of pixels it hardly matters
STEPS = 300  # maximum iterations of the linear model
TEMPERATURE = 0.07  # softmax temperature of the votes, as in medssl.evals.probes.knn


@dataclass(frozen=True)
class Pixels:
    """A sample of training pixels.

    Attributes:
        x: (N, D) float32 hypercolumns. y: (N,) classes. patient: (N,) each pixel's patient.
        share: (K,) share of each class among all pixels of the masks.
        blocks: channels of each stage; D is their sum.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    patient: NDArray
    share: Floats
    blocks: tuple[int, ...]

    @property
    def correction(self) -> Floats:
        """Each class's share divided by its share of the sample, (K,); 0 for a class missing from the sample."""
        drawn = np.bincount(self.y, minlength=len(self.share)) / len(self.y)
        return np.divide(self.share, drawn, out=np.zeros_like(self.share), where=drawn > 0)


def hypercolumns(encoder: Any, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Return hypercolumns (B, D, *grid) of x (B, C, *size) on the grid of the finest stage, and each stage's channels.

    Raises UserError for an encoder without stages.
    """
    stages = encoder.stages(x)
    mode = "bilinear" if x.ndim == 4 else "trilinear"
    same = [F.interpolate(s, stages[0].shape[2:], mode=mode, align_corners=False) for s in stages[1:]]
    return torch.cat([stages[0], *same], 1), tuple(s.shape[1] for s in stages)


def sample(
    encoder: Any,
    resampled: ResampledScans,
    masks: NDArray[np.uint8],
    rows: NDArray[np.int64],
    patient: NDArray,
    classes: int,
    *,
    each: int = 32,
    seed: int = 0,
    device: str = "cpu",
) -> Pixels:
    """Sample up to `each` pixels of every class from each scan of `rows` (fewer if there are many scans), by (seed, row).

    Args:
        masks: (rows of `resampled`, *size) classes. patient: (rows of `resampled`,).

    Raises UserError if there is only one class.
    """
    encoder = encoder.eval().to(device)
    each = max(1, min(each, MOST // (len(rows) * classes)))
    x, y, who = [], [], []
    blocks: tuple[int, ...] = ()
    counts = np.zeros(classes)
    with torch.inference_mode():
        for row in track(rows.tolist(), "sample pixels", unit="scan"):
            f, blocks = hypercolumns(encoder, standardised(resampled, np.array([row]), device))
            grid = tuple(f.shape[2:])
            mask = resample_nearest(masks[row], grid, [0.0] * len(grid), resampled.size).ravel()
            counts += np.bincount(mask, minlength=classes)
            key = Key(seed, torch.zeros(1, dtype=torch.int64), torch.tensor([row]))
            order = uniform_field(key, 0, SLOT, grid).numpy().ravel()
            for k in np.unique(mask):
                at = np.flatnonzero(mask == k)
                at = np.sort(at[np.argsort(order[at], kind="stable")[:each]])
                x.append(f[0].flatten(1)[:, torch.from_numpy(at).to(f.device)].T.float().cpu().numpy())
                y.append(np.full(len(at), k, np.int64))
                who.append(np.full(len(at), patient[row], object))
    if not x or np.count_nonzero(counts) < 2:
        raise UserError("the training masks contain only one class on this grid; a probe needs two")
    return Pixels(np.concatenate(x), np.concatenate(y), np.concatenate(who), counts / counts.sum(), blocks)


def linear(encoder: Any, pixels: Pixels) -> Net:
    """Fit a logistic regression on standardised hypercolumns; return it as a network (B, C, *size) -> (B, K, *size)."""
    mean, std = pixels.x.mean(0, dtype=np.float64), pixels.x.std(0, dtype=np.float64)
    scale = np.divide(1, std, out=np.zeros_like(std), where=std > 1e-6 * np.abs(mean))
    fitted = LogisticRegression(C=PENALTY, max_iter=STEPS).fit((pixels.x - mean) * scale, pixels.y)
    weight = np.vstack([0 * fitted.coef_, fitted.coef_]) if len(fitted.classes_) == 2 else fitted.coef_
    bias = np.append(0.0, fitted.intercept_) if len(fitted.classes_) == 2 else fitted.intercept_
    with np.errstate(divide="ignore"):
        bias = bias + np.log(pixels.correction[fitted.classes_])
    weight = weight * scale
    bias = bias - weight @ mean
    w, b = torch.from_numpy(weight).float(), torch.from_numpy(bias).float()

    def net(x: Tensor) -> Tensor:
        f, _ = hypercolumns(encoder, x)
        p = torch.zeros(len(x), len(pixels.share), *f.shape[2:], device=x.device)
        scores = torch.einsum("kd,bd...->bk...", w.to(x.device), f.float())
        p[:, fitted.classes_] = (scores + b.to(x.device).view(-1, *[1] * (f.ndim - 2))).softmax(1)
        return _enlarged(p, x)

    return net


def by_neighbours(encoder: Any, pixels: Pixels, k: int = 20) -> Callable[[str], Net]:
    """Return a function patient -> network as from `linear`, with votes of the k most similar pixels of other patients.

    Similarity s is the cosine averaged over stages; votes are weighted by exp(s / 0.07), as in `medssl.evals.probes.knn`.
    """
    bank = _by_stage(pixels.x, pixels.blocks)
    correction = pixels.correction

    def of(patient: str) -> Net:
        def net(x: Tensor) -> Tensor:
            f, _ = hypercolumns(encoder, x)
            queries = _by_stage(f.float().movedim(1, -1).flatten(0, -2).cpu().numpy(), pixels.blocks)
            rows, similarity = neighbours(bank, pixels.patient, queries, np.full(len(queries), patient, object), k)
            votes = np.where(rows >= 0, np.exp((similarity - 1) / TEMPERATURE), 0)
            p = np.stack([(votes * (pixels.y[rows] == c)).sum(1) for c in range(len(correction))], 1) * correction
            total = p.sum(1, keepdims=True)
            p = np.divide(p, total, out=np.full_like(p, 1 / len(correction)), where=total > 0)
            return _enlarged(torch.from_numpy(p).float().to(x.device).view(len(x), *f.shape[2:], -1).movedim(-1, 1), x)

        return net

    return of


def _by_stage(x: NDArray[np.float32], blocks: Sequence[int]) -> NDArray[np.float32]:
    """Return unit rows (N, D), each made of a unit row per stage."""
    parts = np.split(x, np.cumsum(blocks)[:-1], axis=1)
    unit = [p / np.linalg.norm(p, axis=1, keepdims=True).clip(min=1e-30) for p in parts]
    return (np.concatenate(unit, 1) / np.sqrt(len(blocks))).astype(np.float32)


def _enlarged(p: Tensor, x: Tensor) -> Tensor:
    return F.interpolate(p, x.shape[2:], mode="bilinear" if x.ndim == 4 else "trilinear", align_corners=False)
