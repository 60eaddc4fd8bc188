"""Supervised training on labels of whole scans: an encoder and a linear head, the last blocks of it, or the head alone.

From random weights it is a baseline for pretraining, from pretrained weights it is fine-tuning.
"""

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medssl.errors import UserError
from medssl.losses.target_losses import TargetLoss
from medssl.methods.base import Batch, Clock, Method


class Supervised(Method):
    """Encoder (B, C, *spatial) -> (B, dim), linear head -> (B, outputs), the target's loss against batch["target"].

    blocks: number of blocks of `encoder.by_depth()` to train, counted from the output; None trains all. The others keep
    their weights and batch-normalisation statistics. 0 trains the head alone on features standardised over the batch, as
    linear probing by gradient does (He et al., 2021, https://arxiv.org/abs/2111.06377, appendix A.1).

    Raises UserError for more blocks than the encoder has.
    """

    target = "label"
    target_loss: TargetLoss

    def __init__(self, encoder: Any, target_loss: TargetLoss, blocks: int | None = None):
        super().__init__()
        groups = encoder.by_depth()
        if blocks is not None and not 0 <= blocks <= len(groups):
            raise UserError(f"blocks={blocks}, and {type(encoder).__name__} has {len(groups)}; give 0 to {len(groups)}")
        self.encoder, self.target_loss, self.keep_statistics = encoder, target_loss, False
        self.norm = nn.BatchNorm1d(encoder.dim, affine=False) if blocks == 0 else nn.Identity()
        self.head = nn.Linear(encoder.dim, target_loss.outputs)
        for p in chain(*groups[: len(groups) - blocks] if blocks is not None else []):
            p.requires_grad_(False)

    def train(self, mode: bool = True) -> "Supervised":
        super().train(mode)
        _freeze_statistics(self.encoder)
        if self.keep_statistics:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def begin_at(self, features: Tensor, weight: Tensor, bias: Tensor) -> None:
        """Begin as a linear probe: `linear` returns its `weight` (outputs, dim) and `bias` (outputs,).

        The head is then on features standardised as `features` (N, dim) of the labelled scans are, so that its rate does not
        depend on their scale, and batch normalisation keeps its statistics: those of a batch of few scans would change the
        features under the probe. All float64.
        """
        self.keep_statistics, self.norm = True, nn.BatchNorm1d(self.encoder.dim, affine=False)
        mean, var = features.mean(0), features.var(0, unbiased=False)
        self.norm.load_state_dict({"running_mean": mean, "running_var": var}, strict=False)
        with torch.no_grad():
            self.head.weight.copy_(weight * (var + self.norm.eps).sqrt())
            self.head.bias.copy_(bias + weight @ mean)

    def linear(self) -> tuple[Tensor, Tensor]:
        """Return weight (outputs, dim) and bias (outputs,) of the head on raw features: scores = x @ weight.T + bias."""
        weight, bias = self.head.weight.detach().double(), self.head.bias.detach().double()
        if (
            isinstance(self.norm, nn.BatchNorm1d)
            and self.norm.running_mean is not None
            and self.norm.running_var is not None
        ):
            weight = weight * (self.norm.running_var.double() + self.norm.eps).rsqrt()
            bias = bias - weight @ self.norm.running_mean.double()
        return weight.float(), bias.float()

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        scores = self.head(self.norm(self.encoder(batch["views"][0])))
        return {"loss": self.target_loss.loss_of_known(scores, batch["target"])}


def _freeze_statistics(module: nn.Module) -> None:
    """Put parts without trainable parameters in evaluation mode, so that batch normalisation there keeps its statistics."""
    if not any(p.requires_grad for p in module.parameters()):
        module.eval()
    for child in module.children():
        if any(True for _ in child.parameters()):
            _freeze_statistics(child)
