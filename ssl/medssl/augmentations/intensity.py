"""Ops that change values and leave pixels where they are. Images are in unit range [0, 1] and stay there.

The same contract as in `geometry`: `params(u)`, `apply(x, params)`. Parameters that change nothing (an exponent of 1, a
standard deviation of 0, …) stand for "not hit": such rows come out bit for bit as they went in, and a batch without
hits costs nothing.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from medssl.augmentations.geometry import between, rows_only
from medssl.rng import Key, normal_field

LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as in torchvision


def _per_row(p: Tensor, x: Tensor) -> Tensor:
    """(B,) -> (B, 1, …, 1), on x's device."""
    return p.to(x.device, non_blocking=True).view(-1, *[1] * (x.ndim - 1))


def _factor(u: Tensor, spread: float) -> Tensor:
    return between(u, max(0.0, 1 - spread), 1 + spread)


def _log_between(u: Tensor, low: float, high: float) -> Tensor:
    return between(u, math.log(low), math.log(high)).exp()


@dataclass(frozen=True)
class Gamma:
    """x ** exponent with probability `p`, exponent log-uniform in `exponent`."""

    p: float
    exponent: tuple[float, float]
    draws: ClassVar[int] = 4

    def params(self, u: Tensor) -> Tensor:
        """(B,) exponents."""
        return torch.where(u[:, 0] < self.p, _log_between(u[:, 1], *self.exponent), 1.0)

    def apply(self, x: Tensor, params: Tensor) -> Tensor:
        """x (B, C, *S) -> alike."""
        return rows_only(x, params != 1, lambda x, g: x ** _per_row(g, x), params)


@dataclass(frozen=True)
class BrightnessContrast:
    """x times 1 ± `brightness`, then away from or towards the image's mean by 1 ± `contrast`; clamped after each.

    torchvision's adjust_brightness and adjust_contrast, but the mean is over all channels alike: they need not be RGB.
    """

    p: float
    brightness: float
    contrast: float
    draws: ClassVar[int] = 4

    def params(self, u: Tensor) -> Tensor:
        """(B, 2) factors."""
        factors = torch.stack([_factor(u[:, 1], self.brightness), _factor(u[:, 2], self.contrast)], 1)
        return torch.where(u[:, :1] < self.p, factors, 1.0)

    def apply(self, x: Tensor, params: Tensor) -> Tensor:
        """x (B, C, *S) -> alike. Whole batch: a factor of 1 is exact, and cheaper than picking rows."""
        if not (params != 1).any():
            return x
        brightness, contrast = (_per_row(f, x) for f in params.unbind(1))
        x = (x * brightness).clamp_(0, 1)
        mean = x.flatten(1).mean(1).view(contrast.shape)
        return x.mul_(contrast).add_((1 - contrast) * mean).clamp_(0, 1)


class Grain(NamedTuple):
    """One noise field per scan."""

    std: Tensor  # (B,)
    seed: Tensor  # (B, 2) int64, 24 bits each


@dataclass(frozen=True)
class Noise:
    """Adds Gaussian noise with probability `p`, standard deviation uniform in `std`; clamped."""

    p: float
    std: tuple[float, float]
    draws: ClassVar[int] = 4

    def params(self, u: Tensor) -> Grain:
        """The field is keyed by two of the uniforms, so that it too is a function of u alone."""
        return Grain(torch.where(u[:, 0] < self.p, between(u[:, 1], *self.std), 0.0), (u[:, 2:] * 2**24).long())

    def apply(self, x: Tensor, params: Grain) -> Tensor:
        """x (B, C, *S) -> alike."""

        def add(x: Tensor, std: Tensor, seed: Tensor) -> Tensor:
            field = normal_field(Key(0, *seed.unbind(1)), 0, 0, tuple(x.shape[1:]))
            return field.mul_(_per_row(std, x)).add_(x).clamp_(0, 1)

        return rows_only(x, params.std > 0, add, *params)


