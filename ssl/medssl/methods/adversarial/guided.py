"""Guided by metadata: features predict one fact of a scan, such as age, and do not tell another, such as the scanner.

Ganin et al., 2016, https://arxiv.org/abs/1505.07818: with features f, a head for each fact, and a reversed gradient between
the features and the second head,

    loss = loss(predict(f), first fact) + loss(adversary(reverse(f)), second fact)

The adversary learns to tell the second fact, and the encoder learns features from which it cannot. The reversed gradient is
multiplied by strength * (2 / (1 + exp(-10 p)) - 1), with p the progress of the run: the heads learn first.

That an adversary fails does not prove that the fact is gone: `medssl audit` fits a probe of its own.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from medssl.errors import UserError
from medssl.losses.adversarial import reverse_gradient
from medssl.losses.target_losses import TargetLoss
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.heads import mlp


class Guided(Method):
    """Encoder (B, dim), a linear head for the fact to predict, and an adversary with a hidden layer for the one to unlearn.

    predict, unlearn: names of the facts. hidden: width of the adversary. strength: of the reversed gradient at the end; 0
    trains the adversary without any effect on the features. predict_loss, unlearn_loss: of the two facts.

    batch["target"] is (B, 2): numbers, or classes as numbers, of the two facts; nan where unknown.
    """

    target = "facts"

    def __init__(
        self, encoder: Any, predict: str, unlearn: str, hidden: int, strength: float, predict_loss: TargetLoss,
        unlearn_loss: TargetLoss,
    ):  # fmt: skip
        super().__init__()
        if strength < 0:
            raise UserError(f"method.strength must be 0 or more, got {strength}")
        self.encoder, self.strength, self.losses = encoder, strength, (predict_loss, unlearn_loss)
        self.head = nn.Linear(encoder.dim, predict_loss.outputs)
        self.adversary = mlp(encoder.dim, hidden, unlearn_loss.outputs)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        features = self.encoder(batch["views"][0])
        strength = self.strength * (2 / (1 + math.exp(-10 * clock.frac)) - 1)
        scores = self.head(features), self.adversary(reverse_gradient(features, strength))
        predicted, told = (
            loss.loss_of_known(score, as_target(loss, column))
            for loss, score, column in zip(self.losses, scores, batch["target"].unbind(1), strict=True)
        )
        # the sum does not fall while features and adversary play against each other
        return {"loss": predicted + told, "error": predicted.detach(), "unlearn": told.detach()}


def as_target(loss: TargetLoss, numbers: Tensor) -> Tensor:
    """Return numbers (B,), nan where unknown, as the target of a loss: for classes int64, -1 where unknown."""
    return numbers if loss.name == "regression" else torch.where(numbers.isnan(), -1, numbers).long()
