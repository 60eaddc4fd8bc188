"""Small residual network for small scans, in 2D and 3D."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from medssl.errors import UserError

STEM = 4  # pixels of the stem's kernel, which has a stride of 2


class SmallResNet(nn.Module):
    """Encode (B, C, *size) as (B, dim = last width): a 4x4 stem of stride 2, stages of residual blocks, the mean over positions.

    The first stage works at half the resolution, and every further stage halves it again. On a processor this is several
    times as fast as `CNN`, which has its most expensive stage at full resolution. Blocks are those of He et al., 2015,
    https://arxiv.org/abs/1512.03385, figure 2; where the width changes, the shortcut is a 1x1 convolution.

    Attributes:
        layers: the stem and the stages; applied in order they give `maps`.

    Args:
        channels, size: of the scans.
        widths: channels of each stage.
        blocks: residual blocks of each stage.

    Raises UserError for scans under 4 pixels and for no widths or blocks.
    """

    def __init__(self, channels: int, size: tuple[int, ...], widths: tuple[int, ...] = (32, 64, 128), blocks: int = 1):
        super().__init__()
        if not widths or min(widths) < 1 or blocks < 1:
            raise UserError(f"encoder.widths {list(widths)} and encoder.blocks={blocks} must be 1 or more")
        if min(size) < STEM:
            raise UserError(f"scans of {tuple(size)} pixels are too small for small_resnet; choose encoder=cnn")
        self.channels, self.size, self.dim = channels, tuple(size), widths[-1]
        self.options = {"widths": list(widths), "blocks": blocks}
        dims = len(size)
        stages = [_stem(dims, channels, widths[0])]
        for i, (n_in, n_out) in enumerate(pairwise((widths[0], *widths))):
            rest = [Block(dims, n_out, n_out, 1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(Block(dims, n_in, n_out, 2 if i else 1), *rest))
        self.layers = nn.ModuleList(stages)

    def stages(self, x: Tensor) -> list[Tensor]:
        """Return the maps (B, width, *s) of every stage for x (B, C, *size), from fine to coarse, without the stem's."""
        found = []
        for layer in self.layers:
            x = layer(x)
            found.append(x)
        return found[1:]

    def maps(self, x: Tensor) -> Tensor:
        """Return (B, dim, *s) for x (B, C, *size), the last of `stages`."""
        return self.stages(x)[-1]

    def by_depth(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the stem and of each stage, input first."""
        return [list(layer.parameters()) for layer in self.layers]

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, dim) for x (B, C, *size)."""
        return self.maps(x).flatten(2).mean(2)


class Block(nn.Module):
    """Two 3x3 convolutions with batch normalisation, added to the input."""

    def __init__(self, dims: int, n_in: int, n_out: int, stride: int):
        super().__init__()
        conv, norm = _layers(dims)
        self.first = nn.Sequential(conv(n_in, n_out, 3, stride, 1, bias=False), norm(n_out), nn.ReLU())
        self.second = nn.Sequential(conv(n_out, n_out, 3, 1, 1, bias=False), norm(n_out))
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or n_in != n_out:
            self.shortcut = nn.Sequential(conv(n_in, n_out, 1, stride, bias=False), norm(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, n_out, *s / stride) for x (B, n_in, *s)."""
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


def _stem(dims: int, n_in: int, n_out: int) -> nn.Sequential:
    conv, norm = _layers(dims)
    return nn.Sequential(conv(n_in, n_out, STEM, 2, 1, bias=False), norm(n_out), nn.ReLU())


def _layers(dims: int) -> tuple[type[nn.Module], type[nn.Module]]:
    return (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
