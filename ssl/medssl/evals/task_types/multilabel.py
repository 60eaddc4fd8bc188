"""Multilabel classification: several findings, each present, absent or unknown."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from medssl.errors import UserError
from medssl.evals.metrics import metrics, weighted
from medssl.evals.metrics.weighted import Floats
from medssl.evals.task_types.base import Rows, TaskType
from medssl.evals.task_types.classification import SMALLEST
from medssl.evals.task_types.columns import Raw, findings, known, presence
from medssl.evals.task_types.linear_target import LinearTarget
from medssl.evals.task_types.strata import Strata, by_rarest
from medssl.evals.task_types.votes import Votes
from medssl.losses import target_losses
from medssl.losses.target_losses import TargetLoss


class Multilabel(TaskType):
    """y (N, L) 1 present, 0 absent, nan unknown; p (N, L) probabilities."""

    name = "multilabel"
    metrics = (metrics.MACRO_AUROC, metrics.MACRO_AUPRC)
    linear_model = "a logistic regression for each label"
    columns = (1, np.inf)
    ndim = 2
    scored_by_class = True

    def names(self, columns: tuple[str, ...], raw: list[Any], positive: tuple[str, ...]) -> tuple[str, ...]:
        """Return the columns, or the findings in a single column that some training scans have and others lack."""
        if len(columns) > 1:
            return columns
        counts = Counter(f for v in raw for f in findings(v))
        both = sorted(f for f, n in counts.items() if n < len(raw))
        if not both:
            raise UserError(f"no finding of {columns[0]} is there in some training scans and not in others")
        return tuple(both)

    def read(
        self, raw: Sequence[Raw], columns: tuple[str, ...], names: tuple[str, ...], positive: tuple[str, ...]
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """See `TaskType.read`; a scan needs one known finding."""
        if len(columns) > 1:
            y = np.stack([presence(v, c, positive) for v, c in zip(raw, columns, strict=True)], 1)
            return y, np.any(~np.isnan(y), axis=1)
        found = [set() if v is None else findings(v) for v in raw[0]]
        y = np.array([[float(name in f) for name in names] for f in found]).reshape(len(raw[0]), -1)
        return y, known(raw[0])

    def check_splits(self, y_train: NDArray[Any], y_test: NDArray[Any], target: str, names: Sequence[str]) -> list[str]:
        """Name the findings that cannot be scored; raise UserError when none can."""
        alone = [n for n, y in zip(names, y_test.T, strict=True) if len(set(y[~np.isnan(y)])) < 2]
        if len(alone) == len(names):
            raise UserError(f"none of {', '.join(names)} is there in some test scans and not in others")
        return [f"not scored, since all test scans agree: {', '.join(alone)}"] if alone else []

    def target_loss(self, y: NDArray[Any], width: int) -> TargetLoss:
        """Return the binary cross-entropy of the known findings."""
        return target_losses.multilabel(width)

    def strata(self, y: NDArray[Any], at: NDArray[np.int64]) -> Strata:
        """One stratum per finding, a patient in that of their rarest; subsets contain scans with and without each."""
        L = y.shape[1]
        cells = [f"finding {i} = {there}" for there in (1, 0) for i in range(L)]
        return by_rarest(np.concatenate([y == 1, y == 0], axis=1), at, cells, L)

    def linear_y(self, y: NDArray[Any], which: str, classes: int | None) -> tuple[NDArray[Any], int]:
        """y (N, L) float64 and L."""
        y = y.astype(np.float64)
        if not (np.isnan(y) | (y == 0) | (y == 1)).all():
            raise ValueError("labels must be 0, 1 or nan for unknown")
        return y, y.shape[1]

    def encode(self, y: NDArray[Any], classes: int) -> LinearTarget:
        """A logistic regression for each finding, on the scans with a known value."""
        there = ~np.isnan(y)
        counts, positive = there.sum(0), np.nansum(y, 0)
        if (alone := (positive == 0) | (positive == counts)).any():
            raise UserError(
                f"cannot fit a linear probe: label {alone.argmax() + 1} of {len(alone)} has one answer in the {len(y)} "
                "training scans; label scans with another, or leave the label out"
            )
        share = positive / counts
        start = torch.from_numpy(np.log(share / (1 - share)))[:, None]
        target, weight = (torch.from_numpy(v)[..., None] for v in (np.nan_to_num(y), there / counts))
        return LinearTarget(expit, target, weight, start, None, counts, 1)

    def validation_loss(self, y: NDArray[Any], p: Floats) -> float:
        """Mean over findings of the cross-entropy in nats; nan when none is known."""
        there = ~np.isnan(y)
        n = there.sum(0)
        each = np.where(there, -np.log(np.maximum(np.where(y == 1, p, 1 - p), SMALLEST)), 0).sum(0)
        return float((each[n > 0] / n[n > 0]).mean()) if n.any() else np.nan

    def vote(self, votes: Votes, y: NDArray[Any], classes: int | None) -> Floats:
        """(M, L): the share of neighbours with the finding; 0.5 where it is unknown in all other patients."""
        y = np.asarray(y, np.float64)
        if y.ndim != 2 or not np.isin(y[~np.isnan(y)], (0, 1)).all():
            raise ValueError(f"needs labels (N, L) of 0, 1 or nan, got {y.shape}")
        return np.nan_to_num(votes.mean(y), nan=0.5)

    def parts(self, y: NDArray[Any]) -> list[tuple[Rows, NDArray[Any]]]:
        """Return one variable per finding."""
        return [(k, column[k]) for k, column in zip(~np.isnan(y.T), y.T, strict=True)]

    def mean_over_classes(
        self, f: Callable[..., Floats], y: NDArray[Any], p: Floats, w: Floats, *more: NDArray[np.int64]
    ) -> Floats:
        """The mean of `f` over the findings where it is defined, each on the scans where it is known."""
        return weighted.over_labels(f, y, p, w, *more)
