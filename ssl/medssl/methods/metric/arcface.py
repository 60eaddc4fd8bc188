"""ArcFace: a softmax over the angles to one learned vector per class, with a margin added to the angle of the true class.

Deng et al., 2019, https://arxiv.org/abs/1801.07698, equation 3: the mean over scans with a known class y of

    -log( exp(scale cos(t_y + margin)) / (exp(scale cos(t_y + margin)) + sum over k != y of exp(scale cos t_k)) )
"""

from typing import Any

from pytorch_metric_learning import losses
from torch import Tensor

from medssl.errors import UserError
from medssl.losses.proxies import proxy_loss
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.heads import mlp, target_of


class ArcFace(Method):
    """Encoder (B, C, *spatial) -> (B, dim), projector (B, dim) -> (B, out) on the unit sphere, one vector per class.

    hidden, out: widths of the projector. margin: in degrees. scale: factor on the cosines.
    """

    def __init__(self, encoder: Any, hidden: int, out: int, margin: float, scale: float, target_loss: Any):
        super().__init__()
        if not 0 <= margin < 90 or scale <= 0:
            raise UserError(f"needs method.margin in [0, 90) degrees and method.scale > 0, got {margin} and {scale}")
        self.target = target_of("label", target_loss)
        self.encoder, self.projector = encoder, mlp(encoder.dim, hidden, out)
        self.loss = losses.ArcFaceLoss(target_loss.outputs, out, margin=margin, scale=scale)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        z = self.projector(self.encoder(batch["views"][0]))
        return {"loss": proxy_loss(z, batch["target"], self.loss)}
