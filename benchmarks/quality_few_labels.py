"""How much a few labels are worth: the probe at 10 to 471 labels of PneumoniaMNIST, with both components of variance.

    python benchmarks/quality_few_labels.py --source pneumoniamnist.npz --seeds 3 --draws 20

Balanced, nested draws of labelled scans, the same for all features; as few validation scans choose the penalty. Raw pixels, the
k-means bank of each encoder seed, and the runs given with --runs (on a store of the same archive and key, given with --store).
Prints AUROC with its interval over test scans, seeds and draws, the paired gain over raw pixels, and the standard deviation
between encoder seeds and between draws of the labels, apart.
"""

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("CI", "1")  # quiet

import numpy as np
import torch

import medssl
from medssl.evals.metrics.metrics import AUROC
from medssl.evals.stats.bootstrap import difference_seeds, score_seeds
from medssl.evals.stats.text_table import text_table
from medssl.evals.stats.variance_components import components
from medssl.runs.predictions import Predictions, predictions_of


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--source", required=True)
    args.add_argument("--labels", nargs="+", default=["10", "20", "50", "100", "471"])
    args.add_argument("--draws", type=int, default=20)
    args.add_argument("--seeds", type=int, default=3)
    args.add_argument("--runs", nargs="*", default=[], help="run folders, one per seed of one method")
    args.add_argument("--store")
    given = args.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        store = given.store or medssl.ingest(given.source, work / "store", key=work / "key").path
        banks = [
            medssl.pretrain(store, work / f"bank{seed}", method="kmeans_bank", seed=seed, monitor_every=0)
            for seed in range(given.seeds)
        ]
        for kind in (banks, [Path(r) for r in given.runs]):
            if kind:
                answers = [curve(run, store, given) for run in kind]
                tell(answers, given)


def curve(run: Path, store: str | Path, given: argparse.Namespace) -> Predictions:
    """The predictions at every budget and draw, of a run and of raw pixels."""
    medssl.probe(
        run, store, "label", label_budgets=given.labels, draws=given.draws, balanced=True, baselines=["raw pixels"]
    )
    return next(p for p in predictions_of(run) if p.about["command"] == "probe")


def tell(answers: list[Predictions], given: argparse.Namespace) -> None:
    """One line per budget over all seeds."""
    y, patient = answers[0].y, answers[0].patient
    lines = []
    for budget in dict.fromkeys(e.label_budget for e in answers[0].rows):

        def grid(features: str, budget: str = budget) -> list[list[np.ndarray]]:
            return [next(e.p for e in a.rows if e.key == (features, "linear", budget)) for a in answers]

        run, raw = grid("run"), grid("raw pixels")
        flat, flat_raw = [p for s in run for p in s], [p for s in raw for p in s]
        parts = components(AUROC, y, run, patient)
        D = len(run[0])
        lines.append(
            {
                "labels": budget,
                "raw pixels": score_seeds(AUROC, y, raw[0], patient, draws=D),
                "run": score_seeds(AUROC, y, flat, patient, draws=D),
                "gain": difference_seeds(AUROC, y, flat, flat_raw, patient, draws=D),
                "sd of seeds": parts.seed,
                "sd of draws": parts.draw,
                "sd of patients": parts.patients,
            }
        )
    print(f"\nAUROC, {len(answers)} encoder seeds, {D} draws")
    print(text_table(lines, list(lines[0])))


if __name__ == "__main__":
    main()
