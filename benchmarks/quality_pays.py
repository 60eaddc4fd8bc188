"""Does pretraining pay? Frozen recipes, new seeds, and the baselines that it has to beat, paired over patients, seeds and draws.

    python benchmarks/quality_pays.py --data DATA --work WORK --tasks pneumonia --seeds 101 102 103

DATA is a folder with medmnist/pneumoniamnist_rebuilt.npz, medmnist/adrenalmnist3d.npz, cxr_guangzhou/ and mnist/; a task
whose data is missing is named and left out. Each task ingests, pretrains every seed by its recipe, and scores the frozen
encoder, alone and beside the k-means patch pyramid, by linear probes with all and with few labels and by kNN. `medssl
compare` then pairs the run with the baselines, the p values of a task's table being one family (Holm). The last table scores
the validation scans, which come from the same source as the training scans, and which have chosen the penalty of the probes.
With --work, finished runs are kept and an interrupted benchmark continues. --short pretrains for 5 steps of 64, only to see that
everything runs.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("CI", "1")  # quiet

import mnist
import torch

import medssl
from medssl.evals.metrics.metrics import AUROC
from medssl.evals.stats.bootstrap import difference_seeds, score_seeds
from medssl.evals.stats.text_table import text_table
from medssl.runs.predictions import RUN, predictions_of

BANK, PYRAMID = "k-means patch bank", "k-means patch pyramid"
BESIDE = f"{RUN}, pooled+pyramid"
BASELINES = ["raw pixels", BANK, PYRAMID, "random init"]


@dataclass(frozen=True)
class Task:
    """A store to pretrain and score on.

    source: below DATA. recipe: in configs/recipe. target: the label. labels: budgets of labelled scans beside all. ingest:
    further arguments of `medssl.ingest`, given DATA. draws: of each budget. where: a filter of the scans that are scored.
    allow_overlap: score although a few images are in both sets, and mark it.
    """

    source: str
    recipe: str
    target: str
    labels: tuple[int, ...]
    ingest: Callable[[Path], dict[str, Any]] = lambda data: {}
    draws: int = 5
    where: str | None = None
    allow_overlap: bool = False


TASKS = {
    "pneumonia": Task("medmnist/pneumoniamnist_rebuilt.npz", "chest_xray_28", "label", (20, 100)),
    "virus": Task(
        "cxr_guangzhou/images",
        "chest_xray_28",
        "subtype",
        (100,),
        lambda data: {
            "labels": data / "cxr_guangzhou" / "manifest.csv",
            "targets": "subtype",
            "intensity": "xray",
        },
        where="subtype != 'normal'",
        allow_overlap=True,  # 1 of 541 test images resembles one of training
    ),
    "adrenal": Task("medmnist/adrenalmnist3d.npz", "shapes_3d_28", "label", (20, 50)),
    "digits": Task("mnist", "digits_28", "label", (10, 100)),
}


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--data", type=Path, required=True)
    args.add_argument("--work", type=Path)
    args.add_argument("--tasks", nargs="+", choices=TASKS, default=["pneumonia"])
    args.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103])
    args.add_argument("--threads", type=int, default=2)
    args.add_argument(
        "--finetune", action="store_true", help="also fine-tune every run with few labels, against scratch"
    )
    args.add_argument("--short", action="store_true")
    given = args.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as scratch:
        for name in given.tasks:
            task = TASKS[name]
            if not (given.data / task.source).exists():
                print(f"{name}: {given.data / task.source} is not there; left out")
                continue
            run_task(name, task, given, (given.work or Path(scratch)) / name)


def run_task(name: str, task: Task, given: argparse.Namespace, work: Path) -> None:
    """Ingest, pretrain, score and compare; print the tables."""
    data = given.data
    work.mkdir(parents=True, exist_ok=True)
    source = data / task.source
    if task.source == "mnist":
        source = work / "mnist.npz"
        if not source.exists():
            mnist.archive(data / "mnist", source, 55_000, 5_000)
    store = work / "store"
    if not store.exists():
        medssl.ingest(source, store, key=work / "key", **task.ingest(data))
    recipe = medssl.recipe(task.recipe) | ({"steps": 5, "batch": 64} if given.short else {})
    runs = []
    for seed in given.seeds:
        start, cpu = time.perf_counter(), time.process_time()
        run = medssl.pretrain(store, work / f"run{seed}", seed=seed, monitor_every=0, **recipe)
        spent = time.perf_counter() - start, time.process_time() - cpu
        print(f"\n{name}, {task.recipe}, seed {seed}: pretraining {spent[0]:.0f} s, {spent[1]:.0f} CPU s", flush=True)
        options: dict[str, Any] = {"where": task.where, "baselines": BASELINES, "allow_overlap": task.allow_overlap}
        budgets = ["all", *task.labels]
        medssl.probe(
            run,
            store,
            task.target,
            features=["pooled+pyramid"],
            label_budgets=budgets,
            draws=task.draws,
            balanced=True,
            **options,
        )
        medssl.knn(run, store, task.target, **options)
        if given.finetune:
            few: dict[str, Any] = {"label_budgets": task.labels, "draws": task.draws, "where": task.where}
            print(medssl.finetune(run, store, task.target, baselines=["scratch", "scratch 3x", "linear probe"], **few))
        runs.append(str(run))
    for probe, baselines in (("linear", [BESIDE, *BASELINES]), ("kNN", BASELINES)):
        print(medssl.compare(runs, probe=probe, baselines=baselines), flush=True)
    print(same_source([Path(run) for run in runs]))


def same_source(runs: Sequence[Path]) -> str:
    """Return AUROC on the validation scans at every label budget, and the differences to the patch bank, as text."""
    tables = [[p for p in predictions_of(run) if p.about["command"] == "probe"] for run in runs]
    kept = [max(each, key=lambda p: len(p.rows)) for each in tables]
    first = kept[0]
    if first.val is None or first.about["task"] != "classification" or len(first.about["classes"]) != 2:
        return ""
    val, lines = first.val, []
    for budget in dict.fromkeys(row.label_budget for row in first.rows):
        drawn = {
            source: [p for each in kept for p in next(r for r in each.rows if r.key == (source, "linear", budget)).val]
            for source in (RUN, BESIDE, *BASELINES)
        }
        for source, p in drawn.items():
            draws = len(p) // len(runs)
            line: dict[str, Any] = {"labels": budget, "features": source}
            line["AUROC"] = score_seeds(AUROC, val.y, p, val.patient, draws=draws)
            line["minus the bank"] = (
                difference_seeds(AUROC, val.y, p, drawn[BANK], val.patient, draws=draws) if source != BANK else ""
            )
            lines.append(line)
    return "\nvalidation scans, from the source of the training scans\n" + text_table(lines, list(lines[0]))


if __name__ == "__main__":
    main()
