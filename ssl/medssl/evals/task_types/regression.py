"""Regression: a number, such as an age."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medssl.errors import UserError
from medssl.evals.metrics import metrics
from medssl.evals.metrics.weighted import Floats
from medssl.evals.task_types.base import TaskType
from medssl.evals.task_types.columns import Raw, known, numbers
from medssl.evals.task_types.linear_target import LinearTarget
from medssl.evals.task_types.strata import Strata
from medssl.evals.task_types.votes import Votes
from medssl.losses import target_losses
from medssl.losses.target_losses import TargetLoss

BINS = 5  # strata of numbers


class Regression(TaskType):
    """y (N,) and p (N,) finite numbers."""

    name = "regression"
    metrics = (metrics.MAE, metrics.R2, metrics.SPEARMAN)
    linear_model = "ridge regression"
    least_squares = True

    def read(
        self, raw: Sequence[Raw], columns: tuple[str, ...], names: tuple[str, ...], positive: tuple[str, ...]
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """See `TaskType.read`."""
        return numbers(raw[0], columns[0]), known(raw[0])

    def target_loss(self, y: NDArray[Any], width: int) -> TargetLoss:
        """Return Huber's loss of the standardised number."""
        return target_losses.regression(float(y.mean()), float(y.std()))

    def strata(self, y: NDArray[Any], at: NDArray[np.int64]) -> Strata:
        """Fifths of the numbers; a patient's stratum is that of their mean."""
        mean = np.bincount(at, y) / np.bincount(at)
        edges = np.quantile(y, np.arange(1, BINS) / BINS)
        return Strata(np.searchsorted(edges, mean, side="right"), np.zeros((len(mean), 0), np.bool_), [])

    def linear_y(self, y: NDArray[Any], which: str, classes: int | None) -> tuple[NDArray[Any], int]:
        """y (N,) float64 and 1."""
        y = y.astype(np.float64)
        if missing := int(np.isnan(y).sum()):
            raise UserError(f"{missing} of {len(y)} {which} scans have no label; leave them out")
        return y, 1

    def encode(self, y: NDArray[Any], classes: int) -> LinearTarget:
        """Squared error, which `probes.linear_fit` solves in closed form."""
        if len(np.unique(y)) < 2:
            raise UserError(
                f"cannot fit a linear probe: all {len(y)} training scans have one value; label scans of another"
            )
        target = torch.from_numpy(y)[:, None, None]
        return LinearTarget(
            lambda s: s[:, 0], target, torch.ones_like(target), target.mean(0), None, np.array([len(y)]), 1
        )

    def validation_loss(self, y: NDArray[Any], p: Floats) -> float:
        """Mean squared error."""
        return float(((y - p) ** 2).mean())

    def vote(self, votes: Votes, y: NDArray[Any], classes: int | None) -> Floats:
        """(M,): the neighbours' weighted mean. Raises UserError for a test scan without a neighbour."""
        y = np.asarray(y, np.float64)
        if y.ndim != 1 or not np.isfinite(y).all():
            raise ValueError(f"needs one finite number per training scan, got {y.shape}")
        p = votes.mean(y[:, None])[:, 0]
        if np.isnan(p).any():
            raise UserError(
                f"{np.isnan(p).sum()} test scans have no training scan of another patient; kNN needs two patients"
            )
        return p
