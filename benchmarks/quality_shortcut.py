"""Shortcut learning: a mark burned into a corner agrees with the label in 95 % of the training scans.

    python benchmarks/quality_shortcut.py
    python benchmarks/quality_shortcut.py --source images --labels labels.csv --positive PNEUMONIA --size 64

The default is the synthetic cohort; --labels is a table with the columns file (below --source), label and preferably patient.
A third of the patients is kept for testing and written three times: with a mark that agrees with the label as in training,
without any mark, and with a mark that agrees in 5 % of the scans. Every model is fitted once, on the other patients, and scored
on the same three versions, so that drops in AUROC are paired over scans, with intervals over patients. The last table shows
whether Grad-CAM maps point at the mark.
"""

import argparse
import csv
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

os.environ.setdefault("CI", "1")  # quiet

import numpy as np
import torch
from PIL import Image

import medssl
from medssl.commands.analyse.cam import cam
from medssl.evals.explain.saliency_checks import mask_energy
from medssl.evals.metrics.metrics import AUROC
from medssl.evals.stats.bootstrap import difference, score
from medssl.evals.stats.score import Score
from medssl.evals.stats.text_table import text_table
from medssl.evals.task_types.task_types import task_type
from medssl.losses.target_losses import classification
from medssl.rng import seed_from
from medssl.scoring import probes
from medssl.scoring.baselines import FeatureSources
from medssl.scoring.eval_splits import SplitOptions
from medssl.scoring.saliency_maps import SaliencyMaker, masks_on_grid
from medssl.scoring.targets import Subset
from medssl.scoring.training import TrainingSettings, predictor, train_supervised
from medssl.store.resampled import resampled_for_encoder
from medssl.store.store import Store
from medssl.synthetic.chest import draw_scan
from medssl.synthetic.cohort import person
from medssl.synthetic.shortcut_mark import carries, place, plant
from medssl.train.optim import Optim

TESTS = {"mark agrees": 0.95, "no mark": None, "mark disagrees": 0.05}
LEAST = 0.2  # the drop in AUROC that a supervised network should show here
MEAN = task_type("per_case").metrics[0]
Scan = tuple[int, bool, np.ndarray]  # patient, positive, (H, W) uint8


def drawn(patients: int, size: int, seed: int) -> Iterator[Scan]:
    for p in range(patients):
        who = person(seed, p)
        for k in range(who.images):
            yield p, who.lesion, (draw_scan(seed, p, k, size, who.lesion, who.scanner) >> 4).astype(np.uint8)


def read(source: Path, labels: Path, positive: list[str]) -> Iterator[Scan]:
    people: dict[str, int] = {}
    with labels.open(newline="") as f:
        for row in csv.DictReader(f):
            patient = row.get("patient") or row.get("patient_id") or row["file"]
            with Image.open(source / row["file"]) as image:
                yield people.setdefault(patient, len(people)), row["label"] in positive, np.asarray(image.convert("L"))


