"""Two hospitals, in both directions: pretrain and train on one, score on its held-out patients and on all patients of the other.

    python benchmarks/quality_hospitals.py --a A/images --a-labels A/manifest.csv --b B/images --b-labels B/manifest.csv \\
        --positive PNEUMONIA --steps 600

Prints the tables of `medssl transfer` (the encoder and every baseline, what is lost on the way, subgroups of the other hospital)
and of `medssl audit` for each hospital: what the features tell of view, sex, age and scanner, and how much of the score that is.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("CI", "1")  # quiet

import torch

import medssl
from medssl.errors import UserError


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
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--work")
    given = args.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as scratch:
        work, start = Path(given.work or scratch), time.perf_counter()
        for name, scans, labels in (("A", given.a, given.a_labels), ("B", given.b, given.b_labels)):
            medssl.ingest(scans, work / name, labels=labels, site=name, recipe="xray", key=work / "key")
        for home, other in (("A", "B"), ("B", "A")):
            run = medssl.pretrain(
                work / home, work / f"run {home}", method=given.method, encoder="cnn",
                encoder_options={"widths": given.widths}, size=given.size, steps=given.steps, batch=given.batch,
                monitor_every=0,
            )  # fmt: skip
            print(f"\n{home} -> {other} ({time.perf_counter() - start:.0f} s so far)", flush=True)
            medssl.transfer(run, work / home, given.target, str(work / other), positive=given.positive)
            try:
                medssl.audit(run, work / home, given.target, positive=given.positive)
            except UserError as e:  # a hospital whose table says nothing of its patients
                print(f"no audit: {e}")
        print(f"in all {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
