"""From an encoder's stages back to pixels: one decoder for networks that shrink and for pyramids of tokens, 2D and 3D."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST = 256  # channels of a level at most


class UNetDecoder(nn.Module):
    """Stages (B, c, *s), fine to coarse, and the image (B, C, *S) -> scores (B, classes, *S).

    From the coarsest stage upwards: enlarge linearly to the size of the next, put it beside that stage, one convolution
    (Ronneberger et al., 2015, https://arxiv.org/abs/1505.04597, with one convolution a level as Isensee et al., 2024,
    https://arxiv.org/abs/2404.09556, have it). Where the finest stage is smaller than the image, the image itself is one
    level more. Instance normalisation: nothing depends on who else is in the batch.

    Args:
        stages: channels of each stage.
        image: channels of the image, 0 when the finest stage has its size.
        dims: 2 or 3.
        width: channels of the finest level; each coarser one has twice as many, up to 256.
    """

    def __init__(self, stages: list[int], image: int, dims: int, classes: int, width: int):
        super().__init__()
        ins = [image, *stages] if image else stages
        widths = [min(width * 2**k, MOST) for k in range(len(ins) - 1)]
        self.image, self.mode = bool(image), "bilinear" if dims == 2 else "trilinear"
        outs = [*widths, ins[-1]]  # of each level and, below all of them, of the coarsest stage
        self.levels = nn.ModuleList(_level(dims, outs[k + 1] + ins[k], outs[k]) for k in range(len(widths)))
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        self.head = conv(outs[0], classes, 1)

    def forward(self, x: Tensor, stages: list[Tensor]) -> Tensor:
        """The image (B, C, *S) and what the encoder made of it -> (B, classes, *S)."""
        skips = [x, *stages] if self.image else stages
        h = skips[-1]
        for level, skip in zip(reversed(self.levels), reversed(skips[:-1]), strict=True):
            h = F.interpolate(h, skip.shape[2:], mode=self.mode, align_corners=False)
            h = level(torch.cat([h, skip.to(h.dtype)], 1))
        return self.head(h)


def _level(dims: int, n_in: int, n_out: int) -> nn.Sequential:
    conv: Any = nn.Conv2d if dims == 2 else nn.Conv3d
    norm: Any = nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d
    return nn.Sequential(conv(n_in, n_out, 3, padding=1, bias=False), norm(n_out, affine=True), nn.LeakyReLU(0.01))


def decoder_for(encoder: Any, classes: int, width: int) -> UNetDecoder:
    """The decoder that fits the stages of an encoder. Raises UserError when it has none."""
    was = [(m, m.training) for m in encoder.modules()]
    try:
        with torch.no_grad():
            stages = encoder.eval().stages(torch.zeros(1, encoder.channels, *encoder.size))
    finally:
        for module, training in was:
            module.training = training
    whole = tuple(stages[0].shape[2:]) == tuple(encoder.size)
    image = 0 if whole else encoder.channels
    return UNetDecoder([s.shape[1] for s in stages], image, len(encoder.size), classes, width)