def write(
    scans: list[Scan], folder: Path, agreement: float | None, given: argparse.Namespace, key: Path, stream: int
) -> Store:
    """Write PNG files with their marks, and the places of the marks as masks; a fifth of the patients is for validation."""
    u = np.random.default_rng(seed_from(given.seed, stream)).random(len(scans))
    positive = np.array([p for _, p, _ in scans])
    marked = np.zeros(len(scans), bool) if agreement is None else carries(positive, agreement, u)
    rows = ["file,finding,number,split"]
    for i, (who, label, image) in enumerate(scans):
        mark = place(*image.shape, edge=given.edge) & marked[i]
        shown = plant(image, 255, edge=given.edge) if marked[i] else image
        for kind, array in (("images", shown), ("masks", mark.astype(np.uint8))):
            path = folder / "source" / kind / f"{who:05d}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
        split = "val" if who % 5 == 0 else "train"
        rows.append(f"images/{who:05d}/{i}.png,{'yes' if label else 'no'},n{i},{split}")
    (folder / "labels.csv").write_text("\n".join(rows))
    with redirect_stdout(StringIO()):
        medssl.ingest(
            folder / "source", folder / "store", masks="masks", labels=folder / "labels.csv", targets=["finding", "number"],
            patient="s/([0-9]+)/", key=key, workers=1,
        )  # fmt: skip
    return Store.open(folder / "store")


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--source", type=Path)
    args.add_argument("--labels", type=Path)
    args.add_argument("--positive", nargs="+", default=["PNEUMONIA"])
    args.add_argument(
        "--patients", type=int, default=300, help="in the synthetic cohort, or the largest number from --labels"
    )
    args.add_argument("--size", type=int, default=64)
    args.add_argument("--edge", type=float, default=0.1, help="edge of the mark as a fraction of the scan")
    args.add_argument("--method", default="simclr")
    args.add_argument("--views", default="xray")
    args.add_argument("--widths", type=int, nargs="+", default=[8, 16, 32], help="three stages leave maps of 8 x 8")
    args.add_argument("--steps", type=int, default=300)
    args.add_argument("--batch", type=int, default=64)
    args.add_argument("--seed", type=int, default=0)
    given = args.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    everything = list(
        read(given.source, given.labels, given.positive) if given.source else drawn(given.patients, 96, given.seed)
    )
    people = sorted({who for who, _, _ in everything})
    order = np.random.default_rng(seed_from(given.seed, 1)).permutation(len(people))[: given.patients]
    tested = {people[i] for i in order[: len(order) // 3]}
    trained = {people[i] for i in order} - tested
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        # a fixed key, so that scans are read in the same order every time
        (work / "key").write_text("0" * 64)
        (work / "key").chmod(0o600)
        home = write(
            [s for s in everything if s[0] in trained], work / "home", TESTS["mark agrees"], given, work / "key", 2
        )
        held = [s for s in everything if s[0] in tested]
        stores = {name: write(held, work / name, a, given, work / "key", 3) for name, a in TESTS.items()}
        run = medssl.pretrain(
            home, work / "run", method=given.method, encoder="cnn", encoder_options={"widths": given.widths}, augment=given.views,
            size=given.size, steps=given.steps, batch=given.batch, seed=given.seed, monitor_every=0,
        )  # fmt: skip
        sources, splits = FeatureSources.load(
            run, home, "finding", SplitOptions(test_store=stores["mark agrees"], positive="yes", device="cpu")
        )
        tests = [_in_order(Subset.of(splits.target, store, store.rows())) for store in stores.values()]
        y, patient = tests[0].y, np.array([held[i][0] for i in range(len(held))])
        settings = TrainingSettings(
            sources.config.augment, given.steps, given.batch, Optim(lr=1e-3, weight_decay=1e-2), given.seed, "cpu"
        )
        network = train_supervised(
            work / "supervised", sources.initial(), sources.encoder.input, classification(2), splits.train, settings
        )
        predict = predictor(network, sources.encoder.input, "cpu")
        found = {"supervised from scratch": [predict(t.store, t.rows) for t in tests]}
        frozen = {f"{given.method} + linear probe": sources.of_run()}
        frozen |= {f"{name} + linear probe": sources.frozen(name) for name in ("k-means patch bank", "raw pixels")}
        for name, source in frozen.items():
            found[name] = probes.linear(source, splits, tests)["all"][0].predictions
        train = splits.train
        print(
            f"trained on {len(train)} scans of {train.patients} patients, tested on {len(y)} scans of {len(set(patient))}\n"
        )
        lines = []
        for name, p in found.items():
            line = {"model": name}
            line |= {f"AUROC, {t}": score(AUROC, y, each, patient) for t, each in zip(TESTS, p, strict=True)}
            line["drop, agrees to disagrees"] = difference(AUROC, y, p[0], p[2], patient)
            line["drop, no mark to disagrees"] = difference(AUROC, y, p[1], p[2], patient)
            lines.append(line)
        print(text_table(lines, list(lines[0])), flush=True)
        drop = lines[0]["drop, no mark to disagrees"]
        shown = "drops" if drop.low >= LEAST else "is not shown to drop"
        print(f"The supervised AUROC {shown} by {LEAST} or more between no mark and a mark that disagrees: {drop}.")
        weight = network.linear()[0].numpy()
        agree = tests[0]
        at, masks, insides = masks_on_grid(agree.store, agree.rows, sources.encoder.input, 1)
        grid = resampled_for_encoder(agree.store, sources.encoder.input)
        maker = SaliencyMaker("gradcam", grid, (grid, agree.rows), sources.config, given.seed, "cpu")
        maps = maker(network.encoder, agree.rows[at], np.repeat(weight[1:] - weight[:1], len(at), 0))
        f = mask_energy(maps, masks, insides)
        seen = cam(run, home, "finding", positive="yes", test_store=stores["mark agrees"])["in_masks"][0]
        named = zip(
            ("Grad-CAM on the mark", "area of the mark", "energy minus area"), list(seen.values())[1:4], strict=True
        )
        lines = [
            {
                "model": "supervised from scratch",
                "Grad-CAM on the mark": score(MEAN, f.area, f.energy, patient[at]),
                "area of the mark": score(MEAN, f.area, f.area, patient[at]),
                "energy minus area": difference(MEAN, f.area, f.energy, f.area, patient[at]),
            },
            {"model": f"{given.method} + linear probe"} | {name: Score.from_dict(value) for name, value in named},
        ]
        print("\n" + text_table(lines, list(lines[0])))
        print(f"\n{time.perf_counter() - start:.0f} s")


def _in_order(part: Subset) -> Subset:
    """Sort by the number of the scan, which is the same in all versions of the test set."""
    number = [int(n[1:]) for n in part.column("label:number")]
    return part.take(np.argsort(number))


if __name__ == "__main__":
    main()
