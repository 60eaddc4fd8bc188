"""Deep Boltzmann machine: layers of binary units with undirected weights, all trained together.

Salakhutdinov & Hinton, 2009, "Deep Boltzmann machines", sections 2.1 and 2.2. With E the energy, mu the fixed point of the
mean-field equations mu_l = sigmoid(c_l + W_l mu_(l-1) + W_(l+1)' mu_(l+1)) for a scan v, and v', h' persistent Gibbs chains,

    loss = mean E(v, mu) - mean E(v', h')

which has the gradient of the variational bound. Their greedy initialisation is omitted. The features are those of the
encoder's single bottom-up pass, without feedback from the layers above.
"""

from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from medssl.errors import UserError
from medssl.losses.energy import deep_energy
from medssl.losses.regression import squared_error
from medssl.methods.base import METHOD_SLOT, Batch, Clock, Method
from medssl.methods.parts.boltzmann import linears
from medssl.methods.parts.step_key import step_key
from medssl.methods.parts.units import Visible, sample_bernoulli
from medssl.rng import Key


class DBM(Method):
    """Deep Boltzmann machine on flattened scans (B, C, *spatial): the two or more layers of an MLP of sigmoids.

    visible: gaussian or bernoulli, see parts.units.Visible. chains: number of Gibbs chains, the same on every rank. k:
    sweeps of Gibbs sampling per update. iterations: of the mean-field equations.
    """

    shards = False
    state: Tensor  # (chains, units of layers 1, 3, …): given these, all other units are independent

    def __init__(self, encoder: Any, visible: str, chains: int, k: int, iterations: int):
        super().__init__()
        stack = linears(encoder, "dbm", k)
        if len(stack) < 2 or encoder.options["code"] == "linear":
            raise UserError("dbm needs two layers of binary units; use encoder=mlp, or method=rbm for one layer")
        for name, value in {"chains": chains, "iterations": iterations}.items():
            if value < 1:
                raise UserError(f"method.{name} must be at least 1, got {value}")
        self.encoder, self.k, self.iterations = encoder, k, iterations
        self.visible = Visible(stack[0].in_features, visible, scan=True)
        self.odd = [linear.out_features for linear in stack[::2]]
        self.register_buffer("state", torch.rand(chains, sum(self.odd)).round())
        self.moved = self.state

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (x,) = batch["views"]
        v = self.visible.observe(x)
        with torch.no_grad(), torch.autocast(v.device.type, enabled=False):
            mu = self.mean_field(v)
            error = squared_error(self.visible.mean(self.inputs([v, *mu], 0)), v)
            sample = self.gibbs(step_key(batch["key"], clock, len(self.state), v.device))
            self.moved = torch.cat(sample[1::2], 1)
        data, model = (self.energy(s).mean() for s in ([v, *mu], sample))
        return {"loss": data - model, "error": error}

    def energy(self, units: list[Tensor]) -> Tensor:
        layers = [(h, layer[1].weight, layer[1].bias) for h, layer in zip(units[1:], self.encoder.layers, strict=True)]
        return deep_energy(units[0], self.visible.bias, *chain(*layers), visible=self.visible.kind)

    def inputs(self, units: list[Tensor], at: int) -> Tensor:
        """Return the input of layer `at` from the layers beside it; layer 0 is the scan."""
        layers = self.encoder.layers
        total: Tensor = F.linear(units[at - 1], *layers[at - 1][1].parameters()) if at else self.visible.bias
        return total if at == len(layers) else total + units[at + 1] @ layers[at][1].weight

    def mean_field(self, v: Tensor) -> list[Tensor]:
        """Return mu of every layer, starting from the encoder's outputs.

        Odd and even layers are updated in turn, which never raises the energy bound.
        """
        units = [v]
        for layer in self.encoder.layers:
            units.append(layer(units[-1]))
        for _ in range(self.iterations):
            for at in chain(range(1, len(units), 2), range(2, len(units), 2)):
                units[at] = torch.sigmoid(self.inputs(units, at))
        return units[1:]

    def gibbs(self, key: Key) -> list[Tensor]:
        """Return scan and layers of the chains after k sweeps, each of the even layers given the odd ones and vice versa."""
        depth = len(self.encoder.layers)
        units: list[Any] = [None] * (depth + 1)
        units[1::2] = self.state.split(self.odd, 1)
        for sweep in range(self.k):
            for at in chain(range(0, depth + 1, 2), range(1, depth + 1, 2)):
                z, slot = self.inputs(units, at), METHOD_SLOT + sweep * (depth + 1) + at
                units[at] = sample_bernoulli(torch.sigmoid(z), key, slot) if at else self.visible.sample(z, key, slot)
        return units

    def after_step(self, clock: Clock) -> None:
        self.state.copy_(self.moved)
