"""Parts of scans, brought to the size that an encoder takes: what pretext tasks cut out, order and place."""

import itertools

import torch
from torch import Tensor

from medssl.resample import apply_axes, axis_weights
from medssl.rng import Key, generator, uniform


def crop_resize(x: Tensor, start_BA: Tensor, extent_BA: Tensor, size: tuple[int, ...]) -> Tensor:
    """The box of each scan (B, C, *S) that begins at `start` and is `extent` long, in pixels per axis -> (B, C, *size)."""
    weights = [axis_weights(start_BA[:, a], extent_BA[:, a], x.shape[2 + a], n).to(x.dtype) for a, n in enumerate(size)]
    return apply_axes(x, weights)


def tiles(x: Tensor, which_BT: Tensor, grid: int, keep: float, key: Key, slot: int) -> Tensor:
    """Tiles of a grid with `grid` tiles per axis, numbered row by row: (B, C, *S) -> (B * T, C, *S), T tiles of each scan.

    Of a tile's edge the share `keep` is shown, anywhere in it, so that neighbours do not continue each other's lines.
    """
    B, T = which_BT.shape
    size = x.shape[2:]
    shape = torch.tensor(size, dtype=torch.float32, device=x.device)
    place = torch.stack(torch.unravel_index(which_BT, (grid,) * len(size)), -1)
    jitter = uniform(key, 0, slot, T * len(size)).view(B, T, -1) * (1 - keep)
    start = (place + jitter) * shape / grid
    extent = (keep * shape / grid).expand(B * T, -1)
    return crop_resize(x.repeat_interleave(T, 0), start.flatten(0, 1), extent, tuple(size))


def slab(x: Tensor, start_B: Tensor, share: float) -> Tensor:
    """The part of each scan (B, C, *S) that is `share` of its first spatial axis and begins at start in [0, 1 - share]."""
    shape = torch.tensor(x.shape[2:], dtype=torch.float32, device=x.device)
    start, extent = torch.zeros(len(x), len(shape), device=x.device), shape.expand(len(x), -1).clone()
    start[:, 0], extent[:, 0] = start_B * shape[0], share * shape[0]
    return crop_resize(x, start, extent, tuple(x.shape[2:]))


def distant_permutations(n: int, count: int) -> Tensor:
    """(count, n) orders of n things, or all n! where those are fewer; each far from the others in Hamming distance.

    Greedy, from random candidates, always the same: Noroozi & Favaro, 2016, algorithm 1.
    """
    if n < 8 and len(every := list(itertools.permutations(range(n)))) <= count:
        return torch.tensor(every)
    g = generator(n, count)
    kept = [torch.arange(n)]
    while len(kept) < count:
        candidates = torch.rand(500, n, generator=g).argsort(1)
        distance = (candidates[:, None] != torch.stack(kept)).sum(2).amin(1)
        if distance.max() > 0:
            kept.append(candidates[distance.argmax()])
    return torch.stack(kept)


def random_boxes(key: Key, slot: int, size: tuple[int, ...], smallest: float, largest: float) -> Tensor:
    """(B, *size) bool, true in one box of each scan: its edges are smallest … largest of the scan's, its place is anywhere."""
    u = uniform(key, 0, slot, 2 * len(size))
    inside = torch.ones(len(u), *size, dtype=torch.bool, device=u.device)
    for a, n in enumerate(size):
        edge = ((smallest + (largest - smallest) * u[:, 2 * a]) * n).round().clamp(1, n)
        start = (u[:, 2 * a + 1] * (n - edge + 1)).floor()
        at = torch.arange(n, device=u.device)
        along = (at >= start[:, None]) & (at < (start + edge)[:, None])
        inside &= along.view(len(u), *[n if b == a else 1 for b in range(len(size))])
    return inside
