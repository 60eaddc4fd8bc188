"""Candidates for copies of volumes that were mirrored, turned by right angles, inverted, cropped, padded or shifted.

As `medssl.leakage.transformed_search` does for images: descriptors of low frequencies, whitened, under many affine transforms.
Each transform is one of 41 sizes and shifts, in one of the 48 orientations of a cube. Turning a volume only permutes its
frequencies, so that the sizes and shifts alone need a matrix.
"""

from itertools import permutations, product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from medssl.leakage.equalised_grid import as_tensors, normalise_contrast
from medssl.leakage.registration import Affine
from medssl.leakage.transformed_search import Candidates, whitening_matrix
from medssl.leakage.volume_grid import HALF_SIDE

SIGMA = 2.0  # voxels of the grid, see `normalise_contrast`
MAX_FREQUENCY = 3  # cycles per volume
QUERIES = 16  # described at once
CANDIDATES = 8  # volumes compared further per query

# Scale and shift of one axis, of a copy that lacks up to 10 % at either end, has as much more, or was shifted.
_SCALES = [*product((1, 0.9, 0.8), repeat=3), (1 / 0.9,) * 3, (1 / 0.8,) * 3]
_ONE_AXIS = [(1, 0.07), (1, -0.07), (0.9, 0.05), (0.9, -0.05)]


