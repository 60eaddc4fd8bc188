"""Restricted Boltzmann machine: one layer of binary units, trained by contrastive divergence to make the scans likely.

Hinton, 2002, https://doi.org/10.1162/089976602760128018; Hinton, 2010, "A practical guide to training restricted Boltzmann
machines". With F the free energy, and v' the result of k steps of Gibbs sampling from a scan v or from a persistent chain,

    loss = mean F(v) - mean F(v')
"""

from typing import Any

from torch import Tensor

from medssl.errors import UserError
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.boltzmann import linears, rbm_layers


class RBM(Method):
    """Restricted Boltzmann machine on flattened scans (B, C, *spatial): the encoder's single layer, h (B, dim).

    visible: gaussian or bernoulli, see parts.units.Visible. k: steps of Gibbs sampling. persistent: number of chains, or 0
    for chains that start at the scans.
    """

    shards = False
    machine: Any  # an RBMLayer

    def __init__(self, encoder: Any, visible: str, k: int, persistent: int):
        super().__init__()
        if (n := len(linears(encoder, "rbm", k))) > 1:
            raise UserError(f"rbm is one layer, encoder.widths has {n}; use encoder=layer, or method=dbn for a stack")
        self.encoder = encoder
        (self.machine,) = rbm_layers(encoder, "rbm", visible, k, persistent)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (x,) = batch["views"]
        return self.machine(x, self.encoder.layers[0][1], batch["key"], clock)

    def after_step(self, clock: Clock) -> None:
        self.machine.keep()