@dataclass(frozen=True)
class Window:
    """CT: shows one of `windows`, (level, width, weight) in HU, chosen by weight, with probability `p`; clamped.

    Level moves by up to `level` HU, width by a factor within 1 ± `width`. `hu` is what 0 and 1 stand for in the input.
    """

    p: float
    hu: tuple[float, float]
    windows: tuple[tuple[float, float, float], ...]
    level: float
    width: float
    draws: ClassVar[int] = 4

    def params(self, u: Tensor) -> Tensor:
        """(B, 2): which input values become 0 and 1."""
        table = torch.tensor(self.windows, device=u.device)
        edges = table[:, 2].cumsum(0) / table[:, 2].sum()
        chosen = table[torch.searchsorted(edges[:-1].contiguous(), u[:, 1].contiguous(), right=True)]
        level = chosen[:, 0] + between(u[:, 2], -self.level, self.level)
        half = chosen[:, 1] * _factor(u[:, 3], self.width) / 2
        unit = (torch.stack([level - half, level + half], 1) - self.hu[0]) / (self.hu[1] - self.hu[0])
        return torch.where(u[:, :1] < self.p, unit, torch.tensor([0.0, 1.0], device=u.device))

    def apply(self, x: Tensor, params: Tensor) -> Tensor:
        """x (B, C, *S) -> alike. Whole batch: the window (0, 1) is exact."""
        if not (params != params.new_tensor([0, 1])).any():
            return x
        low, high = (_per_row(e, x) for e in params.unbind(1))
        return (x - low).div_(high - low).clamp_(0, 1)


@dataclass(frozen=True)
class BiasField:
    """MR: times exp(polynomial of order <= 2 in position) with probability `p`, coefficients in ± `strength`; clamped.

    The receive-coil model of Van Leemput et al., 1999 (https://doi.org/10.1109/42.811268). Positions run from -1 to 1
    and every term has mean zero, so the field tilts and bows an image and does not brighten it as a whole.
    """

    p: float
    strength: float
    draws: ClassVar[int] = 12

    def params(self, u: Tensor) -> Tensor:
        """(B, 9) coefficients: x, y(, z) then their products; 2D uses the first five."""
        return torch.where(u[:, :1] < self.p, between(u[:, 1:10], -self.strength, self.strength), 0.0)

    def apply(self, x: Tensor, params: Tensor) -> Tensor:
        """x (B, C, *S) -> alike; all channels share the field."""

        def multiply(x: Tensor, coefficients: Tensor) -> Tensor:
            terms = _terms(x.shape[2:], x)
            field = (coefficients[:, : len(terms)] @ terms.flatten(1)).exp_()
            return (x * field.view(-1, 1, *x.shape[2:])).clamp_(0, 1)

        return rows_only(x, params.ne(0).any(1), multiply, params)


def _terms(shape: torch.Size, x: Tensor) -> Tensor:
    """(K, *shape) monomials of order 1 and 2 of the positions, each with mean zero."""
    axes = [torch.linspace(-1, 1, n, device=x.device) if n > 1 else x.new_zeros(1) for n in shape]
    at = list(torch.meshgrid(axes, indexing="ij"))
    terms = torch.stack(at + [a * b for i, a in enumerate(at) for b in at[i:]])
    return terms - terms.flatten(1).mean(1).view(-1, *[1] * len(shape))


