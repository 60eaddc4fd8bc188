"""A reality check of metric learning: retrieval of unseen digits after training on other digits (MNIST).

    python benchmarks/quality_metric_learning.py --mnist FOLDER --losses contrastive triplet arcface

Training uses the train images of digits 0 to 4; test images of 5 to 9 (n = 4,861) are retrieved among each other by the
128-dimensional embedding that the loss compares, or with --of encoder by the features below it (the last of --widths). Every
loss gets the same small network, steps, batch and optimiser, and the same number of --trials: settings drawn around its yaml and
judged by MAP@R on two of the five training digits after training on the other three. The best setting is trained --repeats
times. Prints precision at 1, R-precision and MAP@R (%), means over repeats with a 95 % interval over repeats and test images,
beside an untrained network. After Musgrave et al., 2020, https://arxiv.org/abs/2003.08505.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("CI", "1")  # quiet

import numpy as np
import torch
from lightning_fabric import Fabric
from mnist import part

from medssl import catalog
from medssl.evals.embed import evaluating
from medssl.evals.probes.retrieval import retrieve
from medssl.losses.target_losses import classification
from medssl.store.resampled import ResampledScans
from medssl.train.log import Log
from medssl.train.loop import train
from medssl.train.optim import Optim
from medssl.train.options import TrainingData, TrainOptions

SEEN, NEW = [0, 1, 2, 3, 4], [5, 6, 7, 8, 9]
FOLDS = [([0, 1, 2], [3, 4]), ([2, 3, 4], [0, 1])]  # taught, judged on
DRAWS = {  # what a trial draws, and from where: log-uniform
    "contrastive": {"negative_margin": (0.5, 1.5)},
    "triplet": {"margin": (0.05, 0.5)},
    "lifted": {"margin": (0.5, 2.0)},
    "npairs": {"norm_weight": (1e-4, 1e-2)},
    "multi_similarity": {"alpha": (1, 10), "base": (0.3, 0.8)},
    "supcon": {"temperature": (0.03, 0.5)},
    "similarity": {"scale": (5, 20)},
    "mahalanobis": {"margin": (0.5, 10)},
    "proxy_anchor": {"margin": (0.03, 0.3), "alpha": (8, 64)},
    "arcface": {"margin": (5, 40), "scale": (8, 64)},
    "cosface": {"margin": (0.1, 0.5), "scale": (8, 64)},
}
METRICS = ("P@1", "RP", "MAP@R")


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--mnist", type=Path, required=True, help="folder of the four idx.gz files")
    args.add_argument("--losses", nargs="+", default=list(DRAWS), choices=list(DRAWS))
    args.add_argument("--steps", type=int, default=100)
    args.add_argument("--batch", type=int, default=64)
    args.add_argument("--trials", type=int, default=1, help="the first is the yaml's own setting")
    args.add_argument("--repeats", type=int, default=2)
    args.add_argument("--lr", type=float, default=1e-3)
    args.add_argument("--views", default="plain", help="recipe of configs/augment")
    args.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64])
    args.add_argument("--of", default="embedding", choices=["embedding", "encoder"], help="what is retrieved by")
    args.add_argument("--threads", type=int, default=1)
    given = args.parse_args()
    torch.set_num_threads(given.threads)
    x_train, y_train = part(given.mnist, "train")
    x_test, y_test = part(given.mnist, "t10k")
    x_train, y_train = x_train[y_train < 5], y_train[y_train < 5]
    x_test, y_test = x_test[y_test >= 5], y_test[y_test >= 5]
    print(f"{len(x_train):,} images of 0 to 4 teach, {len(x_test):,} of 5 to 9 are retrieved; {vars(given)}")
    print(f"\n{'':18}" + "".join(f"{m:>24}" for m in METRICS))
    flat_train, flat_test = (x.reshape(len(x), -1) / 255 for x in (x_train, x_test))
    tell("raw pixels", [measured(flat_test, y_test)])
    mean = flat_train.mean(0)
    axes = np.linalg.eigh(np.cov(flat_train.T))[1][:, -50:]
    tell("PCA 50 of 0 to 4", [measured((flat_test - mean) @ axes, y_test)])
    for loss in given.losses:
        began = time.perf_counter()
        options = chosen(loss, x_train, y_train, given)
        found = []
        for seed in range(given.repeats):
            method = taught(loss, options, x_train, y_train, SEEN, given, seed)
            found.append(measured(embedded(method, x_test, x_train, given.of), y_test))
        tell(loss, found, f"{time.perf_counter() - began:6.0f} s  {shown(options)}")


def chosen(loss: str, x: np.ndarray, y: np.ndarray, given: argparse.Namespace) -> dict[str, float]:
    """Return the drawn setting with the best mean MAP@R over folds of the training digits."""
    rng = np.random.default_rng(0)
    settings: list[dict[str, float]] = [{}]
    while len(settings) < given.trials:
        settings.append({k: float(np.exp(rng.uniform(*np.log(ends)))) for k, ends in DRAWS[loss].items()})
    if len(settings) == 1:
        return settings[0]
    scores = []
    for options in settings:
        of_folds = []
        for taught_on, judged_on in FOLDS:
            method = taught(loss, options, x, y, taught_on, given, seed=1000)
            rows = np.flatnonzero(np.isin(y, judged_on))[:2000]
            of_folds.append(measured(embedded(method, x[rows], x, given.of), y[rows])[:, 2].mean())
        scores.append(np.mean(of_folds))
    return settings[int(np.argmax(scores))]


def taught(
    loss: str,
    options: dict[str, Any],
    x: np.ndarray,
    y: np.ndarray,
    digits: list[int],
    given: argparse.Namespace,
    seed: int,
) -> Any:
    """Return the method trained on images of `digits`, one view of each, with the digit as label."""
    rows = np.flatnonzero(np.isin(y, digits))
    resampled = canvas_of(x)
    spec = catalog.load("method", loss)
    spec.pop("_run_", None)
    spec |= {k: v for k, v in {"positives": "label", "out": 128, "hidden": 256}.items() if k in spec} | options
    torch.manual_seed(seed)
    encoder = catalog.build(catalog.spec("encoder", "cnn", widths=given.widths), channels=1, size=resampled.size)
    method = catalog.build(spec, encoder=encoder, target_loss=classification(len(digits)))
    method.views = 1
    targets = np.searchsorted(digits, y)
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch)
        train(
            Fabric(accelerator="cpu", devices=1),
            method,
            TrainingData(
                resampled, rows, catalog.build(catalog.spec("augment", given.views), size=resampled.size), targets
            ),
            TrainOptions(given.steps, given.batch, seed, Optim(lr=given.lr), save_every=given.steps),
            run / "checkpoints",
            Log(run, "jsonl", {}),
            quiet=True,
        )
    return method


def canvas_of(x: np.ndarray) -> ResampledScans:
    unit = x / 255
    n = len(x)
    return ResampledScans(
        x[:, None],
        np.zeros(n, np.float32),
        np.full(n, 255, np.float32),
        float(unit.mean()),
        float(unit.std()),
        (28, 28),
    )


def embedded(method: Any, x: np.ndarray, like: np.ndarray, of: str) -> np.ndarray:
    """Return embeddings or encoder features (N, dim) of images standardised as in training."""
    unit = like / 255
    images = torch.from_numpy((x[:, None] / 255 - unit.mean()) / unit.std()).float()
    head = getattr(method, "projector", None) or (lambda h: h @ method.distance.factor.T)
    with torch.no_grad(), evaluating(method):
        found = (method.encoder(some) for some in images.split(500))
        return torch.cat([h if of == "encoder" else head(h) for h in found]).numpy()


def measured(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the three metrics (N, 3) of each image as a query among all others."""
    found = retrieve(x, y, np.arange(len(y)))
    return np.stack([found.p_at_1, found.r_precision, found.map_at_r], 1)


def tell(name: str, found: list[np.ndarray], more: str = "") -> None:
    """Return the means of (R, N, 3) over repeats; the interval resamples repeats and images."""
    all_ = np.stack(found)
    rng = np.random.default_rng(0)
    R, N, _ = all_.shape
    draws = np.stack([all_[rng.integers(R, size=R)][:, rng.integers(N, size=N)].mean((0, 1)) for _ in range(500)])
    low, high = np.quantile(draws, [0.025, 0.975], axis=0) * 100
    mean = all_.mean((0, 1)) * 100
    cells = "".join(f"{m:9.2f} [{a:5.2f}, {b:5.2f}]" for m, a, b in zip(mean, low, high, strict=True))
    print(f"{name:18}{cells}  {more}", flush=True)


def shown(options: dict[str, float]) -> str:
    return ", ".join(f"{k} {v:.3g}" for k, v in options.items()) or "as in its yaml"


if __name__ == "__main__":
    main()
