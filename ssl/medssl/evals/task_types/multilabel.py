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
from medssl.evals.task_types.base import LinearTarget, Mask, Names, Raw, Rows, Strata, TaskType, Votes, Y, by_rarest
from medssl.evals.task_types.classification import SMALLEST
from medssl.evals.task_types.columns import known, presence
from medssl.losses import target_losses
from medssl.losses.target_losses import TargetLoss
from medssl.store.label_values import canonical_value, chosen_spellings, findings


class Multilabel(TaskType):
    """y (N, L) 1 present, 0 absent, nan unknown; p (N, L) probabilities."""

    name = "multilabel"
    metrics = (metrics.MACRO_AUROC, metrics.MACRO_AUPRC)
    linear_model = "a logistic regression for each label"
    columns = (1, np.inf)
    ndim = 2
    scored_by_class = True

    def names(self, columns: Names, raw: list[Any], positive: Names) -> Names:
        if len(columns) > 1:
            return columns
        spelled = chosen_spellings(f for v in raw for f in findings(v))
        counts = Counter(f for v in raw for f in {spelled[f] for f in findings(v)})
        both = sorted(f for f, n in counts.items() if n < len(raw))
        if not both:
            raise UserError(f"no finding of {columns[0]} is there in some training scans and not in others")
        return tuple(both)

    def read(self, raw: Sequence[Raw], columns: Names, names: Names, positive: Names) -> tuple[Y, Mask]:
        if len(columns) > 1:
            y = np.stack([presence(v, c, positive) for v, c in zip(raw, columns, strict=True)], 1)
            return y, np.any(~np.isnan(y), axis=1)
        found = [set() if v is None else set(map(canonical_value, findings(v))) for v in raw[0]]
        wanted = [canonical_value(name) for name in names]
        y = np.array([[float(name in f) for name in wanted] for f in found]).reshape(len(raw[0]), -1)
        return y, known(raw[0])

    def check_splits(self, y_train: Y, y_test: Y, target: str, names: Names) -> list[str]:
        alone = [n for n, y in zip(names, y_test.T, strict=True) if len(set(y[~np.isnan(y)])) < 2]
        if len(alone) == len(names):
            raise UserError(f"none of {', '.join(names)} is there in some test scans and not in others")
        return [f"not scored, since all test scans agree: {', '.join(alone)}"] if alone else []

    def target_loss(self, y: Y, width: int) -> TargetLoss:
        return target_losses.multilabel(width)

    def strata(self, y: Y, at: NDArray[np.int64]) -> Strata:
        L = y.shape[1]
        cells = [f"finding {i} = {there}" for there in (1, 0) for i in range(L)]
        return by_rarest(np.concatenate([y == 1, y == 0], axis=1), at, cells, L)

    def linear_y(self, y: Y, which: str, classes: int | None) -> tuple[Y, int]:
        y = y.astype(np.float64)
        if not (np.isnan(y) | (y == 0) | (y == 1)).all():
            raise ValueError("labels must be 0, 1 or nan for unknown")
        return y, y.shape[1]

    def encode(self, y: Y, classes: int) -> LinearTarget:
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

    def validation_loss(self, y: Y, p: Floats) -> float:
        there = ~np.isnan(y)
        n = there.sum(0)
        each = np.where(there, -np.log(np.maximum(np.where(y == 1, p, 1 - p), SMALLEST)), 0).sum(0)
        return float((each[n > 0] / n[n > 0]).mean()) if n.any() else np.nan

    def vote(self, votes: Votes, y: Y, classes: int | None) -> Floats:
        y = np.asarray(y, np.float64)
        if y.ndim != 2 or not np.isin(y[~np.isnan(y)], (0, 1)).all():
            raise ValueError(f"needs labels (N, L) of 0, 1 or nan, got {y.shape}")
        return np.nan_to_num(votes.mean(y), nan=0.5)

    def parts(self, y: Y) -> list[tuple[Rows, Y]]:
        return [(k, column[k]) for k, column in zip(~np.isnan(y.T), y.T, strict=True)]

    def mean_over_classes(self, f: Callable[..., Floats], y: Y, p: Floats, w: Floats, *more: Y) -> Floats:
        return weighted.over_labels(f, y, p, w, *more)
