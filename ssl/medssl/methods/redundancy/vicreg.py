"""VICReg: features of two views agree, each of them varies over the scans, and no two covary.

Bardes et al., 2022, https://arxiv.org/abs/2105.04906: an expander on the encoder, and its loss. Without negatives,
teacher or predictor: the variance term is what keeps features from collapsing.
"""

from typing import Any

import torch
from torch import Tensor

from medssl.errors import UserError
from medssl.losses.redundancy import VICREG_EPSILON, vicreg
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.heads import mlp


class VICReg(Method):
    """Encoder (B, C, *spatial) -> (B, dim), projector (B, dim) -> (B, out), statistics over the scans of all ranks.

    hidden, out: widths of the projector (their expander), discarded after training. invariance, variance, covariance:
    weights of the three terms of the loss.
    """

    views = 2
    compares_scans = True

    def __init__(self, encoder: Any, hidden: int, out: int, invariance: float, variance: float, covariance: float):
        super().__init__()
        self.weights = invariance, variance, covariance
        if min(self.weights) < 0 or variance <= 0:
            raise UserError(
                f"method.invariance={invariance}, method.variance={variance} and method.covariance={covariance} are weights "
                "of 0 or more, the variance's above 0: without it, equal features of all scans have the least loss"
            )
        self.encoder, self.projector = encoder, mlp(encoder.dim, hidden, hidden, out, bias=False)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        a, b = self.projector(self.encoder(torch.cat(batch["views"]))).chunk(2)
        chance = self.weights[1] * (1 - VICREG_EPSILON**0.5)  # the loss of constant features
        return {"loss": vicreg(a, b, *self.weights), "chance": a.new_full((), chance)}
