"""Intensity ops: they change values in [0, 1], which stay in [0, 1], and leave every pixel in place.

Scans that an op does not hit get neutral parameters (an exponent of 1, a standard deviation of 0, …): their rows keep every
bit, and a batch without hits costs nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from medssl.augmentations.op import Op, apply_to_rows, between
from medssl.errors import UserError
from medssl.rng import Key, normal_field

LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as in torchvision


def _per_row(p: Tensor, x: Tensor) -> Tensor:
    """Reshape (B,) to (B, 1, …, 1) on x's device."""
    return p.to(x.device, non_blocking=True).view(-1, *[1] * (x.ndim - 1))


def _factor(u: Tensor, spread: float) -> Tensor:
    return between(u, max(0.0, 1 - spread), 1 + spread)


def _log_between(u: Tensor, low: float, high: float) -> Tensor:
    return between(u, math.log(low), math.log(high)).exp()


@dataclass(frozen=True)
class Gamma(Op):
    """x ** exponent with probability `p`, exponent log-uniform in `exponent`."""

    p: float
    exponent: tuple[float, float]
    draws: ClassVar[int] = 4
    moves: ClassVar[bool] = False

    def params(self, u: Tensor) -> Tensor:
        """Return (B,) exponents."""
        return torch.where(u[:, 0] < self.p, _log_between(u[:, 1], *self.exponent), 1.0)

    def apply(self, x: Tensor, params: Tensor) -> Tensor:
        """x (B, C, *S) -> (B, C, *S)."""
        return apply_to_rows(x, params != 1, lambda x, g: x ** _per_row(g, x), params)


@dataclass(frozen=True)
class BrightnessContrast(Op):
    """With probability `p`, scale x by 1 ± `brightness`, then its deviation from its mean by 1 ± `contrast`; clamped twice.

    As torchvision's adjust_brightness and adjust_contrast, except that the mean weights all channels equally: they need
    not be RGB.
    """

    p: float
    brightness: float
    contrast: float
    draws: ClassVar[int] = 4
    moves: ClassVar[bool] = False

    def params(self, u: Tensor) -> Tensor:
        """Return (B, 2) factors."""
        factors = torch.stack([_factor(u[:, 1], self.brightness), _factor(u[:, 2], self.contrast)], 1)
        return torch.where(u[:, :1] < self.p, factors, 1.0)

    def apply(self, x: Tensor, params: Tensor) -> Tensor:
        """x (B, C, *S) -> (B, C, *S). On the whole batch: a factor of 1 is exact, and cheaper than selecting rows."""
        if not (params != 1).any():
            return x
        brightness, contrast = (_per_row(f, x) for f in params.unbind(1))
        x = (x * brightness).clamp_(0, 1)
        mean = x.flatten(1).mean(1).view(contrast.shape)
        return x.mul_(contrast).add_((1 - contrast) * mean).clamp_(0, 1)


class Grain(NamedTuple):
    """Noise field parameters."""

    std: Tensor  # (B,)
    seed: Tensor  # (B, 2) int64, 24 bits each


@dataclass(frozen=True)
class Noise(Op):
    """Add Gaussian noise with probability `p`, standard deviation uniform in `std`; clamped."""

    p: float
    std: tuple[float, float]
    draws: ClassVar[int] = 4
    moves: ClassVar[bool] = False

    def params(self, u: Tensor) -> Grain:
        """Return the standard deviations and seeds. Two of the uniforms seed the field, so it is a function of u alone."""
        return Grain(torch.where(u[:, 0] < self.p, between(u[:, 1], *self.std), 0.0), (u[:, 2:] * 2**24).long())

    def apply(self, x: Tensor, params: Grain) -> Tensor:
        """x (B, C, *S) -> (B, C, *S)."""

        def add(x: Tensor, std: Tensor, seed: Tensor) -> Tensor:
            field = normal_field(Key(0, *seed.unbind(1)), 0, 0, tuple(x.shape[1:]))
            return field.mul_(_per_row(std, x)).add_(x).clamp_(0, 1)

        return apply_to_rows(x, params.std > 0, add, *params)


