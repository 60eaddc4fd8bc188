"""Parts of methods that contrast a scan with its places: an encoder's feature maps and an embedding of each place."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medssl.errors import UserError
from medssl.methods.parts.heads import mlp
from medssl.methods.parts.layers import dry_run

MAX_PLACES = 8  # along each axis; AMDIM compares 5 x 5 and 7 x 7 places
USE = "use encoder=cnn, vit or resnet18"


def stage_shapes(encoder: Any, method: str, least: int) -> list[torch.Size]:
    """Return the shapes (width, *places) of an encoder's stages, from fine to coarse.

    Raises UserError with fewer than `least` stages, and if the encoder's features are not the mean of its last map: the
    method would then train something other than the features that are kept.
    """
    if not hasattr(encoder, "stages"):
        raise UserError(f"{method} needs an encoder with feature maps, and {type(encoder).__name__} has none; {USE}")
    x = torch.linspace(-2, 2, 2 * encoder.channels * math.prod(encoder.size)).sin().view(2, -1, *encoder.size)
    with dry_run(encoder):
        stages, features = encoder.stages(x), encoder(x)
    if len(stages) < least:
        raise UserError(f"{method} needs {least} stages of feature maps, and this encoder has {len(stages)}; {USE}")
    if not torch.allclose(spatial_mean(stages[-1]), features, rtol=1e-3, atol=1e-4):
        raise UserError(f"{method} needs an encoder that averages its last map, and this one does not; {USE}")
    return [m.shape[1:] for m in stages]


def spatial_mean(maps: Tensor) -> Tensor:
    """Average maps (B, width, *places) over places; returns (B, width)."""
    return maps.flatten(2).mean(2)


def pool_places(maps: Tensor) -> Tensor:
    """Average maps (B, width, *places) in blocks, to at most 8 places along each axis: fine maps of volumes are huge."""
    blocks = [math.ceil(n / MAX_PLACES) for n in maps.shape[2:]]
    pool = F.avg_pool2d if len(blocks) == 2 else F.avg_pool3d
    return pool(maps, blocks, ceil_mode=True, count_include_pad=False) if max(blocks) > 1 else maps


class PlaceEmbedding(nn.Module):
    """Residual network with one hidden layer, applied to every place: maps (B, width, *places) to (B, L, out)."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.straight, self.bent = nn.Linear(width, out), mlp(width, out, out)

    def forward(self, maps: Tensor) -> Tensor:
        rows = maps.flatten(2).transpose(1, 2).flatten(0, 1)  # (B * L, width)
        return (self.straight(rows) + self.bent(rows)).unflatten(0, (len(maps), -1))
