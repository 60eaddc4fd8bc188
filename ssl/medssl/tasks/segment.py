"""Segmentation: an encoder and a decoder trained on masks, or the decoder alone.

From random weights it is a baseline for pretraining, from pretrained weights it is fine-tuning.
"""

from typing import Any

from torch import Tensor

from medssl.encoders.unet_decoder import UNetDecoder
from medssl.errors import UserError
from medssl.losses.dice import dice_cross_entropy
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.decoder import decoder_for

MAX_CLASSES = 64


class Segment(Method):
    """Encoder stages -> UNetDecoder -> scores (B, classes, *S); Dice and cross entropy with batch["target"] (B, *S) int64.

    Class 0 is the background. width: of the decoder's finest level. frozen: keep the encoder's weights and statistics.
    decoder: a pretrained one for these classes; None: a new one.

    Raises UserError for an encoder without stages, a decoder that does not fit it, and fewer than 2 or more than 64 classes.
    """

    def __init__(
        self, encoder: Any, classes: int, width: int = 8, frozen: bool = False, decoder: UNetDecoder | None = None
    ):
        super().__init__()
        if not 2 <= classes <= MAX_CLASSES:
            raise UserError(f"segmentation needs 2 to {MAX_CLASSES} classes with the background, got {classes}")
        fitting = decoder_for(encoder, classes, width)
        if decoder is not None and decoder.options != fitting.options:
            raise UserError(f"the decoder has {decoder.options}, and this encoder needs {fitting.options}")
        self.decoder = decoder or fitting
        self.encoder, self.frozen = encoder, frozen
        if frozen:
            encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> "Segment":
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def scores(self, x: Tensor) -> Tensor:
        """Return scores (B, classes, *S) for standardised scans (B, C, *S)."""
        return self.decoder(x, self.encoder.stages(x))

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        return {"loss": dice_cross_entropy(self.scores(batch["views"][0]), batch["target"])}
