"""What layer-wise methods share: the layers of an encoder, what is frozen below one, and the way back."""

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medssl.errors import UserError


def layer_shapes(encoder: Any, method: str) -> list[tuple[int, ...]]:
    """Shapes, without the batch, of the input and of what each of `encoder.layers` gives. UserError without layers."""
    if not hasattr(encoder, "layers"):
        raise UserError(
            f"{method} needs an encoder made of layers, not {type(encoder).__name__}; use encoder=mlp or cnn"
        )
    h = torch.zeros(2, encoder.channels, *encoder.size)
    shapes = [tuple(h.shape[1:])]
    with torch.no_grad():
        for layer in encoder.layers:
            h = copy.deepcopy(layer)(h)  # a copy, so that no statistics move
            shapes.append(tuple(h.shape[1:]))
    return shapes


def forward_frozen(layers: nn.ModuleList, at: int, x: Tensor) -> Tensor:
    """What the layers below `at` say of x (B, C, *spatial): frozen, with the statistics that they have."""
    with torch.no_grad():
        for layer in layers[:at]:
            x = layer.eval()(x)
    return x


class Decoder(nn.Module):
    """One linear map from a layer's output back to its input: dense, or a convolution after nearest-neighbour upsampling."""

    def __init__(self, source: tuple[int, ...], target: tuple[int, ...]):
        super().__init__()
        if len(source) == 1:
            self.map: nn.Module = nn.Sequential(nn.Linear(source[0], math.prod(target)), nn.Unflatten(1, target))
        else:
            convolution = nn.Conv3d if len(source) == 4 else nn.Conv2d
            self.map = nn.Sequential(nn.Upsample(target[1:]), convolution(source[0], target[0], 3, padding=1))

    def forward(self, code: Tensor) -> Tensor:
        """(B, *source) -> (B, *target)."""
        return self.map(code)


class TiedDecoder(nn.Module):
    """The transposed weights of a fully connected layer, with a bias of its own."""

    def __init__(self, layer: nn.Module, target: tuple[int, ...]):
        super().__init__()
        linear = [m for m in layer.modules() if isinstance(m, nn.Linear)]
        if len(linear) != 1:
            raise UserError("method.tied needs layers of one weight matrix; use encoder=mlp, or method.tied=false")
        self.of, self.target = linear, target  # a list, so that the layer stays the encoder's
        self.bias = nn.Parameter(torch.zeros(math.prod(target)))

    def forward(self, code: Tensor) -> Tensor:
        """(B, outputs) -> (B, *target)."""
        return F.linear(code, self.of[0].weight.T, self.bias).unflatten(1, self.target)
