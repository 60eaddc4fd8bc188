"""The kinds of things that are known of whole scans, in the terms of a head: how many outputs, what loss, what prediction."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from medssl.losses.distributed import is_under_vmap, rank_weight
from medssl.losses.supervised import (
    continuation,
    continuation_probabilities,
    cox,
    cross_entropy,
    huber,
    masked_binary_cross_entropy,
)


@dataclass(frozen=True)
class TargetLoss:
    """What is learnt, in the head's terms.

    Attributes:
        outputs: of the head.
        loss: scores (B, outputs) and a target (B, …) whose every row is known -> scalar, a mean over scans.
        predict: scores (N, outputs) -> what the metrics of this kind of task take, in the type of the scores.
        name: of the kind of task.
    """

    outputs: int
    loss: Callable[[Tensor, Tensor], Tensor]
    predict: Callable[[Tensor], Tensor]
    name: str

    @staticmethod
    def known(target: Tensor) -> Tensor:
        """(B, …) -> (B,) bool: an unknown class or level is -1, an unknown number nan. Of several labels one is enough."""
        if not target.is_floating_point():
            return target >= 0
        return ~target.isnan() if target.ndim == 1 else ~target.isnan().all(1)

    def loss_of_known(self, scores: Tensor, target: Tensor) -> Tensor:
        """`loss` over the scans whose target is known, the same over ranks as in one process; 0 when none is.

        Inside `ranks.mapped` all have to be known: how many are could not differ between runs.
        """
        if is_under_vmap():
            return self.loss(scores, target)
        known = self.known(target)
        if not bool(known.any()):
            return scores.sum() * 0 * rank_weight(known.sum())
        return self.loss(scores[known], target[known]) * rank_weight(known.sum())


def classification(n: int) -> TargetLoss:
    """Target (B,) int64 in [0, n); cross-entropy; probabilities (N, n)."""
    return TargetLoss(n, cross_entropy, lambda scores: scores.softmax(1), "classification")


def multilabel(n: int) -> TargetLoss:
    """Target (B, n) 1, 0, or nan where unknown; binary cross-entropy of what is known; probabilities (N, n)."""

    def loss(scores: Tensor, target: Tensor) -> Tensor:
        return masked_binary_cross_entropy(scores, target.nan_to_num(0), ~target.isnan())

    return TargetLoss(n, loss, torch.sigmoid, "multilabel")


def ordinal(n: int) -> TargetLoss:
    """Target (B,) int64 levels in [0, n); continuation ratios; probabilities (N, n)."""
    return TargetLoss(n - 1, continuation, continuation_probabilities, "ordinal")


def regression(mean: float, std: float) -> TargetLoss:
    """Target (B,) numbers, standardised by those of the training scans; Huber's loss; numbers (N,) in their own unit."""

    def loss(scores: Tensor, target: Tensor) -> Tensor:
        return huber(scores[:, 0], (target - mean) / std)

    return TargetLoss(1, loss, lambda scores: scores[:, 0] * std + mean, "regression")


def survival() -> TargetLoss:
    """Target (B, 2), time and event; Cox's partial likelihood over the batch; log relative hazards (N,)."""
    return TargetLoss(
        1, lambda scores, target: cox(scores[:, 0], target[:, 0], target[:, 1]), lambda scores: scores[:, 0], "survival"
    )
