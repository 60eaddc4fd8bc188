"""Every method on one budget: does it learn, compared with its own untrained encoder, and what does it cost?

    python benchmarks/quality_methods.py --source pneumoniamnist.npz --seeds 3 --steps 150 --batch 128 --work runs

Each method sees the same number of scans (steps x batch) with its own default views and learning rate, on a small CNN or on the
default encoder in its yaml. `medssl probe` then gives the test AUROC of frozen features with its interval over patients and
seeds, paired with the same encoder and seed at its initial weights, with p adjusted by Holm over all methods. Seconds are of
pretraining alone; memory is the largest resident set of its process. Methods that learn from labels get those of the training
part and are marked. With --work, finished runs are kept and an interrupted benchmark continues. Methods not shown to learn stay
in the table.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("CI", "1")  # quiet

import numpy as np
import torch
from mnist import archive

import medssl
from medssl import catalog
from medssl.errors import UserError
from medssl.evals.stats.bootstrap import paired, score_seeds
from medssl.evals.stats.significance import holm
from medssl.evals.task_types.task_types import task_type
from medssl.runs.predictions import predictions_of

METRICS = {m.name: m for m in task_type("classification").metrics}
BASELINES = ["raw pixels", "k-means patch bank"]


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    source = args.add_mutually_exclusive_group(required=True)
    source.add_argument("--source", help="a source for medssl ingest")
    source.add_argument("--mnist", type=Path, help="folder of the idx.gz files: the first 5,000 digits train")
    args.add_argument(
        "--allow-overlap",
        action="store_true",
        help="score near-duplicates too; always on with --mnist, where ones look alike",
    )
    args.add_argument("--metric", default="AUROC", choices=list(METRICS))
    args.add_argument("--target", default="label")
    args.add_argument("--methods", nargs="+", default=sorted(catalog.choices("method")))
    args.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64])
    args.add_argument(
        "--baselines", nargs="*", default=BASELINES, choices=BASELINES, help="beside the first method's first seed"
    )
    args.add_argument("--seeds", type=int, default=3)
    args.add_argument("--steps", type=int, default=150)
    args.add_argument("--batch", type=int, default=128)
    args.add_argument("--threads", type=int, default=1)
    args.add_argument("--work")
    args.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # a method and a seed: one run, in a process of its own
    given = args.parse_args()
    torch.set_num_threads(given.threads)
    if given.one:
        one(given, *given.one)
        return
    with tempfile.TemporaryDirectory() as scratch:
        given.work = given.work or scratch
        work = Path(given.work)
        work.mkdir(parents=True, exist_ok=True)
        if given.mnist:
            given.source, given.allow_overlap = archive(given.mnist, work / "mnist.npz", train=5000, val=1000), True
        medssl.ingest(given.source, work / "store", key=work / "key")
        words = [f"--{k}={getattr(given, k)}" for k in ("source", "target", "steps", "batch", "threads", "work")]
        words += ["--allow-overlap"] * given.allow_overlap
        for method in given.methods:
            for seed in range(given.seeds):
                if not (work / f"{method}{seed}.json").exists():
                    words_one = [*words, "--widths", *map(str, given.widths), "--baselines"]
                    words_one += [*given.baselines, "--one", method, str(seed)]
                    subprocess.run([sys.executable, __file__, *words_one], check=True)
        table(given, work)


def one(given: argparse.Namespace, method: str, seed: str) -> None:
    """Pretrain, probe, and write the cost to WORK/METHODSEED.json."""
    work = Path(given.work)
    spec = catalog.load("method", method)
    labels = catalog.takes(spec, "target_loss") == "yes" or spec.get("positives") == "label"
    own = spec.get("_run_", {}).get("encoder")
    encoder = {} if own else {"encoder": "cnn", "encoder_options": {"widths": given.widths}}
    target = {"target": given.target} if labels else {}
    note = {"method": method, "seed": int(seed), "labels": labels, "encoder": own or "cnn"}
    start = time.perf_counter()
    try:
        run = medssl.pretrain(
            work / "store", work / f"{method}{seed}", method=method, seed=int(seed), steps=given.steps, batch=given.batch,
            monitor_every=0, **encoder, **target,
        )  # fmt: skip
    except UserError as e:
        note["refused"] = str(e)
    else:
        note["seconds"] = time.perf_counter() - start
        note["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        baselines = given.baselines if (method, seed) == (given.methods[0], "0") else []
        medssl.probe(
            run, work / "store", given.target, baselines=["random init", *baselines], allow_overlap=given.allow_overlap
        )
    (work / f"{method}{seed}.json").write_text(json.dumps(note))
    print(json.dumps(note), flush=True)


def table(given: argparse.Namespace, work: Path) -> None:
    """Print all rows, the best first, then the methods that were refused."""
    metric, rows, refused = METRICS[given.metric], [], []
    for method in given.methods:
        notes = [json.loads((work / f"{method}{s}.json").read_text()) for s in range(given.seeds)]
        if "refused" in notes[0]:
            refused.append((method, notes[0]["refused"]))
            continue
        found = [predictions_of(work / f"{method}{s}")[0] for s in range(given.seeds)]
        run, fresh = ([e.p[0] for f in found for e in f.rows if e.source == name] for name in ("run", "random init"))
        score = score_seeds(metric, found[0].y, run, found[0].patient)
        gain = paired(metric, found[0].y, run, fresh, found[0].patient)
        for entry in found[0].rows:
            if entry.source in BASELINES:
                print(f"{entry.source}: {score_seeds(metric, found[0].y, entry.p, found[0].patient)}")
        seconds, memory = (float(np.mean([n[k] for n in notes])) for k in ("seconds", "peak_mb"))
        rows.append((method, notes[0], score, gain, seconds, memory))
    adjusted = holm([row[3].p for row in rows])
    print(
        f"\n{given.steps} steps of {given.batch}, {given.seeds} seeds, {given.threads} threads; {metric.name} of the linear probe"
    )
    print(
        f"| method | encoder | {metric.name} | Δ vs untrained | p, Holm | learns | s a seed | MB |\n"
        + "| --- " * 8
        + "|"
    )
    lines = []
    for (method, note, score, gain, seconds, memory), p in zip(rows, adjusted, strict=True):
        learns = (
            "yes" if p < 0.05 and gain.score.low > 0 else "worse" if p < 0.05 and gain.score.high < 0 else "not shown"
        )
        name = f"{method} (labels)" if note["labels"] else method
        s, g = (f"{x.value:.3f} [{x.low:.3f}, {x.high:.3f}]" for x in (score, gain.score))
        lines.append(
            (
                score.value,
                f"| {name} | {note['encoder']} | {s} | {g} | {p:.3g} | {learns} | {seconds:.0f} | {memory:.0f} |",
            )
        )
    print("\n".join(line for _, line in sorted(lines, reverse=True)))
    for method, why in refused:
        print(f"not run: {method}: {why}")


if __name__ == "__main__":
    main()