def _variants() -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Return (scale, shift) of all axes of every size and shift; closed under exchanges and mirroring of axes."""
    found: list[tuple[tuple[float, ...], tuple[float, ...]]] = [
        (tuple(map(float, scale)), (0.0, 0.0, 0.0)) for scale in _SCALES
    ]
    for axis, (scale, shift) in product(range(3), _ONE_AXIS):
        changed = [i == axis for i in range(3)]
        found.append((tuple(scale if i else 1.0 for i in changed), tuple(shift if i else 0.0 for i in changed)))
    return found


def _orientations() -> list[NDArray[np.float64]]:
    return [
        np.eye(3)[list(order)] * np.array(sign)[:, None]
        for order in permutations(range(3))
        for sign in product((1, -1), repeat=3)
    ]


class VolumeTransforms:
    """All transforms under which volumes are searched, and the matrices that describe volumes under them.

    Attributes:
        maps: all transforms, V sizes and shifts in each of the 48 orientations.
    """

    def __init__(self) -> None:
        reach = np.arange(-MAX_FREQUENCY, MAX_FREQUENCY + 1)
        every = np.array(list(product(reach, repeat=3)))
        half = [f for f in every if 0 < (f**2).sum() <= MAX_FREQUENCY**2 and tuple(f) > (0, 0, 0)]
        self._frequencies = np.array(half)
        at = self._frequencies + MAX_FREQUENCY
        variants, orientations = _variants(), _orientations()
        axes = {(s, t): _axis_waves(s, t) for scale, shift in variants for s, t in zip(scale, shift, strict=True)}
        waves = torch.stack([self._matrix([axes[k] for k in zip(*v, strict=True)], at) for v in variants])
        self._waves = torch.view_as_real(waves).permute(2, 0, 1, 3).flatten(1).contiguous()  # (n ** 3, V * K * 2)
        self._turns = [self._turn(o) for o in orientations]
        matrix = np.array([np.diag(scale) @ o for o in orientations for scale, _ in variants])
        shift = np.array([shift for _ in orientations for _, shift in variants])
        self.maps = Affine(torch.tensor(matrix, dtype=torch.float32), torch.tensor(shift, dtype=torch.float32))

    @staticmethod
    def _matrix(axes: list[NDArray[np.complex128]], at: NDArray[np.int64]) -> Tensor:
        """Return the (K, n ** 3) complex matrix of windowed waves of a volume scaled and shifted, without the windowed mean."""
        one, two, three = (axis[at[:, i]] for i, axis in enumerate(axes))
        waves = (one[:, :, None, None] * two[:, None, :, None] * three[:, None, None, :]).reshape(len(at), -1)
        mean = np.multiply.outer(
            np.multiply.outer(axes[0][MAX_FREQUENCY], axes[1][MAX_FREQUENCY]), axes[2][MAX_FREQUENCY]
        )
        window = _axis_waves(1.0, 0.0).sum(1)
        window = window / window[MAX_FREQUENCY]
        share = window[at[:, 0]] * window[at[:, 1]] * window[at[:, 2]]
        return torch.tensor(waves - share[:, None] * mean.reshape(-1), dtype=torch.complex64)

    def _turn(self, orientation: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        """Return which frequency (K,) each frequency of a turned volume is, and -1 (K,) where it is conjugated, else 1."""
        turned = np.rint(self._frequencies @ orientation.T).astype(int)
        index = {tuple(f): k for k, f in enumerate(self._frequencies.tolist())}
        conjugated = np.array([tuple(f) not in index for f in turned.tolist()])
        turned[conjugated] *= -1
        return torch.tensor([index[tuple(f)] for f in turned.tolist()]), torch.where(
            torch.tensor(conjugated), -1.0, 1.0
        )

    def describe(self, grids: Tensor) -> Tensor:
        """Return the descriptors (N, D) of normalised grids (N, n ** 3), as they are."""
        count = len(self._frequencies)
        found = grids @ self._waves[:, : 2 * count]
        return found.unflatten(1, (count, 2)).transpose(1, 2).flatten(1)

    def describe_transformed(self, grids: Tensor) -> Tensor:
        """Return the descriptors (N, len(maps), D) of normalised grids (N, n ** 3) under all transforms."""
        count = len(self._frequencies)
        real, imaginary = (grids @ self._waves).unflatten(1, (-1, count, 2)).unbind(3)
        turned = [torch.cat([real[..., index], imaginary[..., index] * sign], 2) for index, sign in self._turns]
        return torch.cat(turned, 1)


def _axis_waves(scale: float, shift: float) -> NDArray[np.complex128]:
    """Return the (2 MAX_FREQUENCY + 1, n) windowed waves, along one axis, of what is sampled at scale * place + shift."""
    n = HALF_SIDE
    at = (np.arange(n) + 0.5) / n - 0.5
    waves = np.exp(-2j * np.pi * np.arange(-MAX_FREQUENCY, MAX_FREQUENCY + 1)[:, None] * at) * np.cos(np.pi * at) ** 2
    source = (scale * at + shift + 0.5) * n - 0.5
    out = np.zeros(waves.shape, complex)
    low = np.floor(source).astype(int)
    for step in (0, 1):
        share = np.abs(source - low - (1 - step))
        inside = (low + step >= 0) & (low + step < n)
        np.add.at(out.T, (low + step)[inside], (waves * share).T[inside])
    return out


class VolumeSearch:
    """Searches volumes for copies of queries.

    Args:
        ranks: (N, SIDE, SIDE, SIDE) uint8, grids of the volumes searched.
        transforms: shared by all searches.
    """

    def __init__(self, ranks: NDArray[np.uint8], transforms: VolumeTransforms):
        self.ranks, self.transforms = ranks, transforms
        found = torch.cat([transforms.describe(_flat(x)) for x in np.array_split(ranks, -(-len(ranks) // 256))])
        self._whitening = whitening_matrix(found)
        self._described = normalize(found @ self._whitening, dim=1)

    def candidates(self, ranks: NDArray[np.uint8]) -> Candidates:
        """Return candidates for queries (M, SIDE, SIDE, SIDE) uint8, sorted by query."""
        count, found = min(CANDIDATES, len(self.ranks)), []
        for start in range(0, len(ranks), QUERIES):
            views = self.transforms.describe_transformed(_flat(ranks[start : start + QUERIES])) @ self._whitening
            for query, view in enumerate(normalize(views, dim=2), start):
                cosine = view @ self._described.T
                at = torch.topk(cosine.abs().amax(0), count).indices
                transform = cosine[:, at].abs().argmax(0)
                sign = torch.where(cosine[transform, at] < 0, -1.0, 1.0)
                found.append((torch.full((count,), query), at, transform, sign))
        return Candidates(*(torch.cat(x) for x in zip(*found, strict=True)))


def _flat(ranks: NDArray[np.uint8]) -> Tensor:
    value, weight = as_tensors(ranks, HALF_SIDE)
    return normalise_contrast(value, weight, SIGMA).flatten(1)
