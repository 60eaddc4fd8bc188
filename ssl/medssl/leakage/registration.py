"""Affine registration of pairs of equalised grids, and how well they then agree.

A copy that was turned, cropped, padded, shifted or stretched agrees with its original after an affine transform. Gauss-Newton
steps maximise the correlation of the locally normalised grids (the enhanced correlation coefficient of Evangelidis and
Psarakis, IEEE TPAMI 2008, with the mean of both gradients), many pairs at once.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from medssl.leakage.equalised_grid import normalise_contrast

MIN_OVERLAP = 0.5  # share of the structured part of the smaller image that the other must cover
MIN_AREA = 0.15  # share of the grid that must be compared
MAX_ZOOM = 2.0  # largest change of area
MAX_STEP = 0.06  # largest change of a parameter in one step, relative to the side
DAMPING = 1e-3


@dataclass(frozen=True)
class Affine:
    """N affine maps: place p of one image shows place `matrix` p + `shift` of the other, both in [-1/2, 1/2].

    Attributes:
        matrix: (N, 2, 2) float32.
        shift: (N, 2) float32.
    """

    matrix: Tensor
    shift: Tensor

    def __getitem__(self, at: Tensor) -> "Affine":
        return Affine(self.matrix[at], self.shift[at])

    def where(self, condition: Tensor, other: "Affine") -> "Affine":
        """Return these maps where `condition` (N,) holds, and the others elsewhere."""
        return Affine(
            torch.where(condition[:, None, None], self.matrix, other.matrix),
            torch.where(condition[:, None], self.shift, other.shift),
        )

    def moved(self, change: Tensor) -> "Affine":
        """Return the maps after a change (N, 6) of the places of the first image."""
        matrix = torch.stack([change[:, 0:2], change[:, 3:5]], 1)
        shift = torch.stack([change[:, 2], change[:, 5]], 1)
        return Affine(self.matrix + self.matrix @ matrix, self.shift + (self.matrix @ shift[..., None])[..., 0])

    def sample(self, images: Tensor) -> Tensor:
        """Return images (N, C, n, n) at the mapped places, linearly interpolated, 0 outside."""
        n = images.shape[-1]
        at = places(n) @ self.matrix.transpose(1, 2) + self.shift[:, None]
        return grid_sample(images, 2 * at.flip(-1).view(len(at), n, n, 2), padding_mode="zeros", align_corners=False)


@lru_cache
def places(n: int) -> Tensor:
    """Return the centres (n * n, 2) of the pixels of a grid of side 1 around 0, row before column."""
    at = (torch.arange(n) + 0.5) / n - 0.5
    return torch.stack(torch.meshgrid(at, at, indexing="ij"), -1).reshape(-1, 2)


def correlation(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted correlation (N,) of images (N, n, n)."""
    share = weight / weight.sum((1, 2), keepdim=True).clamp(min=1e-6)
    x, y = (i - (i * share).sum((1, 2), keepdim=True) for i in (x, y))
    variance = (share * x * x).sum((1, 2)) * (share * y * y).sum((1, 2))
    return (share * x * y).sum((1, 2)) / variance.clamp(min=1e-12).sqrt()


def comparable(weight: Tensor, a: Tensor, b: Tensor, maps: Affine) -> Tensor:
    """Return whether (N,) enough of both images is compared, at a plausible zoom.

    Args:
        weight: (N, n, n), what is compared.
        a, b: the weights of the two images.
        maps: the maps between them.
    """
    area = weight.mean((1, 2))
    least = torch.minimum(a.mean((1, 2)), b.mean((1, 2)))
    zoom = (maps.matrix[:, 0, 0] * maps.matrix[:, 1, 1] - maps.matrix[:, 0, 1] * maps.matrix[:, 1, 0]).abs()
    return (area >= MIN_AREA) & (area >= MIN_OVERLAP * least) & (zoom <= MAX_ZOOM) & (zoom >= 1 / MAX_ZOOM)


def register(
    moving: tuple[Tensor, Tensor], fixed: tuple[Tensor, Tensor], maps: Affine, steps: int
) -> tuple[Affine, Tensor]:
    """Return better maps from places of `fixed` to places of `moving`, and the correlation (N,), 0 where nothing is comparable.

    Args:
        moving, fixed: normalised images (N, n, n) and their weights.
        maps: from which to start.
        steps: Gauss-Newton steps; the best maps on the way are returned.
    """
    (x, x_weight), (y, y_weight) = moving, fixed
    both = torch.stack([x, x_weight], 1)
    best, top = maps, torch.full((len(x),), -1.0)
    for step in range(steps + 1):
        sampled = maps.sample(both)
        weight = (sampled[:, 1] > 0.5).float() * y_weight
        found = correlation(sampled[:, 0], y, weight)
        found = torch.where(comparable(weight, x_weight, y_weight, maps), found, torch.zeros_like(found))
        best, top = maps.where(found > top, best), torch.maximum(found, top)
        if step < steps:
            maps = maps.moved(_gauss_newton(sampled[:, 0], y, weight))
    return best, top


def _gauss_newton(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Return the change (N, 6) of places that makes images x (N, n, n) most like y, to first order."""
    n = x.shape[-1]
    share = weight / weight.sum((1, 2), keepdim=True).clamp(min=1e-6)
    x, y = (i - (i * share).sum((1, 2), keepdim=True) for i in (x, y))
    x, y = (i / (share * i * i).sum((1, 2), keepdim=True).sqrt().clamp(min=1e-3) for i in (x, y))
    mean, down, right = (x + y) / 2, torch.zeros_like(x), torch.zeros_like(x)
    down[:, 1:-1] = (mean[:, 2:] - mean[:, :-2]) * (n / 2)
    right[:, :, 1:-1] = (mean[:, :, 2:] - mean[:, :, :-2]) * (n / 2)
    row, column = places(n).T
    down, right = down.flatten(1), right.flatten(1)
    slope = torch.stack([down * row, down * column, down, right * row, right * column, right], 2)
    weighted = (slope * weight.flatten(1)[..., None]).transpose(1, 2)
    normal = weighted @ slope
    normal = normal + torch.eye(6) * (DAMPING * normal.diagonal(dim1=1, dim2=2).mean(1) + 1e-6)[:, None, None]
    return torch.linalg.solve(normal, weighted @ (y - x).flatten(1)[..., None])[..., 0].clamp(-MAX_STEP, MAX_STEP)


def agreement(moving: tuple[Tensor, Tensor], fixed: tuple[Tensor, Tensor], maps: Affine, sigma: float) -> Tensor:
    """Return the correlation (N,) of registered images after normalising the contrast of what both show; 0 if that is too little.

    Args:
        moving, fixed: values (N, n, n) in the unit range and weights, not normalised.
        maps: from places of `fixed` to places of `moving`.
        sigma: see `normalise_contrast`.
    """
    (x, x_weight), (y, y_weight) = moving, fixed
    sampled = maps.sample(torch.stack([x * x_weight, x_weight], 1))
    weight = (sampled[:, 1] > 0.5).float() * y_weight
    x = sampled[:, 0] / sampled[:, 1].clamp(min=0.5)
    found = correlation(normalise_contrast(x, weight, sigma), normalise_contrast(y, weight, sigma), weight)
    return torch.where(comparable(weight, x_weight, y_weight, maps), found, torch.zeros_like(found))
