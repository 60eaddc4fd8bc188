"""Deep autoencoder: a stack of restricted Boltzmann machines, unrolled into encoder and decoder and trained as a whole.

Hinton & Salakhutdinov, 2006, https://doi.org/10.1126/science.1127647. The machines train one after the other, each on the
means of the layer below. The decoder then starts from their transposed weights and visible biases, and everything trains on

    loss = mean over scans of -log p(x | code),

the cross-entropy of intensities in [0, 1] for visible=bernoulli, half the squared error for gaussian.
"""

from typing import Any

import torch
from torch import Tensor, nn

from medssl.errors import UserError
from medssl.losses.energy import bernoulli_error, gaussian_error
from medssl.losses.regression import squared_error
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.boltzmann import linears, rbm_layers
from medssl.methods.parts.layers import forward_frozen


class DeepAutoencoder(Method):
    """Autoencoder of flattened scans (B, C, *spatial) with codes (B, dim): an MLP of sigmoids and its mirror image.

    visible: gaussian or bernoulli, see parts.units.Visible. k: steps of contrastive divergence. finetune: share of the
    run, at its end, that trains the whole; 1 starts from random weights.
    """

    shards = False
    machines: Any  # one RBMLayer per layer
    decoders: Any  # one nn.Linear per layer

    def __init__(self, encoder: Any, visible: str, k: int, finetune: float):
        super().__init__()
        if not 0 < finetune <= 1:
            raise UserError(f"method.finetune must be above 0 and at most 1, got {finetune}")
        self.encoder, self.finetune = encoder, finetune
        self.machines = rbm_layers(encoder, "deep_autoencoder", visible, k, persistent=0)
        stack = linears(encoder, "deep_autoencoder", k)
        self.decoders = nn.ModuleList(nn.Linear(f.out_features, f.in_features, bias=False) for f in stack)
        self.parts = 1 if finetune == 1 else len(stack) + 1

    def layer(self, clock: Clock) -> int:
        """Return the index of the layer that trains, or the number of layers while the whole trains."""
        return clock.part(len(self.machines), until=1 - self.finetune)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (x,) = batch["views"]
        at = self.layer(clock)
        if at == len(self.machines):
            return self.whole(x) | {"layer": x.new_full((), at)}
        h = forward_frozen(self.encoder.layers, at, x)
        return self.machines[at](h, self.encoder.layers[at][1], batch["key"], clock) | {"layer": x.new_full((), at)}

    def whole(self, x: Tensor) -> dict[str, Tensor]:
        units = self.machines[0].visible
        v, z = units.observe(x), self.decode(self.encoder(x))
        loss = bernoulli_error(units.logit(z), units.unit(v)) if units.kind == "bernoulli" else gaussian_error(z, v)
        return {"loss": loss, "error": squared_error(units.mean(z).detach(), v)}

    def decode(self, code: Tensor) -> Tensor:
        """Decode (B, dim) to the input z (B, V) of the visible units; `machines[0].visible.mean(z)` is the scan."""
        z = code
        for at in range(len(self.machines) - 1, -1, -1):
            z = self.decoders[at](z) + self.machines[at].visible.bias
            z = self.machines[at].visible.mean(z) if at else z
        return z

    @torch.no_grad()
    def after_step(self, clock: Clock) -> None:
        """After a machine's last step, copy its transposed weights to the decoder."""
        at = self.layer(clock)
        if at < len(self.machines) and self.layer(Clock(clock.step + 1, clock.steps)) > at:
            self.decoders[at].weight.copy_(self.encoder.layers[at][1].weight.T)
