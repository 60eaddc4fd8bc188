"""Deep InfoMax: maximise the information that a scan's features share with each place of the scan.

Hjelm et al., 2019, https://arxiv.org/abs/1808.06670. With y the encoder's output, h_l an earlier map of it at place l, and
I a bound on mutual information (`losses.mutual_information`) with a learned critic, the loss is, up to a constant (equation 8),

    -(local * mean_l I(y; h_l) + global_ * I(y; h))

Their third term, an adversary that matches y to a prior, is omitted, since it needs a second optimiser.
"""

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from medssl.errors import UserError, nearest
from medssl.losses.distributed import world_size
from medssl.losses.mutual_information import donsker_varadhan, infonce, jensen_shannon, separable_scores
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.heads import mlp
from medssl.methods.parts.spatial_maps import PlaceEmbedding, pool_places, spatial_mean, stage_shapes

BOUNDS = {"infonce": infonce, "jsd": jensen_shannon, "dv": donsker_varadhan}
CELLS = 4  # along each axis of the global critic's input, which keeps it small for scans of any size


class DIM(Method):
    """Encoder stages (B, width, *s) -> y (B, dim), the mean of the last stage, and h, the L places of the one before it.

    estimator: infonce, jsd or dv. local, global_: weights of the two terms. out: width of the critic, which is separable
    (their "encode and dot product") and, unlike theirs, scaled by 1 / sqrt(out).
    """

    def __init__(self, encoder: Any, estimator: str, local: float, global_: float, out: int):
        super().__init__()
        if estimator not in BOUNDS:
            raise UserError(f"method.estimator: unknown {estimator!r}.{nearest(estimator, BOUNDS)}")
        if min(local, global_) < 0 or local + global_ <= 0:
            raise UserError(f"method.local={local} and method.global_={global_} are weights, one at least above 0")
        width, *places = stage_shapes(encoder, "dim", 2)[-2]
        self.encoder, self.bound, self.weights = encoder, estimator, {"local": local, "global": global_}
        self.speak = nn.ModuleDict({k: PlaceEmbedding(encoder.dim, out) for k, w in self.weights.items() if w})
        if local:
            self.local = PlaceEmbedding(width, out)
        if global_:
            self.whole = mlp(width * math.prod(min(CELLS, n) for n in places), out, out)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (x,) = batch["views"]
        *_, h, last = self.encoder.stages(x)
        out: dict[str, Tensor] = {}
        for name, speak in self.speak.items():
            b = self.local(pool_places(h)) if name == "local" else self.whole(cells(h))[:, None]
            out[name] = BOUNDS[self.bound](separable_scores(speak(spatial_mean(last)[..., None])[:, 0], b))
            ceiling = {
                "infonce": math.log(1 + (len(x) * world_size() - 1) * b.shape[1]),
                "jsd": 2 * math.log(2),
                "dv": 0.0,
            }
            chance = self.weights[name] * ceiling[self.bound]  # the loss of constant features: all bounds are 0
            out["chance"] = out.get("chance", h.new_full((), 0.0)) + chance
            out["loss"] = out.get("loss", 0) + chance - self.weights[name] * out[name]
        return out


def cells(maps: Tensor) -> Tensor:
    """Average maps (B, width, *places) over up to 4 cells along each axis -> (B, width * cells)."""
    size = [min(CELLS, n) for n in maps.shape[2:]]
    pool: Any = F.adaptive_avg_pool2d if len(size) == 2 else F.adaptive_avg_pool3d
    return pool(maps, size).flatten(1)
