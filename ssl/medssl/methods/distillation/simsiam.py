"""SimSiam: predict the features of the other view, which receive no gradient. No negatives, no teacher.

Chen & He, 2021, https://arxiv.org/abs/2011.10566: projector and predictor (section 3), equation 4, up to a constant and a
factor, since 2 - 2 cos is minimised here, and -cos there.
"""

from typing import Any

import torch
from torch import Tensor, nn

from medssl.losses.regression import cosine_distance
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.heads import mlp


class SimSiam(Method):
    """Encoder (B, C, *spatial) -> (B, dim), projector -> (B, out) ending in a batch normalisation, predictor -> (B, out).

    hidden, out: widths of the projector. bottleneck: width of the predictor's hidden layer, narrower than out.
    """

    views = 2

    def __init__(self, encoder: Any, hidden: int, out: int, bottleneck: int):
        super().__init__()
        norm = nn.BatchNorm1d(out, affine=False)  # without affine weights, as in their code
        self.encoder = encoder
        self.projector = nn.Sequential(mlp(encoder.dim, hidden, hidden, out, bias=False), norm)
        self.predictor = mlp(out, bottleneck, out)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        z = self.projector(self.encoder(torch.cat(batch["views"])))
        (z_a, z_b), (p_a, p_b) = z.chunk(2), self.predictor(z).chunk(2)
        return {"loss": (cosine_distance(p_a, z_b) + cosine_distance(p_b, z_a)) / 2}
