"""A queue of features of earlier steps, the same on every rank."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medssl.errors import UserError
from medssl.losses.distributed import gather_rows


class Queue(nn.Module):
    """The latest `length` features of width `width`, as unit vectors, newest first; random directions at the start.

    It moves only in `advance`, which a method calls in after_step.
    """

    rows: Tensor  # (length, width)

    def __init__(self, length: int, width: int):
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(length, width), dim=1))
        self.waiting: list[Tensor] = []

    @torch.no_grad()
    def add(self, *features: Tensor) -> None:
        """Keep features (B, width) of every rank for the next `advance`. Raises UserError if a step has more than fit."""
        rows = torch.cat([gather_rows(f.detach().to(self.rows.dtype)) for f in features])
        self.waiting.append(F.normalize(rows, dim=1))
        step = sum(map(len, self.waiting))
        if step > len(self.rows):
            self.waiting.clear()
            raise UserError(
                f"method.queue={len(self.rows)} is shorter than the {step} features of a step; raise it, or lower batch"
            )

    @torch.no_grad()
    def advance(self) -> None:
        """Put the features of this step first and drop the oldest."""
        self.rows.copy_(torch.cat([*self.waiting, self.rows])[: len(self.rows)])
        self.waiting.clear()
