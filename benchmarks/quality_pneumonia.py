"""What pretraining is worth on PneumoniaMNIST: each method against its encoder untrained and the k-means bank, paired.

    python benchmarks/quality_pneumonia.py --source pneumoniamnist.npz --methods simclr byol --seeds 3 --steps 400

Pretraining and probes see the training part, the probe's penalty is chosen on the validation part, the test part is read once
at the end of each row. Differences are paired over test scans and seeds (a bootstrap of both). One equal budget for all methods.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("CI", "1")  # quiet

import numpy as np
import torch

import medssl
from medssl.evals.bootstrap import difference_seeds, score
from medssl.evals.compare import table
from medssl.evals.linear import linear_probes
from medssl.evals.metrics import AUROC
from medssl.steps import features
from medssl.steps.run import Run
from medssl.store.store import Store


def probabilities(source: features.Source, store: Store) -> np.ndarray:
    """(test scans, classes) of the linear probe."""
    y = store.column("label:label").astype(int)
    x = {s: (source(store, store.rows(s)), y[store.rows(s)]) for s in ("train", "val", "test")}
    return linear_probes(x["train"], x["val"], [x["test"][0]], classes=int(y.max()) + 1)[0].predictions[0]


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--source", required=True)
    args.add_argument("--methods", nargs="+", default=["simclr", "byol"])
    args.add_argument("--encoder", default="cnn")
    args.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64, 128])
    args.add_argument("--seeds", type=int, default=3)
    args.add_argument("--steps", type=int, default=400)
    args.add_argument("--batch", type=int, default=128)
    given = args.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        store = medssl.ingest(given.source, work / "store", key=work / "key")
        test = store.rows("test")
        y, patient = store.column("label:label")[test].astype(int), store.column("patient")[test]
        found: dict[str, list[np.ndarray]] = {}
        seconds: dict[str, list[float]] = {}
        for method in ["kmeans_bank", *given.methods]:
            ours = {} if method == "kmeans_bank" else {"steps": given.steps, "batch": given.batch}
            if method not in {"kmeans_bank", "mae", "greedy_ae"}:
                ours |= {"encoder": given.encoder}
                ours |= {"encoder_options": {"widths": given.widths}} if given.encoder == "cnn" else {}
            for seed in range(given.seeds):
                start = time.perf_counter()
                run = medssl.pretrain(
                    store.path, work / f"{method}{seed}", method=method, seed=seed, monitor_every=0, **ours
                )
                source, card = features.of_run(run, "cpu")
                found.setdefault(method, []).append(probabilities(source, store))
                seconds.setdefault(method, []).append(time.perf_counter() - start)
                if method != "kmeans_bank":
                    bare = features.untrained(Run(run).resolved(), card, "cpu")
                    found.setdefault(f"{method}'s encoder untrained", []).append(probabilities(bare, store))
                print(
                    f"{method} seed {seed}: {AUROC(y, found[method][-1]):.4f} in {seconds[method][-1]:.0f} s",
                    flush=True,
                )
        lines = []
        for name, p in found.items():
            line = {"features": name, "seeds": f"{len(p)} seeds"}
            own = f"{name}'s encoder untrained"
            line["seed 0"] = score(AUROC, y, p[0], patient)
            line["minus untrained"] = difference_seeds(AUROC, y, p, found[own], patient) if own in found else None
            bank = found["kmeans_bank"]
            line["minus k-means bank"] = difference_seeds(AUROC, y, p, bank, patient) if name != "kmeans_bank" else None
            lines.append(line)
        print(table(lines, ["features", "seeds", "seed 0", "minus untrained", "minus k-means bank"]))
        for name, s in seconds.items():
            print(f"{name}: {max(s):.0f} s for the slowest seed, pretraining and probe, on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
