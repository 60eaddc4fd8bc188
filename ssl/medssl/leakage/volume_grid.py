"""Volumes as small equalised grids, which are compared whatever the size, spacing, border and grey-value curve of a copy.

As images in `medssl.leakage.equalised_grid`, at 32 x 32 x 32 voxels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medssl.leakage.equalised_grid import EqualisedGrid, content, equalised
from medssl.readers.phash import SIDE as FINER
from medssl.readers.phash import resize_weights

SIDE = 32  # voxels of the grid
HALF_SIDE = SIDE // 2  # voxels of the grid on which candidates are searched
MIN_SLICES = (
    8  # voxels along each axis, inside the border, below which a volume is compared as an image, by its middle slice
)
MIN_PLANE = 16  # voxels along the second shortest axis for that
MAX_PLANES = 128  # slices along each axis with which images are compared; of more, evenly spaced ones
REGION = 3  # grid voxels, in each direction, of the smallest region without structure that is marked


@dataclass(frozen=True)
class VolumeGrid:
    """The grid of one volume.

    Attributes:
        ranks: (SIDE, SIDE, SIDE) uint8, the rank of each value from 1 to 255; 0 where there is no structure.
        voxels: voxels of the volume inside its border, along each axis.
    """

    ranks: NDArray[np.uint8]
    voxels: tuple[int, ...]

    @classmethod
    def from_volume(cls, volume: NDArray[np.floating]) -> "VolumeGrid | None":
        """Describe (D, H, W) in the unit range; None for a volume with too few voxels or too little structure."""
        inside = volume[content(volume)]
        shortest = sorted(inside.shape)
        if shortest[0] < MIN_SLICES or shortest[1] < MIN_PLANE:
            return None
        x = np.asarray(inside, np.float32)
        for n in inside.shape:
            weights = resize_weights(n).reshape(SIDE, FINER // SIDE, n).mean(1)
            x = np.moveaxis(np.tensordot(weights, x, (1, 0)), 0, -1)
        ranks = equalised(x, REGION)
        return None if ranks is None else cls(ranks, inside.shape)


def slice_grids(volume: NDArray[np.floating]) -> list[EqualisedGrid]:
    """Return the grids of the slices of (D, H, W) along all three axes, of at most MAX_PLANES each, as far as they have any."""
    found = []
    for axis, n in enumerate(volume.shape):
        for at in np.unique(np.linspace(0, n - 1, min(n, MAX_PLANES)).round().astype(int)):
            if (grid := EqualisedGrid.from_image(volume.take(at, axis))) is not None:
                found.append(grid)
    return found


def smoothed_to(value: Tensor, weight: Tensor, sigma: Tensor) -> Tensor:
    """Return the means of (N, n, n, n) under Gaussians of standard deviations `sigma` (N, 3) voxels; 0 where the weight is."""
    n = value.shape[-1]
    at = torch.arange(n, dtype=torch.float32)
    far = (at[:, None] - at) / sigma.clamp(min=0.1)[..., None, None]
    kernels = torch.where(far.abs() <= 4, torch.exp(-0.5 * far**2), 0.0)  # (N, 3, n, n)
    both = torch.stack([value * weight, weight], 1)
    for axis in range(3):
        both = both.movedim(axis + 2, -1)
        both = (both.flatten(1, -2) @ kernels[:, axis]).view(both.shape).movedim(-1, axis + 2)
    return both[:, 0] / both[:, 1].clamp(min=1e-3) * weight
