"""Classification: one class per scan."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, softmax

from medssl.errors import UserError, nearest
from medssl.evals.metrics import metrics, weighted
from medssl.evals.metrics.metrics import Metric
from medssl.evals.metrics.weighted import Floats
from medssl.evals.task_types.base import LinearTarget, Mask, Names, Raw, Strata, TaskType, Votes, Y, by_rarest
from medssl.evals.task_types.columns import MOST_CLASSES, known, numeric_order
from medssl.losses import target_losses
from medssl.losses.target_losses import TargetLoss
from medssl.store.label_values import as_text, canonical_value, chosen_spellings

SMALLEST = np.finfo(np.float64).tiny  # the smallest probability in a cross-entropy


class Classification(TaskType):
    """y (N,) int64 in [0, K), p (N, K) probabilities."""

    name = "classification"
    metrics: tuple[Metric, ...] = (
        metrics.AUROC,
        metrics.AUPRC,
        metrics.ACCURACY,
        metrics.BALANCED_ACCURACY,
        metrics.ECE,
    )
    linear_model = "logistic regression"
    scored_by_class = True
    can_balance = True

    def names(self, columns: Names, raw: list[Any], positive: Names) -> Names:
        spelled = chosen_spellings(map(as_text, raw))
        if positive:
            one, yes = " or ".join(sorted(positive)), set(map(canonical_value, positive))
            shares = {canonical_value(v) in yes for v in spelled}
            if True not in shares:
                there = sorted(set(spelled.values()))
                raise UserError(f"no training scan has {columns[0]}={one}.{nearest(positive[0], there)}")
            found = [f"not {one}", one] if len(shares) == 2 else [one]
        else:
            found = sorted(set(spelled.values()), key=numeric_order)
        if not 2 <= len(found) <= MOST_CLASSES:
            only = f" ({found[0]})" if len(found) == 1 else ""
            raise UserError(
                f"label {columns[0]!r} has {len(found)} classes{only} among training patients; it needs 2 to {MOST_CLASSES}"
            )
        return tuple(found)

    def read(self, raw: Sequence[Raw], columns: Names, names: Names, positive: Names) -> tuple[Y, Mask]:
        there = known(raw[0])
        if positive:
            yes = set(map(canonical_value, positive))
            return np.array([v is not None and canonical_value(v) in yes for v in raw[0]], np.int64), there
        place = {canonical_value(name): i for i, name in enumerate(names)}
        y = np.array([-1 if v is None else place.get(canonical_value(v), -1) for v in raw[0]], np.int64)
        return np.maximum(y, 0), there & (y >= 0)

    def check_splits(self, y_train: Y, y_test: Y, target: str, names: Names) -> list[str]:
        if absent := [name for name, n in zip(names, np.bincount(y_test, minlength=len(names)), strict=True) if not n]:
            raise UserError(
                f"no test scan of {target!r} is {' or '.join(map(repr, absent))}, and AUROC would be undefined; "
                "leave such training scans out with where=…"
            )
        return []

    def target_loss(self, y: Y, width: int) -> TargetLoss:
        return target_losses.classification(width)

    def strata(self, y: Y, at: NDArray[np.int64]) -> Strata:
        kinds = np.unique(y)
        return by_rarest(y[:, None] == kinds, at, [f"class {k:g}" for k in kinds], len(kinds))

    def linear_y(self, y: Y, which: str, classes: int | None) -> tuple[Y, int]:
        if missing := int(np.isnan(y).sum()):
            raise UserError(f"{missing} of {len(y)} {which} scans have no label; leave them out")
        if classes is None:
            raise ValueError("needs the number of classes")
        if not np.issubdtype(y.dtype, np.integer) or (len(y) and (y.min() < 0 or y.max() >= classes)):
            raise ValueError(f"{which} labels must be integers in [0, {classes}), got {y.dtype}")
        return y.astype(np.int64), classes

    def encode(self, y: Y, classes: int) -> LinearTarget:
        present, place, counts = self.classes_present(y)
        n, K = len(y), len(present)
        if K == 2:
            return self.thresholds(place, counts, lambda s: spread(expit(np.hstack([-s, s])), present, classes))
        target = torch.nn.functional.one_hot(torch.from_numpy(place), K).double()[:, None]
        weight = torch.full((n, 1), 1 / n, dtype=torch.float64)
        start = torch.from_numpy(np.log(counts / n))[None]
        return LinearTarget(
            lambda s: spread(softmax(s, axis=1), present, classes), target, weight, start, None, np.array([n]), K - 1
        )

    @staticmethod
    def classes_present(y: Y) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Classes in y, rising, the place of each scan's among them, and their counts. Raises UserError for one class."""
        present, place, counts = np.unique(y, return_inverse=True, return_counts=True)
        if len(present) < 2:
            raise UserError(
                f"cannot fit a linear probe: all {len(y)} training scans have one class; label scans of another"
            )
        return present, place, counts

    @staticmethod
    def thresholds(
        place: NDArray[np.int64], counts: NDArray[np.int64], predict: Callable[[Floats], Floats]
    ) -> LinearTarget:
        """Return one logit per threshold between neighbouring levels; for two classes this is logistic regression."""
        n, K = len(place), len(counts)
        prior, threshold = counts / n, np.arange(K - 1)
        above = 1 - np.cumsum(prior)[:-1]
        target = torch.from_numpy(np.float64(place[:, None] > threshold))[:, None]
        weight = torch.from_numpy(((place[:, None] == threshold) | (place[:, None] == threshold + 1)) / n)[:, None]
        start = torch.from_numpy(np.log(above / (1 - above)))[None]
        between = torch.from_numpy(prior[1:-1]) if K > 2 else None
        return LinearTarget(predict, target, weight, start, between, np.array([n]), 1)

    def validation_loss(self, y: Y, p: Floats) -> float:
        return float(-np.log(np.maximum(p[np.arange(len(y)), y], SMALLEST)).mean())

    def head(self, weight: Floats, bias: Floats, y: Y) -> tuple[Floats, Floats]:
        if len(bias) > 1:
            return weight, bias
        return np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2  # one logit of two classes

    def vote(self, votes: Votes, y: Y, classes: int | None) -> Floats:
        if classes is None or y.ndim != 1 or y.min() < 0 or y.max() >= classes:
            raise ValueError(f"needs one class in [0, {classes}) per training scan, got {y.shape}")
        return votes.shares(y, classes)

    def mean_over_classes(self, f: Callable[..., Floats], y: Y, p: Floats, w: Floats, *more: Y) -> Floats:
        return weighted.one_vs_rest(f, y, p, w, *more)


def spread(p: Floats, present: NDArray[np.int64], classes: int) -> Floats:
    """Expand probabilities (N, K) of the classes present in training to (N, classes), with 0 for the others."""
    out = np.zeros((len(p), classes))
    out[:, present] = p
    return out
