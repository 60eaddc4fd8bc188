"""Training for scoring: an encoder with a head on labels, and trained baselines."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from medssl import catalog
from medssl.encoders.config import InputConfig
from medssl.losses.target_losses import TargetLoss
from medssl.methods.base import Method
from medssl.rng import seed_from
from medssl.runs.config import Choice
from medssl.scoring.features import FeatureSource, from_encoder
from medssl.scoring.probe_heads import ProbeHead
from medssl.scoring.targets import Subset
from medssl.store.resampled import resample_scans, resampled_for_encoder
from medssl.store.store import Store
from medssl.tasks.supervised import Supervised
from medssl.train.log import Log
from medssl.train.loop import train
from medssl.train.optim import Optim
from medssl.train.options import TrainingData, TrainOptions

BANK = {2: 64, 3: 32}  # largest edge of the patch bank's scans
SCRATCH = Optim(lr=2e-3, weight_decay=1e-2)  # for encoders that begin with random weights
LONGER = 3  # networks that begin with random weights are also trained for so many times the steps


def end_to_end(times: int) -> str:
    """Return the probe, as in tables, of a network trained from random weights for `times` the steps of the run's row."""
    return "end to end" if times == 1 else f"end to end, {times}x steps"


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of training a network.

    Attributes:
        augment: the augmentation recipe. steps: updates of the weights. batch: scans per update, fewer if there are fewer.
        save_every: steps between checkpoints; None: only after the last.
    """

    augment: Choice
    steps: int
    batch: int
    optim: Optim
    seed: int
    device: str
    save_every: int | None = None


def train_in(
    folder: Path,
    method: Method,
    store: Store,
    rows: np.ndarray,
    wanted: InputConfig,
    settings: TrainingSettings,
    targets: np.ndarray | None = None,
) -> None:
    """Train on the scans `rows`, resampled as `wanted`; continues from a checkpoint in `folder` with the same bits."""
    resampled = resampled_for_encoder(store, wanted)
    recipe = catalog.build(settings.augment.spec("augment"), size=resampled.size)
    steps = settings.steps
    train(
        Fabric(accelerator=settings.device, devices=1),
        method,
        TrainingData(resampled, rows, recipe, targets),
        TrainOptions(
            steps,
            min(settings.batch, len(rows)),
            settings.seed,
            settings.optim,
            save_every=settings.save_every or steps,
        ),
        folder / "checkpoints",
        Log(folder, "jsonl", {}),
    )


def train_supervised(
    folder: Path,
    encoder: nn.Module,
    wanted: InputConfig,
    target_loss: TargetLoss,
    labelled: Subset,
    settings: TrainingSettings,
    blocks: int | None = None,
    head: ProbeHead | None = None,
) -> Supervised:
    """Train `encoder` (only its last `blocks`, if given) and a head on labelled scans.

    head: the probe that it begins as; None: the head begins at random.
    """
    y = labelled.y
    targets = np.zeros((len(labelled.store), *y.shape[1:]), y.dtype)
    targets[labelled.rows] = y
    with torch.random.fork_rng():
        torch.manual_seed(seed_from(settings.seed, 1))
        method = Supervised(encoder, target_loss, blocks)
        if head is not None:
            method.begin_at(*(torch.tensor(v, dtype=torch.float64) for v in (head.features, head.weight, head.bias)))
        train_in(folder, method, labelled.store, labelled.rows, wanted, settings, targets)
    return method


def predictor(method: Supervised, wanted: InputConfig, device: str) -> FeatureSource:
    """Return a function of (store, rows) that predicts (len(rows), …) float64, as metrics take them."""
    weight, bias = method.linear()  # as exported
    head = nn.Linear(weight.shape[1], len(weight))
    head.load_state_dict({"weight": weight, "bias": bias})
    scores = from_encoder(nn.Sequential(method.encoder, head), wanted, device)
    return lambda store, rows: method.target_loss.predict(torch.from_numpy(scores(store, rows)).double()).numpy()


def patch_bank(
    folder: Path, store: Store, size: int, equalise: bool, device: str, encoder_name: str = "patch_bank"
) -> FeatureSource:
    """Return a k-means bank of patches, patch_bank or patch_pyramid, fitted on the training patients of `store`."""
    spec = catalog.spec("method", "kmeans_bank")
    run = spec.pop("_run_")
    edge = (min(size, BANK[store.dims]),) * store.dims
    with torch.random.fork_rng():
        torch.manual_seed(seed_from(0, 0))
        encoder = catalog.build(catalog.spec("encoder", encoder_name), channels=store.channels, size=edge)
        method = catalog.build(spec, encoder=encoder)
        seen = resample_scans(store, edge, None, equalise)
        wanted = InputConfig(store.channels, edge, None, equalise, seen.mean, seen.std)
        settings = TrainingSettings(Choice.of("augment", "plain"), run["steps"], 256, Optim(), 0, device)
        train_in(folder, method, store, store.rows("train"), wanted, settings)
    return from_encoder(encoder, wanted, device)
