"""Regression: a number, such as an age."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from medssl.errors import UserError
from medssl.evals.metrics import metrics
from medssl.evals.metrics.weighted import Floats
from medssl.evals.task_types.base import LinearTarget, Mask, Names, Raw, Strata, TaskType, Votes, Y
from medssl.evals.task_types.columns import known, numbers
from medssl.losses import target_losses
from medssl.losses.target_losses import TargetLoss

BINS = 5  # strata of numbers


class Regression(TaskType):
    """y (N,) and p (N,) finite numbers."""

    name = "regression"
    metrics = (metrics.MAE, metrics.R2, metrics.SPEARMAN)
    numeric = True
    linear_model = "ridge regression"
    least_squares = True

    def read(self, raw: Sequence[Raw], columns: Names, names: Names, positive: Names) -> tuple[Y, Mask]:
        return numbers(raw[0], columns[0]), known(raw[0])

    def target_loss(self, y: Y, width: int) -> TargetLoss:
        return target_losses.regression(float(y.mean()), float(y.std()))

    def strata(self, y: Y, at: NDArray[np.int64]) -> Strata:
        mean = np.bincount(at, y) / np.bincount(at)
        edges = np.quantile(y, np.arange(1, BINS) / BINS)
        return Strata(np.searchsorted(edges, mean, side="right"), np.zeros((len(mean), 0), np.bool_), [])

    def linear_y(self, y: Y, which: str, classes: int | None) -> tuple[Y, int]:
        y = y.astype(np.float64)
        if missing := int(np.isnan(y).sum()):
            raise UserError(f"{missing} of {len(y)} {which} scans have no label; leave them out")
        return y, 1

    def encode(self, y: Y, classes: int) -> LinearTarget:
        if len(np.unique(y)) < 2:
            raise UserError(
                f"cannot fit a linear probe: all {len(y)} training scans have one value; label scans of another"
            )
        target = torch.from_numpy(y)[:, None, None]
        return LinearTarget(
            lambda s: s[:, 0], target, torch.ones_like(target), target.mean(0), None, np.array([len(y)]), 1
        )

    def head(self, weight: Floats, bias: Floats, y: Y) -> tuple[Floats, Floats]:
        mean, std = y.mean(), y.std()  # the head predicts the standardised target
        return weight / std, (bias - mean) / std

    def validation_loss(self, y: Y, p: Floats) -> float:
        return float(((y - p) ** 2).mean())

    def vote(self, votes: Votes, y: Y, classes: int | None) -> Floats:
        y = np.asarray(y, np.float64)
        if y.ndim != 1 or not np.isfinite(y).all():
            raise ValueError(f"needs one finite number per training scan, got {y.shape}")
        p = votes.mean(y[:, None])[:, 0]
        if np.isnan(p).any():
            raise UserError(
                f"{np.isnan(p).sum()} test scans have no training scan of another patient; kNN needs two patients"
            )
        return p
