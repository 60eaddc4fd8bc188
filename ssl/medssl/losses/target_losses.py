"""The outputs, loss and prediction of a head for each type of label of a whole scan."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from medssl.losses import supervised
from medssl.losses.distributed import is_under_vmap, rank_weight


@dataclass(frozen=True)
class TargetLoss:
    """The loss and prediction of a head for one type of label.

    Attributes:
        outputs: number of outputs of the head.
        loss: scores (B, outputs) and a target (B, …) without unknown rows -> scalar, a mean over scans.
        predict: scores (N, outputs) -> what the metrics of the task take, in the dtype of the scores.
        name: name of the task: classification, multilabel, ordinal, regression or survival.
    """

    outputs: int
    loss: Callable[[Tensor, Tensor], Tensor]
    predict: Callable[[Tensor], Tensor]
    name: str

    @staticmethod
    def known(target: Tensor) -> Tensor:
        """Return (B,) bool: a class or level is unknown if -1, a number if nan, several labels if all are nan."""
        if not target.is_floating_point():
            return target >= 0
        return ~target.isnan() if target.ndim == 1 else ~target.isnan().all(1)

    def loss_of_known(self, scores: Tensor, target: Tensor) -> Tensor:
        """Return `loss` over the scans with a known target, as in one process on any number of ranks; 0 if there are none.

        Inside `distributed.under_vmap` all must be known, since their number could differ between runs.
        """
        if is_under_vmap():
            return self.loss(scores, target)
        known = self.known(target)
        if not bool(known.any()):
            return scores.sum() * 0 * rank_weight(known.sum())
        return self.loss(scores[known], target[known]) * rank_weight(known.sum())


def classification(n: int) -> TargetLoss:
    """Return the cross-entropy for a target (B,) int64 in [0, n); predicts probabilities (N, n)."""
    return TargetLoss(n, supervised.cross_entropy, lambda scores: scores.softmax(1), "classification")


def multilabel(n: int) -> TargetLoss:
    """Return the binary cross-entropy for a target (B, n) of 1, 0 and nan for unknown; predicts probabilities (N, n)."""

    def loss(scores: Tensor, target: Tensor) -> Tensor:
        return supervised.masked_binary_cross_entropy(scores, target.nan_to_num(0), ~target.isnan())

    return TargetLoss(n, loss, torch.sigmoid, "multilabel")


def ordinal(n: int) -> TargetLoss:
    """Return the loss of continuation ratios for a target (B,) int64 of levels in [0, n); predicts probabilities (N, n)."""
    return TargetLoss(n - 1, supervised.continuation, supervised.continuation_probabilities, "ordinal")


def regression(mean: float, std: float) -> TargetLoss:
    """Return Huber's loss for a target (B,) of numbers, standardised by `mean` and `std` of the training scans.

    Predicts numbers (N,) in their own unit.
    """

    def loss(scores: Tensor, target: Tensor) -> Tensor:
        return supervised.huber(scores[:, 0], (target - mean) / std)

    return TargetLoss(1, loss, lambda scores: scores[:, 0] * std + mean, "regression")


def survival() -> TargetLoss:
    """Return Cox's partial likelihood over a batch for a target (B, 2), time and event; predicts log relative hazards (N,)."""

    def loss(scores: Tensor, target: Tensor) -> Tensor:
        return supervised.cox(scores[:, 0], target[:, 0], target[:, 1])

    return TargetLoss(1, loss, lambda scores: scores[:, 0], "survival")
