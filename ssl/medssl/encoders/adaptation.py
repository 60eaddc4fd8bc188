"""Which weights of an encoder are trained: all, those of its norms or of its attention, or low-rank additions (LoRA)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from medssl.errors import UserError

ADAPT = ("all", "norm", "attention", "lora")
QUERIES = ("q", "qkv", "q_proj", "query")  # linear layers that only attention has


class LowRank(nn.Module):
    """A weight W (out, …) plus a trained matrix of low rank: W + B A, with A (rank, in), B (out, rank), in = prod(…).

    Hu et al., 2021, https://arxiv.org/abs/2106.09685, equation 3 with alpha = rank, as in section 4.1: A starts random and
    B at zero, so training starts from W. The rank is at most that of W.
    """

    def __init__(self, weight: Tensor, rank: int):
        super().__init__()
        out, width = len(weight), weight[0].numel()
        rank = min(rank, out, width)
        self.A = nn.Parameter(torch.randn(rank, width) / width**0.5)
        self.B = nn.Parameter(torch.zeros(out, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the sum, in the shape of the weight."""
        with torch.autocast(weight.device.type, enabled=False):
            return weight + (self.B @ self.A).view_as(weight)


def adapt(encoder: nn.Module, how: str, rank: int) -> None:
    """Leave only a part of `encoder` trainable, in place.

    Args:
        how: one of ADAPT. norm: weights and biases of normalisation layers (Frankle et al., 2020, https://arxiv.org/abs/2003.00152);
            attention: the projections of attention layers (Touvron et al., 2022, https://arxiv.org/abs/2203.09795); lora:
            `LowRank` additions to those projections, or in a network without attention to all its linear and
            convolutional layers, until `merge`. Batch normalisation keeps following the batches.
        rank: of lora.

    Raises UserError for an encoder without such layers.
    """
    if how == "all":
        return
    name = type(encoder).__name__
    attention = [] if how == "norm" else [layer for m in encoder.modules() for layer in _projections(m)]
    if how == "norm":
        norms = [m for m in encoder.modules() if "norm" in type(m).__name__.lower()]
        trained = [p for m in norms for p in m.parameters(recurse=False)]
        if not trained:
            raise UserError(f"adapt=norm trains normalisation layers, and this {name} has none; use adapt=lora or all")
    elif how == "attention":
        trained = [p for layer in attention for p in layer.parameters()]
        if not trained:
            raise UserError(
                f"adapt=attention needs a transformer, and this {name} has no attention; use norm, lora or all"
            )
    else:
        kinds = nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d
        layers: list[Any] = list(attention) or [m for m in encoder.modules() if isinstance(m, kinds)]
        if not layers:
            raise UserError(f"adapt=lora needs linear or convolutional layers, and this {name} has none; use adapt=all")
        encoder.requires_grad_(False)
        for layer in layers:
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank))
        return
    encoder.requires_grad_(False)
    for p in trained:
        p.requires_grad_(True)


def merge(encoder: nn.Module) -> None:
    """Add the trained matrices to their weights, so that the encoder has its plain architecture again."""
    for m in encoder.modules():
        if parametrize.is_parametrized(m, "weight"):
            parametrize.remove_parametrizations(m, "weight", leave_parametrized=True)


def _projections(module: nn.Module) -> list[nn.Linear]:
    """Return the linear layers of an attention layer: queries, keys, values and output; none of another module."""
    if isinstance(module, nn.MultiheadAttention):
        raise UserError("adapt=attention and lora do not know torch's MultiheadAttention; use adapt=norm or all")
    if not any(isinstance(getattr(module, name, None), nn.Linear) for name in QUERIES):
        return []
    return [m for m in module.children() if isinstance(m, nn.Linear)]
