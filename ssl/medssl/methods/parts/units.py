"""Units of Boltzmann machines: those that look at a scan or a layer, and the randomness of all."""

import torch
from torch import Tensor, nn

from medssl.errors import UserError, nearest
from medssl.losses.distributed import gather_rows
from medssl.methods.base import Clock
from medssl.rng import Key, normal_field, uniform_field

SLOT = 1000  # views use the slots below
KINDS = ("bernoulli", "gaussian")


def sample_bernoulli(p: Tensor, key: Key, slot: int) -> Tensor:
    """(B, D) probabilities -> samples 0 and 1, in their type."""
    return (uniform_field(key, 0, slot, tuple(p.shape[1:])) < p).to(p.dtype)


def sample_gaussian(mean: Tensor, key: Key, slot: int) -> Tensor:
    """(B, D) means -> samples of variance 1, in their type."""
    return mean + normal_field(key, 0, slot, tuple(mean.shape[1:])).to(mean.dtype)


def chain_key(key: Key, clock: Clock, n: int, device: torch.device) -> Key:
    """The randomness of n chains at a step: the same on every rank."""
    return Key(key.seed, torch.full((n,), clock.step, device=device), torch.arange(n, device=device))


class Visible(nn.Module):
    """The units below a machine, given z = b + W'h (B, V) from above.

    gaussian: normal with mean z and variance 1, for standardised pixels. bernoulli: two values, `low` and `high`, with
    p(high) = sigmoid((high - low) z). In a layer these are 0 and 1. In a scan they are the least and the largest value seen
    so far, on any rank: the standardised ends of the intensity window, as long as views do not leave it (plain, crop).
    Values in between are taken as means: where low is 0 and high is 1 they are probabilities, as Hinton takes intensities.
    This way the weights apply to standardised scans, as they do in the encoder that is handed over.

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
    def observe(self, x: Tensor) -> Tensor:
        """(B, *) -> (B, V), and the range noted; the first time, the biases are set."""
        v = x.flatten(1).to(self.bias.dtype)
        if self.follows:
            ends = gather_rows(torch.stack([v.amin(), v.amax()])[None])
            self.low.copy_(torch.minimum(self.low, ends[:, 0].amin()))
            self.high.copy_(torch.maximum(self.high, ends[:, 1].amax()))
        if not self.started:
            mean = gather_rows(v.mean(0)[None]).mean(0)
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
            return sample_gaussian(z, key, slot)
        return self.low + self.width * sample_bernoulli(torch.sigmoid(self.logit(z)), key, slot)
