"""BYOL: predict the output of a slow teacher on the other view. No negatives.

Grill et al., 2020, https://arxiv.org/abs/2006.07733: equations 1 (teacher) and 2 (loss), symmetrised as in section 3.1.
"""

from typing import Any

import torch
from torch import Tensor, nn

from medssl.errors import UserError
from medssl.losses.regression import cosine_distance
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.heads import mlp
from medssl.methods.parts.teacher import ema_update, make_teacher
from medssl.schedule import cosine


class BYOL(Method):
    """An encoder and a projector, a predictor on top of them, and a teacher that is their moving average.

    hidden, out: widths of projector and predictor. momentum: of the teacher at step 0, rising to 1 on a half cosine.
    """

    views = 2

    def __init__(self, encoder: Any, hidden: int, out: int, momentum: float):
        super().__init__()
        if not 0 <= momentum <= 1:
            raise UserError(f"method.momentum must lie between 0 and 1, got {momentum}")
        self.encoder, self.projector = encoder, mlp(encoder.dim, hidden, out)
        self.predictor = mlp(out, hidden, out)
        self.teacher = make_teacher(nn.Sequential(self.encoder, self.projector))
        self.momentum = momentum

    def teacher_student(self) -> tuple[nn.Module, nn.Module]:
        return self.teacher, nn.Sequential(self.encoder, self.projector)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        views = torch.cat(batch["views"])
        a, b = self.predictor(self.projector(self.encoder(views))).chunk(2)
        with torch.no_grad():
            teacher_a, teacher_b = self.teacher(views).chunk(2)
        return {"loss": (cosine_distance(a, teacher_b) + cosine_distance(b, teacher_a)) / 2}

    def after_step(self, clock: Clock) -> None:
        ema_update(*self.teacher_student(), cosine(clock.frac, self.momentum, 1.0))
