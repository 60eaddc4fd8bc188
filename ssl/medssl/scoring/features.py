"""Where features come from: the encoder of a run, and the baselines that every number stands beside.

A source fits on the training patients of one store and then turns rows of any store into features.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from sklearn.decomposition import PCA
from torch import nn

from medssl import catalog
from medssl.encoders.config import EncoderConfig, InputConfig
from medssl.encoders.export import load_encoder
from medssl.errors import UserError, nearest
from medssl.evals.embed import embed
from medssl.losses import target_losses
from medssl.losses.target_losses import TargetLoss
from medssl.methods.base import Method
from medssl.rng import seed_from
from medssl.runs.config import PretrainConfig
from medssl.store.resampled import resample_scans, resampled_for_encoder
from medssl.store.store import Store
from medssl.tasks.supervised import Supervised
from medssl.train.log import Log
from medssl.train.loop import train
from medssl.train.optim import Optim
from medssl.train.options import TrainingData, TrainOptions

FeatureSource = Callable[[Store, np.ndarray], np.ndarray]  # (store, rows) -> (len(rows), dim) float32
RAW = {2: 32, 3: 16}  # edge of the grid of the raw-pixel baseline
BANK = {2: 64, 3: 32}  # largest edge the patch bank is given
COMPONENTS = 64
DEVICES = ("auto", "cpu", "cuda")


def device_of(asked: str) -> str:
    """ "auto" is the GPU where there is one."""
    if asked not in DEVICES:
        raise UserError(f"device is {asked!r}.{nearest(asked, DEVICES)}")
    found = torch.cuda.is_available()
    if asked == "cuda" and not found:
        raise UserError("device=cuda, and torch sees no GPU; use device=cpu")
    return "cuda" if found and asked != "cpu" else "cpu"


def of_encoder(encoder: nn.Module, wanted: InputConfig, device: str) -> FeatureSource:
    """Features of an encoder; `wanted` is the input it was trained with, whatever the store."""

    def features(store: Store, rows: np.ndarray) -> np.ndarray:
        must_fit(wanted, store)
        return embed(encoder, resampled_for_encoder(store, wanted), rows, device=device)

    return features


def must_fit(wanted: InputConfig, store: Store) -> None:
    """Raise UserError if an encoder with this input cannot take the scans of `store`."""
    has, takes = (store.channels, store.dims), (wanted.channels, len(wanted.size))
    if has != takes:
        raise UserError(
            f"the encoder takes {takes[0]}-channel scans in {takes[1]}D, and {store.path} has {has[0]} in {has[1]}D"
        )


def of_run(run: Path, device: str) -> tuple[FeatureSource, EncoderConfig]:
    """Features of the pretrained encoder, and its config."""
    encoder, config = load_encoder(run)
    return of_encoder(encoder, config.input, device), config


def untrained(config: PretrainConfig, wanted: InputConfig, device: str) -> FeatureSource:
    """The run's own encoder with its own initial weights: what architecture and size alone are worth."""
    return of_encoder(fresh(config, wanted), wanted, device)


