"""The inputs of a training run: its scans and its settings."""

from dataclasses import dataclass

import numpy as np
import torch

from medssl.augmentations.recipes import Recipe
from medssl.store.partners import Partners
from medssl.store.resampled import ResampledScans
from medssl.train.optim import Optim


@dataclass(frozen=True)
class TrainingData:
    """The scans of a run.

    rows: (N,) the rows of `resampled` to train on. recipe: makes the views. targets: one per row of `resampled`, for
    methods that learn from labels or masks. partners: of the rows of `resampled`.
    """

    resampled: ResampledScans
    rows: np.ndarray
    recipe: Recipe
    targets: np.ndarray | None = None
    partners: Partners | None = None


@dataclass(frozen=True)
class TrainOptions:
    """The settings of a run.

    steps: updates. batch: scans per update, over all ranks. accumulate: forward passes that a batch is split into, each
    with its own negatives. workers: loading processes. log_every, save_every, monitor_every: in steps; monitor_every=0
    never calls the monitor.
    """

    steps: int
    batch: int
    seed: int
    optim: Optim
    accumulate: int = 1
    workers: int = 0
    log_every: int = 10
    save_every: int = 100
    monitor_every: int = 0


def advice(device: torch.device) -> str:
    """Return how a long run on this device can be shortened, "" if there is nothing to say."""
    if device.type != "cpu":
        return ""
    return "encoder=small_resnet, fewer steps=, a smaller size= or a GPU take less; it may be stopped and goes on later"
