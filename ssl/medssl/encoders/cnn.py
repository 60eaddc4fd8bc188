"""Small convolutional network for small scans, in 2D and 3D."""

import torch.nn as nn
from torch import Tensor

from medssl.errors import UserError, nearest

SMALL = 32  # pixels along the longest axis up to which the first stage keeps the resolution


class CNN(nn.Module):
    """Encode (B, C, *size) as (B, dim = last width): stages of two 3x3 convolutions, then the mean over positions.

    Every stage halves the resolution, except the first for scans of up to 32 pixels. For scans of 28 to 64 pixels, which
    an ImageNet stem would reduce to very few.

    Attributes:
        layers: the stages; applied in order they give `maps`.

    Raises UserError for an unknown `norm` and for widths not divisible by 8 with group norm.
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, ...],
        widths: tuple[int, ...] = (32, 64, 128, 256),
        norm: str = "batch",
    ):
        super().__init__()
        if norm not in ("batch", "group"):
            raise UserError(f"encoder.norm: unknown {norm!r}.{nearest(norm, ['batch', 'group'])}")
        if not widths or (norm == "group" and any(w % 8 for w in widths)):
            raise UserError(f"encoder.widths {list(widths)} must be multiples of 8 for encoder.norm=group, one or more")
        self.channels, self.size, self.dim = channels, tuple(size), widths[-1]
        self.options = {"widths": list(widths), "norm": norm}
        ins = (channels, *widths[:-1])
        strides = [1 if i == 0 and max(size) <= SMALL else 2 for i in range(len(widths))]
        self.layers = nn.ModuleList(_stage(len(size), *stage, norm) for stage in zip(ins, widths, strides, strict=True))

    def stages(self, x: Tensor) -> list[Tensor]:
        """Return the maps (B, width, *s) of every stage for x (B, C, *size), from fine to coarse."""
        found = []
        for layer in self.layers:
            x = layer(x)
            found.append(x)
        return found

    def maps(self, x: Tensor) -> Tensor:
        """Return (B, dim, *s) for x (B, C, *size), the last of `stages`."""
        return self.stages(x)[-1]

    def by_depth(self) -> list[list[nn.Parameter]]:
        """Return the parameters of each stage, input first: the units of freezing and layer-wise learning rates."""
        return [list(layer.parameters()) for layer in self.layers]

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, dim) for x (B, C, *size)."""
        return self.maps(x).flatten(2).mean(2)


def _stage(dims: int, n_in: int, n_out: int, stride: int, norm: str) -> nn.Sequential:
    conv = nn.Conv2d if dims == 2 else nn.Conv3d

    def normalise() -> nn.Module:
        if norm == "group":
            return nn.GroupNorm(8, n_out)
        return nn.BatchNorm2d(n_out) if dims == 2 else nn.BatchNorm3d(n_out)

    return nn.Sequential(
        conv(n_in, n_out, 3, stride, 1, bias=False),
        normalise(),
        nn.ReLU(),
        conv(n_out, n_out, 3, 1, 1, bias=False),
        normalise(),
        nn.ReLU(),
    )
