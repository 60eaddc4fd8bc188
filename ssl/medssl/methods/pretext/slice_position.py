"""Slice position: predict the position of a slab of a volume along the first axis.

After Yan et al., 2018, "Unsupervised body part regression via spatially self-ordering convolutional neural networks",
https://arxiv.org/abs/1707.03891, and Zeng et al., 2021, https://arxiv.org/abs/2106.09157 (position in the volume as the signal).
Here the position itself is predicted, with Huber's loss. In 2D, the slab is a band of rows.
"""

from typing import Any

from torch import Tensor, nn

from medssl.errors import UserError
from medssl.losses.supervised import huber
from medssl.methods.base import METHOD_SLOT, Batch, Clock, Method
from medssl.methods.parts.patches import slab
from medssl.rng import uniform


class SlicePosition(Method):
    """Predict the position of a slab, resized to the encoder's input, from -1 at one end of the scan to 1 at the other.

    share: thickness of a slab as a share of the axis. Assumes that all scans show the same part of the body.
    """

    def __init__(self, encoder: Any, share: float):
        super().__init__()
        if not 1 / encoder.size[0] <= share < 1:
            raise UserError(f"method.share must lie between one slice of {encoder.size[0]} and 1, got {share}")
        self.encoder, self.share, self.head = encoder, share, nn.Linear(encoder.dim, 1)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (x,) = batch["views"]
        place = uniform(batch["key"], 0, METHOD_SLOT)[:, 0]
        guess = self.head(self.encoder(slab(x, place * (1 - self.share), self.share)))[:, 0]
        answer = 2 * place - 1
        return {"loss": huber(guess, answer), "off": (guess.detach() - answer).abs().mean()}
