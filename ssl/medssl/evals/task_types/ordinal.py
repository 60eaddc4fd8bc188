"""Ordinal regression: levels with an order, such as grades."""

from typing import Any

import numpy as np
from scipy.special import expit

from medssl.errors import UserError
from medssl.evals.metrics import metrics
from medssl.evals.metrics.weighted import Floats
from medssl.evals.task_types.base import LinearTarget, Names, Y
from medssl.evals.task_types.classification import Classification, spread
from medssl.evals.task_types.columns import MOST_CLASSES, numeric_order
from medssl.losses import target_losses
from medssl.losses.target_losses import TargetLoss
from medssl.store.label_values import as_text, chosen_spellings, number


class Ordinal(Classification):
    """y (N,) int64 levels in [0, K), p (N, K) probabilities; the most probable level is the prediction."""

    name = "ordinal"
    metrics = (metrics.QUADRATIC_KAPPA, metrics.LEVEL_ERROR, metrics.AUROC)
    linear_model = "proportional-odds regression"
    scored_by_class = False

    def names(self, columns: Names, raw: list[Any], positive: Names) -> Names:
        levels = sorted(set(chosen_spellings(map(as_text, raw)).values()), key=numeric_order)
        if any(number(v) is None for v in levels):
            raise UserError(
                f"ordinal levels must be numbers, and {columns[0]} has {levels[-1]!r}; use task=classification"
            )
        if not 3 <= len(levels) <= MOST_CLASSES:
            raise UserError(f"{columns[0]} has {len(levels)} levels; ordinal needs 3 to {MOST_CLASSES}")
        return tuple(levels)

    def check_splits(self, y_train: Y, y_test: Y, target: str, names: Names) -> list[str]:
        return []

    def target_loss(self, y: Y, width: int) -> TargetLoss:
        return target_losses.ordinal(width)

    def head_target(self, y: Y, width: int) -> tuple[str, Y]:
        """Return y (N, J): whether a scan is above level j, unknown below it, as `losses.supervised.continuation` has it."""
        j = np.arange(width - 1)
        return "multilabel", np.where(y[:, None] < j, np.nan, y[:, None] > j)

    def head(self, weight: Floats, bias: Floats, y: Y) -> tuple[Floats, Floats]:
        return weight, bias

    def encode(self, y: Y, classes: int) -> LinearTarget:
        present, place, counts = self.classes_present(y)

        def predict(scores: Floats) -> Floats:
            """P(level) = P(above its lower threshold) - P(above its upper one), without cancellation."""
            ends = np.full((len(scores), 1), np.inf)
            low, high = np.hstack([ends, scores]), np.hstack([scores, -ends])
            p = np.where(low + high > 0, expit(-high) - expit(-low), expit(low) - expit(high))
            return spread(p, present, classes)

        return self.thresholds(place, counts, predict)
