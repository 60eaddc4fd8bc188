"""Transfer between two hospitals in both directions: train on one, score its held-out patients and all patients of the other.

    python benchmarks/quality_hospitals.py --a A/images --a-labels A/manifest.csv --b B/images --b-labels B/manifest.csv \\
        --positive PNEUMONIA --methods denoising kmeans_bank/patch_pyramid --steps 200 --seeds 3

Each method is pretrained from --seeds initial weights on the stored values and on ranks (`pretrain equalise=true`), and all
baselines use the same values. Prints the tables of `medssl transfer`, with subgroups of the other hospital, the tables of
`medssl audit` for the first run of each hospital, and a summary: AUROC at home and at the other hospital with intervals
over patients and seeds, and the paired difference to raw pixels at the other hospital. With --work, finished runs are kept.
"""

import argparse
import os
import tempfile
import time
from itertools import product
from pathlib import Path

os.environ.setdefault("CI", "1")  # quiet

import numpy as np
import torch

import medssl
from medssl.errors import UserError
from medssl.evals.stats.bootstrap import difference_seeds, score_seeds
from medssl.evals.stats.text_table import text_table
from medssl.evals.task_types.task_types import task_type
from medssl.runs.predictions import Predictions, predictions_of
from medssl.scoring.baselines import BASELINES, FROZEN, Baseline

VALUES = {"as stored": False, "ranks": True}
METRIC = task_type("classification").metrics[0]
RAW = "raw pixels"


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    for key in ("a", "a-labels", "b", "b-labels"):
        args.add_argument(f"--{key}", required=True)
    args.add_argument("--target", default="label")
    args.add_argument("--positive", nargs="+", default=["PNEUMONIA"])
    args.add_argument(
        "--methods",
        nargs="+",
        default=["denoising", "kmeans_bank/patch_pyramid"],
        help="METHOD[/ENCODER]; all baselines are scored with the first",
    )
    args.add_argument("--values", nargs="+", default=list(VALUES), choices=VALUES)
    args.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64, 128])
    args.add_argument("--size", type=int, default=64)
    args.add_argument("--steps", type=int, default=200)
    args.add_argument("--batch", type=int, default=96)
    args.add_argument("--seeds", type=int, default=3)
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--work")
    given = args.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as scratch:
        work, start = Path(given.work or scratch), time.perf_counter()
        for name, scans, labels in (("A", given.a, given.a_labels), ("B", given.b, given.b_labels)):
            medssl.ingest(scans, work / name, labels=labels, site=name, intensity="xray", key=work / "key")
        lines = []
        for home, other in (("A", "B"), ("B", "A")):
            found: dict[tuple[str, str], list[tuple[Predictions, Predictions]]] = {}
            for values, method, seed in product(given.values, given.methods, range(given.seeds)):
                print(f"\n{home} -> {other}: {method}, {values}, {seed} ({time.perf_counter() - start:.0f} s so far)")
                run = transferred(given, work, home, other, method, values, seed)
                found.setdefault((method, values), []).append(predictions(run, work, home, other))
            lines += rows(f"{home} -> {other}", found, given.methods[0])
        print(f"\n{given.steps} steps of {given.batch}, {given.seeds} seeds; {time.perf_counter() - start:.0f} s")
        print(text_table(lines, list(lines[0])))


def transferred(
    given: argparse.Namespace, work: Path, home: str, other: str, method: str, values: str, seed: int
) -> Path:
    """Pretrain and transfer one run, unless that is done already."""
    name, _, encoder = method.partition("/")
    run = work / f"{home} {method.replace('/', ' ')} {values} {seed}"
    ours = {"encoder": encoder} if encoder else {"encoder": "cnn", "encoder_options": {"widths": given.widths}}
    if name != "kmeans_bank":
        ours |= {"steps": given.steps, "batch": given.batch}
    medssl.pretrain(
        work / home, run, method=name, size=given.size, seed=seed, monitor_every=0, equalise=VALUES[values], **ours
    )
    if not (run / "predictions").exists():
        names = BASELINES if method == given.methods[0] else ["random init"]
        print(
            medssl.transfer(run, work / home, given.target, str(work / other), positive=given.positive, baselines=names)
        )
        if seed == 0 and method == given.methods[0]:
            try:
                print(medssl.audit(run, work / home, given.target, positive=given.positive))
            except UserError as e:  # a hospital without metadata
                print(f"no audit: {e}")
    return run


def predictions(run: Path, work: Path, home: str, other: str) -> tuple[Predictions, Predictions]:
    """Return the predictions at home and at the other hospital."""
    of = {p.about["test_store"]: p for p in predictions_of(run) if p.about["command"] == "transfer"}
    here, there = (of[medssl.Store.open(work / name).fingerprint] for name in (home, other))
    return here, there


def rows(
    direction: str, found: dict[tuple[str, str], list[tuple[Predictions, Predictions]]], first: str
) -> list[dict[str, object]]:
    """Return a row for every method, and for the baselines that are scored with the first method."""
    lines = []
    raw = {values: entry(seeds[0][1], RAW) for (method, values), seeds in found.items() if method == first}
    for (method, values), seeds in found.items():
        for name in ("run", *FROZEN, Baseline.SUPERVISED) if method == first else ("run",):
            # the other baselines do not depend on the seed
            used = seeds if name in ("run", "random init", Baseline.SUPERVISED) else seeds[:1]
            at_home, elsewhere = ([entry(s[at], name) for s in used] for at in (0, 1))
            home, away = seeds[0]
            line = {"direction": direction, "features": method if name == "run" else name, "values": values}
            line["at home"] = score_seeds(METRIC, home.y, at_home, home.patient)
            line["other hospital"] = score_seeds(METRIC, away.y, elsewhere, away.patient)
            for which, p in raw.items():
                reference = [p] * len(elsewhere)
                line[f"Δ vs raw pixels, {which}"] = difference_seeds(METRIC, away.y, elsewhere, reference, away.patient)
            lines.append(line)
    return lines


def entry(of: Predictions, name: str) -> np.ndarray:
    """Return the probabilities (N, classes) of one row of a table."""
    return next(e.p[0] for e in of.rows if e.source == name)


if __name__ == "__main__":
    main()
