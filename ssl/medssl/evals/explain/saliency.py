"""Saliency maps: Grad-CAM, Grad-CAM of the similarity of two views, attention rollout. `saliency_checks` evaluates them.

Grad-CAM: Selvaraju et al., 2017, https://arxiv.org/abs/1610.02391. Without labels, the similarity of two views of a scan takes
the place of a class score: Stylianou et al., 2019, https://arxiv.org/abs/1901.00536, relative to a reference set as in Lin et
al., 2023, https://arxiv.org/abs/2210.00107. Rollout: Abnar & Zuidema, 2020, https://arxiv.org/abs/2005.00928.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medssl.encoders.timm2d import TimmEncoder
from medssl.encoders.vit import ViT
from medssl.errors import UserError


def gradcam(encoder: Any, x: Tensor, weight: Tensor) -> Tensor:
    """Return the Grad-CAM map of a linear score of the features: scans (B, C, *size) -> (B, *size) float32, not negative.

    The score of scan b is weight[b] . features[b]; weight is (dim,) or (B, dim), such as a row of a linear head. With A the last
    spatial activations and a_k the spatial mean of d score / d A_k, the map is relu(sum_k a_k A_k) (equations 1 and 2),
    interpolated linearly to the size of the scan. If the features are the mean of A, it is CAM (Zhou et al., 2016), the
    contribution of every location to the score. In a transformer with a class token, A is the input of the last attention,
    after which patches no longer affect the features. The encoder runs in evaluation mode and its modes are restored.

    Raises UserError for an encoder without spatial activations.
    """
    with _evaluating(encoder), torch.enable_grad():
        raw, features, placed = _traced(encoder, x.detach())
        (slope,) = torch.autograd.grad((features * weight).sum(), raw)
        maps, slopes = placed(raw.detach()), placed(slope)
    mean = slopes.flatten(2).mean(2).view(*slopes.shape[:2], *[1] * (slopes.ndim - 2))
    return _to_size((mean * maps).sum(1).relu(), x.shape[2:])


def similarity_weight(features: Tensor, other: Tensor, reference: Tensor) -> Tensor:
    """Return the weight for `gradcam` that explains the similarity of a scan to another view of itself, (B, dim).

    features, other: (B, dim) of the scan and of its other view. reference (dim,): mean over other scans of features / |features|.
    The score is f/|f| . (g/|g| - reference), the cosine of the views minus the mean cosine to the other scans, with |f| constant.
    """
    return (F.normalize(other, dim=1) - reference) / features.norm(dim=1, keepdim=True).clamp(min=1e-12)


def map_resolution(encoder: Any, x: Tensor) -> tuple[int, ...]:
    """Return the resolution of the activations behind `gradcam` and `rollout` for scans x (1 or more, C, *size), per axis."""
    with _evaluating(encoder):
        raw, _, placed = _traced(encoder, x)
    return tuple(placed(raw).shape[2:])


def rollout(encoder: Any, x: Tensor) -> Tensor:
    """Return the attention rollout of every patch to the features: (B, C, *size) -> (B, *size) float32.

    Heads are averaged; attention and the residual path count half each: R = prod over layers, the last first, of (A + I) / 2
    (section 3 of the paper). The map is the class token's row of R, or the mean over the patches' rows if they are pooled.

    Raises UserError for a network without attention between all its patches.
    """
    with _evaluating(encoder), torch.no_grad():
        attentions, first, pool, grid = _attention(encoder, x)
    eye = torch.eye(attentions[0].shape[-1], dtype=attentions[0].dtype, device=attentions[0].device)
    reach = eye
    for each in attentions:
        reach = (each.mean(1) + eye) / 2 @ reach
    rows = reach[:, 0] if pool == "token" else reach[:, first:].mean(1)
    return _to_size(rows[:, first:].unflatten(1, grid), x.shape[2:])


@contextmanager
def _evaluating(encoder: nn.Module) -> Iterator[None]:
    """Put the encoder in evaluation mode; restore the modes of all modules afterwards."""
    modes = [(m, m.training) for m in encoder.modules()]
    try:
        encoder.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def _to_size(maps: Tensor, size: torch.Size) -> Tensor:
    mode = {2: "bilinear", 3: "trilinear"}[len(size)]
    return F.interpolate(maps[:, None].float(), tuple(size), mode=mode, align_corners=False)[:, 0]


def _traced(encoder: Any, x: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Return A, a leaf; the features (B, dim) computed from it; and a function from the layout of A to (B, K, *places)."""
    if isinstance(encoder, TimmEncoder):
        net = encoder.net
        if getattr(net, "global_pool", "") == "token" and hasattr(net, "blocks"):
            return _before_last_attention(encoder, x)
        with torch.no_grad():
            raw = net.forward_features(x)
        if not isinstance(raw, Tensor):
            raise _placeless(encoder)
        raw.requires_grad_()
        return raw, net.forward_head(raw), lambda a: _placed(encoder, a)
    if not hasattr(encoder, "maps"):
        raise _placeless(encoder)
    with torch.no_grad():
        raw = encoder.maps(x)
    raw.requires_grad_()
    return raw, raw.flatten(2).mean(2), lambda a: a


