"""Pseudo-labels: confident predictions on one view are targets for the other view, besides the known labels.

Lee, 2013, "Pseudo-label", with the threshold and the two views of FixMatch (Sohn et al., 2020, https://arxiv.org/abs/2001.07685,
equations 3 and 4). Their weak and strong augmentations are replaced by two views from one recipe.
"""

from typing import Any

import torch
from torch import Tensor, nn

from medssl.errors import UserError
from medssl.losses.supervised import confident_cross_entropy
from medssl.losses.target_losses import TargetLoss
from medssl.methods.base import Batch, Clock, Method


class PseudoLabels(Method):
    """Encoder (B, C, *spatial) -> linear head; the label's loss on view 1 plus the cross-entropy with view 0's predictions.

    threshold: probability from which a prediction counts. weight: of the pseudo-labels. For classification only.
    """

    views = 2
    target = "label"
    target_loss: TargetLoss

    def __init__(self, encoder: Any, threshold: float, weight: float, target_loss: TargetLoss):
        super().__init__()
        if target_loss.name != "classification":
            raise UserError(f"pseudo_labels predicts classes, target is {target_loss.name}; use task=classification")
        if not 0 <= threshold < 1 or weight < 0:
            raise UserError(f"needs method.threshold in [0, 1) and method.weight >= 0, got {threshold} and {weight}")
        self.encoder, self.target_loss, self.head = encoder, target_loss, nn.Linear(encoder.dim, target_loss.outputs)
        self.threshold, self.weight = threshold, weight

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        guess, scores = self.head(self.encoder(torch.cat(batch["views"]))).chunk(2)
        labels = self.target_loss.loss_of_known(scores, batch["target"])
        pseudo = confident_cross_entropy(scores, guess, self.threshold)
        sure = (guess.detach().softmax(1).amax(1) >= self.threshold).float().mean()
        return {"loss": labels + self.weight * pseudo, "labels": labels.detach(), "sure": sure}
