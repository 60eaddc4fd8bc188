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
from medssl.encoders.handover import load_encoder
from medssl.errors import UserError, nearest
from medssl.evals.embed import embed
from medssl.methods.base import Method
from medssl.rng import seed_from
from medssl.steps.pretrain import without_name
from medssl.store.canvas import Canvas
from medssl.store.store import Store
from medssl.tasks.classify import Classify
from medssl.train.log import Log
from medssl.train.loop import train
from medssl.train.optim import Optim

Source = Callable[[Store, np.ndarray], np.ndarray]  # (store, rows) -> (len(rows), dim) float32
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


def of_encoder(encoder: nn.Module, card: dict[str, Any], device: str) -> Source:
    """Features of an encoder; `card` says the grid and the standardisation it was trained with, whatever the store."""

    def features(store: Store, rows: np.ndarray) -> np.ndarray:
        canvas = store.canvas(tuple(card["size"]), card["spacing"])
        as_trained = Canvas(canvas.array, canvas.low, canvas.high, card["mean"], card["std"], canvas.size)
        return embed(encoder, as_trained, rows, device=device)

    return features


def of_run(run: Path, device: str) -> tuple[Source, dict[str, Any]]:
    """The pretrained encoder, and its card."""
    encoder, card = load_encoder(run)
    return of_encoder(encoder, card, device), card


def untrained(resolved: dict[str, Any], card: dict[str, Any], device: str) -> Source:
    """The run's own encoder with its own initial weights: what architecture and size alone are worth."""
    return of_encoder(fresh(resolved, card), card, device)


def fresh(resolved: dict[str, Any], card: dict[str, Any]) -> nn.Module:
    """The encoder as the run started it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed_from(resolved["seed"], 0))
        spec = without_name(resolved["encoder"])
        return catalog.build(spec, channels=card["channels"], size=tuple(card["size"]))


def raw_pixels(store: Store, rows: np.ndarray) -> np.ndarray:
    """Pixels in unit range on a small grid."""
    canvas = store.canvas(RAW[store.info["dims"]])
    shape = (-1,) + (1,) * (canvas.array.ndim - 1)
    low, high = canvas.low[rows].reshape(shape), canvas.high[rows].reshape(shape)
    return np.clip((canvas.array[rows] - low) / (high - low), 0, 1).reshape(len(rows), -1).astype(np.float32)


def pca(store: Store) -> Source:
    """Whitened principal components of the raw pixels of training patients."""
    x = raw_pixels(store, store.rows("train"))
    model = PCA(min(COMPONENTS, *x.shape), whiten=True, svd_solver="covariance_eigh").fit(x)
    return lambda other, rows: model.transform(raw_pixels(other, rows)).astype(np.float32)


def patch_bank(store: Store, size: int, seed: int, device: str, work: Path) -> Source:
    """The k-means patch bank, fitted on training patients."""
    spec = catalog.spec("method", "kmeans_bank")
    run = spec.pop("_run_")
    size = min(size, BANK[store.info["dims"]])
    edge = (size,) * store.info["dims"]
    with torch.random.fork_rng():
        torch.manual_seed(seed_from(seed, 0))
        encoder = catalog.build(catalog.spec("encoder", run["encoder"]), channels=store.info["channels"], size=edge)
        method = catalog.build(spec, encoder=encoder)
        rows = store.rows("train")
        _train(
            method, store, edge, None, rows, "plain", {}, work, run["steps"], min(256, len(rows)), seed, device, Optim()
        )
    card = {"size": edge, "spacing": None, "mean": store.info["mean"], "std": store.info["std"]}
    return of_encoder(encoder, card, device)


def supervised(
    resolved: dict[str, Any],
    card: dict[str, Any],
    store: Store,
    rows: np.ndarray,
    y: np.ndarray,
    classes: int,
    device: str,
    work: Path,
) -> Callable[[Store, np.ndarray], np.ndarray]:
    """The run's own encoder trained on labels from scratch with the run's own views, steps and batch: probabilities."""
    target = np.full(len(store), -1, np.int64)
    target[rows] = y
    with torch.random.fork_rng():
        encoder = fresh(resolved, card)
        method = Classify(encoder, classes)
        views = resolved["views"]
        options = {k: v for k, v in views.items() if k not in {"name", "_target_"}}
        optim = Optim(lr=1e-3, weight_decay=1e-2)
        batch = min(resolved["batch"], len(rows))
        _train(
            method, store, tuple(card["size"]), card["spacing"], rows, views["name"], options, work, resolved["steps"], batch,
            resolved["seed"], device, optim, target,
        )  # fmt: skip
    logits = of_encoder(nn.Sequential(encoder, method.head), card, device)

    def probabilities(other: Store, at: np.ndarray) -> np.ndarray:
        return torch.from_numpy(logits(other, at)).double().softmax(1).numpy()

    return probabilities


def _train(
    method: Method,
    store: Store,
    size: tuple[int, ...],
    spacing: float | None,
    rows: np.ndarray,
    views: str,
    options: dict[str, Any],
    work: Path,
    steps: int,
    batch: int,
    seed: int,
    device: str,
    optim: Optim,
    target: np.ndarray | None = None,
) -> None:
    fabric = Fabric(accelerator="cuda" if device.startswith("cuda") else "cpu", devices=1)
    recipe = catalog.build(catalog.spec("views", views, **options), size=size)
    canvas = store.canvas(size, spacing)
    log = Log(work, "jsonl", {})
    train(
        fabric, method, canvas, rows, recipe, work / "checkpoints", log, steps=steps, batch=batch, seed=seed, optim=optim,
        save_every=steps, targets=target,
    )  # fmt: skip
