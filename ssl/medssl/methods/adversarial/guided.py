"""Guided by metadata: features predict one fact of a scan, such as age, and do not tell another, such as the scanner.

Ganin et al., 2016, https://arxiv.org/abs/1505.07818: with features f, a head and an adversary, and a reversed gradient between
the features and the adversary,

    loss = loss(head(f), first fact) + loss(adversary(reverse(f)), second fact)

The adversary learns to tell the second fact, the encoder features from which it cannot. The reversed gradient is multiplied
by strength * (2 / (1 + exp(-10 p)) - 1), with p the progress of the run.

Ours: the adversary is by default a ridge regression that is solved anew in each batch. Theirs, a network that learns along
with the encoder, falls behind it: features that fool it can still tell the fact to a probe fitted afterwards, even better
than without an adversary. The ridge regression removes what a linear probe finds; a nonlinear one may find more.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medssl.errors import UserError, nearest
from medssl.losses.adversarial import reverse_gradient, ridge_error
from medssl.losses.target_losses import TargetLoss
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.heads import mlp

ADVERSARIES = ("ridge", "mlp")


class Guided(Method):
    """Encoder (B, dim), a linear head for the fact to predict, and an adversary for the one to unlearn.

    predict, unlearn: names of the facts. adversary: ridge, or mlp for one hidden layer trained by gradient. hidden: its width.
    strength: of the reversed gradient at the end; 0 leaves the features as they are. predict_loss, unlearn_loss: of the facts.

    batch["target"] is (B, 2): numbers, or classes as numbers, of the two facts; nan where unknown. "error" is the loss of the
    first fact, "unlearn" the adversary's: for ridge the share of the variance of the second fact that it cannot tell.
    """

    target = "facts"
    compares_scans = True

    def __init__(
        self, encoder: Any, predict: str, unlearn: str, adversary: str, hidden: int, strength: float,
        predict_loss: TargetLoss, unlearn_loss: TargetLoss,
    ):  # fmt: skip
        super().__init__()
        if adversary not in ADVERSARIES:
            raise UserError(f"method.adversary is {adversary!r}.{nearest(adversary, ADVERSARIES)}")
        if strength < 0:
            raise UserError(f"method.strength must be 0 or more, got {strength}")
        self.encoder, self.strength, self.losses = encoder, strength, (predict_loss, unlearn_loss)
        self.head = nn.Linear(encoder.dim, predict_loss.outputs)
        self.adversary = mlp(encoder.dim, hidden, unlearn_loss.outputs) if adversary == "mlp" else None

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        features = self.encoder(batch["views"][0])
        strength = self.strength * (2 / (1 + math.exp(-10 * clock.frac)) - 1)
        first, second = (as_target(t, x) for t, x in zip(self.losses, batch["target"].unbind(1), strict=True))
        predicted = self.losses[0].loss_of_known(self.head(features), first)
        features = reverse_gradient(features, strength)
        if self.adversary is None:
            told = ridge_error(features, as_numbers(self.losses[1], second), TargetLoss.known(second))
        else:
            told = self.losses[1].loss_of_known(self.adversary(features), second)
        # the sum does not fall while encoder and adversary play against each other
        return {"loss": predicted + told, "error": predicted.detach(), "unlearn": told.detach()}


def as_target(loss: TargetLoss, numbers: Tensor) -> Tensor:
    """Return numbers (B,), nan where unknown, as the target of a loss: for classes int64, -1 where unknown."""
    return numbers if loss.name == "regression" else torch.where(numbers.isnan(), -1, numbers).long()


def as_numbers(loss: TargetLoss, target: Tensor) -> Tensor:
    """Return a target (B,) as the columns of a regression: a class as 0 and 1 (B, classes), a number as it is (B, 1)."""
    return (
        target.nan_to_num(0)[:, None]
        if loss.name == "regression"
        else F.one_hot(target.clamp(min=0), loss.outputs).float()
    )
