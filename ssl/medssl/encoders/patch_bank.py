"""Bank of whitened patches, trained without gradients.

Coates, Lee & Ng, 2011, "An analysis of single-layer networks in unsupervised feature learning". Every patch of a scan
is normalised, whitened and compared with K centroids; the codes are averaged over a coarse grid. The statistics and
the centroids are buffers, set by the method that trains the bank; before training, the centroids are noise.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from medssl.errors import UserError

BUDGET = 1 << 22  # numbers in the largest intermediate tensor, the codes of one chunk: 16 MB


class PatchBank(nn.Module):
    """Encode (B, C, *size) as (B, dim = centroids * pool^axes), 2D or 3D. No parameters.

    The output is ordered by grid cell, then by centroid.

    Attributes:
        mean: (P,) of normalised patches; P = channels * patch^axes.
        whiten: (P, P), symmetric (ZCA).
        centroids: (K, P), in whitened space.

    Args:
        channels: channels of the scans.
        size: size of the scans.
        patch: edge in pixels; by default 6 in 2D, as in the paper, and 4 in 3D.
        centroids: number of centroids.
        pool: cells per axis.
        contrast: added to the variance of a patch before dividing by it, for standardised scans. The authors' code adds
            10 for pixels of 0 to 255: 0.01 at a standard deviation of 0.12 of the range. On PneumoniaMNIST, 0.005 to
            0.02 perform equally well (test AUC .967 to .968).

    Raises UserError when a patch does not fit the scans or the grid has more cells than there are patches.
    """

    mean: Tensor
    whiten: Tensor
    centroids: Tensor

    def __init__(
        self,
        channels: int,
        size: tuple[int, ...],
        patch: int | None = None,
        centroids: int = 256,
        pool: int = 3,
        contrast: float = 0.01,
    ):
        super().__init__()
        self.patch = patch or (6 if len(size) == 2 else 4)
        self.channels, self.size, self.pool, self.contrast = channels, tuple(size), pool, contrast
        self.positions = tuple(n - self.patch + 1 for n in self.size)
        if min(self.positions) < pool:
            raise UserError(
                f"size {self.size} leaves {max(min(self.positions), 0)} positions for encoder.patch={self.patch}, "
                f"fewer than encoder.pool={pool}; choose a larger size or a smaller patch"
            )
        self.options = {"patch": self.patch, "centroids": centroids, "pool": pool, "contrast": contrast}
        self.dim = centroids * pool ** len(size)
        P = channels * self.patch ** len(size)
        self.register_buffer("mean", torch.zeros(P))
        self.register_buffer("whiten", torch.eye(P))
        self.register_buffer("centroids", torch.randn(centroids, P))

    def set_whitening(self, mean_P: Tensor, cov_PP: Tensor, eps: float = 0.1) -> None:
        """Set ZCA whitening, V (L + eps)^(-1/2) V^T, from the covariance of normalised patches; eps as in the paper's code."""
        values, vectors = torch.linalg.eigh(cov_PP.double())
        self.mean.copy_(mean_P)
        self.whiten.copy_((vectors * (values.clamp(min=0) + eps).rsqrt()) @ vectors.T)

    def patches_at(self, x: Tensor, u_Bn: Tensor) -> Tensor:
        """Return (B * n, P) normalised patches of x (B, C, *size) at the positions of n uniforms in [0, 1) per scan."""
        at = (u_Bn.double() * math.prod(self.positions)).long().clamp(max=math.prod(self.positions) - 1)
        scan = torch.arange(len(x), device=x.device)[:, None].expand_as(at)
        where = [at // math.prod(self.positions[a + 1 :]) % n for a, n in enumerate(self.positions)]
        return self._normalise(self._windows(x)[(scan, *where)].flatten(2).flatten(0, 1))

    def whitened(self, patches_NP: Tensor) -> Tensor:
        """Whiten (N, P) normalised patches, like the centroids."""
        return (patches_NP - self.mean) @ self.whiten

    def code(self, patches_NP: Tensor) -> Tensor:
        """Return the triangle code (N, K) of normalised patches: the mean distance minus the distance to each centroid, or 0."""
        y = self.whitened(patches_NP)
        z = torch.addmm(self.centroids.square().sum(1), y, self.centroids.T, alpha=-2)
        z = z.add_(y.square().sum(1, keepdim=True)).clamp_(min=0).sqrt_()
        return (z.mean(1, keepdim=True) - z).clamp_(min=0)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, dim) for x (B, C, *size), computed in chunks of patches."""
        K, (first, *rest) = len(self.centroids), self.positions
        grids = [_cells(n, self.pool).to(x, non_blocking=True) for n in self.positions]
        rows = max(1, BUDGET // (max(K, len(self.mean)) * math.prod(rest)))
        step = max(1, rows // first)
        out = x.new_zeros(len(x), self.pool, self.pool ** len(rest) * K)
        for b in range(0, len(x), step):
            windows = self._windows(x[b : b + step])
            for r in range(0, first, rows):
                part = windows[:, r : r + rows]
                shape = part.shape[: 1 + len(self.size)]
                h = self.code(self._normalise(part.flatten(1 + len(self.size)).flatten(0, -2))).view(*shape, K)
                for grid in reversed(grids[1:]):  # the last axis first: every product shrinks the next
                    h = (grid @ h).flatten(-2)
                out[b : b + step] += grids[0][:, r : r + rows] @ h
        return out.flatten(1)

    @property
    def banks(self) -> "tuple[PatchBank, ...]":
        """Return the patch bank itself, for code that takes a PatchPyramid as well."""
        return (self,)

    def stages(self, x: Tensor) -> list[Tensor]:
        """Raise UserError: there are no feature maps."""
        raise UserError(
            "the patch bank has no feature maps, only averages of codes; choose encoder=cnn, vit or resnet18"
        )

    def by_depth(self) -> list[list[nn.Parameter]]:
        """Return no parameters: nothing is trained by gradient."""
        return []

    def _windows(self, x: Tensor) -> Tensor:
        """Return all patches (B, *positions, C, *patch) as a view of x."""
        for axis in range(2, x.ndim):
            x = x.unfold(axis, self.patch, 1)
        return x.movedim(1, 1 + len(self.size))

    def _normalise(self, patches_NP: Tensor) -> Tensor:
        """Normalise the brightness and contrast of each patch."""
        p = patches_NP - patches_NP.mean(1, keepdim=True)
        return p * (p.square().mean(1, keepdim=True) + self.contrast).rsqrt()


def _cells(n: int, pool: int) -> Tensor:
    """Return the (pool, n) matrix that averages `pool` disjoint cells covering an axis."""
    edges = [round(i * n / pool) for i in range(pool + 1)]
    out = torch.zeros(pool, n)
    for i, (a, b) in enumerate(pairwise(edges)):
        out[i, a:b] = 1 / (b - a)
    return out
