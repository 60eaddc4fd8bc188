"""Which augmentations a modality gets. A recipe is an ordered tuple of ops; each function here builds one from numbers.

`size` is the shape of a view, (H, W) or (D, H, W), and decides between 2D and 3D. Laterality is respected: nothing but
photographs is ever mirrored, since a mirrored chest is a diagnosis. Crops keep at least `crop_scale[0]` of the area (or
volume), because a small lesion outside the box makes two views of different diseases. Blur is given in pixels of a 224
pixel view and scales with the view. The numbers and their sources are in configs/augment.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from medssl import rng
from medssl.augmentations.geometry import Blur, Crop, Flip, Resize, Rotate, Separable, Weights
from medssl.augmentations.intensity import (
    BiasField,
    BrightnessContrast,
    Colour,
    Exposure,
    Gamma,
    Noise,
    Solarize,
    ToGray,
    Window,
)
from medssl.errors import UserError
from medssl.resample import apply_axes

Range = Sequence[float]  # [low, high]
MOVES = (Resize, Crop, Flip, Rotate)  # what changes where things are; a blur does not
CHUNK = (
    1 << 20
)  # elements worked on at once on a CPU; more and fresh memory costs more than the work (RGB at 224: twice)


class Op(Protocol):
    """One augmentation: how many uniforms it takes, what it makes of them, and what it does with that."""

    draws: ClassVar[int]

    def params(self, u: Tensor) -> Any:
        """u (B, draws) in [0, 1) -> parameters."""

    def apply(self, x: Tensor, params: Any) -> Tensor:
        """x (B, C, *S) -> (B, C, *S')."""


@dataclass(frozen=True)
class Recipe:
    """Ops in order. View `view` of a scan is a function of (seed, epoch, scan, view) and nothing else.

    All parameters of a view come from one draw in slot 0, op after op, each at its fixed place: changing the strength
    of one op leaves the others' parameters as they were. A method that draws for itself takes slots from 1.
    """

    size: tuple[int, ...]
    ops: tuple[Op, ...]

    def __call__(self, x: Tensor, key: rng.Key, view: int) -> Tensor:
        """x (B, C, *S) float32 in [0, 1] -> (B, C, *size) alike, contiguous.

        The key may live on the CPU while x is on a GPU; that is quicker, since no op then waits for the device.
        """
        if x.ndim - 2 != len(self.size):
            raise UserError(f"views of size {self.size} need {len(self.size)} spatial axes, scans have {x.ndim - 2}")
        rows = max(1, CHUNK // (x.shape[1] * max(math.prod(x.shape[2:]), math.prod(self.size))))
        if x.is_cpu and rows < len(x):
            pieces = zip(x.split(rows), key.split(rows), strict=True)
            return torch.cat([self._view(x, part, view) for x, part in pieces])
        return self._view(x, key, view)

    def labels(self, mask: Tensor, key: rng.Key, view: int) -> Tensor:
        """mask (B, *S) of classes, int64 -> (B, *size): what this view of the image shows, and class 0 beyond its edges.

        The image's own draws move it and none changes its values: one map per class goes through the ops, and the largest
        wins at each pixel, the lower class at a tie.
        """
        classes = torch.arange(int(mask.max()) + 1, device=mask.device).view(1, -1, *[1] * (mask.ndim - 1))
        return self._view((mask[:, None] == classes).float(), key, view, MOVES).argmax(1)

    def _view(self, x: Tensor, key: rng.Key, view: int, only: tuple[type, ...] = (object,)) -> Tensor:
        """x through the ops, or through those of the types `only`, each with its own draws."""
        draws = [op.draws for op in self.ops]
        u = rng.uniform(key, view, 0, sum(draws))
        weights: Weights | None = None
        for op, mine in zip(self.ops, u.split(draws, 1), strict=True):
            if not isinstance(op, only):
                continue
            params = op.params(mine)
            if isinstance(op, Separable):
                weights = op.fold(weights, params, x)
                continue
            x, weights = _warp(x, weights), None
            x = op.apply(x, params)
        return _warp(x, weights).contiguous()


def _warp(x: Tensor, weights: Weights | None) -> Tensor:
    return x if weights is None else apply_axes(x, weights).contiguous()


def _pair(range_: Range) -> tuple[float, float]:
    low, high = range_
    return float(low), float(high)


def _crop(size: Sequence[int], crop_scale: Range) -> Crop:
    return Crop(tuple(size), _pair(crop_scale))


def _blur(size: Sequence[int], p: float, sigma: Range) -> Blur:
    low, high = _pair(sigma)
    return Blur(p, (low * min(size) / 224, high * min(size) / 224))


def plain(size: Sequence[int]) -> Recipe:
    """The whole scan resized to `size`, nothing else: for evaluation, and for methods that corrupt their own input."""
    return Recipe(tuple(size), (Resize(tuple(size)),))


def crop(size: Sequence[int], crop_scale: Range) -> Recipe:
    """The random resized crop alone, for masked modelling."""
    return Recipe(tuple(size), (_crop(size, crop_scale),))


def neutral(
    size: Sequence[int],
    crop_scale: Range,
    jitter_p: float,
    brightness: float,
    contrast: float,
    blur_p: float,
    blur: Range,
    noise_p: float,
    noise: Range,
) -> Recipe:
    """Crop, blur, mild brightness and contrast, noise: what is safe when the modality is not known."""
    ops = (
        _crop(size, crop_scale),
        _blur(size, blur_p, blur),
        BrightnessContrast(jitter_p, brightness, contrast),
        Noise(noise_p, _pair(noise)),
    )
    return Recipe(tuple(size), ops)


def xray(
    size: Sequence[int],
    crop_scale: Range,
    rotate_p: float,
    rotate: float,
    blur_p: float,
    blur: Range,
    exposure_p: float,
    exponent: Range,
    gain: float,
    offset: float,
    noise_p: float,
    noise: Range,
) -> Recipe:
    """Rotation, crop, blur, exposure, noise."""
    ops = (
        Rotate(rotate_p, rotate),
        _crop(size, crop_scale),
        _blur(size, blur_p, blur),
        Exposure(exposure_p, _pair(exponent), gain, offset),
        Noise(noise_p, _pair(noise)),
    )
    return Recipe(tuple(size), ops)


def ct(
    size: Sequence[int],
    crop_scale: Range,
    rotate_p: float,
    rotate: float,
    blur_p: float,
    blur: Range,
    hu: Range,
    window_p: float,
    windows: dict[str, Sequence[float]],
    level: float,
    width: float,
    noise_p: float,
    noise: Range,
) -> Recipe:
    """Rotation, crop, blur, a jittered window, noise. `windows`: name -> [level, width, weight] in HU."""
    table = []
    for name, row in windows.items():
        if len(row) != 3 or row[1] <= 0 or row[2] < 0:
            raise UserError(f"CT window {name!r} is {list(row)}; give [level HU, width HU > 0, weight >= 0]")
        table.append((float(row[0]), float(row[1]), float(row[2])))
    ops = (
        Rotate(rotate_p, rotate),
        _crop(size, crop_scale),
        _blur(size, blur_p, blur),
        Window(window_p, _pair(hu), tuple(table), level, width),
        Noise(noise_p, _pair(noise)),
    )
    return Recipe(tuple(size), ops)


def mr(
    size: Sequence[int],
    crop_scale: Range,
    rotate_p: float,
    rotate: float,
    blur_p: float,
    blur: Range,
    bias_p: float,
    bias: float,
    gamma_p: float,
    gamma: Range,
    jitter_p: float,
    brightness: float,
    contrast: float,
    noise_p: float,
    noise: Range,
) -> Recipe:
    """Rotation, crop, blur, bias field, gamma, brightness and contrast, noise."""
    ops = (
        Rotate(rotate_p, rotate),
        _crop(size, crop_scale),
        _blur(size, blur_p, blur),
        BiasField(bias_p, bias),
        Gamma(gamma_p, _pair(gamma)),
        BrightnessContrast(jitter_p, brightness, contrast),
        Noise(noise_p, _pair(noise)),
    )
    return Recipe(tuple(size), ops)


def natural(
    size: Sequence[int],
    crop_scale: Range,
    flip: float,
    blur_p: float,
    blur: Range,
    jitter_p: float,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    gray_p: float,
    solarize_p: float,
) -> Recipe:
    """Photographs: crop, left-right flip, blur, colour jitter, grey, solarisation. Colour ops need three channels."""
    ops = (
        _crop(size, crop_scale),
        Flip((flip,)),
        _blur(size, blur_p, blur),
        BrightnessContrast(jitter_p, brightness, contrast),
        Colour(jitter_p, saturation, hue),
        ToGray(gray_p),
        Solarize(solarize_p),
    )
    return Recipe(tuple(size), ops)