@dataclass(frozen=True)
class Window(Op):
    """CT: apply one of `windows` with probability `p`; clamped.

    windows: name -> (level, width, weight), in HU; chosen in proportion to the weights. The level is shifted by up to
    `level` HU, the width scaled within 1 ± `width`. hu: the HU of 0 and 1 in the input.

    Raises UserError for a window that is not (level, width > 0, weight >= 0).
    """

    p: float
    hu: tuple[float, float]
    windows: Mapping[str, Sequence[float]]
    level: float
    width: float
    draws: ClassVar[int] = 4
    moves: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name, row in self.windows.items():
            if len(row) != 3 or row[1] <= 0 or row[2] < 0:
                raise UserError(f"CT window {name!r} is {list(row)}; give [level HU, width HU > 0, weight >= 0]")

    def params(self, u: Tensor) -> Tensor:
        """Return (B, 2): the input values that become 0 and 1."""
        table = torch.tensor([list(row) for row in self.windows.values()], dtype=torch.float32, device=u.device)
        edges = table[:, 2].cumsum(0) / table[:, 2].sum()
        chosen = table[torch.searchsorted(edges[:-1].contiguous(), u[:, 1].contiguous(), right=True)]
        level = chosen[:, 0] + between(u[:, 2], -self.level, self.level)
        half = chosen[:, 1] * _factor(u[:, 3], self.width) / 2
        unit = (torch.stack([level - half, level + half], 1) - self.hu[0]) / (self.hu[1] - self.hu[0])
        return torch.where(u[:, :1] < self.p, unit, torch.tensor([0.0, 1.0], device=u.device))

    def apply(self, x: Tensor, params: Tensor) -> Tensor:
        """x (B, C, *S) -> (B, C, *S). On the whole batch: the window (0, 1) is exact."""
        if not (params != params.new_tensor([0, 1])).any():
            return x
        low, high = (_per_row(e, x) for e in params.unbind(1))
        return (x - low).div_(high - low).clamp_(0, 1)


@dataclass(frozen=True)
class BiasField(Op):
    """MR: multiply by exp(polynomial of order <= 2 in position) with probability `p`; clamped.

    Coefficients in ± `strength`. The receive-coil model of Van Leemput et al., 1999 (https://doi.org/10.1109/42.811268).
    Positions run from -1 to 1 and every term has mean zero, so the field does not change the overall brightness.
    """

    p: float
    strength: float
    draws: ClassVar[int] = 12
    moves: ClassVar[bool] = False

    def params(self, u: Tensor) -> Tensor:
        """Return (B, 9) coefficients: x, y(, z), then their products; 2D uses the first five."""
        return torch.where(u[:, :1] < self.p, between(u[:, 1:10], -self.strength, self.strength), 0.0)

    def apply(self, x: Tensor, params: Tensor) -> Tensor:
        """x (B, C, *S) -> (B, C, *S); all channels share the field."""

        def multiply(x: Tensor, coefficients: Tensor) -> Tensor:
            terms = _terms(x.shape[2:], x)
            field = (coefficients[:, : len(terms)] @ terms.flatten(1)).exp_()
            return (x * field.view(-1, 1, *x.shape[2:])).clamp_(0, 1)

        return apply_to_rows(x, params.ne(0).any(1), multiply, params)


def _terms(shape: torch.Size, x: Tensor) -> Tensor:
    """Return (K, *shape) monomials of order 1 and 2 of the positions, each with mean zero."""
    axes = [torch.linspace(-1, 1, n, device=x.device) if n > 1 else x.new_zeros(1) for n in shape]
    at = list(torch.meshgrid(axes, indexing="ij"))
    terms = torch.stack(at + [a * b for i, a in enumerate(at) for b in at[i:]])
    return terms - terms.flatten(1).mean(1).view(-1, *[1] * len(shape))


