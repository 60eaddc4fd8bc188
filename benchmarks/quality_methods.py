"""Every method on one budget: does it learn, compared with its own untrained encoder, and what does it cost?

    python benchmarks/quality_methods.py --source pneumoniamnist.npz --seeds 4 --steps 200 --batch 128 --work runs

Each method sees the same number of scans (steps x batch) with its own default views and learning rate, on one small encoder or on
the default encoder in its yaml. A linear probe then gives the score of frozen features on the test scans, with an interval over
patients and seeds, paired with the same encoder and seed at its initial weights, with p adjusted by Holm over all methods. The
leak check is made once, with the first run. Runs have a process and a thread each, --jobs at a time; seconds are the CPU's, of
pretraining alone; memory is the largest resident set of the process. Methods that learn from labels get those of the training
part and are marked; `distill` has the SimCLR run of its seed as its teacher. With --work, finished runs are kept and an
interrupted benchmark continues. Methods not shown to learn stay in the table.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("CI", "1")  # quiet
os.environ["OMP_NUM_THREADS"] = "1"  # processes are forked, which threads would not survive

import numpy as np
import torch
from mnist import archive

import medssl
from medssl import catalog
from medssl.errors import Interrupted, UserError
from medssl.evals.stats.bootstrap import paired, score_seeds
from medssl.evals.stats.significance import holm
from medssl.evals.task_types.task_types import task_type
from medssl.files import digest
from medssl.scoring import probes
from medssl.scoring.baselines import Baseline, FeatureSources
from medssl.scoring.eval_splits import EvalSplits, SplitOptions, load_splits
from medssl.scoring.features import FeatureSource
from medssl.scoring.targets import Subset, resolve_target
from medssl.store.store import Store

METRICS = {m.name: m for m in task_type("classification").metrics}


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
    args.add_argument("--encoder", default="small_resnet", help="for methods without an encoder in their yaml")
    args.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64], help="of that encoder, and of cnn")
    args.add_argument("--vit", type=int, nargs=2, default=[96, 3], help="width and depth of transformers")
    args.add_argument("--options", nargs="*", default=[], help="METHOD.KEY=VALUE, options that differ from the yaml")
    args.add_argument("--seeds", type=int, default=4)
    args.add_argument("--steps", type=int, default=200)
    args.add_argument("--batch", type=int, default=128)
    args.add_argument("--jobs", type=int, default=2, help="runs at a time")
    args.add_argument("--work")
    given = args.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(given.work or scratch)
        work.mkdir(parents=True, exist_ok=True)
        if given.mnist:
            given.source, given.allow_overlap = work / "mnist.npz", True
            if not given.source.exists():
                archive(given.mnist, given.source, train=5000, val=1000)
        medssl.ingest(given.source, work / "store", key=work / "key")
        names = sorted(given.methods, key=lambda m: m != "simclr")  # first, as a teacher
        for part in (names[:1], names[1:]):
            todo = [(given, work, m, s) for s in range(given.seeds) for m in part if not _note(work, m, s).exists()]
            with multiprocessing.get_context("fork").Pool(given.jobs, maxtasksperchild=1) as pool:
                for line in pool.imap_unordered(_one, todo, chunksize=1):
                    print(line, flush=True)
            if part == names[:1]:
                check_leaks(given, work, names[0])
        table(given, work)


def _one(job: tuple[argparse.Namespace, Path, str, int]) -> str:
    return one(*job)


def _note(work: Path, method: str, seed: int) -> Path:
    return work / f"{method}{seed}.json"


def one(given: argparse.Namespace, work: Path, method: str, seed: int) -> str:
    """Pretrain and probe; write WORK/METHODSEED.json with the cost, and .npz with the predictions. Returns the former."""
    spec = catalog.load("method", method)
    labels = catalog.takes(spec, "target_loss") == "yes" or spec.get("positives") == "label"
    own = spec.get("_run_", {}).get("encoder")
    encoder: dict[str, Any] = {"encoder": own or given.encoder}
    if encoder["encoder"] in (given.encoder, "cnn"):
        encoder["encoder_options"] = {"widths": given.widths}
    elif encoder["encoder"] == "vit":
        encoder["encoder_options"] = dict(zip(("dim", "depth"), given.vit, strict=True))
    more: dict[str, Any] = {"target": given.target} if labels else {}
    if method == "distill":
        more["teacher"] = work / f"simclr{seed}"
    changed = [o.split(".", 1)[1].split("=", 1) for o in given.options if o.startswith(f"{method}.")]
    options = catalog.read_yaml("\n".join(f"{k}: {v}" for k, v in changed)) if changed else {}
    note: dict[str, Any] = {"method": method, "seed": seed, "labels": labels, "encoder": encoder["encoder"]}
    run = work / f"{method}{seed}"
    shutil.rmtree(run, ignore_errors=True)  # left by an interrupted benchmark
    start = time.process_time()
    try:
        medssl.pretrain(
            work / "store", run, method=method, method_options=options, seed=seed, steps=given.steps, batch=given.batch,
            monitor_every=0, **encoder, **more,
        )  # fmt: skip
    except Interrupted:
        raise
    except UserError as e:
        note["refused"] = str(e)
    else:
        note["seconds"] = time.process_time() - start
        note["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        splits = unchecked_splits(given, work)
        sources = FeatureSources(run, splits.train.store, "cpu")
        untrained = _untrained(work, sources, splits)
        np.savez(work / f"{method}{seed}.npz", run=predictions(sources.of_run(), splits), untrained=untrained)
    text = json.dumps(note)
    _note(work, method, seed).write_text(text)
    return text


def unchecked_splits(given: argparse.Namespace, work: Path) -> EvalSplits:
    """Return the splits of the store without a leak check, which `check_leaks` makes once."""
    store = Store.open(work / "store")
    target = resolve_target(store, store.rows("train"), given.target)
    train, val, test = (Subset.of(target, store, store.rows(part)) for part in ("train", "val", "test"))
    return EvalSplits(target, train, val, test, "held-out patients")


def check_leaks(given: argparse.Namespace, work: Path, method: str) -> None:
    """Print what the leak check says; raises UserError if the test is not to be scored."""
    store = work / "store"
    sources = FeatureSources(work / f"{method}0", Store.open(store), "cpu")
    options = SplitOptions(allow_overlap=given.allow_overlap)
    print(*load_splits(sources.run, sources.encoder, store, given.target, options).flags, sep="\n")


def predictions(source: FeatureSource, splits: EvalSplits) -> np.ndarray:
    """Return the probabilities (N, classes) of the test scans by a linear probe."""
    return probes.linear(source, splits, splits.predicted)[probes.ALL][0].predictions[0]


def _untrained(work: Path, sources: FeatureSources, splits: EvalSplits) -> np.ndarray:
    """Return the predictions of a run's encoder at its initial weights, which runs of one encoder and seed share."""
    settings = sources.config.as_dict()
    key = digest([{k: settings[k] for k in ("encoder", "size", "spacing", "seed")}], 8)
    kept = work / f"untrained-{key}.npy"
    if not kept.exists():
        found = predictions(sources.frozen(Baseline.RANDOM_INIT), splits)
        part = kept.with_suffix(f".{os.getpid()}.npy")  # another process may do the same
        np.save(part, found)
        part.replace(kept)
    return np.load(kept)


