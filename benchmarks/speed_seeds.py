"""Cost of training eight seeds at once: seconds of train_seeds divided by those of the loop on one seed, in one run.

    python benchmarks/speed_seeds.py [--seeds 8 --batch 20 --steps 100 --rounds 3 --threads 2]

The network 784-500-500-500-10 on noise of the size of MNIST: fine-tuning on labels, and denoising autoencoders layer by
layer. Rounds alternate, so that other load affects both equally; ratios are medians over rounds, with their range.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric

from medssl import catalog
from medssl.encoders.mlp import MLP
from medssl.losses.target_losses import classification
from medssl.methods.base import Method
from medssl.methods.layerwise.greedy_ae import GreedyAE
from medssl.store.resampled import ResampledScans
from medssl.tasks.supervised import Supervised
from medssl.train.log import Log
from medssl.train.loop import train
from medssl.train.optim import Optim
from medssl.train.options import TrainingData, TrainOptions
from medssl.train.seeds import train_seeds

SIZE, SCANS = (28, 28), 10000


def supervised(seed: int) -> Method:
    torch.manual_seed(seed)
    return Supervised(MLP(1, SIZE), classification(10))


def denoising(seed: int) -> Method:
    torch.manual_seed(seed)
    spec = {k: v for k, v in catalog.load("method", "greedy_ae").items() if k not in ("_run_", "_target_")}
    return GreedyAE(MLP(1, SIZE), **spec)


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--seeds", type=int, default=8)
    args.add_argument("--batch", type=int, default=20)
    args.add_argument("--steps", type=int, default=100)
    args.add_argument("--rounds", type=int, default=3)
    args.add_argument("--threads", type=int, default=2)
    given = args.parse_args()
    torch.set_num_threads(given.threads)
    rng = np.random.default_rng(0)
    ends = np.zeros(SCANS, np.float32)
    resampled = ResampledScans(rng.integers(0, 255, (SCANS, 1, *SIZE), np.uint8), ends, ends + 255, 0.5, 0.29, SIZE)
    rows, targets = np.arange(SCANS), np.arange(SCANS) % 10
    recipe = catalog.build(catalog.load("augment", "plain"), size=SIZE)

    def data(method: Method) -> TrainingData:
        return TrainingData(resampled, rows, recipe, targets if method.target else None)

    def one(method: Method, steps: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder)
            train(
                Fabric(accelerator="cpu", devices=1), method, data(method),
                TrainOptions(steps, given.batch, 0, Optim(), log_every=10**6, save_every=10**6), run / "c",
                Log(run, "jsonl", {}), quiet=True,
            )  # fmt: skip

    def many(methods: list[Method], steps: int) -> None:
        seeds = list(range(len(methods)))
        train_seeds(methods, data(methods[0]), steps=steps, batch=given.batch, seeds=seeds, optim=Optim())

    for make in (supervised, denoising):
        one(make(0), 3)
        many([make(s) for s in range(given.seeds)], 3)
        ratios, alone = [], []
        for _ in range(given.rounds):
            single, several = make(0), [make(s) for s in range(given.seeds)]
            alone.append(timed(lambda m=single: one(m, given.steps)))
            ratios.append(timed(lambda m=several: many(m, given.steps)) / alone[-1])
        step = 1000 * statistics.median(alone) / given.steps
        print(
            f"{make.__name__:<11} batch {given.batch}, {given.threads} threads: one {step:.1f} ms a step, {given.seeds} seeds "
            f"{statistics.median(ratios):.2f} x (rounds {min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


def timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