@dataclass(frozen=True)
class Exposure(Op):
    """X-ray: gain * x ** exponent + offset with probability `p`; clamped.

    Exponent log-uniform in `exponent` (film and detector curves), gain in 1 ± `gain`, offset in ± `offset` (dose).
    """

    p: float
    exponent: tuple[float, float]
    gain: float
    offset: float
    draws: ClassVar[int] = 4
    moves: ClassVar[bool] = False

    def params(self, u: Tensor) -> Tensor:
        """Return (B, 3): exponent, gain, offset."""
        gain, offset = _factor(u[:, 2], self.gain), between(u[:, 3], -self.offset, self.offset)
        drawn = torch.stack([_log_between(u[:, 1], *self.exponent), gain, offset], 1)
        return torch.where(u[:, :1] < self.p, drawn, torch.tensor([1.0, 1.0, 0.0], device=u.device))

    def apply(self, x: Tensor, params: Tensor) -> Tensor:
        """x (B, C, *S) -> (B, C, *S)."""

        def curve(x: Tensor, params: Tensor) -> Tensor:
            exponent, gain, offset = (_per_row(p, x) for p in params.unbind(1))
            return (x**exponent).mul_(gain).add_(offset).clamp_(0, 1)

        return apply_to_rows(x, (params != params.new_tensor([1, 1, 0])).any(1), curve, params)


@dataclass(frozen=True)
class Solarize(Op):
    """Photographs: invert values of at least `threshold` with probability `p`."""

    p: float
    threshold: float = 0.5
    draws: ClassVar[int] = 4
    moves: ClassVar[bool] = False

    def params(self, u: Tensor) -> Tensor:
        """Return (B,) thresholds, infinite where nothing is inverted."""
        return torch.where(u[:, 0] < self.p, self.threshold, math.inf)

    def apply(self, x: Tensor, params: Tensor) -> Tensor:
        """x (B, C, *S) -> (B, C, *S)."""
        return apply_to_rows(x, params < math.inf, lambda x, t: torch.where(x >= _per_row(t, x), 1 - x, x), params)


def _grey(x: Tensor) -> Tensor:
    """Return the luma (B, 1, *S) of (B, 3, *S)."""
    return sum((w * x[:, c : c + 1] for c, w in enumerate(LUMA)), x.new_zeros(()))


@dataclass(frozen=True)
class ToGray(Op):
    """Photographs: replace all channels by the luma with probability `p`. No effect unless there are three channels."""

    p: float
    draws: ClassVar[int] = 4
    moves: ClassVar[bool] = False

    def params(self, u: Tensor) -> Tensor:
        """Return (B,) bool."""
        return u[:, 0] < self.p

    def apply(self, x: Tensor, params: Tensor) -> Tensor:
        """x (B, C, *S) -> (B, C, *S)."""
        return x if x.shape[1] != 3 else apply_to_rows(x, params, lambda x: _grey(x).expand_as(x))


@dataclass(frozen=True)
class Colour(Op):
    """Photographs: scale saturation by 1 ± `saturation`, then shift hue by ± `hue` of the circle, with probability `p`.

    As torchvision's adjust_saturation and adjust_hue. No effect unless there are three channels.
    """

    p: float
    saturation: float
    hue: float
    draws: ClassVar[int] = 4
    moves: ClassVar[bool] = False

    def params(self, u: Tensor) -> Tensor:
        """Return (B, 2): saturation factor, hue shift."""
        drawn = torch.stack([_factor(u[:, 1], self.saturation), between(u[:, 2], -self.hue, self.hue)], 1)
        return torch.where(u[:, :1] < self.p, drawn, torch.tensor([1.0, 0.0], device=u.device))

    def apply(self, x: Tensor, params: Tensor) -> Tensor:
        """x (B, C, *S) -> (B, C, *S)."""

        def paint(x: Tensor, params: Tensor) -> Tensor:
            factor, shift = (_per_row(p, x) for p in params.unbind(1))
            x = (x * factor + (1 - factor) * _grey(x)).clamp_(0, 1)
            return _turn_hue(x, shift)

        hit = (params != params.new_tensor([1, 0])).any(1)
        return x if x.shape[1] != 3 else apply_to_rows(x, hit, paint, params)


def _turn_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Shift the hue of x (B, 3, *S) in the hexcone of Smith, 1978 (https://doi.org/10.1145/965139.807361)."""
    r, g, b = x.split(1, 1)
    high, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    chroma = high - low
    safe = torch.where(chroma > 0, chroma, 1.0)
    hue = torch.where(high == r, (g - b) / safe, torch.where(high == g, 2 + (b - r) / safe, 4 + (r - g) / safe))
    # hue in sixths of the circle
    k = (x.new_tensor([5, 3, 1]).view(1, 3, *[1] * (x.ndim - 2)) + hue + 6 * shift) % 6
    return high - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)
