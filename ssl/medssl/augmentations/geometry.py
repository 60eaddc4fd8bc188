"""Ops that move pixels: crop, flip and blur as one matrix per axis, and rotation.

An op is a pure function of uniforms: `params(u)` turns (B, draws) numbers in [0, 1) into what it will do to each scan,
`apply(x, params)` does it to the whole batch x (B, C, *S) float32, in 2D and 3D. Parameters may stay on the CPU while x
is on a GPU: rows are then chosen without waiting for the device.

The separable ops also have `fold(weights, params, x)`, which does to one matrix per axis what `apply` does to x, so
that crop, flip and blur together cost one matrix product per axis.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from medssl.resample import apply_axes, axis_weights

Weights = list[Tensor]  # one (B, out, in) or (out, in) matrix per spatial axis


def between(u: Tensor, low: float, high: float) -> Tensor:
    """u in [0, 1) -> [low, high)."""
    return low + (high - low) * u


def rows_only(x: Tensor, hit: Tensor, f: Callable[..., Tensor], *params: Tensor) -> Tensor:
    """x with f(x[hit], *params[hit]) in the rows where `hit` (B,), the others untouched; x itself when none is hit."""
    rows = hit.nonzero()[:, 0]
    if len(rows) == 0:
        return x
    if len(rows) == len(x):
        return f(x, *(p.to(x.device, non_blocking=True) for p in params))
    at = rows.to(x.device, non_blocking=True)
    return x.index_copy(0, at, f(x[at], *(p[rows].to(x.device, non_blocking=True) for p in params)))


class Separable:
    """What `apply` is for every op that is a matrix per axis."""

    def fold(self, weights: Weights | None, params: Any, x: Tensor) -> Weights | None:
        """This op after `weights` (None: after nothing) on x; None when that is the identity."""
        raise NotImplementedError

    def apply(self, x: Tensor, params: Any) -> Tensor:
        """x (B, C, *S) -> (B, C, *S')."""
        weights = self.fold(None, params, x)
        return x if weights is None else apply_axes(x, weights).contiguous()


def _after(new: Weights, old: Weights | None) -> Weights:
    return new if old is None else [n @ o for n, o in zip(new, old, strict=True)]


def _lengths(weights: Weights | None, x: Tensor) -> list[int]:
    """The spatial shape of x after `weights`."""
    return list(x.shape[2:]) if weights is None else [w.shape[-2] for w in weights]


def _identity(lengths: list[int], x: Tensor) -> Weights:
    return [torch.eye(n, device=x.device, dtype=x.dtype).expand(len(x), n, n) for n in lengths]


@dataclass(frozen=True)
class Resize(Separable):
    """To `size`, antialiased, the same for every scan. Draws nothing."""

    size: tuple[int, ...]
    draws: ClassVar[int] = 0

    def params(self, u: Tensor) -> None:
        """Nothing to draw."""

    def fold(self, weights: Weights | None, params: None, x: Tensor) -> Weights | None:
        """One (out, in) matrix per axis, shared by the batch."""
        lengths = _lengths(weights, x)
        if lengths == list(self.size):
            return weights
        zero = x.new_zeros(1)
        return _after([axis_weights(zero, zero + n, n, m)[0] for n, m in zip(lengths, self.size, strict=True)], weights)


class Box(NamedTuple):
    """A box as shares of an image, so that it fits any."""

    extent: Tensor  # (B, D) share of each axis, in (0, 1]
    at: Tensor  # (B, D) share of the room that is left before the box, in [0, 1)


@dataclass(frozen=True)
class Crop(Separable):
    """Random resized crop: a whole-pixel box holding a share `scale` of the image, resized to `size` with antialiasing.

    As Szegedy et al., 2015 (https://arxiv.org/abs/1409.4842) and torchvision's RandomResizedCrop: share uniform in
    `scale`, aspect ratio log-uniform in `ratio`. Three differences: the ratio is relative to the image's own
    proportions; in 3D each axis draws its own, and any two sides stay within `ratio`; a box too long for an axis is cut
    to it instead of drawn again, so that every scan takes the same number of draws.
    """

    size: tuple[int, ...]
    scale: tuple[float, float]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    draws: ClassVar[int] = 8

    def params(self, u: Tensor) -> Box:
        """u (B, 8): share, aspect ratios, position."""
        D = len(self.size)
        tilt = between(u[:, 1 : 1 + D], math.log(self.ratio[0]), math.log(self.ratio[1])) / 2
        tilt = torch.stack([-tilt[:, 0], tilt[:, 0]], 1) if D == 2 else tilt - tilt.mean(1, keepdim=True)
        log_side = between(u[:, :1], *self.scale).log() / D + tilt
        return Box(log_side.exp().clamp(max=1), u[:, 4 : 4 + D])

    def boxes(self, params: Box, shape: list[int]) -> tuple[Tensor, Tensor]:
        """(start, extent), both (B, D) whole numbers in float32, in pixels of an image of `shape`."""
        n = torch.tensor(shape, dtype=torch.float32, device=params.at.device)
        extent = (params.extent * n).round().clamp(min=1)
        return (params.at * (n - extent + 1)).floor().minimum(n - extent), extent

    def fold(self, weights: Weights | None, params: Box, x: Tensor) -> Weights:
        """(B, out, in) matrices."""
        lengths = _lengths(weights, x)
        start, extent = (t.to(x.device, non_blocking=True) for t in self.boxes(params, lengths))
        axes = enumerate(zip(lengths, self.size, strict=True))
        return _after([axis_weights(start[:, a], extent[:, a], n, m, longest=n) for a, (n, m) in axes], weights)


@dataclass(frozen=True)
class Flip(Separable):
    """Mirrors axes; `p` holds one probability per axis, for the last axes: (0.5,) flips left and right."""

    p: tuple[float, ...]
    draws: ClassVar[int] = 4

    def params(self, u: Tensor) -> Tensor:
        """(B, len(p)) bool."""
        return u[:, : len(self.p)] < torch.tensor(self.p, device=u.device)

    def fold(self, weights: Weights | None, params: Tensor, x: Tensor) -> Weights | None:
        """Reversed rows of the matrices, where it hits."""
        if not params.any():
            return weights
        out = list(weights or _identity(_lengths(None, x), x))
        for axis, hit in enumerate(params.to(x.device, non_blocking=True).unbind(1), start=len(out) - len(self.p)):
            out[axis] = torch.where(hit[:, None, None], out[axis].flip(-2), out[axis])
        return out


@lru_cache(maxsize=16)
def _shifts(n: int, radius: int, device: torch.device) -> Tensor:
    """(2 radius + 1, n * n): the n x n matrices that shift an axis by -radius … radius, reflecting at its ends."""
    at = torch.arange(n, device=device) + torch.arange(-radius, radius + 1, device=device)[:, None]
    at = (n - 1) - (n - 1 - at.abs()).abs()
    return F.one_hot(at, n).float().flatten(1)


def gaussian_matrix(sigma: Tensor, n: int, radius: int) -> Tensor:
    """sigma (B,) in pixels -> (B, n, n): blur along an axis, taps at -radius … radius, reflecting without the edge."""
    radius = min(radius, n - 1)
    at = torch.arange(-radius, radius + 1, device=sigma.device, dtype=sigma.dtype)
    taps = (-0.5 * (at / sigma[:, None]) ** 2).exp()
    return ((taps / taps.sum(1, keepdim=True)) @ _shifts(n, radius, sigma.device)).view(-1, n, n)


@dataclass(frozen=True)
class Blur(Separable):
    """Gaussian blur with probability `p`, standard deviation uniform in `sigma` pixels, cut at 3 sigma[1]."""

    p: float
    sigma: tuple[float, float]
    draws: ClassVar[int] = 4

    @property
    def radius(self) -> int:
        """Taps on each side."""
        return max(1, math.ceil(3 * self.sigma[1]))

    def params(self, u: Tensor) -> Tensor:
        """(B,) sigma, 0 where there is no blur."""
        return torch.where(u[:, 0] < self.p, between(u[:, 1], *self.sigma), 0.0)

    def fold(self, weights: Weights | None, params: Tensor, x: Tensor) -> Weights | None:
        """Blurs the outputs of the matrices; rows without blur keep theirs."""
        if not params.any():
            return weights
        out = weights or _identity(_lengths(None, x), x)
        out = [w.expand(len(x), *w.shape[-2:]) for w in out]

        def blur(w: Tensor, sigma: Tensor) -> Tensor:
            return torch.bmm(gaussian_matrix(sigma, w.shape[1], self.radius), w)

        return [rows_only(w, params > 0, blur, params) for w in out]


@dataclass(frozen=True)
class Rotate:
    """Turns by up to `degrees` with probability `p`: in the plane in 2D, about each axis in turn in 3D.

    Bilinear, about the centre, in pixels (an image that is not square is not sheared); black comes in at the corners. A
    positive angle turns the last two axes counter-clockwise, as torchvision's `rotate`.
    """

    p: float
    degrees: float
    draws: ClassVar[int] = 4

    def params(self, u: Tensor) -> Tensor:
        """(B, 3) angles in radians, 0 where nothing turns; 2D uses the first."""
        limit = math.radians(self.degrees)
        return torch.where(u[:, :1] < self.p, between(u[:, 1:], -limit, limit), 0.0)

    def apply(self, x: Tensor, params: Tensor) -> Tensor:
        """x (B, C, *S) -> alike."""
        angles = params[:, : 1 if x.ndim == 4 else 3]
        return rows_only(x, angles.ne(0).any(1), _turn, angles)


def _turn(x: Tensor, angles: Tensor) -> Tensor:
    D = x.ndim - 2
    full = torch.eye(D, device=x.device).expand(len(x), D, D)
    for k, (a, b) in enumerate([(0, 1), (0, 2), (1, 2)][: angles.shape[1]]):  # grid_sample counts axes from the last
        cos, sin = angles[:, k].cos(), angles[:, k].sin()
        one = torch.eye(D, device=x.device).repeat(len(x), 1, 1)
        one[:, a, a], one[:, b, b], one[:, a, b], one[:, b, a] = cos, cos, -sin, sin
        full = full @ one
    half = torch.tensor(x.shape[:1:-1], device=x.device, dtype=x.dtype)  # grid units to pixels, up to a factor
    theta = F.pad(full * half / half[:, None], (0, 1))
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
