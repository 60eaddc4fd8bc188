"""Does the loop wait for data? Images per second end to end and of the model alone, for medssl and lightly in one run.

    python benchmarks/speed_loop.py --steps 6 --rounds 3

SimCLR, ResNet-18, 64 pixels, batch 128 (256 views), float32, two threads. medssl: the real loop with the xray recipe on
resampled grey scans, no workers. lightly: its SimCLRTransform, DataLoader and NTXentLoss with two workers on PIL images
already in memory; grey scans become RGB, which its colour operations need. Rounds alternate, so that other load on the
machine affects all equally; ratios are medians over steps. `inside` is the fraction of our loop's time not spent on data.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from lightning_fabric import Fabric
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from medssl import catalog
from medssl.methods.base import Clock
from medssl.rng import Key
from medssl.store.resampled import ResampledScans
from medssl.train.log import Log
from medssl.train.loop import train
from medssl.train.optim import Optim
from medssl.train.options import TrainingData, TrainOptions

SIZE, BATCH, SCANS = 64, 128, 2048


def scans() -> np.ndarray:
    """Return (N, 64, 64) uint8 smooth fields with noise."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((SCANS, 1, 8, 8), np.float32))
    smooth = nn.functional.interpolate(coarse, SIZE, mode="bicubic")[:, 0].clamp(0, 1).numpy()
    return np.clip(smooth * 220 + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)


def our_method() -> nn.Module:
    torch.manual_seed(0)
    spec = catalog.load("method", "simclr")
    return catalog.build(
        spec, encoder=catalog.build(catalog.load("encoder", "resnet18"), channels=1, size=(SIZE, SIZE))
    )


def ours(images: np.ndarray, steps: int) -> tuple[list[float], float]:
    """Return the seconds of each step except the first, and the fraction of the time not spent on data."""
    n = len(images)
    resampled = ResampledScans(
        images[:, None], np.zeros(n, np.float32), np.full(n, 255, np.float32), 0.4, 0.25, (SIZE, SIZE)
    )
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        train(
            Fabric(accelerator="cpu"), our_method(),
            TrainingData(resampled, np.arange(n), catalog.build(catalog.load("augment", "xray"), size=(SIZE, SIZE))),
            TrainOptions(steps + 1, BATCH, 0, Optim(), log_every=1, save_every=10**6), run / "c", Log(run, "jsonl", {}),
            quiet=True,
        )  # fmt: skip
        rows = [json.loads(line) for line in (run / "timing.jsonl").read_text().splitlines()]
    spent = [b["seconds"] - a["seconds"] for a, b in pairwise(rows)]
    data = rows[-1]["data_seconds"] - rows[0]["data_seconds"]
    return spent[:-1] or spent, 1 - data / sum(spent)  # the last step also writes the checkpoint


def our_model_alone(steps: int) -> list[float]:
    method = our_method()
    optimizer = Optim().build(method)
    assert optimizer is not None
    views = [torch.randn(BATCH, 1, SIZE, SIZE) for _ in range(2)]
    batch = {"views": views, "key": Key(0, torch.zeros(BATCH).long(), torch.arange(BATCH))}

    def step() -> None:
        optimizer.zero_grad()
        method(batch, Clock(0, 1))["loss"].backward()
        nn.utils.clip_grad_norm_(method.parameters(), 10.0)
        optimizer.step()

    return timed(step, steps)


class Pictures(Dataset):
    """The dataset of lightly's loader."""

    def __init__(self, images: np.ndarray):
        self.images = [Image.fromarray(x).convert("RGB") for x in images]
        self.transform = SimCLRTransform(input_size=SIZE)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> list[torch.Tensor]:
        return self.transform(self.images[i])


def lightly_step() -> Callable[[list[torch.Tensor]], None]:
    import timm

    torch.manual_seed(0)
    model = nn.Sequential(timm.create_model("resnet18", num_classes=0), SimCLRProjectionHead(512, 2048, 128))
    optimizer, loss = torch.optim.AdamW(model.parameters()), NTXentLoss(0.1)

    def step(views: list[torch.Tensor]) -> None:
        a, b = model(torch.cat(views)).chunk(2)
        optimizer.zero_grad()
        loss(a, b).backward()
        optimizer.step()

    return step


def lightly_end_to_end(images: np.ndarray, steps: int) -> list[float]:
    loader = DataLoader(Pictures(images), BATCH, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True)

    def forever() -> Iterator[list[torch.Tensor]]:
        while True:
            yield from loader

    batches, step = forever(), lightly_step()
    return timed(lambda: step(next(batches)), steps)


def timed(step: Callable[[], None], steps: int) -> list[float]:
    step()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--steps", type=int, default=6)
    args.add_argument("--rounds", type=int, default=3)
    given = args.parse_args()
    torch.set_num_threads(2)
    images, spent, inside = scans(), {"ours": [], "our model": [], "lightly": [], "lightly model": []}, []
    for _ in range(given.rounds):
        spent["our model"] += our_model_alone(given.steps)
        seconds, share = ours(images, given.steps)
        spent["ours"] += seconds
        inside.append(share)
        rgb = [torch.randn(BATCH, 3, SIZE, SIZE) for _ in range(2)]
        step = lightly_step()
        spent["lightly model"] += timed(lambda step=step, rgb=rgb: step(rgb), given.steps)
        spent["lightly"] += lightly_end_to_end(images, given.steps)
    middle = {k: statistics.median(v) for k, v in spent.items()}
    for k, v in middle.items():
        low, high = np.percentile(spent[k], [10, 90])
        print(
            f"{k:<14} {BATCH / v:7.1f} scans/s, step {v:.2f} s (10 to 90 %: {low:.2f} to {high:.2f}, n = {len(spent[k])})"
        )
    share = statistics.median(inside)
    print(
        f"ours:    end to end / model alone = {middle['our model'] / middle['ours']:.3f}; inside the loop {share:.3f}"
    )
    print(f"lightly: end to end / model alone = {middle['lightly model'] / middle['lightly']:.3f}")


if __name__ == "__main__":
    main()