def table(given: argparse.Namespace, work: Path) -> None:
    """Print all rows, the best first, then the methods that were refused."""
    metric, rows, refused = METRICS[given.metric], [], []
    test = unchecked_splits(given, work).test
    for method in given.methods:
        seeds = [
            s for s in range(given.seeds) if _note(work, method, s).exists()
        ]  # some, if an earlier run was stopped
        notes = [json.loads(_note(work, method, s).read_text()) for s in seeds]
        if "refused" in notes[0]:
            refused.append((method, notes[0]["refused"]))
            continue
        kept = [np.load(work / f"{method}{s}.npz") for s in seeds]
        run, fresh = ([found[name] for found in kept] for name in ("run", "untrained"))
        score = score_seeds(metric, test.y, run, test.patient)
        gain = paired(metric, test.y, run, fresh, test.patient)
        seconds, memory = (float(np.mean([n[k] for n in notes])) for k in ("seconds", "peak_mb"))
        rows.append((method, notes[0] | {"seeds": len(seeds)}, score, gain, seconds, memory))
    adjusted = holm([row[3].p for row in rows])
    print(f"\n{given.steps} steps of {given.batch}; {metric.name} of the linear probe")
    print(f"| method | encoder | seeds | {metric.name} | minus untrained | p, Holm | learns | CPU s a seed | MB |")
    print("| --- " * 9 + "|")
    lines = []
    for (method, note, score, gain, seconds, memory), p in zip(rows, adjusted, strict=True):
        shown, above = p < 0.05, gain.score.value > 0
        learns = ("yes" if above else "worse") if shown else "not shown"
        name = f"{method} (labels)" if note["labels"] else method
        s, g = (f"{x.value:.3f} [{x.low:.3f}, {x.high:.3f}]" for x in (score, gain.score))
        what, costs = f"{name} | {note['encoder']} | {note['seeds']}", f"{seconds:.0f} | {memory:.0f}"
        lines.append(
            (
                score.value,
                f"| {what} | {s} | {g} | {p:.3g} | {learns} | {costs} |",
            )
        )
    print("\n".join(line for _, line in sorted(lines, reverse=True)))
    for method, why in refused:
        print(f"not run: {method}: {why}")


if __name__ == "__main__":
    main()
