"""Volume fusion: boxes of one scan are blended into another, and encoder and decoder predict the blend of every voxel.

Wang et al., 2023, https://arxiv.org/abs/2306.16925: X = a F + (1 - a) B, with foreground F, background B, and a coefficient a
of {0, 1/K, ..., 1} for every voxel, predicted as a segmentation into K + 1 classes with Dice and cross-entropy. It pretrains the
decoder too, which segmentation then starts from. In 2D the boxes are rectangles.
"""

from typing import Any

import torch
from torch import Tensor

from medssl.errors import UserError
from medssl.losses.dice import dice_cross_entropy
from medssl.losses.distributed import gather_rows, rank
from medssl.methods.base import METHOD_SLOT, Batch, Clock, Method
from medssl.methods.parts.decoder import UNetDecoder, decoder_for
from medssl.methods.parts.patches import random_boxes
from medssl.rng import Key, uniform

COUNT_SLOT, CLASS_SLOT, BOX_SLOT = METHOD_SLOT, METHOD_SLOT + 1, METHOD_SLOT + 2
MAX_BOXES = 1000


class VolumeFusion(Method):
    """Encoder stages and decoder: fused scan (B, C, *S) -> scores (B, levels + 1, *S) of the coefficients class / levels.

    Each scan is the foreground of one fused scan and the background of another. levels: K. fewest, most: number of boxes.
    smallest, largest: of their edges, as shares of the scan's. width: of the decoder's finest level.

    A later box covers earlier ones, so regions have irregular shapes. A box may have the coefficient 0.
    """

    compares_scans = True

    def __init__(
        self, encoder: Any, levels: int, fewest: int, most: int, smallest: float, largest: float, width: int
    ):  # fmt: skip
        super().__init__()
        if levels < 1:
            raise UserError(f"method.levels must be 1 or more, got {levels}")
        if not 1 <= fewest <= most <= MAX_BOXES:
            raise UserError(f"needs 1 <= method.fewest <= method.most <= {MAX_BOXES}, got {fewest} and {most}")
        if not 0 < smallest <= largest <= 1:
            raise UserError(f"needs 0 < method.smallest <= method.largest <= 1, got {smallest} and {largest}")
        self.encoder, self.decoder = encoder, decoder_for(encoder, levels + 1, width)
        self.levels, self.boxes, self.edges = levels, (fewest, most), (smallest, largest)

    def kept_decoder(self) -> UNetDecoder:
        return self.decoder

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (x,) = batch["views"]
        everyone, mine = gather_rows(x), torch.arange(len(x), device=x.device) + rank() * len(x)
        classes = self.coefficients(batch["key"], tuple(x.shape[2:]))
        share = (classes / self.levels).to(x.dtype)[:, None]
        fused = share * x + (1 - share) * everyone[mine - 1]  # the first scan's background is the last of all ranks
        return {"loss": dice_cross_entropy(self.decoder(fused, self.encoder.stages(fused)), classes)}

    def coefficients(self, key: Key, size: tuple[int, ...]) -> Tensor:
        """Return the class of every voxel, (B, *size) int64 in 0 ... levels."""
        fewest, most = self.boxes
        count = fewest + (uniform(key, 0, COUNT_SLOT)[:, 0] * (most - fewest + 1)).long()
        drawn = (uniform(key, 0, CLASS_SLOT, most) * (self.levels + 1)).long()
        classes = torch.zeros(len(drawn), *size, dtype=torch.int64, device=drawn.device)
        each = [-1, *[1] * len(size)]
        for i in range(most):
            inside = random_boxes(key, BOX_SLOT + i, size, *self.edges) & (i < count).view(each)
            classes = torch.where(inside, drawn[:, i].view(each), classes)
        return classes
