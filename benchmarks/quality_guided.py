"""How well a linear probe tells a fact before and after it is unlearnt by `guided`, on real chest X-rays.

    python benchmarks/quality_guided.py --scans NIH/images --labels NIH/manifest.csv --predict sex --unlearn view --seeds 2

The table needs the columns file, patient_id and those of both facts. Two fifths of the patients, by a random draw, are for
testing. Prints the AUROC of both facts by `medssl probe` for the untrained encoder, and for features that were taught the
first fact without an adversary, with one that is solved in each batch (ridge), and with one that is trained along (mlp);
intervals over patients and seeds. Only scans that have both facts are used. With --work, finished runs are kept.
"""

import argparse
import csv
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("CI", "1")  # quiet

import numpy as np
import torch

import medssl
from medssl.evals.stats.bootstrap import difference_seeds, score_seeds
from medssl.evals.stats.text_table import text_table
from medssl.evals.task_types.task_types import task_type
from medssl.runs.predictions import RUN, Predictions, predictions_of

AUROC = task_type("classification").metrics[0]
KINDS = {"no adversary": {"strength": 0.0}, "ridge": {"adversary": "ridge"}, "mlp": {"adversary": "mlp"}}
UNTRAINED = "random init"


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    for key in ("scans", "labels"):
        args.add_argument(f"--{key}", required=True)
    args.add_argument("--predict", default="sex")
    args.add_argument("--unlearn", default="view")
    args.add_argument("--size", type=int, default=48)
    args.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64])
    args.add_argument("--steps", type=int, default=200)
    args.add_argument("--batch", type=int, default=96)
    args.add_argument("--seeds", type=int, default=2)
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--work")
    given = args.parse_args()
    torch.set_num_threads(given.threads)
    facts, start = (given.predict, given.unlearn), time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(given.work or scratch)
        table = split_table(Path(given.labels), work / "labels.csv", facts)
        store = medssl.ingest(given.scans, work / "store", labels=table, intensity="xray", key=work / "key")
        found: dict[str, dict[str, list[Predictions]]] = {fact: {} for fact in facts}
        for kind, options in KINDS.items():
            for seed in range(given.seeds):
                run = medssl.pretrain(
                    store, work / f"{kind} {seed}", method="guided", seed=seed, size=given.size, steps=given.steps,
                    batch=given.batch, encoder="cnn", encoder_options={"widths": given.widths}, monitor_every=0,
                    method_options={"predict": given.predict, "unlearn": given.unlearn} | options,
                )  # fmt: skip
                for fact in facts:
                    medssl.probe(run, store, fact, baselines=[UNTRAINED])
                    kept = next(p for p in predictions_of(run) if p.about["target"] == fact)
                    found[fact].setdefault(kind, []).append(kept)
                print(f"{kind}, seed {seed}: {time.perf_counter() - start:.0f} s so far", flush=True)
    lines = [row(name, found) for name in (UNTRAINED, *KINDS)]
    first = next(iter(found[given.unlearn].values()))[0]
    print(f"\n{given.steps} steps of {given.batch}, {given.seeds} seeds, tested on {first.about['test']}")
    print(text_table(lines, list(lines[0])))


def split_table(source: Path, target: Path, facts: tuple[str, ...]) -> Path:
    """Write the rows that have both facts, with a split drawn by patient."""
    with source.open(newline="") as f:
        rows = [row for row in csv.DictReader(f) if all(row[fact] for fact in facts)]
    patients = np.random.default_rng(0).permutation(sorted({row["patient_id"] for row in rows}))
    test = set(patients[: 2 * len(patients) // 5].tolist())
    with target.open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(("file", "patient_id", "split", *facts))
        for row in rows:
            split = "test" if row["patient_id"] in test else "train"
            writer.writerow((row["file"], row["patient_id"], split, *(row[fact] for fact in facts)))
    return target


def row(name: str, found: dict[str, dict[str, list[Predictions]]]) -> dict[str, object]:
    """Return the scores of both facts, and the difference to the features without an adversary."""
    out: dict[str, object] = {"features": name}
    for fact, kinds in found.items():
        plain = kinds["no adversary"]
        source, of = (UNTRAINED, plain) if name == UNTRAINED else (RUN, kinds[name])
        first = plain[0]
        mine, theirs = [scores(p, source) for p in of], [scores(p, RUN) for p in plain]
        out[f"AUROC of {fact}"] = score_seeds(AUROC, first.y, mine, first.patient)
        if of is not plain or source != RUN:
            out[f"Δ {fact}"] = difference_seeds(AUROC, first.y, mine, theirs, first.patient)
    return out


def scores(predictions: Predictions, source: str) -> np.ndarray:
    return next(row.p[0] for row in predictions.rows if row.source == source)


if __name__ == "__main__":
    main()
