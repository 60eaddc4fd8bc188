"""DINO: predict which prototypes a slow teacher chooses for another view. Centring and sharpening prevent collapse.

Caron et al., 2021, https://arxiv.org/abs/2104.14294: section 3.1, without keeping the prototypes frozen in the first epoch.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from medssl.errors import UserError
from medssl.losses.self_distillation import across_views, entropy
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.prototypes import Prototypes, TeacherTargets, Temperatures, projector
from medssl.methods.parts.small_views import encode_views, small_views
from medssl.methods.parts.teacher import ema_update, make_teacher
from medssl.schedule import cosine


class DINO(Method):
    """Encoder, projector -> (B, out) and prototypes -> (B, prototypes); a teacher that is the moving average of all three.

    hidden, out: widths of the projector. student_temperature: of the student's distribution. teacher_start,
    teacher_temperature, warmup: the teacher's temperature rises linearly from start over the first share warmup of the run.
    momentum: of the teacher at step 0, rising to 1 on a half cosine. centring, centre_momentum: see `TeacherTargets`.
    small: the options of `small_views`, which the student alone sees.

    With a centre the loss rises while it finds the teacher's mean; "error" is the loss without the teacher's entropy
    (section 5.3).
    """

    views = 2

    def __init__(
        self, encoder: Any, hidden: int, out: int, prototypes: int, student_temperature: float, teacher_start: float,
        teacher_temperature: float, warmup: float, momentum: float, centring: str, centre_momentum: float,
        small: dict[str, Any],
    ):  # fmt: skip
        super().__init__()
        self.temperatures = Temperatures(student_temperature, teacher_start, teacher_temperature, warmup).check()
        if not 0 <= momentum <= 1:
            raise UserError(f"method.momentum must lie between 0 and 1, got {momentum}")
        self.encoder, self.momentum, self.small_views = encoder, momentum, small_views(encoder, **small)
        self.projector = projector(encoder.dim, hidden, out)
        self.prototypes = Prototypes(out, prototypes)
        self.teacher = make_teacher(nn.Sequential(self.encoder, self.projector, self.prototypes))
        self.targets = TeacherTargets(prototypes, centring, centre_momentum)

    @property
    def fewest_scans(self) -> int:
        return max(super().fewest_scans, 2 if self.targets.centring == "sinkhorn" else 1)

    def teacher_student(self) -> tuple[nn.Module, nn.Module]:
        return self.teacher, nn.Sequential(self.encoder, self.projector, self.prototypes)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        views = batch["views"]
        student = self.prototypes(self.projector(encode_views(self.encoder, views)))
        with torch.no_grad():
            teacher = self.teacher(torch.cat(views[: self.views]))
        target = self.targets(teacher, self.temperatures.of_teacher(clock))
        loss = across_views(student.chunk(len(views)), target.chunk(self.views), self.temperatures.student)
        chance = student.new_full((), math.log(student.shape[1]))  # the loss of constant features
        return {"loss": loss, "error": loss.detach() - entropy(target), "chance": chance}

    def after_step(self, clock: Clock) -> None:
        ema_update(*self.teacher_student(), cosine(clock.frac, self.momentum, 1.0))
        self.targets.advance()
