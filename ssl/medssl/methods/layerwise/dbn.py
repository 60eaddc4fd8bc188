"""Deep belief net, recognition part: restricted Boltzmann machines trained one after the other, each on the layer below.

Hinton, Osindero & Teh, 2006, https://doi.org/10.1162/neco.2006.18.7.1527, section 4; Bengio et al., 2007, "Greedy layer-wise
training of deep networks", section 2.3. The machine of layer k is trained on the means of layer k - 1, which is trained
before it and then frozen. There is no up-down fine-tuning of the generative weights.
"""

from typing import Any

from torch import Tensor

from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.boltzmann import rbm_layers
from medssl.methods.parts.layers import forward_frozen


class DBN(Method):
    """Layer k of an MLP of sigmoids is the machine that trains in the k-th of equal parts of the run.

    visible: units of the lowest machine. k, persistent: as in `rbm`.
    """

    machines: Any  # one RBMLayer per layer

    def __init__(self, encoder: Any, visible: str, k: int, persistent: int):
        super().__init__()
        self.encoder, self.machines = encoder, rbm_layers(encoder, "dbn", visible, k, persistent)
        self.parts = len(self.machines)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (x,) = batch["views"]
        at = clock.part(self.parts)
        h = forward_frozen(self.encoder.layers, at, x)
        return self.machines[at](h, self.encoder.layers[at][1], batch["key"], clock) | {"layer": x.new_full((), at)}

    def after_step(self, clock: Clock) -> None:
        self.machines[clock.part(self.parts)].keep()
