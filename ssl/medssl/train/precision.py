"""Mixed precision in which only the networks compute in bfloat16, and the memory layout of convolutions."""

from typing import Any

import torch
from lightning_fabric.plugins import MixedPrecision
from torch import nn


class NetworkPrecision(MixedPrecision):
    """bfloat16 autocast around the forward pass, with inputs left in float32.

    Fabric's own plugin casts every floating-point input, which rounds regression targets (the year 2001 becomes 2000) and the
    pixels that a method reconstructs. Under autocast the layers that compute in bfloat16 cast for themselves.
    """

    def __init__(self, device: str):
        super().__init__("bf16-mixed", device)

    def convert_input(self, data: Any) -> Any:
        """Return `data` unchanged."""
        return data


def channels_last(module: nn.Module) -> None:
    """Keep the weights of convolutions with their channels last, in 2D and 3D: 1.1 to 1.3 times as fast on a processor."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.to(memory_format=torch.channels_last)
        elif isinstance(layer, nn.Conv3d):
            layer.to(memory_format=torch.channels_last_3d)
