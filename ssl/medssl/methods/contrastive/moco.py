"""MoCo v3: queries of an encoder find the keys of a slow teacher among those of the other scans. With options, MoCo v2.

Chen et al., 2021, https://arxiv.org/abs/2104.02057: algorithm 1, symmetrised, without its factor 2 * temperature. With a
queue, keys of earlier steps are negatives too, as in He et al., 2020, https://arxiv.org/abs/1911.05722.

predictor=false, a queue and momentum_end=momentum are MoCo v2 (Chen et al., 2020, https://arxiv.org/abs/2003.04297), except
that both views are queries here, keys of the same step are negatives too, and the projector has batch normalisation. v2 also
shuffles scans between devices, so that a query and its key are not normalised by the same batch: batch normalisation here
spans all processes, so that the order of the scans is irrelevant. Query and key therefore share statistics that the keys of a
queue do not have, which v3 avoids by having no queue.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from medssl.errors import UserError
from medssl.losses.distributed import world_size
from medssl.losses.infonce import query_key
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.heads import mlp
from medssl.methods.parts.queue import Queue
from medssl.methods.parts.teacher import ema_update, make_teacher
from medssl.schedule import cosine


class MoCo(Method):
    """Queries (B, out): encoder, projector and predictor. Keys (B, out): the moving average of encoder and projector.

    hidden, out: widths of projector and predictor. temperature: of the similarities. momentum, momentum_end: of the teacher
    at the first and at the last step, with a half cosine between. queue: number of keys of earlier steps that are negatives
    too, at least those of a step (two for each scan); 0 takes only keys of the same step. predictor: whether there is one.
    """

    views = 2
    compares_scans = True

    def __init__(
        self, encoder: Any, hidden: int, out: int, temperature: float, momentum: float, momentum_end: float, queue: int,
        predictor: bool,
    ):  # fmt: skip
        super().__init__()
        if temperature <= 0:
            raise UserError(f"method.temperature must be positive, got {temperature}")
        for name, value in {"momentum": momentum, "momentum_end": momentum_end}.items():
            if not 0 <= value <= 1:
                raise UserError(f"method.{name} must lie between 0 and 1, got {value}")
        if queue < 0:
            raise UserError(f"method.queue must be 0 or more, got {queue}")
        norms = [nn.BatchNorm1d(out, affine=False) for _ in range(2)]  # without affine weights, as in their code
        self.encoder = encoder
        self.projector = nn.Sequential(mlp(encoder.dim, hidden, hidden, out, bias=False), norms[0])
        self.predictor = nn.Sequential(mlp(out, hidden, out, bias=False), norms[1]) if predictor else nn.Identity()
        self.teacher = make_teacher(nn.Sequential(self.encoder, self.projector))
        self.queue = Queue(queue, out)
        self.temperature, self.momentum = temperature, (momentum, momentum_end)

    def teacher_student(self) -> tuple[nn.Module, nn.Module]:
        return self.teacher, nn.Sequential(self.encoder, self.projector)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        views = torch.cat(batch["views"])
        q_a, q_b = self.predictor(self.projector(self.encoder(views))).chunk(2)
        with torch.no_grad():
            k_a, k_b = self.teacher(views).chunk(2)
        terms = [query_key(q, k, self.temperature, self.queue.rows) for q, k in ((q_a, k_b), (q_b, k_a))]
        if len(self.queue.rows):
            self.queue.add(k_a, k_b)
        chance = math.log(len(q_a) * world_size() + len(self.queue.rows))  # the loss of constant features
        return {"loss": (terms[0] + terms[1]) / 2, "chance": q_a.new_full((), chance)}

    def after_step(self, clock: Clock) -> None:
        ema_update(*self.teacher_student(), cosine(clock.frac, *self.momentum))
        self.queue.advance()
