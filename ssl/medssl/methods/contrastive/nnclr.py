"""NNCLR: the positive of a scan is its nearest neighbour among the features of earlier steps.

Dwibedi et al., 2021, https://arxiv.org/abs/2104.14548: their loss, symmetrised, with their predictor.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medssl.errors import UserError
from medssl.losses.distributed import world_size
from medssl.losses.infonce import query_key
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.heads import mlp
from medssl.methods.parts.queue import Queue


class NNCLR(Method):
    """Encoder, projector -> (B, out), predictor -> (B, out), and a queue of the projected first views of all ranks.

    hidden, out: widths of projector and predictor. temperature: of the similarities. queue: number of features among which
    neighbours are looked for, at least the scans of a step.
    """

    views = 2
    compares_scans = True

    def __init__(self, encoder: Any, hidden: int, out: int, temperature: float, queue: int):
        super().__init__()
        if temperature <= 0:
            raise UserError(f"method.temperature must be positive, got {temperature}")
        if queue < 1:
            raise UserError(f"method.queue must be at least 1, got {queue}")
        norm = nn.BatchNorm1d(out, affine=False)
        self.encoder = encoder
        self.projector = nn.Sequential(mlp(encoder.dim, hidden, hidden, out, bias=False), norm)
        self.predictor = mlp(out, hidden, out)
        self.queue, self.temperature = Queue(queue, out), temperature

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        z = self.projector(self.encoder(torch.cat(batch["views"])))
        (z_a, z_b), (p_a, p_b) = z.chunk(2), self.predictor(z).chunk(2)
        pairs = ((self.neighbours(z_a), p_b), (self.neighbours(z_b), p_a))
        terms = [query_key(near, p, self.temperature, near[:0]) for near, p in pairs]
        self.queue.add(z_a)
        chance = math.log(len(z_a) * world_size())  # the loss of constant features
        return {"loss": (terms[0] + terms[1]) / 2, "chance": z_a.new_full((), chance)}

    @torch.no_grad()
    def neighbours(self, z: Tensor) -> Tensor:
        """Return the row of the queue that is most similar to each row of z (B, out), by cosine."""
        with torch.autocast(z.device.type, enabled=False):
            z = F.normalize(z.to(self.queue.rows.dtype), dim=1)
            return self.queue.rows[(z @ self.queue.rows.T).argmax(1)]

    def after_step(self, clock: Clock) -> None:
        self.queue.advance()