def fresh(config: PretrainConfig, wanted: InputConfig) -> nn.Module:
    """The encoder as the run started it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed_from(config.seed, 0))
        spec = config.encoder.spec("encoder")
        if "pretrained" in spec:
            spec["pretrained"] = False
        return catalog.build(spec, channels=wanted.channels, size=wanted.size)


def raw_pixels(equalise: bool) -> FeatureSource:
    """Pixels in unit range on a small grid."""

    def source(store: Store, rows: np.ndarray) -> np.ndarray:
        resampled = resample_scans(store, RAW[store.dims], None, equalise)
        shape = (-1,) + (1,) * (resampled.array.ndim - 1)
        low, high = resampled.low[rows].reshape(shape), resampled.high[rows].reshape(shape)
        return np.clip((resampled.array[rows] - low) / (high - low), 0, 1).reshape(len(rows), -1).astype(np.float32)

    return source


def pca(store: Store, equalise: bool) -> FeatureSource:
    """Whitened principal components of the raw pixels of training patients."""
    raw = raw_pixels(equalise)
    x = raw(store, store.rows("train"))
    model = PCA(min(COMPONENTS, len(x) - 1, x.shape[1]), whiten=True, svd_solver="covariance_eigh").fit(x)
    return lambda other, rows: model.transform(raw(other, rows)).astype(np.float32)


def patch_bank(store: Store, size: int, equalise: bool, seed: int, device: str, work: Path) -> FeatureSource:
    """The k-means patch bank, fitted on training patients."""
    spec = catalog.spec("method", "kmeans_bank")
    run = spec.pop("_run_")
    size = min(size, BANK[store.dims])
    edge = (size,) * store.dims
    with torch.random.fork_rng():
        torch.manual_seed(seed_from(seed, 0))
        encoder = catalog.build(catalog.spec("encoder", run["encoder"]), channels=store.channels, size=edge)
        method = catalog.build(spec, encoder=encoder)
        rows = store.rows("train")
        seen = resample_scans(store, edge, None, equalise)
        wanted = InputConfig(store.channels, edge, None, equalise, seen.mean, seen.std)
        plain, batch = catalog.spec("augment", "plain"), min(256, len(rows))
        _train(method, store, wanted, rows, plain, work, run["steps"], batch, seed, device, Optim())
    return of_encoder(encoder, wanted, device)


def supervised(
    config: PretrainConfig,
    wanted: InputConfig,
    store: Store,
    rows: np.ndarray,
    y: np.ndarray,
    classes: int,
    device: str,
    work: Path,
) -> Callable[[Store, np.ndarray], np.ndarray]:
    """Probabilities from the run's own encoder, trained on labels from scratch with its augmentation, steps and batch."""
    method = learn(
        fresh(config, wanted), wanted, target_losses.classification(classes), store, rows, y, work,
        views=config.augment.spec("augment"), steps=config.steps, batch=min(config.batch, len(rows)), seed=config.seed,
        device=device, optim=Optim(lr=1e-3, weight_decay=1e-2),
    )  # fmt: skip
    return predictor(method, wanted, device)


def learn(
    encoder: nn.Module,
    wanted: InputConfig,
    target_loss: TargetLoss,
    store: Store,
    rows: np.ndarray,
    y: np.ndarray,
    work: Path,
    *,
    views: dict[str, Any],
    steps: int,
    batch: int,
    seed: int,
    device: str,
    optim: Optim,
    blocks: int | None = None,
    save_every: int | None = None,
) -> Supervised:
    """Train `encoder` (its last `blocks`) and a head on y (len(rows), …) of the scans `rows`, in the folder `work`.

    Goes on from the checkpoint in `work`, which is written every `save_every` steps, and ends with the same bits.
    """
    target = np.zeros((len(store), *y.shape[1:]), y.dtype)
    target[rows] = y
    with torch.random.fork_rng():
        torch.manual_seed(seed_from(seed, 1))
        method = Supervised(encoder, target_loss, blocks)
        _train(method, store, wanted, rows, views, work, steps, batch, seed, device, optim, target, save_every)
    return method


def predictor(method: Supervised, wanted: InputConfig, device: str) -> Callable[[Store, np.ndarray], np.ndarray]:
    """(store, rows) -> what the method predicts, (len(rows), …) float64 as metrics take it."""
    scores = of_encoder(nn.Sequential(method.encoder, method.norm, method.head), wanted, device)
    return lambda store, rows: method.target_loss.predict(torch.from_numpy(scores(store, rows)).double()).numpy()


def _train(
    method: Method,
    store: Store,
    wanted: InputConfig,
    rows: np.ndarray,
    views: dict[str, Any],
    work: Path,
    steps: int,
    batch: int,
    seed: int,
    device: str,
    optim: Optim,
    target: np.ndarray | None = None,
    save_every: int | None = None,
) -> None:
    """Train in the folder `work`, on the grid and with the standardisation of `wanted`."""
    resampled = resampled_for_encoder(store, wanted)
    recipe = catalog.build(views, size=resampled.size)
    train(
        Fabric(accelerator=device, devices=1), method, TrainingData(resampled, rows, recipe, target),
        TrainOptions(steps, batch, seed, optim, save_every=save_every or steps), work / "checkpoints", Log(work, "jsonl", {}),
    )  # fmt: skip
