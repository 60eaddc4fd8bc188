"""SparK: reconstruct hidden cells of a scan with a convolutional encoder that never computes anything at their places.

Tian et al., 2023, https://arxiv.org/abs/2301.03580, in two or three dimensions: cells of the coarsest map are hidden, every stage
is filled with a learned vector at hidden places, and a light decoder goes up from stage to stage. The loss is that of MAE:
squared error of intensities standardised in each cell.
"""

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medssl.errors import UserError
from medssl.losses.regression import masked_squared_error
from medssl.methods.base import METHOD_SLOT, Batch, Clock, Method
from medssl.methods.parts.layers import dry_run
from medssl.methods.parts.token_masks import hide_tokens
from medssl.methods.parts.visible_convolution import at_size, mean_of_cells, visible_stages

MIN_CHANNELS = 8  # channels of the decoder's finest maps


class SparK(Method):
    """Stages (B, width, *s) of the visible cells -> filled up, decoded -> scans (B, C, *size).

    ratio: share of hidden cells. width: of the decoder at the coarsest stage; each finer one has half.
    """

    def __init__(self, encoder: Any, ratio: float, width: int):
        super().__init__()
        if not hasattr(encoder, "stages") or hasattr(encoder, "tokens") or _attends(encoder):
            raise UserError(
                f"spark needs a convolutional encoder, and {type(encoder).__name__} is none; use encoder=cnn or resnet18, "
                "or method=simmim for encoder=vit"
            )
        if not 0 < ratio < 1:
            raise UserError(f"method.ratio must lie between 0 and 1, got {ratio}")
        with dry_run(encoder):
            shapes = [m.shape[1:] for m in encoder.stages(torch.zeros(1, encoder.channels, *encoder.size))]
        self.grid = tuple(shapes[-1][1:])
        self.cells = math.prod(self.grid)
        if int(self.cells * ratio) == 0:
            raise UserError(
                f"method.ratio={ratio} of the {self.cells} cells of the encoder's last stage hides none; raise it or size, "
                "or take an encoder with fewer stages"
            )
        if encoder.channels * math.prod(n // g for n, g in zip(encoder.size, self.grid, strict=True)) < 2:
            raise UserError("cells of one value cannot be standardised; take an encoder with more stages")
        self.encoder, self.ratio = encoder, ratio
        self.decoder = Decoder(shapes, encoder.channels, tuple(encoder.size), width)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (x,) = batch["views"]
        share = torch.full((len(x),), self.ratio, device=x.device)
        visible = ~hide_tokens(batch["key"], 0, METHOD_SLOT, self.cells, share).view(len(x), 1, *self.grid)
        rebuilt = self.decoder(visible_stages(self.encoder, x, visible), visible)
        mean, square = mean_of_cells(x, self.grid), mean_of_cells(x.square(), self.grid)
        size = tuple(x.shape[2:])
        deviation = ((square - mean.square()).clamp(min=0) + 1e-6).sqrt()
        target = (x - at_size(mean, size)) / at_size(deviation, size)
        return {"loss": masked_squared_error(rebuilt, target, ~at_size(visible, size))}


class Decoder(nn.Module):
    """Stages (B, c, *s), fine to coarse -> scans (B, channels, *size): each is filled up and added on the way.

    shapes: (c, *s) of every stage.
    """

    def __init__(self, shapes: list[torch.Size], channels: int, size: tuple[int, ...], width: int):
        super().__init__()
        dims = len(size)
        conv: Any = nn.Conv2d if dims == 2 else nn.Conv3d
        widths = [max(width // 2**k, MIN_CHANNELS) for k in range(len(shapes))]
        self.holes = nn.ParameterList(nn.Parameter(torch.zeros(shape[0])) for shape in shapes)
        self.sides = nn.ModuleList(conv(s[0], w, 1) for s, w in zip(shapes, reversed(widths), strict=True))
        self.levels = nn.ModuleList(_level(conv, w, w) for w in widths)
        self.narrow = nn.ModuleList(conv(a, b, 1) for a, b in pairwise(widths))
        self.head, self.size = conv(widths[-1], channels, 3, padding=1), size

    def forward(self, stages: list[Tensor], visible: Tensor) -> Tensor:
        filled = []
        for m, hole, side in zip(stages, self.holes, self.sides, strict=True):
            seen = at_size(visible, tuple(m.shape[2:]))
            filled.append(side(torch.where(seen, m, hole.to(m.dtype).view(-1, *[1] * (m.ndim - 2)))))
        h = self.levels[0](filled.pop())
        for narrow, level in zip(self.narrow, self.levels[1:], strict=True):
            m = filled.pop()
            h = level(F.interpolate(narrow(h), m.shape[2:]) + m)
        return self.head(h if h.shape[2:] == self.size else F.interpolate(h, self.size))


def _level(conv: Any, n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(conv(n_in, n_out, 3, padding=1, bias=False), nn.GroupNorm(1, n_out), nn.ReLU())


def _attends(encoder: nn.Module) -> bool:
    return any("attention" in type(m).__name__.lower() for m in encoder.modules())
