"""Parts of scans, resized to the encoder's input: crops, tiles, slabs and boxes for pretext tasks."""

import itertools
from typing import Any

import torch
from torch import Tensor

from medssl.methods.parts.small_views import patch_of, whole_patches, why_refused
from medssl.resample import apply_axes, axis_weights
from medssl.rng import Key, generator, uniform

FLAT = 0.01  # added to the variance of a tile, 1 being that of all scans, so that noise in a flat one is not enlarged


def crop_resize(x: Tensor, start_BA: Tensor, extent_BA: Tensor, size: tuple[int, ...]) -> Tensor:
    """Crop each scan (B, C, *S) to the box from `start` of length `extent`, in pixels per axis, and resize to (B, C, *size)."""
    axes = enumerate(zip(x.shape[2:], size, strict=True))  # no box is longer than its axis
    weights = [axis_weights(start_BA[:, a], extent_BA[:, a], n, m, longest=n).to(x.dtype) for a, (n, m) in axes]
    return apply_axes(x, weights)


def tile_size(encoder: Any, share: float) -> tuple[int, ...]:
    """Return the pixels along each axis of the tiles that an encoder gets: `share` of its input, in whole patches.

    It is the whole input for an encoder that takes no other size.
    """
    edges = tuple(max(n, p) for n, p in zip(whole_patches(encoder, share), patch_of(encoder), strict=True))
    return edges if why_refused(encoder, edges) is None else tuple(encoder.size)


def tiles(x: Tensor, which_BT: Tensor, grid: int, keep: float, size: tuple[int, ...], key: Key, slot: int) -> Tensor:
    """Cut T tiles from each scan, numbered row by row in a grid of `grid` tiles per axis: (B, C, *S) -> (B * T, C, *size).

    Shows a random part of each tile, the share `keep` of its edge, so that lines do not continue into neighbouring tiles.
    """
    B, T = which_BT.shape
    shape = torch.tensor(x.shape[2:], dtype=torch.float32).to(x.device, non_blocking=True)
    place = torch.stack([which_BT // grid**a % grid for a in reversed(range(len(size)))], -1)
    jitter = uniform(key, 0, slot, T * len(size)).view(B, T, -1) * (1 - keep)
    start = (place + jitter) * shape / grid
    extent = (keep * shape / grid).expand(B * T, -1)
    return crop_resize(x.repeat_interleave(T, 0), start.flatten(0, 1), extent, size)


def standardise(x: Tensor) -> Tensor:
    """Return each tile (C, *S) of x (B, C, *S) with mean 0 and variance 1, or less for one that is nearly flat."""
    axes = tuple(range(1, x.ndim))
    x = x - x.mean(axes, keepdim=True)
    return x / (x.square().mean(axes, keepdim=True) + FLAT).sqrt()


def slab(x: Tensor, start_B: Tensor, share: float) -> Tensor:
    """Cut each scan (B, C, *S) to a `share` of its first spatial axis, from `start` in [0, 1 - share], and resize it."""
    shape = torch.tensor(x.shape[2:], dtype=torch.float32).to(x.device, non_blocking=True)
    start, extent = torch.zeros(len(x), len(shape), device=x.device), shape.expand(len(x), -1).clone()
    start[:, 0], extent[:, 0] = start_B * shape[0], share * shape[0]
    return crop_resize(x, start, extent, tuple(x.shape[2:]))


def distant_permutations(n: int, count: int) -> Tensor:
    """Return (count, n) permutations, far from each other in Hamming distance, or all n! if those are fewer.

    Chosen greedily from fixed random candidates: Noroozi & Favaro, 2016, algorithm 1.
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


def inside_boxes(start_BA: Tensor, edge_BA: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return masks (B, *size), True in the box from `start` of length `edge`, both along every axis."""
    inside = torch.ones(len(start_BA), *size, dtype=torch.bool, device=start_BA.device)
    for a, n in enumerate(size):
        at, start, end = torch.arange(n, device=inside.device), start_BA[:, a], start_BA[:, a] + edge_BA[:, a]
        along = (at >= start[:, None]) & (at < end[:, None])
        inside &= along.view(len(inside), *[n if b == a else 1 for b in range(len(size))])
    return inside


def random_boxes(key: Key, slot: int, size: tuple[int, ...], smallest: float, largest: float) -> Tensor:
    """Return masks (B, *size), True in one random box per scan, with edges of `smallest` to `largest` times the scan's."""
    u = uniform(key, 0, slot, 2 * len(size))
    n = torch.tensor(size).to(u.device, non_blocking=True)
    edge = ((smallest + (largest - smallest) * u[:, ::2]) * n).round().clamp(torch.ones_like(n), n)
    return inside_boxes((u[:, 1::2] * (n - edge + 1)).floor(), edge, size)
