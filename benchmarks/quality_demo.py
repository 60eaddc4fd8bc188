"""Does the demo show what it is made to show? `medssl demo` with several seeds, and how often pretraining is ahead.

    python benchmarks/quality_demo.py --seeds 0 1 2 3 4 --work WORK

Each seed makes another cohort, pretrains and scores. Pretraining counts as ahead of a baseline where the paired 95 % interval of
the difference lies above 0; p is adjusted by Holm within a seed. With --work, finished runs are kept.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("CI", "1")  # quiet

import torch

from medssl.commands.train.demo import demo
from medssl.evals.metrics.metrics import AUROC
from medssl.evals.stats.bootstrap import paired, score_seeds
from medssl.evals.stats.significance import holm
from medssl.evals.stats.text_table import text_table
from medssl.runs.predictions import RUN, predictions_of


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--work", type=Path)
    given = args.parse_args()
    torch.set_num_threads(given.threads)
    ahead: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in given.seeds:
            out = (given.work or Path(scratch)) / f"demo{seed}"
            start, cpu = time.perf_counter(), time.process_time()
            if not (out / "run" / "scores.json").exists():
                demo(out, seed=seed)
            spent = f"{time.perf_counter() - start:.0f} s, {time.process_time() - cpu:.0f} CPU s"
            kept = max(predictions_of(out / "run"), key=lambda p: len(p.rows))
            test = {f"{row.source}, {row.probe}": row.p for row in kept.rows}
            scores = {name: score_seeds(AUROC, kept.y, p, kept.patient) for name, p in test.items()}
            own = next(name for name in test if name.startswith(f"{RUN},"))
            gains = {name: paired(AUROC, kept.y, test[own], p, kept.patient) for name, p in test.items() if name != own}
            adjusted = dict(zip(gains, holm([gain.p for gain in gains.values()]), strict=True))
            lines: list[dict[str, Any]] = [{"features": own, "AUROC": scores[own]}]
            for name, gain in gains.items():
                p = f"p = {adjusted[name]:.2g}"
                lines.append({"features": name, "AUROC": scores[name], "run minus it": gain.score, "p": p})
                ahead[name] = ahead.get(name, 0) + (gain.score.low > 0)
            print(
                f"\nseed {seed}, {spent}\n{text_table(lines, ['features', 'AUROC', 'run minus it', 'p'])}", flush=True
            )
    print()
    for name, times in ahead.items():
        print(f"ahead of {name} in {times} of {len(given.seeds)} cohorts")


if __name__ == "__main__":
    main()
