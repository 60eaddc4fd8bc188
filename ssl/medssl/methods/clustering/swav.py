"""SwAV: predict the cluster that another view is given, with all clusters used equally. No negatives, no teacher.

Caron et al., 2020, https://arxiv.org/abs/2006.09882: equations 1 to 3, multi-crop (section 3.3), without keeping the prototypes
frozen in the first epoch.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from medssl.errors import UserError
from medssl.losses.distributed import rank, world_size
from medssl.losses.self_distillation import across_views, sinkhorn
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.heads import mlp
from medssl.methods.parts.prototypes import ROUNDS, Prototypes
from medssl.methods.parts.queue import Queue
from medssl.methods.parts.small_views import encode_views, small_views


class SwAV(Method):
    """Encoder (B, C, *spatial) -> (B, dim), projector -> (B, out), prototypes -> (B, prototypes).

    hidden, out: widths of the projector. prototypes: number of clusters, at most the scans of a pass of all ranks and the
    queue. temperature: of the predictions. sharpness: temperature of the assignment, epsilon in the paper. queue: features of
    earlier steps of each global view that take part in the assignment; 0 or at least the scans of a step. small: the options of
    `small_views`, which predict and are not assigned.
    """

    views = 2
    compares_scans = True
    queues: Any  # a Queue for each global view

    def __init__(
        self, encoder: Any, hidden: int, out: int, prototypes: int, temperature: float, sharpness: float, queue: int,
        small: dict[str, Any],
    ):  # fmt: skip
        super().__init__()
        for name, value in {"temperature": temperature, "sharpness": sharpness}.items():
            if value <= 0:
                raise UserError(f"method.{name} must be positive, got {value}")
        if queue < 0:
            raise UserError(f"method.queue must be 0 or more, got {queue}")
        self.encoder, self.projector = encoder, mlp(encoder.dim, hidden, out)
        self.prototypes = Prototypes(out, prototypes)
        self.queues = nn.ModuleList(Queue(queue, out) for _ in range(self.views))
        self.temperature, self.sharpness, self.small_views = temperature, sharpness, small_views(encoder, **small)

    @property
    def fewest_scans(self) -> int:
        """As many, with the queue, as there are prototypes: otherwise some could not be used."""
        missing = len(self.prototypes.weight) - len(self.queues[0].rows)
        return max(super().fewest_scans, math.ceil(missing / world_size()))

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        views = batch["views"]
        z = self.projector(encode_views(self.encoder, views)).chunk(len(views))
        scores = [self.prototypes(view) for view in z]
        targets = [self.assign(*given) for given in zip(scores, self.queues, strict=False)]
        for view, queue in zip(z, self.queues, strict=False):
            if len(queue.rows):
                queue.add(view)
        loss = across_views(scores, targets, self.temperature)
        return {
            "loss": loss,
            "chance": loss.new_full((), math.log(scores[0].shape[1])),
        }  # the loss of constant features

    @torch.no_grad()
    def assign(self, scores: Tensor, queue: Queue) -> Tensor:
        """Return the clusters (B, prototypes) of scans, balanced over them and this rank's share of the queue."""
        earlier = self.prototypes(queue.rows[rank() :: world_size()])
        return sinkhorn(torch.cat([scores, earlier]), self.sharpness, ROUNDS)[: len(scores)]

    def after_step(self, clock: Clock) -> None:
        for queue in self.queues:
            queue.advance()
