"""DenseCL: contrast the places of a scan with each other, besides whole scans, with a slow teacher and queues of its keys.

Wang et al., 2021, https://arxiv.org/abs/2011.09157: with q and k the features of two views of whole scans, r and t those of
their places, and InfoNCE with negatives from a queue of keys of earlier steps,

    loss = (1 - local) * InfoNCE(q, k) + local * mean over places i of InfoNCE(r_i, t_j(i))

j(i) is the place of the other view whose encoder feature is most similar to that of place i. The negatives of places are the
means over places of the keys of other scans. Ours: keys of the same step are negatives too, and earlier keys of the same scan
are not, which matters where the queue is not much shorter than the training set.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medssl.errors import UserError
from medssl.losses.distributed import gather_rows
from medssl.losses.infonce import query_own_key
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.queue import Queue
from medssl.methods.parts.spatial_maps import pool_places, spatial_mean, stage_shapes
from medssl.methods.parts.teacher import ema_update, make_teacher


class DenseCL(Method):
    """Encoder's last map -> projector of its mean (B, out), and of each place (B, L, out); a teacher averages all three.

    hidden, out: widths of the projectors, two layers each. temperature: of the similarities. local: weight of the places.
    momentum: of the teacher. queue: number of keys of earlier steps that are negatives, at least the scans of a step. A step
    needs memory for scans x places x queue similarities.
    The loss rises while the queue fills; "error" is its ratio to the loss of constant features.
    """

    views = 2
    compares_scans = True
    owner: Tensor  # (queue,): the scan of each key in the queues, -1 while there is none

    def __init__(
        self, encoder: Any, hidden: int, out: int, temperature: float, local: float, momentum: float, queue: int
    ):
        super().__init__()
        if temperature <= 0:
            raise UserError(f"method.temperature must be positive, got {temperature}")
        if queue < 1:
            raise UserError(f"method.queue must be at least 1, got {queue}")
        for name, value in {"local": local, "momentum": momentum}.items():
            if not 0 <= value <= 1:
                raise UserError(f"method.{name} must lie between 0 and 1, got {value}")
        stage_shapes(encoder, "densecl", 1)
        self.encoder, self.temperature, self.local, self.momentum = encoder, temperature, local, momentum
        self.projector, self.places = (
            nn.Sequential(nn.Linear(encoder.dim, hidden), nn.ReLU(), nn.Linear(hidden, out)) for _ in range(2)
        )
        self.teacher: Any = make_teacher(nn.ModuleList([self.encoder, self.projector, self.places]))
        self.queues: Any = nn.ModuleList(Queue(queue, out) for _ in range(2))
        self.register_buffer("owner", torch.full((queue,), -1))
        self.waiting: list[Tensor] = []  # scans of the keys since the last step

    def teacher_student(self) -> tuple[nn.Module, nn.Module]:
        return self.teacher, nn.ModuleList([self.encoder, self.projector, self.places])

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        first, second = batch["views"]
        map_a, q, r = embed(self.encoder, self.projector, self.places, first)
        with torch.no_grad():
            encoder, projector, places = self.teacher
            map_b, k, t = embed(encoder, projector, places, second)
            matched = t.gather(1, most_similar(map_a, map_b)[..., None].expand_as(t))
        scan = gather_rows(batch["key"].scan.to(self.owner.device))
        owner = torch.cat([scan, self.owner])
        counts = (owner >= 0) & (owner != batch["key"].scan.to(owner.device)[:, None])
        terms = []
        rows = (
            (q, k, k, counts),
            (r.flatten(0, 1), matched.flatten(0, 1), t.mean(1), counts.repeat_interleave(r.shape[1], 0)),
        )
        for queue, (query, own, key, others) in zip(self.queues, rows, strict=True):
            negatives = torch.cat([F.normalize(gather_rows(key), dim=1), queue.rows])
            terms.append(query_own_key(query, own, self.temperature, negatives, others))
            queue.add(key)
        self.waiting.append(scan)
        loss = (1 - self.local) * terms[0] + self.local * terms[1]
        chance = (1 + counts.sum(1)).log().mean()  # the loss of constant features
        logged = {"scans": terms[0], "places": terms[1], "error": loss / chance, "chance": chance}
        return {"loss": loss} | {name: value.detach() for name, value in logged.items()}

    def after_step(self, clock: Clock) -> None:
        ema_update(*self.teacher_student(), self.momentum)
        for queue in self.queues:
            queue.advance()
        self.owner.copy_(torch.cat([*self.waiting, self.owner])[: len(self.owner)])
        self.waiting.clear()


def embed(encoder: Any, projector: nn.Module, places: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the places of the encoder's last map (B, L, dim), and embeddings of the scan (B, out) and of them (B, L, out)."""
    last = encoder.stages(x)[-1]
    each = pool_places(last).flatten(2).transpose(1, 2)
    return each, projector(spatial_mean(last)), places(each)


def most_similar(a: Tensor, b: Tensor) -> Tensor:
    """Return for each place of a (B, L, D) the place (B, L) of the same scan of b with the largest cosine."""
    with torch.autocast(a.device.type, enabled=False):
        wide = (z.float() if z.dtype != torch.float64 else z for z in (a, b))
        unit_a, unit_b = (F.normalize(z, dim=2) for z in wide)
        return (unit_a @ unit_b.transpose(1, 2)).argmax(2)
