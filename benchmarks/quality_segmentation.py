"""The gain of pretraining for segmentation, fine-tuned on few and on all masks, over scratch, frozen and dense probes.

    python benchmarks/quality_segmentation.py --source hippocampus --methods simclr greedy_ae

`--source` holds images/ and labels/ (NIfTI, paired by name). Pretraining uses the training volumes without their masks; every row
of a table is then trained on the same masks with the same steps and batch, and scored on the test volumes' own grids. The model
of the last step is scored: nothing is chosen on validation or test volumes. Prints a table, the time and the load per method.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("CI", "1")  # quiet

import torch

import medssl
from medssl.commands.score.segment import segment
from medssl.scoring.segmentation import BASELINES


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--source", required=True)
    args.add_argument("--work", help="a folder that keeps stores and runs, so that an interrupted benchmark continues")
    args.add_argument("--augment", default="mr", help="also the intensity window of ingest")
    args.add_argument("--methods", nargs="+", default=["simclr"])
    args.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64])
    args.add_argument("--size", type=int, default=48)
    args.add_argument("--spacing", type=float, default=1.0)
    args.add_argument("--pretrain-steps", type=int, default=150)
    args.add_argument("--pretrain-batch", type=int, default=16)
    args.add_argument("--steps", type=int, default=600)
    args.add_argument("--batch", type=int, default=2)
    args.add_argument("--width", type=int, default=8)
    args.add_argument("--label-budgets", nargs="+", default=["10 %", "all"])
    args.add_argument("--draws", type=int, default=1)
    args.add_argument("--baselines", nargs="*", default=list(BASELINES))
    args.add_argument("--threads", type=int, default=2)
    given = args.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(given.work or scratch)
        work.mkdir(parents=True, exist_ok=True)
        store = work / "store"
        if not store.exists():
            key = work / "key"
            # a fixed key, so that the split is the same every time
            key.write_text("0" * 64)
            key.chmod(0o600)
            medssl.ingest(given.source, store, key=key, intensity=given.augment)
        for method in given.methods:
            start = time.perf_counter()
            run = medssl.pretrain(
                store, work / method, method=method, encoder="cnn", encoder_options={"widths": given.widths},
                augment=given.augment, size=given.size, spacing=given.spacing, steps=given.pretrain_steps,
                batch=given.pretrain_batch, monitor_every=0,
            )  # fmt: skip
            print(f"{method}: pretrained in {time.perf_counter() - start:.0f} s, load {_load()}", flush=True)
            start = time.perf_counter()
            result = segment(
                run, store, label_budgets=given.label_budgets, draws=given.draws, steps=given.steps, batch=given.batch,
                width=given.width, baselines=given.baselines,
            )  # fmt: skip
            print(result)
            print(f"{method}: scored in {time.perf_counter() - start:.0f} s, load {_load()}\n", flush=True)


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
