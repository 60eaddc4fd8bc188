"""Inpainting: reconstruct hidden boxes of a scan from their surroundings.

Context encoders: Pathak et al., 2016, https://arxiv.org/abs/1604.07379, equation 1, the squared error inside the boxes. The
adversarial loss, which sharpens the fillings, is omitted: their features come from the squared error alone too (section 4.2).
"""

from typing import Any

import torch
from torch import Tensor

from medssl.errors import UserError
from medssl.losses.regression import masked_squared_error
from medssl.methods.base import METHOD_SLOT, Batch, Clock, Method
from medssl.methods.parts.decoder import ConvDecoder
from medssl.methods.parts.patches import random_boxes


class Inpainting(Method):
    """Encoder and decoder see the scan with its boxes set to 0, the mean, and reconstruct them.

    count: number of boxes. smallest, largest: of their edges, as shares of the scan's. width: of the decoder.
    """

    def __init__(self, encoder: Any, count: int, smallest: float, largest: float, width: int):
        super().__init__()
        if not 0 < smallest <= largest < 1 or count < 1:
            words = f"{smallest}, {largest} and {count}"
            raise UserError(f"needs 0 < method.smallest <= method.largest < 1 and method.count >= 1, got {words}")
        self.encoder, self.decoder = encoder, ConvDecoder(encoder, width)
        self.boxes, self.edges = count, (smallest, largest)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (x,) = batch["views"]
        slots = range(METHOD_SLOT, METHOD_SLOT + self.boxes)
        boxes = [random_boxes(batch["key"], slot, tuple(x.shape[2:]), *self.edges) for slot in slots]
        hidden = torch.stack(boxes).any(0)[:, None]
        return {"loss": masked_squared_error(self.decoder(self.encoder, x * ~hidden), x, hidden)}
