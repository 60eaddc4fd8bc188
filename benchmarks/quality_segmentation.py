"""The gain of pretraining for segmentation from few masks, over the same network from scratch with as many and thrice the steps.

    python benchmarks/quality_segmentation.py --source hippocampus --methods volume_fusion=250 models_genesis=300

`--source` holds images/ and labels/ (NIfTI, paired by name); a method is given with its steps of pretraining, which uses the
training volumes without their masks. Every row is then trained on the same masks and scored on the test volumes' own grids. The
model of the last step is scored: nothing is chosen on validation or test volumes. Scratch is trained once per seed, since it
is the same for every method. Prints a table per run with the CPU seconds, and at the end the paired differences over all seeds.
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
from medssl.evals.metrics.metrics import MEAN
from medssl.evals.stats.bootstrap import difference_seeds, score_seeds
from medssl.runs.predictions import PredictedRow, Predictions, predictions_of
from medssl.scoring.segmentation import LONG_SCRATCH, SCRATCH


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--source", required=True)
    args.add_argument("--work", help="a folder that keeps stores and runs, so that an interrupted benchmark continues")
    args.add_argument("--augment", default="mr", help="of pretraining, and the intensity window of ingest")
    args.add_argument("--methods", nargs="+", default=["volume_fusion=250"], help="method=steps")
    args.add_argument("--encoder", default="cnn")
    args.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64, 128])
    args.add_argument("--size", type=int, default=48)
    args.add_argument("--spacing", type=float, default=1.0)
    args.add_argument("--pretrain-batch", type=int, default=4)
    args.add_argument("--pretrain-lr", type=float, default=3e-3)
    args.add_argument("--steps", type=int, default=600)
    args.add_argument("--lr", type=float, default=5e-3)
    args.add_argument("--label-budgets", nargs="+", default=["4"])
    args.add_argument("--seeds", type=int, nargs="+", default=[0], help="of pretraining, masks drawn and training")
    args.add_argument("--baselines", nargs="*", default=[SCRATCH, LONG_SCRATCH])
    args.add_argument("--threads", type=int, default=1)
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
        budgets = [int(b) if b.isdigit() else b for b in given.label_budgets]
        found: list[dict[str, list[Predictions]]] = []
        for seed in given.seeds:
            found.append({})
            for i, (method, steps) in enumerate(m.split("=") for m in given.methods):
                start = time.process_time()
                run = medssl.pretrain(
                    store, work / f"{method}-{seed}", method=method, encoder=given.encoder,
                    encoder_options={"widths": given.widths}, augment=given.augment, size=given.size, spacing=given.spacing,
                    steps=int(steps), batch=given.pretrain_batch, lr=given.pretrain_lr, seed=seed, monitor_every=0,
                )  # fmt: skip
                print(f"{method}, seed {seed}: pretrained in {_since(start)}", flush=True)
                start = time.process_time()
                print(segment(
                    run, store, label_budgets=budgets, steps=given.steps, lr=given.lr, seed=seed,
                    baselines=() if i else given.baselines,
                ))  # fmt: skip
                print(f"{method}, seed {seed}: scored in {_since(start)}\n", flush=True)
                found[-1][method] = predictions_of(run)
        report(found)


def report(found: list[dict[str, list[Predictions]]]) -> None:
    """Print the Dice of every row over the seeds, and its paired differences to the rows from scratch.

    found: the kept predictions of every method's run, for each seed; the first method has the rows from scratch.
    """
    first = found[0]
    test = next(iter(first.values()))[-1]
    rows: dict[tuple[str, ...], list[PredictedRow]] = {}
    for seed in found:
        for method, tables in seed.items():
            for row in tables[-1].rows:
                name = row.source if row.probe.startswith("end to end") else row.source.replace("run", method, 1)
                rows.setdefault((name, row.probe, row.label_budget), []).append(row)
    for (name, probe, budget), own in rows.items():
        p = [row.p[0] for row in own]
        print(f"{budget}, {name}, {probe}: Dice {score_seeds(MEAN, test.y, p, test.patient)}")
        for (_, other, same), scratch in rows.items():
            if other.startswith("end to end") and same == budget and not probe.startswith("end to end"):
                gain = difference_seeds(MEAN, test.y, p, [row.p[0] for row in scratch], test.patient)
                print(f"    minus {other}: {gain}")


def _since(start: float) -> str:
    return f"{time.process_time() - start:.0f} CPU s, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
