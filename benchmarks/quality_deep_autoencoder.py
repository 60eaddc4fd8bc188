"""Reconstruction of digits from codes of 30 numbers: the deep autoencoder of Hinton & Salakhutdinov, 2006, on MNIST.

    python benchmarks/quality_deep_autoencoder.py --mnist FOLDER --minutes 8

784-1000-500-250-30 and its mirror image, sigmoids with a linear code, all 60,000 training images; squared error per test image,
summed over pixels in [0, 1], where theirs is 3.00. Baselines: the 30 principal components (13.87 in the paper) and the same
network from random weights. Each network has --minutes of one thread's processor time. Theirs had 50 epochs for each machine
and 200 of conjugate gradients; here it is Adam on a cosine schedule, batches of 100, as many steps as the time allows.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("CI", "1")  # quiet

import numpy as np
import torch
from lightning_fabric import Fabric
from mnist import part

from medssl import catalog
from medssl.methods.layerwise.deep_autoencoder import DeepAutoencoder
from medssl.store.resampled import ResampledScans
from medssl.train.log import Log
from medssl.train.loop import train
from medssl.train.optim import Optim
from medssl.train.options import TrainingData, TrainOptions

CODE, BATCH, TRIAL = 30, 100, (20, 120)  # steps of the two short runs that tell how long one takes


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--mnist", required=True, type=Path, help="the folder of the four idx files, .gz")
    args.add_argument("--minutes", type=float, default=8.0)
    args.add_argument("--lr", type=float, default=4e-3)
    args.add_argument("--finetune", type=float, default=0.7, help="share of the run in which the whole network trains")
    args.add_argument("--seed", type=int, default=0)
    given = args.parse_args()
    torch.set_num_threads(1)
    learn, test = (part(given.mnist, name)[0][:, None] for name in ("train", "t10k"))
    print(f"{'PCA':<24} squared error per image {pca(learn, test):.3f}", flush=True)
    for name, share in (("Boltzmann machines", given.finetune), ("random weights", 1.0)):
        network(name, share, learn, test, given)


def pca(learn: np.ndarray, test: np.ndarray) -> float:
    """Return the error of the leading principal components."""
    x, y = (a.reshape(len(a), -1) / 255 for a in (learn, test))
    mean = x.mean(0)
    x -= mean
    components = np.linalg.eigh(x.T @ x)[1][:, -CODE:]
    y = y - mean
    return float(((y - y @ components @ components.T) ** 2).sum(1).mean())


def network(name: str, finetune: float, learn: np.ndarray, test: np.ndarray, given: argparse.Namespace) -> None:
    """Train one network and print its line."""
    scans = resampled(learn)
    first, second = (clocked(n, finetune, scans, given)[1] for n in TRIAL)
    each = (second - first) / (TRIAL[1] - TRIAL[0])
    steps = int(given.minutes * 60 / each)
    method, seconds = clocked(steps, finetune, scans, given)
    print(
        f"{name:<24} squared error per image {error(method, scans, test):.3f}   training images "
        f"{error(method, scans, learn[:10000]):.3f}   {steps} steps, {steps * BATCH / len(learn):.1f} epochs, "
        f"{1 - finetune:.0%} of the steps for machines, {seconds / 60:.1f} minutes",
        flush=True,
    )


def resampled(array: np.ndarray) -> ResampledScans:
    low, high = np.zeros(len(array), np.float32), np.full(len(array), 255, np.float32)
    return ResampledScans(array, low, high, float(array.mean() / 255), float(array.std() / 255), array.shape[2:])


def clocked(
    steps: int, finetune: float, scans: ResampledScans, given: argparse.Namespace
) -> tuple[DeepAutoencoder, float]:
    """Return a network after that many steps, and their processor time in seconds."""
    torch.manual_seed(given.seed)
    encoder = catalog.build(catalog.spec("encoder", "hourglass"), channels=1, size=scans.size)
    spec = catalog.spec("method", "deep_autoencoder", visible="bernoulli", finetune=finetune)
    del spec["_run_"]
    method = catalog.build(spec, encoder=encoder)
    recipe = catalog.build(catalog.load("augment", "plain"), size=scans.size)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        start = time.process_time()
        train(
            Fabric(accelerator="cpu"),
            method,
            TrainingData(scans, np.arange(len(scans.array)), recipe),
            TrainOptions(steps, BATCH, given.seed, Optim(lr=given.lr), log_every=100, save_every=steps),
            out / "checkpoints",
            Log(out, "jsonl", {}),
            quiet=True,
        )
    return method, time.process_time() - start


@torch.no_grad()
def error(method: DeepAutoencoder, scans: ResampledScans, test: np.ndarray) -> float:
    """Return the squared error per image, summed over pixels in [0, 1]."""
    total = 0.0
    for some in np.split(test, len(test) // 1000):
        unit = torch.from_numpy(some).flatten(1).float() / 255
        told = method.decode(method.encoder((unit - scans.mean) / scans.std))
        total += float((method.machines[0].visible.mean(told) * scans.std + scans.mean - unit).square().sum())
    return total / len(test)


if __name__ == "__main__":
    main()
