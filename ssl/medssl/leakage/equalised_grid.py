"""Images as small equalised grids, which are compared whatever the size, border, grey-value curve and local contrast of a copy.

A uniform border is cut off, the rest is stretched to 64 x 64 pixels, and grey values are replaced by their ranks, which no
monotone curve changes. Regions without any structure (a blacked part, a background) are marked and take no part in comparisons.
Volumes are described in the same way in `medssl.leakage.volume_grid`.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d, avg_pool3d

from medssl.readers.phash import SIDE, thumbnail

HALF_SIDE = SIDE // 2  # pixels of the grid on which candidates are searched
MIN_PIXELS = 24  # pixels inside the border below which an image is not described
SHARP_PIXELS = 56  # pixels inside the border from which the grid of 64 x 64 is resolved
BORDER = 0.02  # range of grey values (of 1) in a row or column of a uniform border
MAX_BORDER = 0.4  # share of an axis that is cut off on each side, at most
UNIFORM = 0.004  # range of grey values over 3 x 3 grid pixels without structure: one level of 8 bits
MIN_STRUCTURED = 0.1  # share of a grid with structure below which an image is not described
REGION = 5  # grid pixels, in each direction, of the smallest region that is marked
EDGE = (
    2  # grid pixels around these regions that are marked too: their edge is a mixture, and hides the contrast beside it
)
CONTRAST_FLOOR = 0.03  # local standard deviation of ranks (of 1) that counts as noise


@dataclass(frozen=True)
class EqualisedGrid:
    """The grid of one image.

    Attributes:
        ranks: (SIDE, SIDE) uint8, the rank of each grey value from 1 to 255; 0 where there is no structure.
        sharp: whether the image has enough pixels for the grid; if not, only half as many are resolved.
    """

    ranks: NDArray[np.uint8]
    sharp: bool

    @classmethod
    def from_image(cls, image: NDArray[np.floating]) -> "EqualisedGrid | None":
        """Describe (H, W) in the unit range; None for an image with too few pixels or too little structure."""
        inside = image[content(image)]
        if min(inside.shape) < MIN_PIXELS:
            return None
        ranks = equalised(thumbnail(inside), REGION)
        return None if ranks is None else cls(ranks, min(inside.shape) >= SHARP_PIXELS)


def equalised(grid: NDArray[np.floating], region: int) -> NDArray[np.uint8] | None:
    """Return the ranks, 1 to 255, of the values of a grid (n, n) or (n, n, n), 0 where there is no structure; None if little has.

    region: see `uniform_regions`.
    """
    ranks = np.zeros(grid.shape, np.uint8)
    uniform = uniform_regions(grid, region)
    structured = ~_largest(uniform, EDGE)
    if structured.mean() < MIN_STRUCTURED:  # a shape, which is all edge
        structured = ~uniform
    if structured.mean() < MIN_STRUCTURED:
        return None
    _, index, counts = np.unique(grid[structured], return_inverse=True, return_counts=True)
    middle = (np.cumsum(counts) - counts / 2) / counts.sum()
    ranks[structured] = np.round(1 + 254 * middle[index.ravel()]).astype(np.uint8)
    return ranks


def content(image: NDArray[np.floating]) -> tuple[slice, ...]:
    """Return the rows and columns of (H, W), or the slices, rows and columns of (D, H, W), inside a uniform border."""
    kept: list[slice] = []
    for axis in range(image.ndim):
        part = image[tuple(kept)]
        others = tuple(i for i in range(image.ndim) if i != axis)
        kept.append(_inside(np.ptp(part, axis=others) <= BORDER))
    return tuple(kept)


def _inside(uniform: NDArray[np.bool_]) -> slice:
    """Return what is left of an axis without the uniform lines at both ends."""
    n = len(uniform)
    ends = []
    for lines in (uniform, uniform[::-1]):
        structured = np.flatnonzero(~lines)
        ends.append(min(int(structured[0]) if len(structured) else n, int(MAX_BORDER * n)))
    return slice(ends[0], n - ends[1])


def uniform_regions(grid: NDArray[np.floating], region: int = REGION) -> NDArray[np.bool_]:
    """Return where a grid (n, n) or (n, n, n) has no structure: squares or cubes of `region` pixels with the same value."""
    varied = _largest(grid, 1) + _largest(-grid, 1) > UNIFORM
    return _largest(~_largest(varied, region // 2), region // 2)


def _largest(x: NDArray[Any], reach: int) -> NDArray[Any]:
    """Return the largest value of an array within `reach` pixels of each, along all axes."""
    for axis in range(x.ndim):
        x = np.moveaxis(x, axis, 0)
        out = x.copy()
        for far in range(1, reach + 1):
            np.maximum(out[far:], x[:-far], out=out[far:])
            np.maximum(out[:-far], x[far:], out=out[:-far])
        x = np.moveaxis(out, 0, axis)
    return x


def as_tensors(ranks: NDArray[np.uint8], side: int) -> tuple[Tensor, Tensor]:
    """Return the values (N, side, …) in the unit range and the weights, 0 or 1, of N grids (N, n, n) or (N, n, n, n)."""
    x = torch.from_numpy(ranks).float()
    if side == x.shape[-1]:
        weight = (x > 0).float()
        return (x - 1) / 254 * weight, weight
    step = x.shape[-1] // side
    pool = avg_pool2d if x.ndim == 3 else avg_pool3d
    share = pool(x.clamp(max=1)[:, None], step)[:, 0]
    mean = pool(x[:, None], step)[:, 0] / share.clamp(min=1e-6)
    weight = (share > 0.5).float()
    value = (mean - 1) / 254 * weight
    return value, weight


def normalise_contrast(value: Tensor, weight: Tensor, sigma: float) -> Tensor:
    """Return grids minus their local mean, over their local standard deviation; 0 where the weight is.

    Local equalisation (CLAHE), shading and smooth curves thus change little.

    Args:
        value, weight: (N, n, n) or (N, n, n, n).
        sigma: standard deviation, in pixels, of the Gaussian over which mean and deviation are taken.
    """
    share = _blurred(weight, sigma) + 1e-3
    apart = (value - _blurred(value * weight, sigma) / share) * weight
    return apart / (_blurred(apart * apart, sigma) / share + CONTRAST_FLOOR**2).sqrt()


def smoothed(value: Tensor, weight: Tensor, sigma: float) -> Tensor:
    """Return the local means of grids under a Gaussian of standard deviation `sigma` pixels; 0 where the weight is."""
    return _blurred(value * weight, sigma) / _blurred(weight, sigma).clamp(min=1e-3) * weight


def _blurred(x: Tensor, sigma: float) -> Tensor:
    kernel = _gaussian(x.shape[-1], sigma)
    for _ in range(x.ndim - 1):
        x = (x @ kernel).movedim(-1, 1).contiguous()  # a few large products are faster than many small ones
    return x


@lru_cache
def _gaussian(n: int, sigma: float) -> Tensor:
    """Return the (n, n) matrix that blurs along one axis, up to 4 standard deviations, with nothing outside."""
    at = torch.arange(n, dtype=torch.float32)
    far = (at[:, None] - at) / sigma
    weight = torch.where(far.abs() <= 4, torch.exp(-0.5 * far**2), 0.0)  # the tails would be subnormal, which is slow
    return weight / (sigma * (2 * torch.pi) ** 0.5)
