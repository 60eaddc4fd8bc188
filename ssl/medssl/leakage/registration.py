"""Affine registration of pairs of equalised grids, in two or three dimensions, and how well they then agree.

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
MAX_ZOOM = 2.0  # largest change of area or volume
MAX_STEP = 0.06  # largest change of a parameter in one step, relative to the side
DAMPING = 1e-3


@dataclass(frozen=True)
class Affine:
    """N affine maps: place p of one image shows place `matrix` p + `shift` of the other, all coordinates in [-1/2, 1/2].

    Attributes:
        matrix: (N, d, d) float32, d = 2 for images and 3 for volumes.
        shift: (N, d) float32.
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
        """Return the maps after a change (N, d, d + 1), matrix beside shift, of the places of the first image."""
        matrix, shift = change[..., :-1], change[..., -1:]
        return Affine(self.matrix + self.matrix @ matrix, self.shift + (self.matrix @ shift)[..., 0])

    def sample(self, images: Tensor) -> Tensor:
        """Return images (N, C, n, …) at the mapped places, linearly interpolated, 0 outside."""
        n, d = images.shape[-1], images.ndim - 2
        at = places(n, d) @ self.matrix.transpose(1, 2) + self.shift[:, None]
        at = 2 * at.flip(-1).view(len(at), *[n] * d, d)
        return grid_sample(images, at, padding_mode="zeros", align_corners=False)


@lru_cache
def places(n: int, d: int = 2) -> Tensor:
    """Return the centres (n ** d, d) of the pixels of a grid of side 1 around 0, in the order of the array."""
    at = (torch.arange(n) + 0.5) / n - 0.5
    return torch.stack(torch.meshgrid(*[at] * d, indexing="ij"), -1).reshape(-1, d)


def correlation(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted correlation (N,) of images (N, n, …)."""
    x, y, weight = x.flatten(1), y.flatten(1), weight.flatten(1)
    share = weight / weight.sum(1, keepdim=True).clamp(min=1e-6)
    x, y = (i - (i * share).sum(1, keepdim=True) for i in (x, y))
    variance = (share * x * x).sum(1) * (share * y * y).sum(1)
    return (share * x * y).sum(1) / variance.clamp(min=1e-12).sqrt()


def comparable(weight: Tensor, a: Tensor, b: Tensor, maps: Affine) -> Tensor:
    """Return whether (N,) enough of both images is compared, at a plausible zoom.

    Args:
        weight: (N, n, …), what is compared.
        a, b: the weights of the two images.
        maps: the maps between them.
    """
    area = weight.flatten(1).mean(1)
    least = torch.minimum(a.flatten(1).mean(1), b.flatten(1).mean(1))
    zoom = torch.linalg.det(maps.matrix).abs()
    return (area >= MIN_AREA) & (area >= MIN_OVERLAP * least) & (zoom <= MAX_ZOOM) & (zoom >= 1 / MAX_ZOOM)


def register(
    moving: tuple[Tensor, Tensor], fixed: tuple[Tensor, Tensor], maps: Affine, steps: int
) -> tuple[Affine, Tensor]:
    """Return better maps from places of `fixed` to places of `moving`, and the correlation (N,), 0 where nothing is comparable.

    Args:
        moving, fixed: normalised images (N, n, n) or volumes (N, n, n, n), and their weights.
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
    """Return the change (N, d, d + 1) of places that makes images x (N, n, …) most like y, to first order."""
    n, d, shape = x.shape[-1], x.ndim - 1, x.shape
    x, y, weight = x.flatten(1), y.flatten(1), weight.flatten(1)
    share = weight / weight.sum(1, keepdim=True).clamp(min=1e-6)
    x, y = (i - (i * share).sum(1, keepdim=True) for i in (x, y))
    x, y = (i / (share * i * i).sum(1, keepdim=True).sqrt().clamp(min=1e-3) for i in (x, y))
    mean, slopes = ((x + y) / 2).view(shape), []
    for axis in range(1, d + 1):
        slope = torch.zeros(shape)
        slope.narrow(axis, 1, n - 2).copy_(mean.narrow(axis, 2, n - 2) - mean.narrow(axis, 0, n - 2)).mul_(n / 2)
        slopes += [slope.flatten(1) * at for at in (*places(n, d).T, torch.ones(()))]
    slope = torch.stack(slopes, 1)
    weighted = slope * weight[:, None]
    normal = weighted @ slope.transpose(1, 2)
    size = d * (d + 1)
    damping = DAMPING * normal.diagonal(dim1=1, dim2=2).mean(1) + 1e-6
    normal = normal + torch.eye(size) * damping[:, None, None]
    step = torch.linalg.solve(normal, weighted @ (y - x)[..., None])[..., 0]
    return step.clamp(-MAX_STEP, MAX_STEP).unflatten(1, (d, d + 1))


def agreement(
    moving: tuple[Tensor, Tensor], fixed: tuple[Tensor, Tensor], maps: Affine, sigma: float
) -> tuple[Tensor, Tensor]:
    """Return how well registered images agree in what both show: the correlation after normalising contrast, and its evidence.

    Both are (N,), and 0 if what both show is too little. The evidence is Fisher's z of the correlation over its standard
    deviation between unrelated images: a few smooth blobs agree by chance where many details do not.

    Args:
        moving, fixed: values (N, n, …) in the unit range and weights, not normalised.
        maps: from places of `fixed` to places of `moving`.
        sigma: see `normalise_contrast`.
    """
    (x, x_weight), (y, y_weight) = moving, fixed
    sampled = maps.sample(torch.stack([x * x_weight, x_weight], 1))
    weight = (sampled[:, 1] > 0.5).float() * y_weight
    x = sampled[:, 0] / sampled[:, 1].clamp(min=0.5)
    x, y = normalise_contrast(x, weight, sigma), normalise_contrast(y, weight, sigma)
    found = correlation(x, y, weight)
    found = torch.where(comparable(weight, x_weight, y_weight, maps), found, torch.zeros_like(found))
    return found, found.clamp(-0.999, 0.999).atanh() * independent_values(x, y, weight).sqrt()


def independent_values(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Return (N,), how many independent values would correlate as little by chance as unrelated images (N, n, …) do.

    The inverse of the variance of the correlation of two stationary processes, which is the sum over all lags of the product
    of their autocorrelations (Bartlett, 1935), here by power spectra, without wrapping around.
    """
    axes = tuple(range(1, x.ndim))
    mean = weight.flatten(1).sum(1).clamp(min=1e-6).view(-1, *[1] * len(axes))
    size = [2 * x.shape[-1]] * len(axes)
    power = []
    for image in (x, y):
        centred = (image - (image * weight).sum(axes, keepdim=True) / mean) * weight
        power.append(torch.fft.fftn(centred, s=size, dim=axes).abs().square().flatten(1))
    a, b = power
    return (
        a.sum(1) * b.sum(1) / (a * b).sum(1).clamp(min=1e-12) / 2 ** len(axes)
    )  # the spectra have so many times more points
