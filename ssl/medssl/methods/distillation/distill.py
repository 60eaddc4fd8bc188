"""Distillation: a student predicts the features of a frozen teacher for the same view, by regression through a projector.

Navaneet et al., 2021, https://arxiv.org/abs/2201.05131 (SimReg): squared distance of normalised features, an MLP on the student
that is discarded afterwards, and the same weakly augmented view for both. Ours: the teacher's features are standardised over
the batch first, since those of networks that end in a ReLU all point the same way.
"""

from typing import Any

import torch
from torch import Tensor, nn

from medssl.losses.regression import cosine_distance
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.frozen_teacher import FrozenTeacher
from medssl.methods.parts.heads import mlp


class Distill(Method):
    """Encoder (B, C, *spatial) -> (B, dim), projector -> (B, dim of the teacher), whose standardised features it predicts.

    hidden: width of the projector's two hidden layers.
    """

    compares_scans = True

    def __init__(self, encoder: Any, teacher: FrozenTeacher, hidden: int):
        super().__init__()
        self.encoder, self.frozen_teacher = encoder, teacher
        self.projector = mlp(encoder.dim, hidden, hidden, teacher.dim)
        self.standardise = nn.BatchNorm1d(teacher.dim, affine=False, track_running_stats=False)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (x,) = batch["views"]
        with torch.no_grad():
            target = self.standardise(self.frozen_teacher(x).to(x.dtype))
        loss = cosine_distance(self.projector(self.encoder(x)), target)
        return {"loss": loss, "chance": loss.new_full((), 2.0)}
