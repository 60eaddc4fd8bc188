"""Greedy layer-wise autoencoders: each layer learns to reconstruct the output of the layer below and is then frozen.

Bengio et al., 2007, "Greedy layer-wise training of deep networks", algorithms 1 and 2 (partly supervised). With h the output
of the layer below, m a random mask and J the Jacobian of the layer at h,

    loss = mean (decoder(layer(m * h)) - h)^2 + contractive * |J|^2 / inputs + supervised * loss of a head on layer(h)

Masking: Vincent et al., 2008, https://doi.org/10.1145/1390156.1390294, section 2.3, with linear decoders at every layer, as
in Vincent et al., 2010 (section 3.3), for real-valued inputs. |J|^2: Rifai et al., 2011, "Contractive auto-encoders",
equation 3, estimated for any layer by |J^T v|^2 with random signs v. At the end the whole network may train together.
"""

import math
from typing import Any

from torch import Tensor, nn

from medssl.errors import UserError
from medssl.losses.regression import jacobian_norm, squared_error
from medssl.losses.target_losses import TargetLoss
from medssl.methods.base import METHOD_SLOT, Batch, Clock, Method
from medssl.methods.parts.layers import Decoder, TiedDecoder, forward_frozen, layer_shapes
from medssl.rng import uniform_field

MASK_SLOT, SIGN_SLOT = METHOD_SLOT, METHOD_SLOT + 100


class GreedyAE(Method):
    """Layer k of `encoder.layers` trains alone during the k-th of equal parts of the run; the layers below are frozen.

    corruption: share of a layer's inputs set to 0, the mean of standardised pixels; 0 is a plain autoencoder. contractive:
    weight of the Jacobian's squared norm per input. tied: decoders are the transposed weights of their layers
    (encoder=mlp). supervised: weight of the labels while layers train, on scans that have one. finetune: share of the run,
    at its end, that trains the whole network, on the labels if there are any, else on reconstruction through all decoders.
    """

    def __init__(
        self, encoder: Any, corruption: float, contractive: float, tied: bool, supervised: float, finetune: float,
        target_loss: TargetLoss | None = None
    ):  # fmt: skip
        super().__init__()
        shapes = layer_shapes(encoder, "greedy_ae")
        if not 0 <= corruption < 1:
            raise UserError(f"method.corruption must lie in [0, 1), got {corruption}")
        if not 0 <= finetune < 1:
            raise UserError(f"method.finetune must lie in [0, 1), got {finetune}")
        if contractive < 0 or supervised < 0:
            raise UserError("method.contractive and method.supervised are weights of 0 or more")
        if supervised and target_loss is None:
            raise UserError("method.supervised needs labels; name the column with target=…")
        self.encoder, self.parts, self.finetune = encoder, len(encoder.layers), finetune
        self.corruption, self.contractive, self.supervised = corruption, contractive, supervised
        stack = zip(encoder.layers, shapes[1:], shapes[:-1], strict=True)
        self.decoders = nn.ModuleList(TiedDecoder(f, low) if tied else Decoder(high, low) for f, high, low in stack)
        self.target_loss = target_loss if supervised or finetune else None
        self.heads = nn.ModuleList()
        if self.target_loss is not None:
            self.target = "label"
            places = range(self.parts) if supervised else [self.parts - 1]
            self.heads.extend(nn.Linear(math.prod(shapes[k + 1]), self.target_loss.outputs) for k in places)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (x,) = batch["views"]
        at = clock.part(self.parts, until=1 - self.finetune)
        if at == self.parts:
            return {"loss": self.whole(x, batch), "layer": x.new_full((), at)}
        layer, h = self.encoder.layers[at], forward_frozen(self.encoder.layers, at, x)
        seen = uniform_field(batch["key"], 0, MASK_SLOT + at, tuple(h.shape[1:])) >= self.corruption
        loss = squared_error(self.decoders[at](layer(h * seen)), h)
        if self.contractive:
            loss = loss + self.contractive * jacobian_norm(layer, h, batch["key"], SIGN_SLOT + at)
        if self.supervised and self.target_loss is not None:
            scores = self.heads[at](layer(h).flatten(1))
            loss = loss + self.supervised * self.target_loss.loss_of_known(scores, batch["target"])
        return {"loss": loss, "layer": h.new_full((), at)}

    def whole(self, x: Tensor, batch: Batch) -> Tensor:
        """Return the loss of all layers at once: of the label, or of reconstructing the scan through all decoders."""
        h = x
        for layer in self.encoder.layers:
            h = layer(h)
        if self.target_loss is not None:
            return self.target_loss.loss_of_known(self.heads[-1](h.flatten(1)), batch["target"])
        for decoder in reversed(self.decoders):
            h = decoder(h)
        return squared_error(h, x)
