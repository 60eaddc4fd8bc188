"""Train on what is known of whole scans: an encoder and a linear head, together, or the last blocks of it, or the head alone.

From initial weights it is the rival of any pretraining, from pretrained ones it is fine-tuning.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medssl.errors import UserError
from medssl.methods.base import Batch, Clock, Method
from medssl.objectives.labels import continuation, continuation_probabilities, cox, cross_entropy, huber, known_labels


@dataclass(frozen=True)
class Kind:
    """What is learnt, in the head's terms.

    Attributes:
        outputs: of the head.
        loss: scores (B, outputs) and batch["target"] -> scalar.
        predict: scores (N, outputs) -> what the metrics of this kind of task take, in the type of the scores.
    """

    outputs: int
    loss: Callable[[Tensor, Tensor], Tensor]
    predict: Callable[[Tensor], Tensor]


def classes(n: int) -> Kind:
    """Target (B,) int64 in [0, n); cross-entropy; probabilities (N, n)."""
    return Kind(n, cross_entropy, lambda scores: scores.softmax(1))


def labels(n: int) -> Kind:
    """Target (B, n) 1, 0, or nan where unknown; binary cross-entropy of what is known; probabilities (N, n)."""

    def loss(scores: Tensor, target: Tensor) -> Tensor:
        return known_labels(scores, target.nan_to_num(0), ~target.isnan())

    return Kind(n, loss, torch.sigmoid)


def ordinal(n: int) -> Kind:
    """Target (B,) int64 levels in [0, n); continuation ratios; probabilities (N, n)."""
    return Kind(n - 1, continuation, continuation_probabilities)


def value(mean: float, std: float) -> Kind:
    """Target (B,) numbers, standardised by those of the training scans; Huber's loss; numbers (N,) in their own unit."""

    def loss(scores: Tensor, target: Tensor) -> Tensor:
        return huber(scores[:, 0], (target - mean) / std)

    return Kind(1, loss, lambda scores: scores[:, 0] * std + mean)


def survival() -> Kind:
    """Target (B, 2), time and event; Cox's partial likelihood over the batch; log relative hazards (N,)."""
    return Kind(1, lambda scores, target: cox(scores[:, 0], target[:, 0], target[:, 1]), lambda scores: scores[:, 0])


def kind_of(task: str, y: np.ndarray, width: int) -> Kind:
    """The kind for a task of `medssl.evals.metrics` and the training truth y (N, …), with `width` columns predicted."""
    if task == "value":
        return value(float(y.mean()), float(y.std()))
    if task == "survival":
        return survival()
    return {"classes": classes, "labels": labels, "ordinal": ordinal}[task](width)


class Supervised(Method):
    """Encoder (B, C, *spatial) -> (B, dim), linear head -> (B, outputs), the kind's loss against batch["target"].

    blocks: how many blocks of `encoder.by_depth()`, counted from the output, are trained; None: all. The others keep
    their weights and their statistics of batch normalisation. With 0 the head alone is trained, on features standardised
    over the batch, as linear probing by gradient does (He et al., 2021, https://arxiv.org/abs/2111.06377, appendix A.1).

    Raises UserError for more blocks than there are.
    """

    views = 1

    def __init__(self, encoder: Any, kind: Kind, blocks: int | None = None):
        super().__init__()
        groups = encoder.by_depth()
        if blocks is not None and not 0 <= blocks <= len(groups):
            raise UserError(f"blocks={blocks}, and {type(encoder).__name__} has {len(groups)}; give 0 to {len(groups)}")
        self.encoder, self.kind = encoder, kind
        self.norm = nn.BatchNorm1d(encoder.dim, affine=False) if blocks == 0 else nn.Identity()
        self.head = nn.Linear(encoder.dim, kind.outputs)
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
        return {"loss": self.kind.loss(self.head(self.norm(self.encoder(batch["views"][0]))), batch["target"])}


def _rest(module: nn.Module) -> None:
    """Evaluation mode for what has nothing left to train, so that batch normalisation there keeps its statistics."""
    if not any(p.requires_grad for p in module.parameters()):
        module.eval()
    for child in module.children():
        if any(True for _ in child.parameters()):
            _rest(child)
