"""LeJEPA: views of a scan agree, and features are an isotropic Gaussian. No teacher, predictor or stop-gradient.

Balestriero & LeCun, 2025, https://arxiv.org/abs/2511.08544: prediction of the mean of the global views, and SIGReg.
"""

from typing import Any

import torch
from torch import Tensor

from medssl.errors import UserError
from medssl.losses.sketching import sigreg, toward_centre
from medssl.methods.base import METHOD_SLOT, Batch, Clock, Method
from medssl.methods.parts.heads import mlp
from medssl.methods.parts.small_views import encode_views, small_views
from medssl.methods.parts.step_key import step_key
from medssl.rng import normal_field


class LeJEPA(Method):
    """Encoder (B, C, *spatial) -> (B, dim), projector (B, dim) -> (B, out), statistics over the scans of all ranks.

    hidden, out: widths of the projector, discarded after training. weight: of SIGReg, lambda in the paper; the agreement of
    views has 1 - weight. directions: drawn for each step, on which features are compared with a Gaussian. small: the options of
    `small_views`.
    """

    views = 2
    compares_scans = True

    def __init__(
        self, encoder: Any, hidden: int, out: int, weight: float, directions: int, small: dict[str, Any]
    ):  # fmt: skip
        super().__init__()
        if not 0 < weight <= 1:
            raise UserError(
                f"method.weight must be above 0 and at most 1, got {weight}; at 0, equal features of all scans lose least"
            )
        if directions < 1:
            raise UserError(f"method.directions must be at least 1, got {directions}")
        self.encoder, self.projector = encoder, mlp(encoder.dim, hidden, hidden, out)
        self.weight, self.directions, self.small_views = weight, directions, small_views(encoder, **small)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        z = self.projector(encode_views(self.encoder, batch["views"])).unflatten(0, (len(batch["views"]), -1))
        key = step_key(batch["key"], clock, self.directions, z.device)
        directions = normal_field(key, 0, METHOD_SLOT, z.shape[2:])
        gaussian, near = torch.stack([sigreg(view, directions) for view in z]).mean(), toward_centre(z, self.views)
        with torch.no_grad():  # the least loss of constant features, which is that of zeros
            chance = self.weight * sigreg(torch.zeros_like(z[0]), directions[:1])
        loss = self.weight * gaussian + (1 - self.weight) * near
        return {"loss": loss, "gaussian": gaussian.detach(), "near": near.detach(), "chance": chance}