def _before_last_attention(encoder: TimmEncoder, x: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """`_traced` for the input of the last block's attention, after its first norm."""
    norm = getattr(encoder.net.blocks[-1], "norm1", None)
    if norm is None:
        raise _placeless(encoder)
    leaves: list[Tensor] = []

    def cut(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        leaves.append(out.detach().requires_grad_())
        return leaves[0]

    hook = norm.register_forward_hook(cut)
    try:
        features = encoder(x)
    finally:
        hook.remove()
    if len(leaves) != 1:
        raise _placeless(encoder)
    return leaves[0], features, lambda a: _placed(encoder, a)


def _placed(encoder: TimmEncoder, a: Tensor) -> Tensor:
    """Return the output of timm's forward_features, or tokens, as (B, K, h, w)."""
    net = encoder.net
    grid = getattr(getattr(net, "patch_embed", None), "grid_size", None)
    if a.ndim == 3 and grid and a.shape[1] >= grid[0] * grid[1]:
        return a[:, a.shape[1] - grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid)
    if a.ndim != 4:
        raise _placeless(encoder)
    return a.permute(0, 3, 1, 2) if getattr(net, "output_fmt", "NCHW") == "NHWC" else a


def _placeless(encoder: Any) -> UserError:
    return UserError(f"{_name(encoder)} has no spatial activations, so there are no maps; pretrain a cnn or a vit")


def _name(encoder: Any) -> str:
    return getattr(encoder, "options", {}).get("model", type(encoder).__name__)


def _attention(encoder: Any, x: Tensor) -> tuple[list[Tensor], int, str, tuple[int, ...]]:
    """Return each block's attention (B, heads, N, N), the index of the first patch, the pooling, and the patches' grid."""
    if isinstance(encoder, ViT):
        found = []
        h = encoder.embed(encoder.patchify(x)) + encoder.pos
        block: Any
        # computed here because the block's own attention is fused
        for block in encoder.blocks:
            q, k, _ = block.qkv(block.norm1(h)).unflatten(2, (3, block.heads, -1)).permute(2, 0, 3, 1, 4)
            found.append((q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1))
            h = block(h)
        return found, 0, "avg", encoder.grid
    net, name = getattr(encoder, "net", None), _name(encoder)
    none = UserError(f"{name} has no attention between all its patches; use method=gradcam or similarity")
    parts = [[m for m in block.modules() if hasattr(m, "attn_drop")] for block in getattr(net, "blocks", [])]
    grid = getattr(getattr(net, "patch_embed", None), "grid_size", None)
    pool, first = getattr(net, "global_pool", ""), getattr(net, "num_prefix_tokens", 0)
    if not grid or not parts or any(len(part) != 1 for part in parts) or pool not in ("token", "avg"):
        raise none
    found = _unfused(encoder, [part for (part,) in parts], x)
    tokens = first + grid[0] * grid[1]
    if len(found) != len(parts) or any(a.shape[-2:] != (tokens, tokens) or not _sums_to_one(a) for a in found):
        raise none
    return found, first, pool, grid


def _unfused(encoder: TimmEncoder, parts: list[Any], x: Tensor) -> list[Tensor]:
    """Return the inputs of the dropout between softmax and values, with fused attention switched off meanwhile."""
    found: list[Tensor] = []
    fused = [getattr(part, "fused_attn", False) for part in parts]
    hooks = [part.attn_drop.register_forward_hook(lambda _, __, out: found.append(out)) for part in parts]
    try:
        for part in parts:
            part.fused_attn = False
        encoder(x)
    finally:
        for part, was in zip(parts, fused, strict=True):
            part.fused_attn = was
        for hook in hooks:
            hook.remove()
    return found


def _sums_to_one(a: Tensor) -> bool:
    return bool(((a.sum(-1) - 1).abs() < 1e-3).all())
