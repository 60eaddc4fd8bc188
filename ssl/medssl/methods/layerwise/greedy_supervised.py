"""Greedy layer-wise supervised training: each layer learns the labels with its own head and is then frozen.

The control of Bengio et al., 2007, "Greedy layer-wise training of deep networks", section 4: layer-wise training on the labels
instead of the inputs.
"""

import math
from typing import Any

from torch import Tensor, nn

from medssl.errors import UserError
from medssl.losses.target_losses import TargetLoss
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.layers import forward_frozen, layer_shapes


class GreedySupervised(Method):
    """Layer k of `encoder.layers` with a linear head trains alone during the k-th of equal parts of the run.

    finetune: share of the run, at its end, that trains all layers and the last head together.
    """

    target = "label"
    target_loss: TargetLoss

    def __init__(self, encoder: Any, finetune: float, target_loss: TargetLoss):
        super().__init__()
        shapes = layer_shapes(encoder, "greedy_supervised")
        if not 0 <= finetune < 1:
            raise UserError(f"method.finetune must lie in [0, 1), got {finetune}")
        self.encoder, self.target_loss, self.parts, self.finetune = encoder, target_loss, len(encoder.layers), finetune
        self.heads = nn.ModuleList(nn.Linear(math.prod(shape), target_loss.outputs) for shape in shapes[1:])

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (x,) = batch["views"]
        at = clock.part(self.parts, until=1 - self.finetune)
        whole = at == self.parts
        h = x if whole else forward_frozen(self.encoder.layers, at, x)
        for layer in self.encoder.layers if whole else [self.encoder.layers[at]]:
            h = layer(h)
        loss = self.target_loss.loss_of_known(self.heads[-1 if whole else at](h.flatten(1)), batch["target"])
        return {"loss": loss, "layer": h.new_full((), at)}
