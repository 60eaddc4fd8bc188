"""The blocks of a scan that I-JEPA shows, and those that it asks for."""

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from medssl.losses.distributed import least_over_ranks
from medssl.methods.parts.patches import inside_boxes
from medssl.methods.parts.token_masks import box_edges
from medssl.rng import Key, uniform


@dataclass(frozen=True)
class Blocks:
    """How I-JEPA draws its blocks: targets, and a context that is shown without them.

    Attributes:
        count: number of targets.
        scale: the smallest and the largest share of the grid that a target covers.
        aspect: smallest and largest ratio of its first edge to each other one.
        context: smallest and largest share of the context.
    """

    count: int
    scale: tuple[float, float]
    aspect: tuple[float, float]
    context: tuple[float, float]

    def target_edges(self, grid: tuple[int, ...], u: Tensor) -> tuple[int, ...]:
        """Return the edges of the targets for numbers u (axes,) in [0, 1], rounded down."""
        low, high = (math.log(a) for a in self.aspect)
        area = self.scale[0] + (self.scale[1] - self.scale[0]) * u[0]
        edges = box_edges(area, low + (high - low) * u[1:], grid).clamp(min=1).tolist()
        return tuple(min(int(e), n) for e, n in zip(edges, grid, strict=True))

    def most_patches(self, grid: tuple[int, ...]) -> int:
        """Return an upper bound of the patches of a target, which is more than its share on a grid of few patches."""
        ratios = product([k / 10 for k in range(11)], repeat=len(grid) - 1)
        found = [math.prod(self.target_edges(grid, torch.tensor([1.0, *r]))) for r in ratios]
        return max(int(self.scale[1] * math.prod(grid)), *found)


def context_and_targets(
    key: Key, of_step: Key, view: int, slot: int, grid: tuple[int, ...], blocks: Blocks
) -> tuple[Tensor, Tensor]:
    """Return indices of patches, int64: of the context (B, K), and of each target (B, count, P), never in the context.

    Assran et al., 2023, https://arxiv.org/abs/2301.08243, section 3. of_step: the key of one row that draws what is the same for
    all scans of a step, the blocks' sizes. As in their code, K is the least of any scan, over all ranks; here those left out
    are random. Draws from `slot` and the one after it.
    """
    dims, n, count = len(grid), math.prod(grid), blocks.count
    sizes = uniform(of_step, view, slot + 1, dims + 1)[0]
    whole = torch.tensor(grid).to(key.scan.device, non_blocking=True)
    each = blocks.target_edges(grid, sizes[:dims])
    edges = torch.tensor(each).to(whole.device, non_blocking=True)
    u = uniform(key, view, slot, (count + 1) * dims + n)
    start = (u[:, : count * dims].view(len(u), count, dims) * (whole - edges + 1)).floor().long()
    steps = torch.tensor([math.prod(grid[a + 1 :]) for a in range(dims)]).to(whole.device, non_blocking=True)
    inner = torch.cartesian_prod(*[torch.arange(e, device=whole.device) for e in each]).view(-1, dims)
    targets = ((start[:, :, None] + inner) * steps).sum(-1)
    wide = blocks.context[0] + (blocks.context[1] - blocks.context[0]) * sizes[dims]
    edge = (whole * wide ** (1 / dims)).round().expand(len(u), -1)
    at = (u[:, count * dims : (count + 1) * dims] * (whole - edge + 1)).floor()
    inside = inside_boxes(at, edge, grid).flatten(1)
    free = torch.ones_like(inside).scatter(1, targets.flatten(1), False)
    rank = u[:, (count + 1) * dims :] + (~inside).float() + 2 * (~free).float()  # context first, targets last
    least = max(1, least_over_ranks((inside & free).sum(1).min()))
    return rank.argsort(1)[:, :least], targets
