"""Geometric ops: resize, crop, flip, blur and rotation.

All but the last are one matrix per axis, which together cost one product per axis. That suits a GPU. On a processor, where each
output needs a few inputs only, crop, flip and blur are applied one after another, in a third of the time (`Separable.direct`).
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from medssl.augmentations.op import Op, apply_to_rows, between
from medssl.augmentations.resampling import blurred, interpolated, places
from medssl.resample import apply_axes, axis_weights

Weights = list[Tensor]  # one (B, out, in) or (out, in) matrix per spatial axis


class Separable(Op):
    """An op that is one matrix per axis, so that crop, flip and blur together cost one matrix product per axis."""

    def fold(self, weights: Weights | None, params: Any, x: Tensor) -> Weights | None:
        """Return the matrices of `weights` (None: identity) followed by this op on x; None for the identity."""
        raise NotImplementedError

    def direct(self, x: Tensor, params: Any) -> Tensor | None:
        """Return this op of x on a processor where that is faster than its matrices, else None."""
        return None

    def apply(self, x: Tensor, params: Any) -> Tensor:
        """x (B, C, *S) -> (B, C, *S')."""
        if x.is_cpu and (done := self.direct(x, params)) is not None:
            return done
        weights = self.fold(None, params, x)
        return x if weights is None else apply_axes(x, weights).contiguous()


def _after(new: Weights, old: Weights | None) -> Weights:
    return new if old is None else [n @ o for n, o in zip(new, old, strict=True)]


def _lengths(weights: Weights | None, x: Tensor) -> list[int]:
    """Return the spatial shape of x after `weights`."""
    return list(x.shape[2:]) if weights is None else [w.shape[-2] for w in weights]


def _identity(lengths: list[int], x: Tensor) -> Weights:
    return [torch.eye(n, device=x.device, dtype=x.dtype).expand(len(x), n, n) for n in lengths]


@dataclass(frozen=True)
class Resize(Separable):
    """Resize to `size` with antialiasing."""

    size: tuple[int, ...]
    draws: ClassVar[int] = 0
    moves: ClassVar[bool] = True

    def params(self, u: Tensor) -> None:
        """Return None: there are no parameters."""

    def fold(self, weights: Weights | None, params: None, x: Tensor) -> Weights | None:
        """Return one (out, in) matrix per axis, shared by the batch."""
        lengths = _lengths(weights, x)
        if lengths == list(self.size):
            return weights
        zero = x.new_zeros(1)
        return _after(
            [axis_weights(zero, zero + n, n, m, longest=n)[0] for n, m in zip(lengths, self.size, strict=True)], weights
        )


class Box(NamedTuple):
    """Boxes as fractions of an image of any size."""

    extent: Tensor  # (B, D) fraction of each axis, in (0, 1]
    at: Tensor  # (B, D) fraction of the free space that lies before the box, in [0, 1)


@dataclass(frozen=True)
class Crop(Separable):
    """Random resized crop: a whole-pixel box with a fraction `scale` of the image, resized to `size` with antialiasing.

    As in Szegedy et al., 2015 (https://arxiv.org/abs/1409.4842) and torchvision's RandomResizedCrop: fraction uniform in
    `scale`, aspect ratio log-uniform in `ratio`. Three differences: the ratio is relative to the image's own
    proportions; in 3D each axis draws its own, and any two sides stay within `ratio`; a box too long for an axis is
    cut to it rather than drawn again, so that every scan takes the same number of draws.
    """

    size: tuple[int, ...]
    scale: tuple[float, float]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    draws: ClassVar[int] = 8
    moves: ClassVar[bool] = True
    raised: ClassVar[tuple[str, ...]] = ("ratio",)

    def scaled(self, strength: float) -> Self:
        """Return the crop that cuts away `strength` times as much, of at least a hundredth of the image."""
        low, high = (max(0.01, 1 - strength * (1 - share)) for share in self.scale)
        return replace(super().scaled(strength), scale=(low, high))

    def params(self, u: Tensor) -> Box:
        """Return boxes from u (B, 8): fraction, aspect ratios, position."""
        D = len(self.size)
        tilt = between(u[:, 1 : 1 + D], math.log(self.ratio[0]), math.log(self.ratio[1])) / 2
        tilt = torch.stack([-tilt[:, 0], tilt[:, 0]], 1) if D == 2 else tilt - tilt.mean(1, keepdim=True)
        log_side = between(u[:, :1], *self.scale).log() / D + tilt
        return Box(log_side.exp().clamp(max=1), u[:, 4 : 4 + D])

    def boxes(self, params: Box, shape: list[int]) -> tuple[Tensor, Tensor]:
        """Return (start, extent) in pixels of an image of `shape`, both (B, D) whole numbers in float32."""
        n = torch.tensor(shape, dtype=torch.float32).to(params.at.device, non_blocking=True)
        extent = (params.extent * n).round().clamp(min=1)
        return (params.at * (n - extent + 1)).floor().minimum(n - extent), extent

    def direct(self, x: Tensor, params: Box) -> Tensor | None:
        """Interpolate between two pixels along each axis, where the view has at least as many as the image."""
        lengths = list(x.shape[2:])
        if any(n > m for n, m in zip(lengths, self.size, strict=True)):
            return None
        start, extent = self.boxes(params, lengths)
        for axis, m in enumerate(self.size):
            x = interpolated(x, axis + 2, start[:, axis], extent[:, axis], m)
        return x.contiguous()

    def fold(self, weights: Weights | None, params: Box, x: Tensor) -> Weights:
        """Return one (B, out, in) matrix per axis."""
        lengths = _lengths(weights, x)
        start, extent = (t.to(x.device, non_blocking=True) for t in self.boxes(params, lengths))
        axes = enumerate(zip(lengths, self.size, strict=True))
        return _after([axis_weights(start[:, a], extent[:, a], n, m, longest=n) for a, (n, m) in axes], weights)


@dataclass(frozen=True)
class Flip(Separable):
    """Mirror axes with probabilities `p`, one per axis, for the last axes: (0.5,) flips left and right."""

    p: tuple[float, ...]
    draws: ClassVar[int] = 4
    moves: ClassVar[bool] = True

    def params(self, u: Tensor) -> Tensor:
        """Return (B, len(p)) bool."""
        return u[:, : len(self.p)] < torch.tensor(self.p, device=u.device)

    def direct(self, x: Tensor, params: Tensor) -> Tensor:
        """Reverse the pixels of the scans that are flipped."""
        for axis, hit in enumerate(params.unbind(1), start=x.ndim - len(self.p)):
            x = apply_to_rows(x, hit, lambda part, axis=axis: part.flip(axis))
        return x

    def fold(self, weights: Weights | None, params: Tensor, x: Tensor) -> Weights | None:
        """Reverse the rows of the matrices of flipped axes."""
        if not params.any():
            return weights
        out = list(weights or _identity(_lengths(None, x), x))
        for axis, hit in enumerate(params.to(x.device, non_blocking=True).unbind(1), start=len(out) - len(self.p)):
            out[axis] = torch.where(hit[:, None, None], out[axis].flip(-2), out[axis])
        return out


@lru_cache(maxsize=16)
def _shifts(n: int, radius: int, device: torch.device) -> Tensor:
    """Return (2 radius + 1, n * n): n x n matrices that shift an axis by -radius … radius, reflecting at its ends."""
    at = torch.arange(n, device=device) + torch.arange(-radius, radius + 1, device=device)[:, None]
    at = (n - 1) - (n - 1 - at.abs()).abs()
    return F.one_hot(at, n).float().flatten(1)


def gaussian_matrix(sigma: Tensor, n: int, radius: int) -> Tensor:
    """Return (B, n, n) blurs along an axis for sigma (B,) in pixels: taps at -radius … radius, reflection without the edge."""
    radius = min(radius, n - 1)
    at = torch.arange(-radius, radius + 1, device=sigma.device, dtype=sigma.dtype)
    taps = (-0.5 * (at / sigma[:, None]) ** 2).exp()
    return ((taps / taps.sum(1, keepdim=True)) @ _shifts(n, radius, sigma.device)).view(-1, n, n)


@dataclass(frozen=True)
class Blur(Separable):
    """Gaussian blur with probability `p`, standard deviation uniform in `sigma`, truncated at 3 sigma[1].

    `sigma` is in pixels of a view whose shortest axis has 224 pixels, and scales with `size`.
    """

    p: float
    sigma: tuple[float, float]
    size: tuple[int, ...] = (224,)
    draws: ClassVar[int] = 4
    moves: ClassVar[bool] = False
    multiplied: ClassVar[tuple[str, ...]] = ("sigma",)

    @property
    def pixels(self) -> tuple[float, float]:
        """The range of sigma in pixels of a view."""
        low, high = self.sigma
        return low * min(self.size) / 224, high * min(self.size) / 224

    @property
    def radius(self) -> int:
        """Taps on each side."""
        return max(1, math.ceil(3 * self.pixels[1]))

    def params(self, u: Tensor) -> Tensor:
        """Return (B,) sigma in pixels, 0 where there is no blur."""
        return torch.where(u[:, 0] < self.p, between(u[:, 1], *self.pixels), 0.0)

    def direct(self, x: Tensor, params: Tensor) -> Tensor:
        """Blur along one axis after another, the scans that are."""
        return apply_to_rows(x, params > 0, lambda part, sigma: blurred(part, sigma, self.radius), params)

    def fold(self, weights: Weights | None, params: Tensor, x: Tensor) -> Weights | None:
        """Blur the outputs of the matrices; rows without blur keep theirs."""
        if not params.any():
            return weights
        out = weights or _identity(_lengths(None, x), x)
        out = [w.expand(len(x), *w.shape[-2:]) for w in out]

        def blur(w: Tensor, sigma: Tensor) -> Tensor:
            return torch.bmm(gaussian_matrix(sigma, w.shape[1], self.radius), w)

        return [apply_to_rows(w, params > 0, blur, params) for w in out]


@dataclass(frozen=True)
class Rotate(Op):
    """Rotate by up to `degrees` with probability `p`: in the plane in 2D, about each axis in turn in 3D.

    Bilinear, about the centre, in pixels (an image that is not square is not sheared), with black corners. A positive
    angle turns the last two axes counter-clockwise, as torchvision's `rotate` does.
    """

    p: float
    degrees: float
    draws: ClassVar[int] = 4
    moves: ClassVar[bool] = True
    multiplied: ClassVar[tuple[str, ...]] = ("degrees",)

    def params(self, u: Tensor) -> Tensor:
        """Return (B, 3) angles in radians, 0 for no rotation; 2D uses the first."""
        limit = math.radians(self.degrees)
        return torch.where(u[:, :1] < self.p, between(u[:, 1:], -limit, limit), 0.0)

    def apply(self, x: Tensor, params: Tensor) -> Tensor:
        """x (B, C, *S) -> (B, C, *S)."""
        angles = params[:, : 1 if x.ndim == 4 else 3]
        return apply_to_rows(x, angles.ne(0).any(1), _turn, angles)


def _turn(x: Tensor, angles: Tensor) -> Tensor:
    D = x.ndim - 2
    full = torch.eye(D, device=x.device).expand(len(x), D, D)
    # grid_sample counts axes from the last
    for k, (a, b) in enumerate([(0, 1), (0, 2), (1, 2)][: angles.shape[1]]):
        cos, sin = angles[:, k].cos(), angles[:, k].sin()
        one = torch.eye(D, device=x.device).repeat(len(x), 1, 1)
        one[:, a, a], one[:, b, b], one[:, a, b], one[:, b, a] = cos, cos, -sin, sin
        full = full @ one
    # grid units to pixels, up to a factor
    half = torch.tensor(x.shape[:1:-1], dtype=x.dtype).to(x.device, non_blocking=True)
    return F.grid_sample(
        x, places(full * half / half[:, None], x), mode="bilinear", padding_mode="zeros", align_corners=False
    )
