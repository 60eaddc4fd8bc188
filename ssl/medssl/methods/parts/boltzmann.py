"""A restricted Boltzmann machine between two layers of units, shared by single machines, stacks and autoencoders."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medssl.encoders.mlp import MLP
from medssl.errors import UserError
from medssl.losses.energy import contrastive_divergence
from medssl.losses.regression import squared_error
from medssl.methods.base import METHOD_SLOT, Clock
from medssl.methods.parts.step_key import step_key
from medssl.methods.parts.units import Visible, sample_bernoulli, sample_gaussian
from medssl.rng import Key


def linears(encoder: Any, method: str, k: int) -> list[nn.Linear]:
    """Return the linear layers of an encoder. Raises UserError if it is not an MLP of sigmoids, and for k < 1."""
    if not isinstance(encoder, MLP):
        raise UserError(f"{method} needs fully connected layers, not {type(encoder).__name__}; use encoder=mlp")
    if encoder.options["activation"] != "sigmoid":
        raise UserError(f"{method}: binary units are sigmoids; set encoder.activation=sigmoid")
    if k < 1:
        raise UserError(f"method.k, the steps of Gibbs sampling, must be at least 1, got {k}")
    return [m for layer in encoder.layers for m in layer.modules() if isinstance(m, nn.Linear)]


class RBMLayer(nn.Module):
    """A restricted Boltzmann machine between the input (V) and the output (H) of a linear layer.

    linear: the encoder's layer, passed again at every call, so that its parameters have one owner. at: its index; above 0
    the visible units are Bernoulli. visible: gaussian or bernoulli. hidden: bernoulli, or gaussian for a linear code. k:
    steps of Gibbs sampling. persistent: number of chains that continue from update to update (Tieleman, 2008,
    https://doi.org/10.1145/1390156.1390290), all on every rank; 0 starts a chain at every scan: CD-k.
    """

    chains: Tensor  # (persistent, V)

    def __init__(self, linear: nn.Linear, at: int, visible: str, hidden: str, k: int, persistent: int):
        super().__init__()
        if persistent < 0:
            raise UserError(f"method.persistent is a number of chains, 0 for none; got {persistent}")
        self.visible = Visible(linear.in_features, visible if at == 0 else "bernoulli", at == 0)
        if self.visible.kind == hidden == "gaussian":
            raise UserError("Gaussian units above Gaussian ones have no least energy; set method.visible=bernoulli")
        self.hidden, self.k, self.slot = hidden, k, METHOD_SLOT + 2 * k * at
        self.register_buffer("chains", torch.randn(persistent, linear.in_features))
        self.moved = self.chains

    def forward(self, x: Tensor, linear: nn.Linear, key: Key, clock: Clock) -> dict[str, Tensor]:
        """Return the loss for x (B, *), and as "error" the mean squared error of rebuilding x from the mean of h."""
        v = self.visible.observe(x)
        W, c = linear.weight, linear.bias
        with torch.no_grad(), torch.autocast(v.device.type, enabled=False):
            error = squared_error(self.visible.mean(self.down(self.up(v, linear), linear)), v)
            s = v
            if n := len(self.chains):
                s, key = self.chains, step_key(key, clock, n, v.device)
            for slot in range(self.slot, self.slot + 2 * self.k, 2):
                a = self.up(s, linear)
                h = sample_gaussian(a, key, slot) if self.hidden == "gaussian" else sample_bernoulli(a, key, slot)
                s = self.visible.sample(self.down(h, linear), key, slot + 1)
            self.moved = s
        loss = contrastive_divergence(v, s, W, c, self.visible.bias, self.visible.kind, self.hidden)
        return {"loss": loss, "error": error}

    def up(self, v: Tensor, linear: nn.Linear) -> Tensor:
        """Return the mean of h (B, H) given v (B, V)."""
        a = F.linear(v, linear.weight, linear.bias)
        return a if self.hidden == "gaussian" else torch.sigmoid(a)

    def down(self, h: Tensor, linear: nn.Linear) -> Tensor:
        """Return the input z (B, V) of the visible units given h (B, H)."""
        return F.linear(h, linear.weight.T, self.visible.bias)

    def keep(self) -> None:
        """After an update, store where this step took the chains."""
        if len(self.chains):
            self.chains.copy_(self.moved)


def rbm_layers(encoder: Any, method: str, visible: str, k: int, persistent: int) -> nn.ModuleList:
    """Return one machine for each layer of an MLP of sigmoids, whose last layer may be linear."""
    found = linears(encoder, method, k)
    kinds = ["bernoulli"] * len(found)
    if encoder.options["code"] == "linear":
        kinds[-1] = "gaussian"
    stack = enumerate(zip(found, kinds, strict=True))
    return nn.ModuleList(RBMLayer(linear, at, visible, kind, k, persistent) for at, (linear, kind) in stack)
