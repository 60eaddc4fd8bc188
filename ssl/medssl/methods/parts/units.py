"""Units of Boltzmann machines: visible units, and the sampling of all units."""

import torch
from torch import Tensor, nn

from medssl.errors import UserError, nearest
from medssl.losses.distributed import gather_rows
from medssl.rng import Key, normal_field, uniform_field

KINDS = ("bernoulli", "gaussian")


def sample_bernoulli(p: Tensor, key: Key, slot: int) -> Tensor:
    """Sample 0 or 1 from probabilities p (B, D), in their dtype."""
    return (uniform_field(key, 0, slot, tuple(p.shape[1:])) < p).to(p.dtype)


def sample_gaussian(mean: Tensor, key: Key, slot: int) -> Tensor:
    """Sample normals of variance 1 around means (B, D), in their dtype."""
    return mean + normal_field(key, 0, slot, tuple(mean.shape[1:])).to(mean.dtype)


class Visible(nn.Module):
    """The visible units of a machine, with input z = b + W'h (B, V).

    gaussian: normal with mean z and variance 1, for standardised pixels. bernoulli: two values, `low` and `high`, with
    p(high) = sigmoid((high - low) z). For a layer these are 0 and 1; for a scan they are the least and the largest value
    seen so far on any rank, which are the standardised ends of the intensity window for views that stay inside it (plain,
    crop). Values in between are treated as means, as Hinton treats intensities in [0, 1] as probabilities. The weights
    therefore apply to standardised scans, as in the exported encoder.

    The biases start where z = b gives the means of the first batch (Hinton, 2010, section 8). units: V. scan: whether the
    units are the pixels of a scan, rather than a layer.
    """

    low: Tensor
    high: Tensor
    started: Tensor

    def __init__(self, units: int, kind: str, scan: bool):
        super().__init__()
        if kind not in KINDS:
            raise UserError(f"method.visible is {kind!r}.{nearest(kind, KINDS)}")
        self.kind, self.tracks_range = kind, scan and kind == "bernoulli"
        self.bias = nn.Parameter(torch.zeros(units))
        self.register_buffer("low", torch.tensor(torch.inf if self.tracks_range else 0.0))
        self.register_buffer("high", torch.tensor(-torch.inf if self.tracks_range else 1.0))
        self.register_buffer("started", torch.tensor(False))

    @torch.no_grad()
    def observe(self, x: Tensor) -> Tensor:
        """Flatten x (B, *) to (B, V) and update the range; the first time, set the biases."""
        v = x.flatten(1).to(self.bias.dtype)
        if self.tracks_range:
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
        """high - low, or 1 while only one value has been seen."""
        return torch.where(self.high > self.low, self.high - self.low, 1.0)

    def unit(self, v: Tensor) -> Tensor:
        """Scale values to [0, 1]."""
        return (v - self.low) / self.width

    def logit(self, z: Tensor) -> Tensor:
        """Return the logit of p(high) for input z."""
        return z * self.width

    def mean(self, z: Tensor) -> Tensor:
        """Return the expected values (B, V) for input z."""
        return z if self.kind == "gaussian" else self.low + self.width * torch.sigmoid(self.logit(z))

    def sample(self, z: Tensor, key: Key, slot: int) -> Tensor:
        if self.kind == "gaussian":
            return sample_gaussian(z, key, slot)
        return self.low + self.width * sample_bernoulli(torch.sigmoid(self.logit(z)), key, slot)
