"""CPC: from the upper rows of a scan's blocks, identify the blocks further down.

van den Oord et al., 2018, https://arxiv.org/abs/1807.03748, section 3.3; the networks after the encoder are those of
Henaff et al., 2020, https://arxiv.org/abs/1905.09272, appendix. A scan is cut into a grid of half-overlapping blocks, each
encoded separately to a code z; c_t is the context of the rows up to t (causal convolutions). The loss is the mean over t,
columns and numbers of rows ahead k of

    -log( exp(W_k c_t . V z_{t+k}) / sum over all blocks of all scans of exp(W_k c_t . V z) )
"""

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medssl.errors import UserError
from medssl.losses.distributed import world_size
from medssl.losses.mutual_information import cpc_loss
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.layers import dry_run

NEAREST = 2  # rows ahead: the next row overlaps the context, the one after it shares no pixel with it
SCALE = 0.1  # factor of predictions, from the appendix


class CPC(Method):
    """Blocks (B * P, C, *edge), P = grid^axes -> codes (B, P, dim) -> context (B, hidden, *grid) -> predictions (B, N, out).

    Blocks are enlarged for an encoder that takes one size only (vit, mlp). grid: blocks along each axis; rows lie along
    the first axis and are read in one direction. ahead: rows to predict, from 2 on. hidden, depth: of the context network.
    out: width in which predictions and codes are compared.
    """

    def __init__(self, encoder: Any, grid: int, ahead: int, hidden: int, out: int, depth: int):
        super().__init__()
        if not any(p.requires_grad for p in encoder.parameters()):
            raise UserError(f"cpc trains by gradient, and {type(encoder).__name__} has no parameters; use encoder=cnn")
        if not NEAREST <= ahead < grid:
            raise UserError(f"method.ahead must lie in [{NEAREST}, method.grid={grid}), got {ahead}: next rows overlap")
        edge = [2 * n // (grid + 1) for n in encoder.size]
        if min(edge) < 2:
            raise UserError(f"method.grid={grid} leaves blocks of {tuple(edge)} of size {encoder.size}; lower it")
        starts = ([i * (n - e) // (grid - 1) for i in range(grid)] for n, e in zip(encoder.size, edge, strict=True))
        self.cuts = list(
            itertools.product(*([slice(s, s + e) for s in row] for row, e in zip(starts, edge, strict=True)))
        )
        self.encoder, self.grid, self.axes, self.enlarge = encoder, grid, len(edge), not takes(encoder, edge)
        conv: Any = nn.Conv2d if self.axes == 2 else nn.Conv3d
        self.narrow, self.key = nn.Linear(encoder.dim, hidden), nn.Linear(encoder.dim, out)
        self.context = nn.ModuleList(conv(hidden, hidden, (2, *[3] * (self.axes - 1))) for _ in range(depth))
        self.predict = nn.ModuleList(nn.Linear(hidden, out) for _ in range(NEAREST, ahead + 1))

    def codes(self, x: Tensor) -> Tensor:
        """Encode the blocks of (B, C, *size) as (B, P, dim), in row-major order."""
        blocks = torch.stack([x[(slice(None), slice(None), *cut)] for cut in self.cuts], 1).flatten(0, 1)
        if self.enlarge:
            mode = "bilinear" if self.axes == 2 else "trilinear"
            blocks = F.interpolate(blocks, size=self.encoder.size, mode=mode, align_corners=False)
        return self.encoder(blocks).unflatten(0, (len(x), -1))

    def contexts(self, codes: Tensor) -> Tensor:
        """Return context vectors (B, grid, …, hidden) of codes (B, P, dim), each from its row and the rows above."""
        c = self.narrow(codes).transpose(1, 2).unflatten(2, (self.grid,) * self.axes)
        for conv in self.context:
            c = c + F.relu(conv(F.pad(c, (*[1, 1] * (self.axes - 1), 1, 0))))  # causal: no rows below
        return c.movedim(1, -1)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (x,) = batch["views"]
        codes = self.codes(x)
        context, key, row = self.contexts(codes), self.key(codes), self.grid ** (self.axes - 1)
        losses = []
        for k, head in enumerate(self.predict, start=NEAREST):
            prediction = SCALE * head(context[:, :-k].flatten(1, -2))
            at = torch.arange(prediction.shape[1], device=x.device) + k * row
            losses.append(cpc_loss(prediction, key, at))
        loss = torch.stack(losses).mean()
        return {"loss": loss, "chance": loss.new_full((), math.log(key.shape[1] * len(x) * world_size()))}


def takes(encoder: Any, size: list[int]) -> bool:
    """Return whether the encoder also takes scans of that size."""
    try:
        with dry_run(encoder):
            encoder(torch.zeros(1, encoder.channels, *size))
    except (RuntimeError, ValueError, AssertionError):
        return False
    return True
