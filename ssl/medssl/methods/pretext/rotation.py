"""Rotation: identify the rotation of a scan by right angles, 4 in 2D and the 24 of a cube in 3D.

Gidaris et al., 2018, https://arxiv.org/abs/1803.07728, equation 3. In 3D as in Taleb et al., 2020,
https://arxiv.org/abs/2006.03829, but with all rotations of the cube.
"""

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from medssl.errors import UserError
from medssl.methods.base import METHOD_SLOT, Batch, Clock, Method
from medssl.methods.parts.heads import classify
from medssl.rng import uniform


class Rotation(Method):
    """Encoder (B, C, *spatial) -> (B, dim) -> scores of all rotations, with `copies` different rotations of each scan.

    Raises UserError for scans with unequal sides, and for more copies than there are rotations.
    """

    def __init__(self, encoder: Any, copies: int):
        super().__init__()
        if len(set(encoder.size)) > 1:
            raise UserError(f"rotation needs sides of one length, got {list(encoder.size)}")
        self.turns = rotations(len(encoder.size))
        if not 1 <= copies <= len(self.turns):
            raise UserError(f"method.copies must lie between 1 and {len(self.turns)}, got {copies}")
        self.encoder, self.copies = encoder, copies
        self.head = nn.Linear(encoder.dim, len(self.turns))

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (x,) = batch["views"]
        answer = uniform(batch["key"], 0, METHOD_SLOT, len(self.turns)).argsort(1)[:, : self.copies].flatten()
        scans = x.repeat_interleave(self.copies, 0)
        turned = torch.empty_like(scans)
        for i, (axes, flips) in enumerate(self.turns):
            mine = answer == i
            turned[mine] = scans[mine].permute(0, 1, *(2 + a for a in axes)).flip([2 + a for a in flips])
        return classify(self.head(self.encoder(turned)), answer)


def rotations(dims: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return all rotations by right angles as (order of axes, flipped axes), the identity first."""
    found = []
    for axes in itertools.permutations(range(dims)):
        swaps = sum(axes[i] > axes[j] for i, j in itertools.combinations(range(dims), 2))
        for n in range(dims + 1):
            if (swaps + n) % 2 == 0:  # an even number of reflections is a rotation
                found += [(axes, flips) for flips in itertools.combinations(range(dims), n)]
    return found
