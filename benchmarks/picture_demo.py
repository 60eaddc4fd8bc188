"""The picture in the README: the map of a finished `medssl demo`, and its scores.

python benchmarks/picture_demo.py --demo demo --out picture.png
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("CI", "1")  # quiet

import numpy as np
import pyarrow.parquet as pq
from matplotlib import pyplot as plt
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from medssl.evals.metrics.metrics import AUROC
from medssl.evals.stats.bootstrap import score_seeds
from medssl.reporting.tsne import tsne
from medssl.runs.predictions import RUN, predictions_of
from medssl.scoring.baselines import Baseline
from medssl.store.store import Store

COLOURS = {"no": "#0072b2", "yes": "#d55e00"}
SHOWN = 120  # pictures on the map


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--demo", type=Path, required=True, help="the folder of a finished demo")
    args.add_argument("--out", type=Path, required=True)
    given = args.parse_args()
    store = Store.open(given.demo / "store")
    table = pq.read_table(given.demo / "run" / "embeddings.parquet").to_pydict()
    rows = store.rows("test")
    place = {scan: i for i, scan in enumerate(table["scan"])}
    scans = store.column("scan")[rows]
    features = np.array([table["embedding"][place[scan]] for scan in scans])
    labels = store.column("label:malignant")[rows]
    at, _ = tsne(features, seed=0)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), width_ratios=(1.35, 1), layout="constrained")
    left.scatter(*at.T, s=1, alpha=0)
    images = [store[int(row)][0] for row in rows]
    for i in np.random.default_rng(0).permutation(len(rows))[:SHOWN]:
        box = AnnotationBbox(
            OffsetImage(images[i], cmap="gray", zoom=0.65), at[i], pad=0.08, bboxprops={"edgecolor": COLOURS[labels[i]]}
        )
        left.add_artist(box)
    for value, words in (("no", "benign"), ("yes", "malignant")):
        left.scatter([], [], marker="s", color=COLOURS[value], label=words)
    left.set(title=f"t-SNE of SimCLR features, {SHOWN} of {len(rows)} unseen scans", xticks=[], yticks=[])
    left.legend(frameon=False, loc="lower left")
    kept = max(predictions_of(given.demo / "run"), key=lambda p: len(p.rows))
    scores = {(r.source, r.probe): score_seeds(AUROC, kept.y, r.p, kept.patient) for r in kept.rows}
    for y, ((source, probe), score) in enumerate(sorted(scores.items(), key=lambda item: item[1].value)):
        name = "SimCLR" if source == RUN else "the same network untrained" if source == Baseline.RANDOM_INIT else source
        name = (
            name if probe == "linear" else f"the same network from scratch{', 3x the steps' if '3x' in probe else ''}"
        )
        colour = "#222222" if source == RUN else "#999999"
        right.errorbar(
            score.value, y, xerr=[[score.value - score.low], [score.high - score.value]], fmt="o", color=colour
        )
        right.text(score.low - 0.01, y, name, ha="right", va="center", color=colour, fontsize=9)
    right.set(title="AUROC with 40 labelled patients", xlim=(0.4, 1), yticks=[])
    for side in ("left", "right", "top"):
        right.spines[side].set_visible(False)
    figure.savefig(given.out, dpi=110)


if __name__ == "__main__":
    main()
