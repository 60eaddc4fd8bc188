"""Classify whole scans: an encoder and a linear head, trained together. From scratch it is the rival of any pretraining."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from medssl.methods.base import Batch, Clock, Method
from medssl.objectives.ranks import full_precision


@full_precision
def _cross_entropy(scores: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(scores, target)


class Classify(Method):
    """Encoder (B, C, *spatial) -> (B, dim), linear head -> (B, classes), cross-entropy with batch["target"] (B,) int64."""

    views = 1

    def __init__(self, encoder: Any, classes: int):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.dim, classes)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        scores = self.head(self.encoder(batch["views"][0]))
        right = (scores.argmax(1) == batch["target"]).float().mean()
        return {"loss": _cross_entropy(scores, batch["target"]), "accuracy": right}
