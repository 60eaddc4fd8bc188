"""What Boltzmann machines share: the units that look at a scan or a layer, and one restricted machine above them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medssl.encoders.mlp import MLP
from medssl.errors import UserError, nearest
from medssl.methods.base import Clock
from medssl.objectives.energy import contrastive_divergence
from medssl.objectives.ranks import all_rows
from medssl.objectives.regression import squared_error
from medssl.rng import Key, normal_field, uniform_field

SLOT = 1000  # views use the slots below
KINDS = ("bernoulli", "gaussian")


def linears(encoder: Any, method: str, k: int) -> list[nn.Linear]:
    """The weights and biases of every layer, which become those of the machines. UserError for what is no sigmoid MLP."""
    if not isinstance(encoder, MLP):
        raise UserError(f"{method} needs fully connected layers, not {type(encoder).__name__}; use encoder=mlp")
    if encoder.options["activation"] != "sigmoid":
        raise UserError(f"{method}: binary units are sigmoids; set encoder.activation=sigmoid")
    if k < 1:
        raise UserError(f"method.k, the steps of Gibbs sampling, must be at least 1, got {k}")
    return [m for layer in encoder.layers for m in layer.modules() if isinstance(m, nn.Linear)]


def bits(p: Tensor, key: Key, slot: int) -> Tensor:
    """(B, D) probabilities -> samples 0 and 1, in their type."""
    return (uniform_field(key, 0, slot, tuple(p.shape[1:])) < p).to(p.dtype)


def chain_key(key: Key, clock: Clock, n: int, device: torch.device) -> Key:
    """The randomness of n chains at a step: the same on every rank."""
    return Key(key.seed, torch.full((n,), clock.step, device=device), torch.arange(n, device=device))


class Visible(nn.Module):
    """The units below a machine, given z = b + W'h (B, V) from above.

    gaussian: normal with mean z and variance 1, for standardised pixels. bernoulli: two values, `low` and `high`, with
    p(high) = sigmoid((high - low) z). In a layer these are 0 and 1. In a scan they are the least and the largest value seen
    so far, on any rank: the standardised ends of the intensity window, as long as views do not leave it (plain, crop).
    Values in between are taken as means, which are what (0, 1) intensities taken as probabilities are. So the weights apply
    to standardised scans, as they do in the encoder that is handed over.

    The biases start where the means of the first batch are what z = b gives (Hinton, 2010, section 8).
    """

    low: Tensor
    high: Tensor
    started: Tensor

    def __init__(self, units: int, kind: str, scan: bool):
        super().__init__()
        if kind not in KINDS:
            raise UserError(f"method.visible is {kind!r}.{nearest(kind, KINDS)}")
        self.kind, self.follows = kind, scan and kind == "bernoulli"
        self.bias = nn.Parameter(torch.zeros(units))
        self.register_buffer("low", torch.tensor(torch.inf if self.follows else 0.0))
        self.register_buffer("high", torch.tensor(-torch.inf if self.follows else 1.0))
        self.register_buffer("started", torch.tensor(False))

    @torch.no_grad()
    def see(self, x: Tensor) -> Tensor:
        """(B, *) -> (B, V), and the range noted; the first time, the biases are set."""
        v = x.flatten(1).to(self.bias.dtype)
        if self.follows:
            ends = all_rows(torch.stack([v.amin(), v.amax()])[None])
            self.low.copy_(torch.minimum(self.low, ends[:, 0].amin()))
            self.high.copy_(torch.maximum(self.high, ends[:, 1].amax()))
        if not self.started:
            mean = all_rows(v.mean(0)[None]).mean(0)
            if self.kind == "bernoulli":
                mean = self.unit(mean).clamp(0.01, 0.99).logit() / self.width
            self.bias.copy_(mean)
            self.started.fill_(True)
        return v

    @property
    def width(self) -> Tensor:
        """high - low; 1 when nothing but one value has been seen."""
        return torch.where(self.high > self.low, self.high - self.low, 1.0)

    def unit(self, v: Tensor) -> Tensor:
        """Values -> [0, 1]."""
        return (v - self.low) / self.width

    def logit(self, z: Tensor) -> Tensor:
        """z -> that of the probability of `high`."""
        return z * self.width

    def mean(self, z: Tensor) -> Tensor:
        """(B, V) -> expected values."""
        return z if self.kind == "gaussian" else self.low + self.width * torch.sigmoid(self.logit(z))

    def sample(self, z: Tensor, key: Key, slot: int) -> Tensor:
        if self.kind == "gaussian":
            return z + normal_field(key, 0, slot, tuple(z.shape[1:])).to(z.dtype)
        return self.low + self.width * bits(torch.sigmoid(self.logit(z)), key, slot)


class Machine(nn.Module):
    """A restricted Boltzmann machine between the input of a linear layer and its output.

    linear: (V -> H), the encoder's; given at every call, so that its parameters have one owner. at: which layer, from 0 on;
    those above 0 see Bernoulli units. hidden: bernoulli, or gaussian for a linear code. k: steps of Gibbs sampling.
    persistent: chains that go on from update to update (Tieleman, 2008, https://doi.org/10.1145/1390156.1390290), all of
    them on every rank; 0 starts one at every scan: CD-k.
    """

    chains: Tensor  # (persistent, V)

    def __init__(self, linear: nn.Linear, at: int, visible: str, hidden: str, k: int, persistent: int):
        super().__init__()
        if persistent < 0:
            raise UserError(f"method.persistent is a number of chains, 0 for none; got {persistent}")
        self.visible = Visible(linear.in_features, visible if at == 0 else "bernoulli", at == 0)
        if self.visible.kind == hidden == "gaussian":
            raise UserError("Gaussian units above Gaussian ones have no least energy; set method.visible=bernoulli")
        self.hidden, self.k, self.slot = hidden, k, SLOT + 2 * k * at
        self.register_buffer("chains", torch.randn(persistent, linear.in_features))
        self.moved = self.chains

    def forward(self, x: Tensor, linear: nn.Linear, key: Key, clock: Clock) -> dict[str, Tensor]:
        """x (B, *) -> the loss, and the mean squared error of rebuilding x from the mean of h."""
        v = self.visible.see(x)
        W, c = linear.weight, linear.bias
        with torch.no_grad(), torch.autocast(v.device.type, enabled=False):
            error = squared_error(self.visible.mean(self.down(self.up(v, linear), linear)), v)
            s = v
            if n := len(self.chains):
                s, key = self.chains, chain_key(key, clock, n, v.device)
            for slot in range(self.slot, self.slot + 2 * self.k, 2):
                a = self.up(s, linear)
                h = bits(a, key, slot)
                if self.hidden == "gaussian":
                    h = a + normal_field(key, 0, slot, tuple(a.shape[1:])).to(a.dtype)
                s = self.visible.sample(self.down(h, linear), key, slot + 1)
            self.moved = s
        loss = contrastive_divergence(v, s, W, c, self.visible.bias, self.visible.kind, self.hidden)
        return {"loss": loss, "error": error}

    def up(self, v: Tensor, linear: nn.Linear) -> Tensor:
        """(B, V) -> the mean of h (B, H)."""
        a = F.linear(v, linear.weight, linear.bias)
        return a if self.hidden == "gaussian" else torch.sigmoid(a)

    def down(self, h: Tensor, linear: nn.Linear) -> Tensor:
        """(B, H) -> z (B, V), what the visible units are told."""
        return F.linear(h, linear.weight.T, self.visible.bias)

    def keep(self) -> None:
        """After an update: the chains go on from where this step took them."""
        if len(self.chains):
            self.chains.copy_(self.moved)


def machines(encoder: Any, method: str, visible: str, k: int, persistent: int) -> nn.ModuleList:
    """One for each layer of an MLP of sigmoids, whose last may be linear."""
    found = linears(encoder, method, k)
    kinds = ["bernoulli"] * len(found)
    if encoder.options["code"] == "linear":
        kinds[-1] = "gaussian"
    stack = enumerate(zip(found, kinds, strict=True))
    return nn.ModuleList(Machine(linear, at, visible, kind, k, persistent) for at, (linear, kind) in stack)
