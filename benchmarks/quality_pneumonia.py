"""The gain of pretraining on PneumoniaMNIST over raw pixels, PCA, the k-means patch bank and supervision, paired.

    python benchmarks/quality_pneumonia.py --source pneumoniamnist.npz --methods simclr byol --seeds 3 --steps 400 --work runs

Pretraining and probes use the training part, the probe's penalty is chosen on the validation part, and the test part is scored
by `medssl probe` and `medssl knn`. `medssl compare` then pairs all methods and baselines over test scans and seeds, with p values
adjusted for the whole family. All methods have the same budget except kmeans_bank, which has its own. With --work, finished runs
are kept and an interrupted benchmark continues. The archive names no patients, so each scan counts as one.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("CI", "1")  # quiet

import torch

import medssl

OWN = {"mae", "greedy_ae", "kmeans_bank"}  # methods with an encoder of their own
BASELINES = ["raw pixels", "PCA", "k-means patch bank", "random init"]


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--source", required=True)
    args.add_argument(
        "--methods",
        nargs="+",
        default=["kmeans_bank", "kmeans_bank/patch_pyramid", "simclr", "byol"],
        help="METHOD[/ENCODER]",
    )
    args.add_argument("--encoder", default="cnn")
    args.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64, 128])
    args.add_argument("--seeds", type=int, default=3)
    args.add_argument("--steps", type=int, default=400)
    args.add_argument("--batch", type=int, default=128)
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--work")
    given = args.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(given.work or scratch)
        store = medssl.ingest(given.source, work / "store", key=work / "key").path
        runs = []
        for entry in given.methods:
            method, _, encoder = entry.partition("/")
            ours = {} if method == "kmeans_bank" else {"steps": given.steps, "batch": given.batch}
            if encoder:
                ours |= {"encoder": encoder}
            elif method not in OWN:
                ours |= {"encoder": given.encoder}
                ours |= {"encoder_options": {"widths": given.widths}} if given.encoder == "cnn" else {}
            for seed in range(given.seeds):
                start = time.perf_counter()
                run = medssl.pretrain(
                    store, work / f"{method}{encoder}{seed}", method=method, seed=seed, monitor_every=0, **ours
                )
                trained = time.perf_counter() - start
                print(f"\n{entry} seed {seed}: pretraining {trained:.0f} s on {given.threads} threads", flush=True)
                # a supervised baseline only for the encoder that the methods share
                baselines = BASELINES if method in OWN else [*BASELINES, "supervised"]
                print(medssl.probe(run, store, "label", baselines=baselines))
                print(medssl.knn(run, store, "label", k=11))
                print(f"{entry} seed {seed}: with its probes {time.perf_counter() - start:.0f} s", flush=True)
                runs.append(str(run))
        for probe in ("linear", "kNN"):
            print(medssl.compare(runs, probe=probe, baselines=["raw pixels", "k-means patch bank"]))


if __name__ == "__main__":
    main()
