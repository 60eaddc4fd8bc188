"""Train on what is known of whole scans: an encoder and a linear head, together, or the last blocks of it, or the head alone.

From initial weights it is the rival of any pretraining, from pretrained ones it is fine-tuning.
"""

from itertools import chain
from typing import Any

from torch import Tensor, nn

from medssl.errors import UserError
from medssl.losses.target_losses import TargetLoss
from medssl.methods.base import Batch, Clock, Method


class Supervised(Method):
    """Encoder (B, C, *spatial) -> (B, dim), linear head -> (B, outputs), the kind's loss against batch["target"].

    blocks: how many blocks of `encoder.by_depth()`, counted from the output, are trained; None: all. The others keep
    their weights and their statistics of batch normalisation. With 0 the head alone is trained, on features standardised
    over the batch, as linear probing by gradient does (He et al., 2021, https://arxiv.org/abs/2111.06377, appendix A.1).

    Raises UserError for more blocks than there are.
    """

    target = "label"
    target_loss: TargetLoss

    def __init__(self, encoder: Any, target_loss: TargetLoss, blocks: int | None = None):
        super().__init__()
        groups = encoder.by_depth()
        if blocks is not None and not 0 <= blocks <= len(groups):
            raise UserError(f"blocks={blocks}, and {type(encoder).__name__} has {len(groups)}; give 0 to {len(groups)}")
        self.encoder, self.target_loss = encoder, target_loss
        self.norm = nn.BatchNorm1d(encoder.dim, affine=False) if blocks == 0 else nn.Identity()
        self.head = nn.Linear(encoder.dim, target_loss.outputs)
        for p in chain(*groups[: len(groups) - blocks] if blocks is not None else []):
            p.requires_grad_(False)

    def train(self, mode: bool = True) -> "Supervised":
        super().train(mode)
        _rest(self.encoder)
        return self

    def linear(self) -> tuple[Tensor, Tensor]:
        """(weight (outputs, dim), bias (outputs,)) of the head on features as they are: scores = x @ weight.T + bias."""
        weight, bias = self.head.weight.detach(), self.head.bias.detach()
        mean, variance = getattr(self.norm, "running_mean", None), getattr(self.norm, "running_var", None)
        if mean is None or variance is None:
            return weight, bias
        weight = weight * (variance + self.norm.eps).rsqrt()
        return weight, bias - weight @ mean

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        scores = self.head(self.norm(self.encoder(batch["views"][0])))
        return {"loss": self.target_loss.loss_of_known(scores, batch["target"])}


def _rest(module: nn.Module) -> None:
    """Evaluation mode for what has nothing left to train, so that batch normalisation there keeps its statistics."""
    if not any(p.requires_grad for p in module.parameters()):
        module.eval()
    for child in module.children():
        if any(True for _ in child.parameters()):
            _rest(child)
