"""Small parts that methods share: projectors, groups of positives, and the scores of a pretext task."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from medssl.errors import UserError, nearest
from medssl.losses.supervised import cross_entropy
from medssl.methods.base import Batch

POSITIVES = ("scan", "patient", "study", "label")
PAIRS = ("scan", "patient", "study")


def mlp(*dims: int, bias: bool = True) -> nn.Sequential:
    """Return Linear, BatchNorm and ReLU between consecutive `dims`, with a bare Linear last.

    bias: of the last layer. Without for what is centred over the batch next, where it would cancel.
    """
    layers: list[nn.Module] = []
    for a, b in pairwise(dims[:-1]):
        layers += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(dims[-2], dims[-1], bias=bias))


def pairs_of(pairs: str) -> str:
    """Return the `Method.paired_within` of a method whose two views are of one scan, or of two of a patient or study.

    Raises UserError for an unknown value.
    """
    if pairs not in PAIRS:
        raise UserError(f"method.pairs is {pairs!r}.{nearest(pairs, PAIRS)}")
    return "" if pairs == "scan" else pairs


def target_of(positives: str, target_loss: Any) -> str:
    """Return the `Method.target` that `groups_of` needs for `positives`.

    Raises UserError for an unknown value, and for positives=label without a label or with one that is not a class.
    """
    if positives not in POSITIVES:
        raise UserError(f"method.positives is {positives!r}.{nearest(positives, POSITIVES)}")
    if positives == "label" and target_loss is None:
        raise UserError("method.positives=label takes scans of one class; name the label column with target=…")
    if positives == "label" and target_loss.name != "classification":
        raise UserError(f"method.positives=label needs classes, and target=… gives {target_loss.name}; use a class")
    return "" if positives == "scan" else positives


def groups_of(batch: Batch, positives: str) -> Tensor:
    """Return the groups (views * B,) int64, view after view: rows of one group attract, across ranks too.

    A group is a scan, or a patient, study or class from batch["target"]; a scan whose target is -1 is a group by itself.
    """
    scan = batch["key"].scan
    group = scan if positives == "scan" else torch.where(batch["target"] < 0, -1 - scan, batch["target"])
    return group.repeat(len(batch["views"]))


def classify(scores: Tensor, answer: Tensor) -> dict[str, Tensor]:
    """Return the loss and the accuracy of a pretext task with scores (B, K) and answers (B,) int64."""
    return {"loss": cross_entropy(scores, answer), "accuracy": (scores.argmax(1) == answer).float().mean()}
