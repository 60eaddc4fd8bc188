"""Intensity ops: they change values in [0, 1], which stay in [0, 1], and leave every pixel in place."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from medssl.augmentations.op import Op, apply_to_rows, between
from medssl.errors import UserError, nearest
from medssl.rng import Key, normal_field
from medssl.store.intensity_windows import CT_RANGE, CT_WINDOWS

LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as in torchvision


@dataclass(frozen=True)
class IntensityOp(Op):
    """An op that hits each scan with probability `p`.

    Scans that are not hit get neutral parameters and keep every bit; a batch without hits costs nothing.
    """

    p: float
    draws: ClassVar[int] = 4  # the first decides whether a scan is hit
    moves: ClassVar[bool] = False
    neutral: ClassVar[tuple[float, ...]] = (0,)
    whole_batch: ClassVar[bool] = False  # faster than selecting rows, for a cheap `change` that is exact when neutral

    def draw(self, u: Tensor) -> Tensor:
        """Return the parameters (B, K) of scans that are hit, from u (B, draws)."""
        raise NotImplementedError

    def change(self, x: Tensor, params: Tensor) -> Tensor:
        """Apply parameters (B, K) to x (B, C, *S)."""
        raise NotImplementedError

    def params(self, u: Tensor) -> Tensor:
        """Return (B, K)."""
        drawn = self.draw(u)
        return torch.where(u[:, :1] < self.p, drawn, drawn.new_tensor(self.neutral))

    def apply(self, x: Tensor, params: Tensor) -> Tensor:
        """x (B, C, *S) -> (B, C, *S)."""
        hit = (params != params.new_tensor(self.neutral)).any(1)
        if self.whole_batch:
            return self.change(x, params.to(x.device, non_blocking=True)) if hit.any() else x
        return apply_to_rows(x, hit, self.change, params)


def _columns(params: Tensor, x: Tensor) -> list[Tensor]:
    """Split (B, K) into K tensors (B, 1, …, 1) with the dimensions of x."""
    return [p.view(-1, *[1] * (x.ndim - 1)) for p in params.unbind(1)]


def _factor(u: Tensor, spread: float) -> Tensor:
    return between(u, max(0.0, 1 - spread), 1 + spread)


def _log_between(u: Tensor, low: float, high: float) -> Tensor:
    return between(u, math.log(low), math.log(high)).exp()


@dataclass(frozen=True)
class Gamma(IntensityOp):
    """x ** exponent, exponent log-uniform in `exponent`."""

    exponent: tuple[float, float]
    neutral: ClassVar[tuple[float, ...]] = (1,)
    raised: ClassVar[tuple[str, ...]] = ("exponent",)

    def draw(self, u: Tensor) -> Tensor:
        """Return exponents (B, 1)."""
        return _log_between(u[:, 1:2], *self.exponent)

    def change(self, x: Tensor, params: Tensor) -> Tensor:
        """x ** exponent."""
        (exponent,) = _columns(params, x)
        return x**exponent


@dataclass(frozen=True)
class BrightnessContrast(IntensityOp):
    """Scale x by 1 ± `brightness`, then its deviation from its mean by 1 ± `contrast`; clamped after each.

    As torchvision's adjust_brightness and adjust_contrast, except that the mean weights all channels equally: they need
    not be RGB.
    """

    brightness: float
    contrast: float
    neutral: ClassVar[tuple[float, ...]] = (1, 1)
    multiplied: ClassVar[tuple[str, ...]] = ("brightness", "contrast")
    whole_batch: ClassVar[bool] = True

    def draw(self, u: Tensor) -> Tensor:
        """Return factors (B, 2)."""
        return torch.stack([_factor(u[:, 1], self.brightness), _factor(u[:, 2], self.contrast)], 1)

    def change(self, x: Tensor, params: Tensor) -> Tensor:
        """Scale, then scale about the mean."""
        brightness, contrast = _columns(params, x)
        x = (x * brightness).clamp_(0, 1)
        mean = x.flatten(1).mean(1).view(contrast.shape)
        return x.mul_(contrast).add_((1 - contrast) * mean).clamp_(0, 1)


@dataclass(frozen=True)
class Noise(IntensityOp):
    """Add Gaussian noise, standard deviation uniform in `std`; clamped."""

    std: tuple[float, float]
    neutral: ClassVar[tuple[float, ...]] = (0, 0, 0)
    multiplied: ClassVar[tuple[str, ...]] = ("std",)

    def draw(self, u: Tensor) -> Tensor:
        """Return (B, 3): the standard deviation and two uniforms that seed the field, so it is a function of u alone."""
        return torch.cat([between(u[:, 1:2], *self.std), u[:, 2:]], 1)

    def change(self, x: Tensor, params: Tensor) -> Tensor:
        """Add one field per scan."""
        seed = (params[:, 1:] * 2**24).long()
        field = normal_field(Key(0, *seed.unbind(1)), 0, 0, tuple(x.shape[1:]))
        return field.mul_(_columns(params, x)[0]).add_(x).clamp_(0, 1)


@dataclass(frozen=True)
class Window(IntensityOp):
    """CT: apply one of `windows`; clamped.

    windows: name in `CT_WINDOWS` -> weight; chosen in proportion to the weights. The level is shifted by up to `level` HU,
    the width scaled within 1 ± `width`. hu: the HU of 0 and 1 in the input, by default the store's window for CT.

    Raises UserError for a name without a window, a negative weight, or weights that are all 0.
    """

    windows: Mapping[str, float]
    level: float
    width: float
    hu: tuple[float, float] = CT_RANGE
    neutral: ClassVar[tuple[float, ...]] = (0, 1)
    multiplied: ClassVar[tuple[str, ...]] = ("level", "width")
    whole_batch: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, weight in self.windows.items():
            if name not in CT_WINDOWS:
                raise UserError(f"there is no CT window {name!r}.{nearest(name, CT_WINDOWS)}")
            if not (isinstance(weight, int | float) and 0 <= weight < math.inf):
                raise UserError(f"the weight of the CT window {name!r} is {weight!r}; give a number of at least 0")
        if not sum(self.windows.values()):
            raise UserError("no CT window has a weight above 0; give at least one")

    def draw(self, u: Tensor) -> Tensor:
        """Return (B, 2): the input values that become 0 and 1."""
        rows = [(*CT_WINDOWS[name], weight) for name, weight in self.windows.items()]
        table = torch.tensor(rows, dtype=torch.float32, device=u.device)
        edges = table[:, 2].cumsum(0) / table[:, 2].sum()
        chosen = table[torch.searchsorted(edges[:-1].contiguous(), u[:, 1].contiguous(), right=True)]
        level = chosen[:, 0] + between(u[:, 2], -self.level, self.level)
        half = chosen[:, 1] * _factor(u[:, 3], self.width) / 2
        return (torch.stack([level - half, level + half], 1) - self.hu[0]) / (self.hu[1] - self.hu[0])

    def change(self, x: Tensor, params: Tensor) -> Tensor:
        """Map the window to [0, 1]."""
        low, high = _columns(params, x)
        return (x - low).div_(high - low).clamp_(0, 1)


@dataclass(frozen=True)
class BiasField(IntensityOp):
    """MR: multiply by exp(polynomial of order <= 2 in position), coefficients in ± `strength`; clamped.

    The receive-coil model of Van Leemput et al., 1999 (https://doi.org/10.1109/42.811268). Positions run from -1 to 1 and
    every term has mean zero, so the field does not change the overall brightness.
    """

    strength: float
    draws: ClassVar[int] = 12
    neutral: ClassVar[tuple[float, ...]] = (0,) * 9
    multiplied: ClassVar[tuple[str, ...]] = ("strength",)

    def draw(self, u: Tensor) -> Tensor:
        """Return coefficients (B, 9): x, y(, z), then their products; 2D uses the first five."""
        return between(u[:, 1:10], -self.strength, self.strength)

    def change(self, x: Tensor, params: Tensor) -> Tensor:
        """Multiply by the field, the same for all channels."""
        terms = _terms(x.shape[2:], x)
        field = (params[:, : len(terms)] @ terms.flatten(1)).exp_()
        return (x * field.view(-1, 1, *x.shape[2:])).clamp_(0, 1)


def _terms(shape: torch.Size, x: Tensor) -> Tensor:
    """Return (K, *shape) monomials of order 1 and 2 of the positions, each with mean zero."""
    axes = [torch.linspace(-1, 1, n, device=x.device) if n > 1 else x.new_zeros(1) for n in shape]
    at = list(torch.meshgrid(axes, indexing="ij"))
    terms = torch.stack(at + [a * b for i, a in enumerate(at) for b in at[i:]])
    return terms - terms.flatten(1).mean(1).view(-1, *[1] * len(shape))


@dataclass(frozen=True)
class Exposure(IntensityOp):
    """X-ray: gain * x ** exponent + offset; clamped.

    Exponent log-uniform in `exponent` (film and detector curves), gain in 1 ± `gain`, offset in ± `offset` (dose).
    """

    exponent: tuple[float, float]
    gain: float
    offset: float
    neutral: ClassVar[tuple[float, ...]] = (1, 1, 0)
    multiplied: ClassVar[tuple[str, ...]] = ("gain", "offset")
    raised: ClassVar[tuple[str, ...]] = ("exponent",)

    def draw(self, u: Tensor) -> Tensor:
        """Return (B, 3): exponent, gain, offset."""
        gain, offset = _factor(u[:, 2], self.gain), between(u[:, 3], -self.offset, self.offset)
        return torch.stack([_log_between(u[:, 1], *self.exponent), gain, offset], 1)

    def change(self, x: Tensor, params: Tensor) -> Tensor:
        """gain * x ** exponent + offset."""
        exponent, gain, offset = _columns(params, x)
        return (x**exponent).mul_(gain).add_(offset).clamp_(0, 1)


@dataclass(frozen=True)
class Solarize(IntensityOp):
    """Photographs: invert values of at least `threshold`."""

    threshold: float = 0.5
    neutral: ClassVar[tuple[float, ...]] = (math.inf,)

    def draw(self, u: Tensor) -> Tensor:
        """Return thresholds (B, 1)."""
        return torch.full_like(u[:, :1], self.threshold)

    def change(self, x: Tensor, params: Tensor) -> Tensor:
        """Invert the bright values."""
        (threshold,) = _columns(params, x)
        return torch.where(x >= threshold, 1 - x, x)


def _grey(x: Tensor) -> Tensor:
    """Return the luma (B, 1, *S) of (B, 3, *S)."""
    red, green, blue = x.split(1, 1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


@dataclass(frozen=True)
class ToGray(IntensityOp):
    """Photographs: replace all channels by the luma. No effect unless there are three channels."""

    def draw(self, u: Tensor) -> Tensor:
        """Return ones (B, 1)."""
        return torch.ones_like(u[:, :1])

    def change(self, x: Tensor, params: Tensor) -> Tensor:
        """Replace all channels by the luma."""
        return _grey(x).expand_as(x) if x.shape[1] == 3 else x


@dataclass(frozen=True)
class Colour(IntensityOp):
    """Photographs: scale saturation by 1 ± `saturation`, then shift hue by ± `hue` of the circle.

    As torchvision's adjust_saturation and adjust_hue. No effect unless there are three channels.
    """

    saturation: float
    hue: float
    neutral: ClassVar[tuple[float, ...]] = (1, 0)
    multiplied: ClassVar[tuple[str, ...]] = ("saturation", "hue")

    def draw(self, u: Tensor) -> Tensor:
        """Return (B, 2): saturation factor, hue shift."""
        return torch.stack([_factor(u[:, 1], self.saturation), between(u[:, 2], -self.hue, self.hue)], 1)

    def change(self, x: Tensor, params: Tensor) -> Tensor:
        """Scale saturation, then shift hue."""
        if x.shape[1] != 3:
            return x
        factor, shift = _columns(params, x)
        return _turn_hue(torch.lerp(_grey(x).expand_as(x), x, factor).clamp_(0, 1), shift)


def _turn_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Shift the hue of x (B, 3, *S) in the hexcone of Smith, 1978 (https://doi.org/10.1145/965139.807361).

    Computed in planes, of which most are changed in place: this is the op of a photograph that takes longest.
    """
    r, g, b = x.unbind(1)
    high, low = torch.maximum(r, g), torch.minimum(r, g)
    high, low = torch.maximum(high, b), torch.minimum(low, b)
    chroma = high - low
    is_r, is_g = high == r, high == g
    # hue in sixths of the circle; 0 for a grey
    hue = torch.where(is_r, g - b, torch.where(is_g, b - r, r - g)).div_(chroma.clamp(min=1e-30))
    hue.add_(torch.where(is_r, 0.0, torch.where(is_g, 2.0, 4.0))).add_(6 * shift[:, 0])
    hue.sub_((hue / 6).floor_().mul_(6))
    out = torch.empty_like(x)
    for c, share in enumerate(
        ((hue - 3).abs_().sub_(1), (hue - 2).abs_().neg_().add_(2), (hue - 4).abs_().neg_().add_(2))
    ):
        torch.addcmul(low, share.clamp_(0, 1), chroma, out=out[:, c])
    return out
