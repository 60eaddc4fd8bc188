"""SimSiam: predict the features of the other view, which receive no gradient. No negatives, no teacher.

Chen & He, 2021, https://arxiv.org/abs/2011.10566: projector, predictor and loss as in their code, up to a constant and a factor,
since 2 - 2 cos is minimised here, and -cos there. With more views it is FastSiam, Pototzky et al., 2022,
https://doi.org/10.1007/978-3-031-16788-1_4: each view predicts the mean of the others.
"""

from typing import Any

import torch
from torch import Tensor, nn

from medssl.errors import UserError
from medssl.losses.regression import cosine_distance
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.heads import mlp


class SimSiam(Method):
    """Encoder (B, C, *spatial) -> (B, dim), projector -> (B, out) ending in a batch normalisation, predictor -> (B, out).

    hidden, out: widths of the projector. bottleneck: width of the predictor's hidden layer, narrower than out. views: of each
    scan, two or more.
    """

    def __init__(self, encoder: Any, hidden: int, out: int, bottleneck: int, views: int):
        super().__init__()
        if views < 2:
            raise UserError(f"method.views must be at least 2, got {views}")
        self.views = views
        norm = nn.BatchNorm1d(out, affine=False)  # without affine weights, as in their code
        self.encoder = encoder
        self.projector = nn.Sequential(mlp(encoder.dim, hidden, hidden, out, bias=False), norm)
        self.predictor = mlp(out, bottleneck, out)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        z = self.projector(self.encoder(torch.cat(batch["views"])))
        z_each, p_each = z.chunk(self.views), self.predictor(z).chunk(self.views)
        others = [torch.stack([*z_each[:i], *z_each[i + 1 :]]).mean(0) for i in range(self.views)]
        terms = [cosine_distance(p, other) for p, other in zip(p_each, others, strict=True)]
        return {"loss": torch.stack(terms).sum() / self.views}
