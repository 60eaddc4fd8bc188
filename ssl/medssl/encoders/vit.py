"""Plain vision transformer for images and volumes: patches, fixed positions, pre-norm blocks, mean of the tokens."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medssl.errors import UserError


def sincos(grid: tuple[int, ...], dim: int, across: tuple[int, ...] | None = None) -> Tensor:
    """Return (prod(grid), dim) float32 sine and cosine positions, rows in row-major order of the grid.

    Each axis has 2 * (dim // (2 * axes)) channels, sines then cosines, at frequencies 10000^(-i/k) as in Vaswani et
    al., 2017, section 3.5; remaining channels are zero. across: a grid over whose whole extent this one is spread, its own
    by default: the positions of a smaller image, as other transformers interpolate learned ones.
    """
    k = dim // (2 * len(grid))
    omega = 10_000.0 ** (-torch.arange(k) / k)
    at = [
        torch.arange(n, dtype=torch.float32) if m == n else (torch.arange(n) + 0.5) * (m / n) - 0.5
        for n, m in zip(grid, across or grid, strict=True)
    ]
    axes = torch.meshgrid(*at, indexing="ij")
    parts = [f(a.flatten()[:, None] * omega) for a in axes for f in (torch.sin, torch.cos)]
    return F.pad(torch.cat(parts, 1), (0, dim - 2 * k * len(grid)))


class Block(nn.Module):
    """Pre-norm self-attention and MLP (Dosovitskiy et al., 2021, equations 2 and 3): (B, N, dim) -> (B, N, dim)."""

    def __init__(self, dim: int, heads: int, mlp: float = 4.0):
        super().__init__()
        hidden = int(dim * mlp)
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x_BND: Tensor) -> Tensor:
        """Apply the block to (B, N, dim)."""
        q, k, v = self.qkv(self.norm1(x_BND)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x_BND = x_BND + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x_BND + self.mlp(self.norm2(x_BND))


def pyramid(depths: list[Tensor], patch: tuple[int, ...], as_map: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Turn the outputs of a transformer's blocks into maps from fine to coarse, each of twice the resolution of the next.

    A transformer has one resolution. As in ViTDet's simple feature pyramid (Li et al., 2022, https://arxiv.org/abs/2203.16527,
    section 3), finer maps are enlarged from it, by at most 4 and not beyond a pixel; here by linear interpolation, since
    weights belong to the decoder. As in SETR (Zheng et al., 2021, https://arxiv.org/abs/2012.15840), finer maps come from
    shallower blocks, and the coarsest from the last block.

    as_map: maps an element of `depths` to (B, dim, *grid).
    """
    levels = min(3, int(math.log2(min(patch))) + 1, len(depths))
    found = [as_map(depths[(k + 1) * len(depths) // levels - 1]) for k in range(levels)]
    mode = "bilinear" if found[0].ndim == 4 else "trilinear"
    return [
        m if k == 0 else F.interpolate(m, scale_factor=2**k, mode=mode, align_corners=False)
        for k, m in zip(reversed(range(levels)), found, strict=True)
    ]


class ViT(nn.Module):
    """Encode (B, C, *size) as (B, dim), 2D or 3D (Dosovitskiy et al., 2021, arXiv:2010.11929; without a class token).

    Also takes smaller views, whose patches get positions spread over the whole grid.

    `patch` is an edge in pixels, or one per axis; by default the divisor of each axis nearest to an eighth of it (in 2D
    at most 16 pixels): 49 to 196 tokens for images of 28 to 224 pixels and about 512 for volumes.

    Attributes:
        patch, grid: tuples, one number per axis; prod(grid) tokens in row-major order.
        pos: (N, dim) fixed positions.

    Raises UserError if a size is not a multiple of the patch or `dim` does not fit `heads` or the positions.
    """

    pos: Tensor

    def __init__(
        self,
        channels: int,
        size: tuple[int, ...],
        patch: int | list[int] | None = None,
        dim: int = 192,
        depth: int = 6,
        heads: int = 3,
        mlp: float = 4.0,
    ):
        super().__init__()
        if dim % heads or dim < 2 * len(size):
            raise UserError(f"encoder.dim {dim} must be a multiple of encoder.heads {heads}, {2 * len(size)} or more")
        self.channels, self.size, self.dim = channels, tuple(size), dim
        self.patch = _patch(self.size, patch)
        self.grid = tuple(n // p for n, p in zip(self.size, self.patch, strict=True))
        self.options = {"patch": list(self.patch), "dim": dim, "depth": depth, "heads": heads, "mlp": mlp}
        self.embed = nn.Linear(channels * math.prod(self.patch), dim)
        self.register_buffer("pos", sincos(self.grid, dim), persistent=False)
        self.blocks = nn.ModuleList(Block(dim, heads, mlp) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.xavier_uniform_(m.weight)
                nn.init.zeros_(m.bias)

    def grid_of(self, x: Tensor) -> tuple[int, ...]:
        """Return the grid of patches of x (B, C, *S), which is `grid` for scans of `size`."""
        return tuple(n // p for n, p in zip(x.shape[2:], self.patch, strict=True))

    def positions(self, x: Tensor) -> Tensor:
        """Return the positions (N, dim) of the patches of x (B, C, *S)."""
        grid = self.grid_of(x)
        return self.pos if grid == self.grid else sincos(grid, self.dim, self.grid).to(self.pos)

    def patchify(self, x: Tensor) -> Tensor:
        """Return the patches (B, N, C * prod(patch)) of x, each flattened channel first, then in row-major order."""
        n = len(self.patch)
        split = [m for pair in zip(self.grid_of(x), self.patch, strict=True) for m in pair]
        x = x.reshape(*x.shape[:2], *split)
        cells, inner = range(2, 2 * n + 2, 2), range(3, 2 * n + 3, 2)
        return x.permute(0, *cells, 1, *inner).flatten(n + 1).flatten(1, n)

    def tokens(
        self, x: Tensor, keep_BK: Tensor | None = None, hidden_BN: Tensor | None = None, hole: Tensor | None = None
    ) -> Tensor:
        """Return the tokens (B, N, dim) of x, or (B, K, dim) of the patches `keep_BK` alone; the others are not read.

        hidden_BN: bool; where True the learned vector `hole` (dim,) takes the place of the patch, at the same position.
        """
        patches, pos = self.patchify(x), self.positions(x).expand(len(x), -1, -1)
        if keep_BK is not None:
            patches, pos = (t.gather(1, keep_BK[..., None].expand(-1, -1, t.shape[2])) for t in (patches, pos))
        h = self.embed(patches)
        if hidden_BN is not None and hole is not None:
            h = torch.where(hidden_BN[..., None], hole.to(h.dtype), h)
        h = h + pos
        for block in self.blocks:
            h = block(h)
        return self.norm(h)

    def depths(self, x: Tensor) -> list[Tensor]:
        """Return the outputs (B, N, dim) of every block, before the final norm."""
        h, found = self.embed(self.patchify(x)) + self.positions(x), []
        for block in self.blocks:
            h = block(h)
            found.append(h)
        return found

    def stages(self, x: Tensor) -> list[Tensor]:
        """Return the `pyramid` (B, dim, *s) of the tokens of evenly spaced blocks; the last is `maps(x)`."""
        grid = self.grid_of(x)
        return pyramid(self.depths(x), self.patch, lambda h: self.norm(h).transpose(1, 2).unflatten(2, grid))

    def maps(self, x: Tensor) -> Tensor:
        """Return the tokens on their grid (B, dim, *grid)."""
        return self.tokens(x).transpose(1, 2).unflatten(2, self.grid_of(x))

    def by_depth(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the patch embedding and of each block, the last with the final norm."""
        groups = [list(part.parameters()) for part in (self.embed, *self.blocks)]
        groups[-1] += self.norm.parameters()
        return groups

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of the tokens (B, dim)."""
        return self.tokens(x).mean(1)


def _patch(size: tuple[int, ...], patch: int | list[int] | None) -> tuple[int, ...]:
    if patch is None:
        return tuple(_divisor(n, min(n / 8, 16.0) if len(size) == 2 else n / 8) for n in size)
    each = (patch,) * len(size) if isinstance(patch, int) else tuple(patch)
    if len(each) != len(size):
        raise UserError(f"encoder.patch {list(each)} has {len(each)} numbers and the scans are {len(size)}D")
    if any(p < 1 or n % p for n, p in zip(size, each, strict=True)):
        fits = tuple(max(1, round(n / max(p, 1))) * max(p, 1) for n, p in zip(size, each, strict=True))
        raise UserError(f"size {size} is not a multiple of encoder.patch {list(each)}; choose {fits} or another patch")
    return each


def _divisor(n: int, target: float) -> int:
    """Return the divisor of n nearest to `target`, the larger in a tie."""
    best = min((p for p in range(1, n + 1) if n % p == 0), key=lambda p: (abs(p - target), -p))
    if best > max(2 * target, 1) or best < target / 2:
        raise UserError(f"size {n} has no divisor near {target:.0f}; choose a multiple of 8 or set encoder.patch")
    return best