@dataclass(frozen=True)
class Exposure:
    """X-ray: gain * x ** exponent + offset with probability `p`; clamped.

    Exponent log-uniform in `exponent` (film and detector curves), gain in 1 ± `gain`, offset in ± `offset` (dose).
    """

    p: float
    exponent: tuple[float, float]
    gain: float
    offset: float
    draws: ClassVar[int] = 4

    def params(self, u: Tensor) -> Tensor:
        """(B, 3): exponent, gain, offset."""
        gain, offset = _factor(u[:, 2], self.gain), between(u[:, 3], -self.offset, self.offset)
        drawn = torch.stack([_log_between(u[:, 1], *self.exponent), gain, offset], 1)
        return torch.where(u[:, :1] < self.p, drawn, torch.tensor([1.0, 1.0, 0.0], device=u.device))

    def apply(self, x: Tensor, params: Tensor) -> Tensor:
        """x (B, C, *S) -> alike."""

        def curve(x: Tensor, params: Tensor) -> Tensor:
            exponent, gain, offset = (_per_row(p, x) for p in params.unbind(1))
            return (x**exponent).mul_(gain).add_(offset).clamp_(0, 1)

        return rows_only(x, (params != params.new_tensor([1, 1, 0])).any(1), curve, params)


@dataclass(frozen=True)
class Solarize:
    """Photographs: inverts values of at least `threshold` with probability `p`."""

    p: float
    threshold: float = 0.5
    draws: ClassVar[int] = 4

    def params(self, u: Tensor) -> Tensor:
        """(B,) thresholds, infinite where nothing is inverted."""
        return torch.where(u[:, 0] < self.p, self.threshold, math.inf)

    def apply(self, x: Tensor, params: Tensor) -> Tensor:
        """x (B, C, *S) -> alike."""
        return rows_only(x, params < math.inf, lambda x, t: torch.where(x >= _per_row(t, x), 1 - x, x), params)


def _grey(x: Tensor) -> Tensor:
    """(B, 3, *S) -> (B, 1, *S)."""
    return sum((w * x[:, c : c + 1] for c, w in enumerate(LUMA)), x.new_zeros(()))


@dataclass(frozen=True)
class ToGray:
    """Photographs: all channels become the luma with probability `p`. Leaves images without three channels alone."""

    p: float
    draws: ClassVar[int] = 4

    def params(self, u: Tensor) -> Tensor:
        """(B,) bool."""
        return u[:, 0] < self.p

    def apply(self, x: Tensor, params: Tensor) -> Tensor:
        """x (B, C, *S) -> alike."""
        return x if x.shape[1] != 3 else rows_only(x, params, lambda x: _grey(x).expand_as(x))


@dataclass(frozen=True)
class Colour:
    """Photographs: saturation times 1 ± `saturation`, then hue turned by ± `hue` of the circle, with probability `p`.

    torchvision's adjust_saturation and adjust_hue. Leaves images without three channels alone.
    """

    p: float
    saturation: float
    hue: float
    draws: ClassVar[int] = 4

    def params(self, u: Tensor) -> Tensor:
        """(B, 2): saturation factor, hue shift."""
        drawn = torch.stack([_factor(u[:, 1], self.saturation), between(u[:, 2], -self.hue, self.hue)], 1)
        return torch.where(u[:, :1] < self.p, drawn, torch.tensor([1.0, 0.0], device=u.device))

    def apply(self, x: Tensor, params: Tensor) -> Tensor:
        """x (B, C, *S) -> alike."""

        def paint(x: Tensor, params: Tensor) -> Tensor:
            factor, shift = (_per_row(p, x) for p in params.unbind(1))
            x = (x * factor + (1 - factor) * _grey(x)).clamp_(0, 1)
            return _turn_hue(x, shift)

        hit = (params != params.new_tensor([1, 0])).any(1)
        return x if x.shape[1] != 3 else rows_only(x, hit, paint, params)


def _turn_hue(x: Tensor, shift: Tensor) -> Tensor:
    """x (B, 3, *S); the hexcone of Smith, 1978 (https://doi.org/10.1145/965139.807361), hue in sixths of the circle."""
    r, g, b = x.split(1, 1)
    high, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    chroma = high - low
    safe = torch.where(chroma > 0, chroma, 1.0)
    hue = torch.where(high == r, (g - b) / safe, torch.where(high == g, 2 + (b - r) / safe, 4 + (r - g) / safe))
    k = (x.new_tensor([5, 3, 1]).view(1, 3, *[1] * (x.ndim - 2)) + hue + 6 * shift) % 6
    return high - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)
