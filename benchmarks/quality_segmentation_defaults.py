"""How learning rate, batch and crops change a segmentation network trained from scratch on a few volumes, on validation volumes.

    python benchmarks/quality_segmentation_defaults.py --source hippocampus --size 24 --spacing 2

Every setting sees the same number of volumes: batch times steps is constant. The defaults of `medssl segment` were chosen
like this: no test volume is read. Prints the mean Dice of the validation volumes, on the training grid, and CPU seconds.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("CI", "1")  # quiet

import numpy as np
import torch

import medssl
from medssl import catalog
from medssl.augmentations.loader import RawScans, apply_windows
from medssl.encoders.config import InputConfig
from medssl.rng import generator
from medssl.runs.config import Choice
from medssl.scoring.training import TrainingSettings, train_in
from medssl.store.masks import mask_labels, resample_masks
from medssl.store.resampled import resample_scans
from medssl.store.store import Store
from medssl.tasks.segment import Segment
from medssl.train.optim import Optim


class Setting(NamedTuple):
    """Learning rate, scans per step, and the smallest share of a scan that a crop keeps (None: no augmentation)."""

    lr: float
    batch: int
    crop: float | None


SETTINGS = (
    Setting(0.001, 4, 0.4), Setting(0.004, 4, 0.4), Setting(0.01, 4, 0.4), Setting(0.004, 4, 0.8), Setting(0.004, 4, None),
    Setting(0.01, 4, 0.8), Setting(0.02, 4, 0.8), Setting(0.005, 2, 0.8), Setting(0.01, 2, 0.8), Setting(0.02, 2, 0.8),
    Setting(0.01, 2, 0.4),
)  # fmt: skip


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--source", required=True)
    args.add_argument("--intensity", default="mr", help="window of ingest, and the augmentation recipe")
    args.add_argument("--size", type=int, default=48)
    args.add_argument("--spacing", type=float, default=1.0)
    args.add_argument("--volumes", type=int, default=4, help="labelled volumes")
    args.add_argument("--shown", type=int, default=320, help="batch times steps")
    args.add_argument("--draws", type=int, nargs="+", default=[0])
    args.add_argument("--settings", type=int, nargs="+", default=range(len(SETTINGS)), help="numbers in SETTINGS")
    args.add_argument("--threads", type=int, default=1)
    given = args.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as work:
        key = Path(work) / "key"
        key.write_text("0" * 64)
        key.chmod(0o600)
        store = Store.open(medssl.ingest(given.source, Path(work) / "store", key=key, intensity=given.intensity))
        for number in given.settings:
            for draw in given.draws:
                setting, start = SETTINGS[number], time.process_time()
                dice = measure(store, given, setting, draw)
                print(f"{setting}, draw {draw}: Dice {dice:.3f}, {time.process_time() - start:.0f} CPU s", flush=True)


def measure(store: Store, given: argparse.Namespace, setting: Setting, draw: int) -> float:
    """Train on a draw of volumes and return the mean Dice over validation volumes and classes."""
    resampled, rows = resample_scans(store, given.size, given.spacing), store.rows("train")
    few = rows[torch.randperm(len(rows), generator=generator(draw, 77)).numpy()[: given.volumes]]
    labels = mask_labels(store, few)
    masks = resample_masks(store, labels, resampled.size, given.spacing)
    torch.manual_seed(draw)
    encoder = catalog.build(catalog.spec("encoder", "cnn", widths=[16, 32, 64]), channels=1, size=resampled.size)
    method = Segment(encoder, len(labels), 8)
    crop = {"crop": {"scale": [setting.crop, 1.0]}}
    recipe = Choice.of("augment", given.intensity, crop) if setting.crop else Choice.of("augment", "plain")
    optim = Optim(lr=setting.lr, weight_decay=1e-2)
    settings = TrainingSettings(recipe, given.shown // setting.batch, setting.batch, optim, draw, "cpu")
    wanted = InputConfig(1, resampled.size, given.spacing, False, resampled.mean, resampled.std)
    with tempfile.TemporaryDirectory() as folder:
        train_in(Path(folder), method, store, few, wanted, settings, masks)
    method.eval()
    raw, found = RawScans(resampled, masks), []
    for row in store.rows("val").tolist():
        one = raw.__getitems__([(row, 0)])
        with torch.inference_mode():
            scores = method.scores((apply_windows(one) - resampled.mean) / resampled.std)
        predicted, truth = scores.argmax(1)[0].numpy(), one["target"][0].numpy()
        for k in range(1, len(labels)):
            a, b = predicted == k, truth == k
            found.append(2 * (a & b).sum() / max(1, a.sum() + b.sum()))
    return float(np.mean(found))


if __name__ == "__main__":
    main()
