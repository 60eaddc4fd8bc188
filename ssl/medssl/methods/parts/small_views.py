"""Multi-crop: small views beside the global ones, and features of views of several sizes.

Caron et al., 2020, https://arxiv.org/abs/2006.09882, section 3.3: small views cost little, and show parts of what the global
views show.
"""

from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from medssl.augmentations.recipes import SmallViews
from medssl.errors import UserError
from medssl.methods.parts.layers import dry_run


def small_views(encoder: Any, count: int, size: float, scale: tuple[float, float]) -> SmallViews:
    """Return `Method.small_views` from the options of a method.

    count: per scan; 0 for none. size: their edges as a share of those of the global views, rounded to whole patches of an
    encoder with `tokens`. scale: smallest and largest share of the area or volume that they show.

    Raises UserError for numbers that make no views, and for an encoder that takes only its own size.
    """
    if count < 0:
        raise UserError(f"method.small.count must be 0 or more, got {count}")
    if not 0 < size < 1:
        raise UserError(f"method.small.size must lie between 0 and 1, a share of the global views, got {size}")
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise UserError(f"method.small.scale must be [low, high] with 0 < low <= high <= 1, got {list(scale)}")
    if count == 0:
        return SmallViews()
    edges = whole_patches(encoder, size)
    if 0 in edges:
        raise UserError(
            f"method.small.size={size} of {encoder.size} pixels is less than a patch of {patch_of(encoder)}; raise it, or "
            "lower encoder.patch"
        )
    if (why := why_refused(encoder, edges)) is not None:
        raise UserError(
            f"small views have {edges} pixels and this {type(encoder).__name__} takes only {tuple(encoder.size)}; use "
            "encoder=cnn, resnet18 or vit, or method.small.count=0"
        ) from why
    return SmallViews(count, edges, (scale[0], scale[1]))


def patch_of(encoder: Any) -> tuple[int, ...]:
    """Return the pixels of a patch along each axis: 1 for an encoder without `tokens`."""
    return tuple(encoder.patch) if hasattr(encoder, "tokens") else (1,) * len(encoder.size)


def whole_patches(encoder: Any, share: float) -> tuple[int, ...]:
    """Return `share` of the encoder's input along each axis, in pixels, rounded to whole patches."""
    return tuple(round(share * n / p) * p for n, p in zip(encoder.size, patch_of(encoder), strict=True))


def why_refused(encoder: Any, edges: tuple[int, ...]) -> Exception | None:
    """Return the error with which an encoder refuses scans of `edges` pixels, or None if it takes them."""
    try:
        with dry_run(encoder):
            encoder(torch.zeros(1, encoder.channels, *edges))
    except (RuntimeError, ValueError, AssertionError, UserError) as e:
        return e
    return None


def encode_views(encoder: Any, views: list[Tensor]) -> Tensor:
    """Return the features (views * B, dim), view after view; neighbours of one size share a pass."""
    passes = [encoder(torch.cat(list(same))) for _, same in groupby(views, key=lambda view: view.shape[2:])]
    return passes[0] if len(passes) == 1 else torch.cat(passes)
