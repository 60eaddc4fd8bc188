"""Candidates for copies that were mirrored, turned, inverted, cropped, padded, shifted or partly blacked, by descriptors.

A query is compared under about 200 affine transforms and, since only the size of a cosine counts, inverted. The descriptors, low
frequencies, of a transformed image are linear in its grid, so one matrix yields them all. They are divided by their typical
size over the images searched (whitening without centring), so that what all images of an organ share counts little.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from medssl.leakage.equalised_grid import HALF_SIDE, as_tensors, normalise_contrast
from medssl.leakage.registration import Affine, places

SIGMA = 2.0  # pixels of the grid, see `normalise_contrast`
MAX_FREQUENCY = 5  # cycles per image
CANDIDATES = 8  # images compared further per query
MASKED_CANDIDATES = 4  # candidates for each covered part
UNMOVED_CANDIDATES = (
    2  # candidates by correlation pixel by pixel, of copies that were only turned by right angles or mirrored
)
COVERED = 0.6  # share of a block without structure for which the rest of the image is searched by itself
SHRINKAGE = 0.05  # least shrinkage of the second moments towards a multiple of the identity
BLOCK = 2048  # images searched at once
SAMPLE = 4096  # images from which second moments are estimated

_ORIENTATIONS = [np.array(m, float) for m in (
    [[1, 0], [0, 1]], [[1, 0], [0, -1]], [[-1, 0], [0, 1]], [[-1, 0], [0, -1]],
    [[0, 1], [1, 0]], [[0, 1], [-1, 0]], [[0, -1], [1, 0]], [[0, -1], [-1, 0]],
)]  # fmt: skip
# Scale and shift of one axis, of a copy that lacks up to 10 % at either end, has as much more, or was shifted.
_AXIS = [(1, 0), (0.9, 0), (0.8, 0), (1 / 0.9, 0), (1 / 0.8, 0), (1, 0.06), (1, -0.06), (0.9, 0.05), (0.9, -0.05)]
_AXIS += [(0.94, 0.03), (0.94, -0.03)]
_CORNERS = [((0.86, 0.86), (down, right)) for down, right in product((-0.07, 0.07), repeat=2)]
# A copy that lacks up to 10 % at one end of an axis, or of both.
_LACKING = [
    (tuple(1 + 0.09 * abs(i) for i in ends), tuple(0.045 * i for i in ends))
    for ends in product((-1, 0, 1), repeat=2)
    if ends != (0, 0)
]
_SHIFTS = [((1, 1), by) for by in product((-0.1, 0, 0.1), repeat=2) if by != (0, 0)]
_QUARTERS = [((0.75, 1), (0.125, 0)), ((0.75, 1), (-0.125, 0)), ((1, 0.75), (0, 0.125)), ((1, 0.75), (0, -0.125))]
# The central square of an image of up to 2 to 1, to which data sets are often cut.
_SQUARES = [(scale, (0, 0)) for s in (0.73, 0.65, 0.57) for scale in ((1, s), (s, 1), (1, 1 / s), (1 / s, 1))]


def _rotation(degrees: float) -> NDArray[np.float64]:
    sine, cosine = np.sin(np.deg2rad(degrees)), np.cos(np.deg2rad(degrees))
    return np.array([[cosine, -sine], [sine, cosine]])


def _transforms() -> Affine:
    """Return all transforms: upright and mirrored images in detail, other orientations with few sizes and turns."""
    axes = [((s, u), (t, v)) for (s, t), (u, v) in product(_AXIS, repeat=2) if abs(s - u) < 0.25]
    detailed = [
        (np.diag(scale), shift) for scale, shift in (*axes, *_CORNERS, *_LACKING, *_SHIFTS, *_QUARTERS, *_SQUARES)
    ]
    detailed += [(_rotation(a) * s, (0, 0)) for a in (-9, -6, -3, 3, 6, 9) for s in (1, 0.9)]
    few = [(np.eye(2) * s, (0, 0)) for s in (1, 0.9, 0.8, 1 / 0.9)] + [(_rotation(a), (0, 0)) for a in (-6, 6)]
    found = [(o @ m, t) for o in _ORIENTATIONS[:2] for m, t in detailed]
    found += [(o @ m, t) for o in _ORIENTATIONS[2:] for m, t in few]
    matrix, shift = (torch.tensor(np.array(list(x)), dtype=torch.float32) for x in zip(*found, strict=True))
    return Affine(matrix, shift)


def _resampled(rows: Tensor, maps: Affine) -> Tensor:
    """Return the (V, D, n * n) matrices that have the effect of `rows` (D, n * n) on grids resampled under maps."""
    n = HALF_SIDE
    at = ((places(n) @ maps.matrix.transpose(1, 2) + maps.shift[:, None]) + 0.5) * n - 0.5  # (V, n * n, 2)
    low, part = at.floor().long(), at - at.floor()
    out = torch.zeros(len(at), *rows.shape)
    for down, right in product((0, 1), repeat=2):
        row, column = low[..., 0] + down, low[..., 1] + right
        share = (part[..., 0] - (1 - down)).abs() * (part[..., 1] - (1 - right)).abs()
        share = share * ((row >= 0) & (row < n) & (column >= 0) & (column < n))
        source = row.clamp(0, n - 1) * n + column.clamp(0, n - 1)
        for v in range(len(at)):
            out[v].index_add_(1, source[v], rows * share[v])
    return out


def _waves(window: Tensor) -> Tensor:
    """Return the (D, n * n) matrix of windowed low frequencies, without the windowed mean."""
    reach = torch.arange(-MAX_FREQUENCY, MAX_FREQUENCY + 1)
    down, right = (f.flatten() for f in torch.meshgrid(reach, reach, indexing="ij"))
    half = (down**2 + right**2 <= MAX_FREQUENCY**2) & ((right > 0) | ((right == 0) & (down > 0)))
    phase = 2 * torch.pi * torch.stack([down[half], right[half]], 1).float() @ places(HALF_SIDE).T
    waves = torch.cat([phase.cos(), phase.sin()]) * window
    return waves - waves.sum(1, keepdim=True) / window.sum() * window


@dataclass(frozen=True)
class _Bank:
    """Descriptors of one window.

    Attributes:
        waves: (D, n * n), which describes an image as it is.
        transformed: (V * D, n * n), which describes it under every transform.
        first: index of the first transform.
    """

    waves: Tensor
    transformed: Tensor
    first: int


_SINE = torch.sin(torch.pi * (torch.arange(HALF_SIDE) + 0.5) / HALF_SIDE)
_HANN = torch.outer(_SINE, _SINE).flatten() ** 2  # centres count most, which crops and turns change least
_FLAT = torch.outer(_SINE, _SINE).flatten() ** 0.5  # for the rest of a blacked image


class Transforms:
    """All transforms under which images are searched, and the matrices that describe images under them."""

    def __init__(self) -> None:
        turned = Affine(torch.tensor(np.array(_ORIENTATIONS), dtype=torch.float32), torch.zeros(len(_ORIENTATIONS), 2))
        whole = _transforms()
        self.maps = Affine(torch.cat([whole.matrix, turned.matrix]), torch.cat([whole.shift, turned.shift]))
        self.orientations = _resampled(torch.eye(HALF_SIDE**2), turned)
        self.blocks = [
            self._block(down, right) for down, right in product(range(0, HALF_SIDE // 2 + 1, HALF_SIDE // 8), repeat=2)
        ]
        self.whole = self._bank(_HANN, whole, 0)
        self.rest = [self._bank(_FLAT * ~block, turned, len(whole.shift)) for block in self.blocks]

    @staticmethod
    def _block(down: int, right: int) -> Tensor:
        """Return the pixels (n * n,) of a square of a quarter of the image."""
        inside = torch.zeros(HALF_SIDE, HALF_SIDE, dtype=torch.bool)
        inside[down : down + HALF_SIDE // 2, right : right + HALF_SIDE // 2] = True
        return inside.flatten()

    @staticmethod
    def _bank(window: Tensor, maps: Affine, first: int) -> _Bank:
        waves = _waves(window)
        return _Bank(waves, _resampled(waves, maps).flatten(0, 1), first)


@dataclass(frozen=True)
class Candidates:
    """Images that may show what queries show.

    Attributes:
        query, image: (P,) int64, positions; sorted by query.
        transform: (P,) int64, index into `Transforms.maps`: from places of the image to places of the query.
        sign: (P,) float32, -1 for inverted copies.
    """

    query: Tensor
    image: Tensor
    transform: Tensor
    sign: Tensor

    def __getitem__(self, at: Tensor) -> "Candidates":
        return Candidates(self.query[at], self.image[at], self.transform[at], self.sign[at])


class TransformedSearch:
    """Searches images for copies of queries.

    Args:
        ranks: (N, SIDE, SIDE) uint8, grids of the images searched.
        scan: (N,) int64, the scan that each shows: those of a volume's slices are the same, and the best of them counts.
        transforms: shared by all searches.
    """

    def __init__(self, ranks: NDArray[np.uint8], scan: Tensor, transforms: Transforms):
        self.ranks, self.scan, self.transforms = ranks, scan, transforms
        self._whole = self._describe(transforms.whole)
        self._uniform = torch.cat([flat_grids(ranks[at])[1] == 0 for at in _blocks(len(ranks))])

    def _describe(self, bank: _Bank) -> tuple[Tensor, Tensor]:
        """Return the whitening matrix (D, D), and the whitened descriptors (N, D) of all images, of length 1."""
        found = torch.cat([flat_grids(self.ranks[at])[0] @ bank.waves.T for at in _blocks(len(self.ranks))])
        whitening = whitening_matrix(found)
        return whitening, normalize(found @ whitening, dim=1)

    def candidates(self, ranks: NDArray[np.uint8]) -> Candidates:
        """Return candidates for queries (M, SIDE, SIDE) uint8."""
        grid, weight = (torch.cat(x) for x in zip(*(flat_grids(ranks[i]) for i in _blocks(len(ranks))), strict=True))
        queries, everything = torch.arange(len(ranks)), torch.arange(len(self.ranks))
        found = [self._nearest(self.transforms.whole, *self._whole, grid, queries, everything, CANDIDATES)]
        found.append(self._unmoved(grid))
        uniform = (weight == 0).float()
        for block, bank in zip(self.transforms.blocks, self.transforms.rest, strict=True):
            share = uniform @ self.transforms.orientations[:, block].mean(1).T  # the block's share, by orientation
            covered = torch.nonzero((share >= COVERED).any(1))[:, 0]
            images = torch.nonzero(self._uniform[:, block].float().mean(1) >= COVERED)[:, 0]
            if len(covered) or len(images):
                whitening, described = self._describe(bank)
                for some, among in ((covered, everything), (queries, images)):
                    if len(some) and len(among):
                        found.append(
                            self._nearest(bank, whitening, described[among], grid, some, among, MASKED_CANDIDATES)
                        )
        query, image, transform, sign = (torch.cat(x) for x in zip(*found, strict=True))
        order = torch.argsort(query, stable=True)
        return Candidates(query[order], image[order], transform[order], sign[order])

    def _nearest(
        self,
        bank: _Bank,
        whitening: Tensor,
        images: Tensor,
        grid: Tensor,
        queries: Tensor,
        among: Tensor,
        count: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return query, image, transform and sign (P,) of the nearest images of each query, under the best transform.

        Args:
            bank, whitening: see `_Bank` and `TransformedSearch`.
            images: (N, D) whitened descriptors of the images at the positions `among` (N,).
            grid: (M, n * n) normalised grids, of which those at `queries` are searched.
            count: scans per query.
        """
        scan, size = self.scan[among], bank.waves.shape[0]
        scans = len(scan.unique())
        count = min(count, scans)
        found = []
        for some in queries.split(256):
            described = (grid[some] @ bank.transformed.T).unflatten(1, (-1, size)) @ whitening
            for query, views in zip(some, normalize(described, dim=2), strict=True):
                best = torch.cat([(views @ part.T).abs_().amax(0) for part in images.split(BLOCK)])
                at = torch.topk(best, count).indices if scans == len(scan) else best_of_each(best, scan, count)
                cosine = views @ images[at].T
                transform = cosine.abs().argmax(0)
                sign = torch.where(cosine.gather(0, transform[None])[0] < 0, -1.0, 1.0)
                found.append((query.expand(count), among[at], bank.first + transform, sign))
        return tuple(torch.cat(x) for x in zip(*found, strict=True))  # type: ignore[return-value]

    def _unmoved(self, grid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return query, image, transform and sign (P,) of the images that agree best pixel by pixel with queries.

        A window that saturates parts all over an image leaves holes, which change the descriptors, and not the pixels beside.

        grid: (M, n * n) normalised grids of the queries.
        """
        turns, scans = self.transforms.orientations, len(self.scan.unique())
        first, count = len(self.transforms.maps.shift) - len(turns), min(UNMOVED_CANDIDATES, scans)
        images = torch.cat([normalize(flat_grids(self.ranks[at])[0], dim=1) for at in _blocks(len(self.ranks))])
        found = []
        for some in torch.arange(len(grid)).split(64):
            views = normalize(torch.einsum("vij,mj->mvi", turns, grid[some]), dim=2)
            cosine = views @ images.T  # (M, V, N)
            best, turn = cosine.abs().max(1)
            sign = torch.where(cosine.gather(1, turn[:, None])[:, 0] < 0, -1.0, 1.0)
            for k, query in enumerate(some):
                every = scans == len(self.scan)
                at = torch.topk(best[k], count).indices if every else best_of_each(best[k], self.scan, count)
                found.append((query.expand(count), at, first + turn[k, at], sign[k, at]))
        return tuple(torch.cat(x) for x in zip(*found, strict=True))  # type: ignore[return-value]


def best_of_each(value: Tensor, scan: Tensor, count: int) -> Tensor:
    """Return the positions of the largest values (N,) of `count` scans (N,), one each."""
    top = torch.full((int(scan[-1]) + 1,), -1.0).scatter_reduce_(0, scan, value, "amax")
    scans = torch.topk(top, count).indices
    return torch.stack([torch.where(scan == i, value, -1.0).argmax() for i in scans])


def whitening_matrix(found: Tensor) -> Tensor:
    """Return the (D, D) matrix that divides descriptors (N, D) by their typical size in each direction."""
    sample = found[:: max(1, len(found) // SAMPLE)]
    moments = (sample.T @ sample / len(sample)).double()
    size = len(moments)
    shrink = max(SHRINKAGE, size / (size + len(sample)))
    moments = (1 - shrink) * moments + shrink * moments.diagonal().mean() * torch.eye(size)
    value, vector = torch.linalg.eigh(moments + 1e-9 * torch.eye(size))
    return ((vector * value**-0.5) @ vector.T).float()


def _blocks(n: int) -> list[slice]:
    return [slice(start, start + BLOCK) for start in range(0, n, BLOCK)]


def flat_grids(ranks: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Return the normalised grids and weights (N, HALF_SIDE ** 2) of N grids of ranks."""
    value, weight = as_tensors(ranks, HALF_SIDE)
    return normalise_contrast(value, weight, SIGMA).flatten(1), weight.flatten(1)
