"""DINO: predict which prototypes a slow teacher chooses for the other view. Its centring and sharpening prevent collapse.

Caron et al., 2021, https://arxiv.org/abs/2104.14294: section 3.1, with two global views; their small crops are omitted,
and so is keeping the prototypes frozen in the first epoch.
"""

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medssl.errors import UserError
from medssl.losses.distributed import gather_rows
from medssl.losses.self_distillation import centred_cross_entropy
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.teacher import ema_update, make_teacher
from medssl.schedule import cosine


class Prototypes(nn.Module):
    """Cosines of (B, width) with `count` learned directions, in float32 or better, since temperatures amplify rounding."""

    def __init__(self, width: int, count: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, width) / math.sqrt(width))

    def forward(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return F.normalize(z.to(self.weight.dtype), dim=1) @ F.normalize(self.weight, dim=1).T


class DINO(Method):
    """Encoder, projector -> (B, out) and prototypes -> (B, prototypes); a teacher that is the moving average of all three.

    hidden, out: widths of the projector. student_temperature: of the student's distribution. teacher_start,
    teacher_temperature, warmup: the teacher's temperature rises linearly from start over the first share warmup of the run.
    momentum: of the teacher at step 0, rising to 1 on a half cosine. centre_momentum: of the teacher's mean output.

    The loss rises while the centre finds the teacher's mean; "error" is the loss without the teacher's entropy (section 5.3).
    """

    views = 2
    centre: Tensor  # (prototypes,): moving average of the teacher's outputs, over the scans of all ranks

    def __init__(
        self, encoder: Any, hidden: int, out: int, prototypes: int, student_temperature: float, teacher_start: float,
        teacher_temperature: float, warmup: float, momentum: float, centre_momentum: float,
    ):  # fmt: skip
        super().__init__()
        self.temperatures = student_temperature, teacher_start, teacher_temperature
        for name, value in zip(
            ("student_temperature", "teacher_start", "teacher_temperature"), self.temperatures, strict=True
        ):
            if value <= 0:
                raise UserError(f"method.{name} must be positive, got {value}")
        for name, value in {"warmup": warmup, "momentum": momentum, "centre_momentum": centre_momentum}.items():
            if not 0 <= value <= 1:
                raise UserError(f"method.{name} must lie between 0 and 1, got {value}")
        if prototypes < 2:
            raise UserError(f"method.prototypes must be at least 2, got {prototypes}")
        self.encoder, self.warmup = encoder, warmup
        self.momentum, self.centre_momentum = momentum, centre_momentum
        first, second, last = (nn.Linear(a, b) for a, b in pairwise((encoder.dim, hidden, hidden, out)))
        self.projector = nn.Sequential(first, nn.GELU(), second, nn.GELU(), last)
        self.prototypes = Prototypes(out, prototypes)
        self.teacher = make_teacher(nn.Sequential(self.encoder, self.projector, self.prototypes))
        self.register_buffer("centre", torch.zeros(prototypes))
        self.means: list[Tensor] = []  # of the teacher's outputs since the last step

    def teacher_student(self) -> tuple[nn.Module, nn.Module]:
        return self.teacher, nn.Sequential(self.encoder, self.projector, self.prototypes)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        views = torch.cat(batch["views"])
        s_a, s_b = self.prototypes(self.projector(self.encoder(views))).chunk(2)
        with torch.no_grad():
            t_a, t_b = (teacher := self.teacher(views)).chunk(2)
        student, start, end = self.temperatures
        sharp = end if clock.frac >= self.warmup else start + (end - start) * clock.frac / self.warmup
        terms = [centred_cross_entropy(s, t, self.centre, student, sharp) for s, t in ((s_a, t_b), (s_b, t_a))]
        loss = (terms[0] + terms[1]) / 2
        entropy = centred_cross_entropy(teacher - self.centre, teacher, self.centre, sharp, sharp)
        self.means.append(gather_rows(teacher.mean(0, keepdim=True)).mean(0))
        chance = math.log(len(self.centre))  # the loss of constant features
        return {"loss": loss, "error": loss.detach() - entropy, "chance": s_a.new_tensor(chance)}

    @torch.no_grad()
    def after_step(self, clock: Clock) -> None:
        ema_update(*self.teacher_student(), cosine(clock.frac, self.momentum, 1.0))
        self.centre.lerp_(torch.stack(self.means).mean(0), 1 - self.centre_momentum)
        self.means.clear()
