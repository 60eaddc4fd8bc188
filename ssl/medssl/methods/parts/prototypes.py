"""Prototypes of self-distillation and clustering: the head that scores them, and what a teacher's scores ask for."""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medssl.errors import UserError, nearest
from medssl.losses.distributed import gather_rows
from medssl.losses.self_distillation import sinkhorn
from medssl.methods.base import Clock
from medssl.methods.parts.norm import HeadNorm

CENTRING = ("mean", "sinkhorn")
ROUNDS = 3  # of Sinkhorn's algorithm, in SwAV and DINOv2


class Prototypes(nn.Module):
    """Cosines of (B, width) with `count` learned directions, in float32 or better, since temperatures amplify rounding."""

    def __init__(self, width: int, count: int):
        super().__init__()
        if count < 2:
            raise UserError(f"method.prototypes must be at least 2, got {count}")
        self.weight = nn.Parameter(torch.randn(count, width) / math.sqrt(width))

    def forward(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return F.normalize(z.to(self.weight.dtype), dim=1) @ F.normalize(self.weight, dim=1).T


def projector(dim: int, hidden: int, out: int) -> nn.Sequential:
    """Return DINO's projector: (B, dim) -> (B, out) by three layers with batch normalisation and GELU between them.

    Batch normalisation is an option of their code. Without it, features of scans that look alike stay so close to each other in
    batches of 128 that teacher and student agree on equal parts of all prototypes. Weights are initialised as in their code.
    """
    layers: list[nn.Module] = []
    for a, b in pairwise((dim, hidden, hidden, out)):
        linear = nn.Linear(a, b)
        nn.init.trunc_normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
        layers += [linear, HeadNorm(b), nn.GELU()]
    return nn.Sequential(*layers[:-2])


class Temperatures(NamedTuple):
    """Of the student's distribution, and of the teacher's, which rises from `start` over the first share `warmup` of a run.

    Raises UserError, in `check`, for a temperature that is not positive and a share beyond [0, 1].
    """

    student: float
    start: float
    teacher: float
    warmup: float

    def check(self) -> "Temperatures":
        named = {"student_temperature": self.student, "teacher_start": self.start, "teacher_temperature": self.teacher}
        for name, value in named.items():
            if value <= 0:
                raise UserError(f"method.{name} must be positive, got {value}")
        if not 0 <= self.warmup <= 1:
            raise UserError(f"method.warmup must lie between 0 and 1, got {self.warmup}")
        return self

    def of_teacher(self, clock: Clock) -> float:
        """Return the teacher's temperature at a step."""
        if clock.frac >= self.warmup:
            return self.teacher
        return self.start + (self.teacher - self.start) * clock.frac / self.warmup


class TeacherTargets(nn.Module):
    """Distributions (B, K) from a teacher's scores, such that not all scans get the same prototype.

    centring: "mean" takes the softmax of the scores without their mean, a moving average that only `advance` moves (DINO).
    "sinkhorn" balances the prototypes over the scans of the pass (DINOv2). momentum: of the average.
    """

    centre: Tensor  # (K,), over the rows of all ranks

    def __init__(self, prototypes: int, centring: str, momentum: float):
        super().__init__()
        if centring not in CENTRING:
            raise UserError(f"method.centring is {centring!r}.{nearest(centring, CENTRING)}")
        if not 0 <= momentum <= 1:
            raise UserError(f"method.centre_momentum must lie between 0 and 1, got {momentum}")
        self.centring, self.momentum = centring, momentum
        self.register_buffer("centre", torch.zeros(prototypes))
        self.sums: list[Tensor] = []  # (K + 1,): the scores and number of rows of each pass since the last step

    @torch.no_grad()
    def forward(self, scores_BK: Tensor, temperature: float) -> Tensor:
        if self.centring == "sinkhorn":
            return sinkhorn(scores_BK, temperature, ROUNDS)
        count = scores_BK.new_full((1,), len(scores_BK))
        self.sums.append(gather_rows(torch.cat([scores_BK.sum(0), count])[None]).sum(0))
        return torch.softmax((scores_BK - self.centre) / temperature, dim=1)

    @torch.no_grad()
    def advance(self) -> None:
        """Move the centre by the scores of this step, if there were any."""
        if self.sums and (total := torch.stack(self.sums).sum(0))[-1] > 0:
            self.centre.lerp_(total[:-1] / total[-1], 1 - self.momentum)
        self.sums.clear()
