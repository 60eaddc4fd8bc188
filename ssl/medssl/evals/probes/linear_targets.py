"""What linear models are fitted to: the labels of one set of scans as tensors, and scores turned into predictions."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax
from torch import Tensor

from medssl.errors import UserError
from medssl.evals.metrics.metrics import Floats

TASKS = ("classes", "labels", "ordinal", "value")
EPS = np.finfo(np.float64).tiny  # the smallest probability that cross-entropy sees


@dataclass(frozen=True)
class Link:
    """How scores become predictions. `present` (K,): the classes or levels seen in training, rising; others get 0."""

    task: str
    classes: int
    present: NDArray[np.int64]

    def predict(self, scores: Floats) -> Floats:
        """Scores (N, J) of `linear.Linear` -> what metrics of the task take: (N, classes), (N, labels) or (N,)."""
        if self.task == "value":
            return scores[:, 0]
        if self.task == "labels":
            return expit(scores)
        p = np.zeros((len(scores), self.classes))
        if (
            self.task == "ordinal"
        ):  # P(level) = P(above its lower threshold) - P(above its upper one), without cancellation
            ends = np.full((len(scores), 1), np.inf)
            low, high = np.hstack([ends, scores]), np.hstack([scores, -ends])
            p[:, self.present] = np.where(low + high > 0, expit(-high) - expit(-low), expit(low) - expit(high))
        elif scores.shape[1] == 1:
            p[:, self.present] = expit(np.hstack([-scores, scores]))
        else:
            p[:, self.present] = softmax(scores, axis=1)
        return p


@dataclass(frozen=True)
class Target:
    """Labels of n scans for T models that share them: T = 1, or one for each label.

    target (n, T, J), and weight of the same shape, or (n, T) for more than two classes: see `linear_losses`. start (T, J)
    intercepts of the prior. between (J - 1,) shares of scans at the inner levels, or None. known (T,): scans that count.
    outputs: M, columns of weights a model has.
    """

    link: Link
    target: Tensor
    weight: Tensor
    start: Tensor
    between: Tensor | None
    known: NDArray[np.int64]
    outputs: int


def encode(task: str, y: NDArray[Any], classes: int) -> Target:
    """Labels of one set of scans, as `checked` returns them. Raises UserError when there is nothing to tell apart."""
    n = len(y)
    if task == "labels":
        known = ~np.isnan(y)
        counts, positive = known.sum(0), np.nansum(y, 0)
        if (alone := (positive == 0) | (positive == counts)).any():
            raise UserError(
                f"cannot fit a linear probe: label {alone.argmax() + 1} of {len(alone)} has one answer in the {n} training "
                "scans; label scans with another, or leave the label out"
            )
        share = positive / counts
        start = torch.from_numpy(np.log(share / (1 - share)))[:, None]
        target, weight = (torch.from_numpy(v)[..., None] for v in (np.nan_to_num(y), known / counts))
        return Target(Link(task, classes, np.arange(classes)), target, weight, start, None, counts, 1)
    present, place, counts = np.unique(y, return_inverse=True, return_counts=True)
    if len(present) < 2:
        raise UserError(
            f"cannot fit a linear probe: all {n} training scans have one {'value' if task == 'value' else 'class'}; "
            "label scans of another"
        )
    if task == "value":
        target = torch.from_numpy(y)[:, None, None]
        return Target(
            Link(task, 1, present[:0]), target, torch.ones_like(target), target.mean(0), None, np.array([n]), 1
        )
    link, K, known = Link(task, classes, present), len(present), np.array([n])
    prior = counts / n
    if task == "classes" and K > 2:
        target = torch.nn.functional.one_hot(torch.from_numpy(place), K).double()[:, None]
        weight = torch.full((n, 1), 1 / n, dtype=torch.float64)
        return Target(link, target, weight, torch.from_numpy(np.log(prior))[None], None, known, K - 1)
    threshold = np.arange(K - 1)
    above = 1 - np.cumsum(prior)[:-1]
    target = torch.from_numpy(np.float64(place[:, None] > threshold))[:, None]
    weight = torch.from_numpy(((place[:, None] == threshold) | (place[:, None] == threshold + 1)) / n)[:, None]
    start = torch.from_numpy(np.log(above / (1 - above)))[None]
    return Target(link, target, weight, start, torch.from_numpy(prior[1:-1]) if K > 2 else None, known, 1)


def checked(
    xy: tuple[ArrayLike, ArrayLike], which: str, task: str, classes: int | None
) -> tuple[Floats, NDArray[Any], int]:
    """Features (N, D) and labels of a task as numbers, and how many classes, levels or labels there are.

    Raises UserError for features that are not finite and for labels that are missing, ValueError for the wrong shape.
    """
    x, y = finite(xy[0], which), np.asarray(xy[1])
    if task not in TASKS:
        raise ValueError(f"a linear probe is for {', '.join(TASKS)}, not {task}")
    if y.shape[:1] != x.shape[:1] or y.ndim != (2 if task == "labels" else 1):
        raise ValueError(f"needs labels of every {which} scan for {task}, got {y.shape} for {x.shape}")
    if y.dtype == object or not np.issubdtype(y.dtype, np.integer):
        y = y.astype(np.float64)
    if task == "labels":
        y = y.astype(np.float64)
        if not (np.isnan(y) | (y == 0) | (y == 1)).all():
            raise ValueError("labels must be 0, 1 or nan for unknown")
        return x, y, y.shape[1]
    if missing := int(np.isnan(y).sum()):
        raise UserError(f"{missing} of {len(y)} {which} scans have no label; leave them out")
    if task == "value":
        return x, y.astype(np.float64), 1
    if classes is None:
        raise ValueError("needs the number of classes")
    if not np.issubdtype(y.dtype, np.integer) or (len(y) and (y.min() < 0 or y.max() >= classes)):
        raise ValueError(f"{which} labels must be integers in [0, {classes}), got {y.dtype}")
    return x, y.astype(np.int64), classes


def finite(x: ArrayLike, which: str) -> Floats:
    """Features as float64 (N, D). Raises UserError."""
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise UserError(
            f"the {which} features {x.shape} must be finite and (scans, dim); was the encoder's loss finite?"
        )
    return x


def loss(task: str, y: NDArray[Any], p: Floats) -> float:
    """What chooses the penalty: mean cross-entropy in nats (of labels the mean over labels), or mean squared error."""
    if task == "value":
        return float(((y - p) ** 2).mean())
    if task == "labels":
        known = ~np.isnan(y)
        n = known.sum(0)
        each = np.where(known, -np.log(np.maximum(np.where(y == 1, p, 1 - p), EPS)), 0).sum(0)
        return float((each[n > 0] / n[n > 0]).mean()) if n.any() else np.nan
    return float(-np.log(np.maximum(p[np.arange(len(y)), y], EPS)).mean())
