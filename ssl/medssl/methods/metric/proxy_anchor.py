"""Proxy-Anchor: one learned vector per class attracts its scans and repels all others, the hardest most strongly.

Kim et al., 2020, https://arxiv.org/abs/2003.13911, equation 4, with s the cosine and proxies p:

    mean over p with positives of log(1 + sum over its scans of exp(-alpha (s - margin)))
  + mean over all p            of log(1 + sum over the others of exp(alpha (s + margin)))
"""

from typing import Any

from pytorch_metric_learning import losses
from torch import Tensor

from medssl.errors import UserError
from medssl.losses.proxies import proxy_loss
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.heads import mlp, target_of


class ProxyAnchor(Method):
    """Encoder (B, C, *spatial) -> (B, dim), projector (B, dim) -> (B, out) on the unit sphere, one vector per class.

    hidden, out: widths of the projector. margin: on the cosines. alpha: sharpness.
    """

    def __init__(self, encoder: Any, hidden: int, out: int, margin: float, alpha: float, target_loss: Any):
        super().__init__()
        if not 0 <= margin < 1 or alpha <= 0:
            raise UserError(f"method.margin must lie in [0, 1) and method.alpha be positive, got {margin} and {alpha}")
        self.target = target_of("label", target_loss)
        self.encoder, self.projector = encoder, mlp(encoder.dim, hidden, out)
        self.loss = losses.ProxyAnchorLoss(target_loss.outputs, out, margin=margin, alpha=alpha)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        z = self.projector(self.encoder(batch["views"][0]))
        return {"loss": proxy_loss(z, batch["target"], self.loss)}
