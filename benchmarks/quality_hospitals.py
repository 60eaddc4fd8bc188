"""Two hospitals: pretrain on the training patients of one, score on its held-out patients and on all patients of the other.

    python benchmarks/quality_hospitals.py --a A/images --a-labels A/manifest.csv --b B/images --b-labels B/manifest.csv \\
        --positive PNEUMONIA --steps 600

Prints the two tables of `medssl probe`: the encoder and every baseline, each number with its interval over patients.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("CI", "1")  # quiet

import torch

import medssl


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    for key in ("a", "a-labels", "b", "b-labels"):
        args.add_argument(f"--{key}", required=True)
    args.add_argument("--target", default="label")
    args.add_argument("--positive", nargs="+", default=["PNEUMONIA"])
    args.add_argument("--method", default="simclr")
    args.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64, 128])
    args.add_argument("--size", type=int, default=64)
    args.add_argument("--steps", type=int, default=600)
    args.add_argument("--batch", type=int, default=128)
    given = args.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        work, start = Path(folder), time.perf_counter()
        for name, scans, labels in (("A", given.a, given.a_labels), ("B", given.b, given.b_labels)):
            medssl.ingest(scans, work / name, labels=labels, site=name, recipe="xray", key=work / "key")
        run = medssl.pretrain(
            work / "A", work / "run", method=given.method, encoder="cnn", encoder_options={"widths": given.widths},
            size=given.size, steps=given.steps, batch=given.batch,
        )  # fmt: skip
        print(f"ingest and pretraining: {time.perf_counter() - start:.0f} s on {os.cpu_count()} cores", flush=True)
        for test in (None, work / "B"):
            print()
            medssl.probe(run, work / "A", given.target, positive=given.positive, test_store=test)
        print(f"in all {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
