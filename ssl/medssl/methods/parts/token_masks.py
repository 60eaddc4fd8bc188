"""Which patches of a scan are hidden from an encoder with tokens: keyed masks on its grid of patches."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from medssl.errors import UserError
from medssl.methods.parts.patches import inside_boxes
from medssl.rng import Key, uniform


def hide_tokens(key: Key, view: int, slot: int, n: int, share_B: Tensor) -> Tensor:
    """Return (B, n) bool, True for a random choice of int(share * n) of the n patches of each scan. Draws n numbers."""
    rank = uniform(key, view, slot, n).argsort(1).argsort(1)
    return rank < (share_B.to(rank.device, non_blocking=True)[:, None] * n).long()


def hide_squares(key: Key, view: int, slot: int, grid: tuple[int, ...], share: float, edge: int) -> Tensor:
    """Return (B, N) bool, True for int(share * n) of the n squares of `edge` patches that cover the grid."""
    coarse = tuple(math.ceil(n / edge) for n in grid)
    hidden = hide_tokens(key, view, slot, math.prod(coarse), torch.full((len(key.scan),), share))
    cells = hidden.unflatten(1, coarse)
    for a, n in enumerate(grid):
        cells = cells.index_select(1 + a, torch.arange(n, device=cells.device) // edge)
    return cells.flatten(1)


BLOCKS = 8  # tried for each scan; those beyond are not needed, or single patches fill up


def hide_blocks(
    key: Key, view: int, slot: int, grid: tuple[int, ...], share: float, smallest: float, aspect: float
) -> Tensor:
    """Return (B, N) bool, True for int(share * N) patches in blocks: Bao et al., 2022, https://arxiv.org/abs/2106.08254 (BEiT).

    A block covers between the shares `smallest` and `share` of the grid, with ratios of its edges up to `aspect`, drawn on a
    logarithmic scale. Blocks are added until the number is reached, and the last is cut at random to it.
    """
    dims, n = len(grid), math.prod(grid)
    u = uniform(key, view, slot, BLOCKS * 2 * dims + n)
    drawn, order = u[:, : BLOCKS * 2 * dims].unflatten(1, (BLOCKS, -1)), u[:, BLOCKS * 2 * dims :]
    area = smallest + (share - smallest) * drawn[..., 0]
    log_ratio = (2 * drawn[..., 1:dims] - 1) * math.log(aspect)
    whole = torch.tensor(grid).to(u.device, non_blocking=True)
    edges = box_edges(area, log_ratio, grid).round().clamp(min=1).minimum(whole)
    start = (drawn[..., dims:] * (whole - edges + 1)).floor()
    inside = inside_boxes(start.flatten(0, 1), edges.flatten(0, 1), grid).view(len(u), BLOCKS, n)
    number = torch.arange(BLOCKS, device=u.device)[:, None]
    first = torch.where(inside, number, BLOCKS).amin(1)  # the block that covers a patch first
    return (first + order).argsort(1).argsort(1) < int(share * n)


def box_edges(area: Tensor, log_ratio: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Return the edges (…, axes) of boxes that cover a share `area` (…) of the grid.

    log_ratio (…, axes - 1): logarithm of the first edge over each other one, on a grid of equal axes.
    """
    logs = torch.cat([torch.zeros_like(area)[..., None], -log_ratio], -1)
    logs = logs - logs.mean(-1, keepdim=True)
    return torch.tensor(grid).to(area.device, non_blocking=True) * (area.log()[..., None] / len(grid) + logs).exp()


def hide_some(key: Key, view: int, slot: int, n: int, chance: float, share: tuple[float, float]) -> Tensor:
    """Return (B, n) bool: with probability `chance` a random share between the two given is hidden, else none.

    Zhou et al., 2022, https://arxiv.org/abs/2111.07832: a network that sees only masked scans would never see whole ones. Draws
    from `slot` and the one after it.
    """
    u = uniform(key, view, slot, 2)
    drawn = share[0] + (share[1] - share[0]) * u[:, 1]
    return hide_tokens(key, view, slot + 1, n, torch.where(u[:, 0] < chance, drawn, 0.0))


def checked_shares(share: Sequence[float], n: int) -> tuple[float, float]:
    """Return the two shares of `hide_some`. Raises UserError unless they ascend within (0, 1] and the larger hides one of n."""
    if len(share) != 2 or not 0 < share[0] <= share[1] <= 1:
        raise UserError(f"method.ratio must be [low, high] with 0 < low <= high <= 1, got {list(share)}")
    if int(n * share[1]) == 0:
        raise UserError(f"method.ratio={list(share)} of {n} patches hides none; raise it")
    return share[0], share[1]


def equal_scans(hidden_BN: Tensor) -> Tensor:
    """Return a weight for each hidden patch, in the order of `x[hidden_BN]`, with which all scans with any weigh 1 / B."""
    return (1 / hidden_BN.sum(1).clamp(min=1) / len(hidden_BN))[:, None].expand_as(hidden_BN)[hidden_BN]
