"""The decoder from an encoder's stages to pixels, for pyramids of maps and for tokens of one size, in 2D and 3D."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_CHANNELS = 256  # channels of a level
SLOPE = 0.1  # of the leaky ReLU below 0. With .01 a class was missed where all channels of the narrow last level are negative


class UNetDecoder(nn.Module):
    """Stages (B, c, *s), fine to coarse, and the image (B, C, *S) -> scores (B, classes, *S).

    From the coarsest stage upwards, each level reduces the channels to its own number with a 1x1 convolution, enlarges linearly
    to the size of the next stage, concatenates that stage and applies one 3x3 convolution (Ronneberger et al., 2015,
    https://arxiv.org/abs/1505.04597, with one convolution per level as in Isensee et al., 2024,
    https://arxiv.org/abs/2404.09556). If the finest stage is smaller than the image, the image is one more level. Instance
    normalisation makes the result independent of the other scans in the batch.

    Args:
        stages: channels of each stage.
        image: channels of the image, 0 if the finest stage has its size.
        dims: 2 or 3.
        width: channels of the finest level; each coarser level has twice as many, up to 256.
    """

    def __init__(self, stages: list[int], image: int, dims: int, classes: int, width: int):
        super().__init__()
        self.options = {"stages": list(stages), "image": image, "dims": dims, "width": width}  # all but the classes
        ins = [image, *stages] if image else stages
        widths = [min(width * 2**k, MAX_CHANNELS) for k in range(len(ins) - 1)]
        self.image, self.mode = bool(image), "bilinear" if dims == 2 else "trilinear"
        outs = [*widths, ins[-1]]  # channels of each level, and of the coarsest stage
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        self.narrow = nn.ModuleList(conv(outs[k + 1], outs[k], 1, bias=False) for k in range(len(widths)))
        self.levels = nn.ModuleList(_level(dims, outs[k] + ins[k], outs[k]) for k in range(len(widths)))
        self.head = conv(outs[0], classes, 1)

    def forward(self, x: Tensor, stages: list[Tensor]) -> Tensor:
        """Decode the image (B, C, *S) and the encoder's stages of it to scores (B, classes, *S)."""
        skips = [x, *stages] if self.image else stages
        h = skips[-1]
        for narrow, level, skip in zip(reversed(self.narrow), reversed(self.levels), reversed(skips[:-1]), strict=True):
            h = F.interpolate(narrow(h), skip.shape[2:], mode=self.mode, align_corners=False)
            h = level(torch.cat([h, skip.to(h.dtype)], 1))
        return self.head(h)


def _level(dims: int, n_in: int, n_out: int) -> nn.Sequential:
    conv: Any = nn.Conv2d if dims == 2 else nn.Conv3d
    norm: Any = nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d
    return nn.Sequential(conv(n_in, n_out, 3, padding=1, bias=False), norm(n_out, affine=True), nn.LeakyReLU(SLOPE))
