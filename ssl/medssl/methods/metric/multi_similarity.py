"""Multi-similarity: each pair is weighted by its own similarity and by those of the other pairs of its row.

Wang et al., 2019, https://arxiv.org/abs/1904.06627, equations 10, 11 (mining) and 15 (loss).
"""

from typing import Any

import torch
from torch import Tensor

from medssl.errors import UserError
from medssl.losses.similarity import multi_similarity
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.heads import groups_of, mlp, target_of


class MultiSimilarity(Method):
    """Encoder (B, C, *spatial) -> (B, dim), projector (B, dim) -> (B, out) on the unit sphere, mined pairs of 2B views.

    hidden, out: widths of the projector. alpha, beta: sharpness for positives and negatives. base: the similarity that
    separates them. epsilon: slack of the mining. positives: which views attract: those of one scan, patient, study or
    label.
    """

    views = 2
    compares_scans = True

    def __init__(
        self, encoder: Any, hidden: int, out: int, alpha: float, beta: float, base: float, epsilon: float,
        positives: str, target_loss: Any = None
    ):  # fmt: skip
        super().__init__()
        if alpha <= 0 or beta <= 0:
            raise UserError(f"method.alpha and method.beta must be positive, got {alpha} and {beta}")
        self.encoder, self.projector = encoder, mlp(encoder.dim, hidden, out)
        self.numbers = alpha, beta, base, epsilon
        self.positives, self.target = positives, target_of(positives, target_loss)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        z = self.projector(self.encoder(torch.cat(batch["views"])))
        return {"loss": multi_similarity(z, groups_of(batch, self.positives), *self.numbers)}
