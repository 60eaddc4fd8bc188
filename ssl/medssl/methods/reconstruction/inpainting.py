"""Inpainting: a box of the scan is hidden; rebuild what was there from what is around.

Context encoders: Pathak et al., 2016, https://arxiv.org/abs/1604.07379, equation 1, the squared error of what is hidden. Their
adversarial loss, which makes fillings sharper, is left out: their own features come from the squared error too (section 4.2).
"""

from typing import Any

from torch import Tensor

from medssl.errors import UserError
from medssl.losses.regression import masked_squared_error
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.decoder import ConvDecoder
from medssl.methods.parts.patches import random_boxes

BOX_SLOT = 1000  # views use the slots below


class Inpainting(Method):
    """Encoder and decoder see the scan without its boxes (0, the mean, in their place) and rebuild them.

    count: how many are hidden. smallest, largest: their edges, in shares of the scan's. width: of the decoder.
    """

    def __init__(self, encoder: Any, count: int, smallest: float, largest: float, width: int):
        super().__init__()
        if not 0 < smallest <= largest < 1 or count < 1:
            raise UserError(
                "inpainting needs 0 < method.smallest <= method.largest < 1 and one of method.count or more, "
                f"got {smallest}, {largest} and {count}"
            )
        self.encoder, self.decoder = encoder, ConvDecoder(encoder, width)
        self.boxes, self.edges = count, (smallest, largest)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (x,) = batch["views"]
        hidden = random_boxes(batch["key"], BOX_SLOT, tuple(x.shape[2:]), *self.edges)
        for i in range(1, self.boxes):
            hidden |= random_boxes(batch["key"], BOX_SLOT + i, tuple(x.shape[2:]), *self.edges)
        hidden = hidden[:, None]
        return {"loss": masked_squared_error(self.decoder(self.encoder, x * ~hidden), x, hidden)}
