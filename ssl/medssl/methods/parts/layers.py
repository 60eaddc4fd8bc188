"""Layers of an encoder: their shapes, the frozen ones below a layer, and decoders back to a layer's input."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medssl.errors import UserError


@contextmanager
def dry_run(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode without gradients, and restore the mode of each of its parts afterwards."""
    before = [(m, m.training) for m in module.modules()]
    try:
        module.eval()
        with torch.no_grad():
            yield
    finally:
        for m, training in before:
            m.training = training


def layer_shapes(encoder: Any, method: str) -> list[tuple[int, ...]]:
    """Return the shapes, without the batch, of the input and of each layer's output.

    Raises UserError for an encoder without `layers`.
    """
    if not hasattr(encoder, "layers"):
        raise UserError(f"{method} needs an encoder with layers, not {type(encoder).__name__}; use encoder=mlp or cnn")
    h = torch.zeros(2, encoder.channels, *encoder.size)
    shapes = [tuple(h.shape[1:])]
    with torch.no_grad():
        for layer in encoder.layers:
            h = copy.deepcopy(layer)(h)  # a copy, so that running statistics do not change
            shapes.append(tuple(h.shape[1:]))
    return shapes


def forward_frozen(layers: nn.ModuleList, at: int, x: Tensor) -> Tensor:
    """Return the output of the layers below `at` for x (B, C, *spatial), with weights and statistics frozen."""
    with torch.no_grad():
        for layer in layers[:at]:
            x = layer.eval()(x)
    return x


class Decoder(nn.Module):
    """A linear map from a layer's output to its input: dense, or a convolution after nearest-neighbour upsampling."""

    def __init__(self, source: tuple[int, ...], target: tuple[int, ...]):
        super().__init__()
        if len(source) == 1:
            self.map: nn.Module = nn.Sequential(nn.Linear(source[0], math.prod(target)), nn.Unflatten(1, target))
        else:
            convolution = nn.Conv3d if len(source) == 4 else nn.Conv2d
            self.map = nn.Sequential(nn.Upsample(target[1:]), convolution(source[0], target[0], 3, padding=1))

    def forward(self, code: Tensor) -> Tensor:
        """Decode (B, *source) to (B, *target)."""
        return self.map(code)


class TiedDecoder(nn.Module):
    """A decoder with the transposed weights of a fully connected layer, and its own bias."""

    def __init__(self, layer: nn.Module, target: tuple[int, ...]):
        super().__init__()
        linear = [m for m in layer.modules() if isinstance(m, nn.Linear)]
        if len(linear) != 1:
            raise UserError("method.tied needs layers of one weight matrix; use encoder=mlp, or method.tied=false")
        self.of, self.target = linear, target  # a list, so that the layer stays the encoder's
        self.bias = nn.Parameter(torch.zeros(math.prod(target)))

    def forward(self, code: Tensor) -> Tensor:
        """Decode (B, outputs) to (B, *target)."""
        return F.linear(code, self.of[0].weight.T, self.bias).unflatten(1, self.target)
