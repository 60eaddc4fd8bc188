"""Sensitivity and false alarms of the collapse monitor.

    python benchmarks/quality_collapse.py                     # on the synthetic cohort
    python benchmarks/quality_collapse.py --source pneumoniamnist.npz

Planted collapses are in the settings, the data or the weights from step 0 on. One counts as detected if its cause is reported
in the first tenth of the run; "first": whether that cause is reported before all others. Healthy runs are of six methods
with their own defaults and three or four seeds; any report is a false alarm. The last table shows, for each monitored number,
its limit and the nearest value in a healthy run.
"""

import argparse
import dataclasses
import io
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

os.environ.setdefault("CI", "1")  # quiet

import torch
from lightning_fabric import Fabric
from torch import nn

import medssl
from medssl import catalog
from medssl.evals.label_free.collapse import LIMITS
from medssl.methods.parts.teacher import ema_update
from medssl.pretraining.collapse_monitor import CollapseMonitor
from medssl.runs.config import Choice, PretrainConfig
from medssl.store.resampled import ResampledScans, resample_scans
from medssl.store.store import Store
from medssl.synthetic.cohort import write_cohort
from medssl.train.log import Log
from medssl.train.loop import train
from medssl.train.optim import Optim
from medssl.train.options import TrainingData, TrainOptions
from medssl.train.stop import TrainingStopped

SMALL = {
    "cnn": {"widths": [8, 16, 32]},
    "mlp": {"widths": [64, 32], "activation": "relu"},
    "vit": {"patch": 4, "dim": 48, "depth": 2, "heads": 2},
}
LOWEST = {"scan_contrast", "view_contrast", "teacher_gap", "grad_norm", "spread", "projected_spread", "rankme"}


@dataclasses.dataclass
class Plant:
    """A planted collapse, and the cause that the monitor must report."""

    cause: str
    what: str
    method: str = "simclr"
    encoder: str = "cnn"
    views: str = "neutral"
    method_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    views_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    optim: dict[str, Any] = dataclasses.field(default_factory=dict)
    corrupt: Callable[[Any], None] | None = None
    data: Callable[[ResampledScans], ResampledScans] | None = None


def no_predictor(method: Any) -> None:
    method.predictor = nn.Identity()


def copying(method: Any) -> None:
    method.after_step = lambda clock: ema_update(*method.teacher_student(), 0.0)


def dead(method: Any) -> None:
    with torch.no_grad():
        method.encoder.layers[-1][4].bias.fill_(-20.0)


def narrowing(method: Any) -> None:
    """Add a last linear layer; all its singular values except the first shrink by a third at every step."""
    last = nn.Conv2d(method.encoder.dim, method.encoder.dim, 1)
    method.encoder.layers.append(last)

    def after_step(clock: Any) -> None:
        with torch.no_grad():
            u, s, v = torch.linalg.svd(last.weight.flatten(1))
            s[1:] *= 2 / 3
            last.weight.copy_((u * s @ v).view_as(last.weight))

    method.after_step = after_step


def wrong_window(resampled: ResampledScans) -> ResampledScans:
    high = resampled.high + 100 * (resampled.high - resampled.low)
    return dataclasses.replace(resampled, low=high, high=high + (resampled.high - resampled.low))


NOISE = {"crop": {"scale": [0.01, 0.02]}, "noise": {"p": 1.0, "std": [5.0, 9.0]}}
PLANTS = [
    Plant("constant", "BYOL without predictor and momentum", "byol", method_options={"momentum": 0.0}, corrupt=no_predictor),
    Plant("constant", "weight decay 100", encoder="mlp", optim={"lr": 0.01, "weight_decay": 100.0}),
    Plant("constant", "a transformer at learning rate 0.1", encoder="vit", optim={"lr": 0.1}),
    Plant("explosion", "a CNN at learning rate 100", optim={"lr": 100.0}),
    Plant("few directions", "all but one direction of the last layer fade", corrupt=narrowing),
    Plant("chance", "temperature 100: the loss stays at ln K", method_options={"temperature": 100.0}),
    Plant("dead units", "biases of -20 before the last ReLU", corrupt=dead),
    Plant("not finite", "learning rate 1e30", optim={"lr": 1e30}),
    Plant("window", "an intensity window far above all values", data=wrong_window),
    Plant("unrelated views", "crops of 1 % under noise", views_options=NOISE),
    Plant("same views", "a recipe without augmentation", views="plain"),
    Plant("teacher copies", "the teacher is set to the student at every step", "byol", corrupt=copying),
    Plant("teacher stuck", "momentum 1", "byol", method_options={"momentum": 1.0}),
    Plant("teacher copies", "DINOv2 whose teacher is its student", "dinov2", "vit", corrupt=copying),
    Plant("teacher copies", "data2vec whose teacher is its student", "data2vec", "vit", corrupt=copying),
    Plant("teacher stuck", "I-JEPA at momentum 1", "ijepa", "vit", method_options={"momentum": 1.0}),
    Plant("chance", "SwAV with codes of equal parts", "swav", method_options={"sharpness": 100.0, "prototypes": 32}),
    Plant("no gradient", "temperature 1e6", method_options={"temperature": 1e6}),
]  # fmt: skip
HEALTHY = [("simclr", 4), ("byol", 4), ("contrastive", 3), ("triplet", 3), ("mae", 3), ("greedy_ae", 3)]


class Watched:
    """A monitor that records its reports, and ends the run at step `until` or once `cause` is reported."""

    def __init__(self, monitor: CollapseMonitor, cause: str = "", until: int = 0):
        self.monitor, self.cause, self.until = monitor, cause, until
        self.looks: list[tuple[int, list[str], dict[str, float]]] = []

    def __call__(self, method: Any, logged: list[dict[str, Any]]) -> dict[str, Any]:
        """Run the monitor, record its report, and end the run if it is time."""
        out, alarms = self.monitor.evaluate(method, logged)
        step, causes = logged[-1]["step"], [a.cause for a in alarms]
        self.looks.append((step, causes, out["seen"]))
        over = self.cause in causes or (self.until and step >= self.until)
        return {"warning": "over", "do": "end"} if over else {}


def go(store: Store, folder: Path, plant: Plant, seed: int, given: argparse.Namespace, until: int = 0) -> Watched:
    """Train one run; it ends early if `until` is given or its cause is reported."""
    size = (given.size,) * 2
    resampled = resample_scans(store, size)
    resampled = plant.data(resampled) if plant.data else resampled
    spec = catalog.spec("method", plant.method, **plant.method_options)
    run = spec.pop("_run_", {})
    torch.manual_seed(seed)
    encoder = catalog.build(catalog.spec("encoder", plant.encoder, **SMALL[plant.encoder]), channels=1, size=size)
    method = catalog.build(spec, encoder=encoder)
    if plant.corrupt:
        plant.corrupt(method)
    recipe = catalog.build(catalog.spec("augment", plant.views, **plant.views_options), size=size)
    config = PretrainConfig(
        store="", where=None, target=None, fingerprint="", method=Choice(plant.method, {}), encoder=Choice(plant.encoder, {}),
        augment=Choice(plant.views, {}), size=size, spacing=None, equalise=False, steps=given.steps, batch=given.batch,
        accumulate=1, seed=seed, optimizer="adamw", lr=1e-3, lr_end=0.0, warmup=0.05, weight_decay=1e-4, momentum=0.9,
        clip=10.0, precision="32-true", log_every=1, monitor_every=1, on_collapse="warn", accelerator="cpu", devices=1,
        strategy="ddp", workers=0, log="jsonl", save_every=given.steps, init=None, adapt="all", lora_rank=8, teacher=None,
    )  # fmt: skip
    monitor = CollapseMonitor(store, resampled, recipe, method, config, "cpu", folder)
    monitor.knn = None  # no kNN score is needed
    watched = Watched(monitor, plant.cause if until else "", until)
    folder.mkdir(parents=True)
    optim = Optim(**({"lr": run.get("lr", 1e-3), "lr_end": run.get("lr_end", 0.0)} | plant.optim))
    options = TrainOptions(
        given.steps, given.batch, seed, optim, log_every=1, save_every=given.steps, monitor_every=given.steps // 20
    )
    try:
        train(
            Fabric(accelerator="cpu"), method, TrainingData(resampled, store.rows("train"), recipe), options, folder / "c",
            Log(folder, "jsonl", {}), watched, quiet=True,
        )  # fmt: skip
    except TrainingStopped as e:
        if str(e) != "over":  # found by the loop and not by the monitor
            watched.looks.append((e.step + 1, ["not finite"], {}))
    return watched


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--source", help="images with a validation split; by default the synthetic cohort")
    args.add_argument("--steps", type=int, default=400)
    args.add_argument("--batch", type=int, default=48)
    args.add_argument("--size", type=int, default=20)
    given = args.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        with redirect_stdout(io.StringIO()):
            source = given.source or write_cohort(work / "cohort", patients=160, size=48, seed=3) / "scans"
            # a fixed key, so that the split is the same every time
            (work / "key").write_text("0" * 64)
            (work / "key").chmod(0o600)
            store = medssl.ingest(source, work / "store", key=work / "key")
        tenth = given.steps // 10
        print(
            f"{len(store.rows('train'))} training scans, {given.steps} steps of {given.batch}, first tenth: {tenth} steps\n"
        )
        print(f"{'planted':58} {'cause':16} {'reported at step':16} first  caught")
        caught = 0
        for i, plant in enumerate(PLANTS):
            watched = go(store, work / f"p{i}", plant, 0, given, until=2 * tenth)
            named = next(((s, c) for s, c, _ in watched.looks if plant.cause in c), None)
            ok = named is not None and named[0] <= tenth
            caught += ok
            others = sorted({cause for _, causes, _ in watched.looks for cause in causes})
            at = str(named[0]) if named else f"never; {'; '.join(others) or 'nothing reported'}"
            first = "" if named is None else "yes" if named[1][0] == plant.cause else f"after {named[1][0]}"
            print(f"{plant.what:58} {plant.cause:16} {at:16} {first:6} {'yes' if ok else 'NO'}", flush=True)
        print(f"{caught} of {len(PLANTS)} caught in the first tenth\n")

        print(f"{'healthy':24} {'looks':6} false alarms")
        near: dict[str, list[float]] = {}
        quiet = runs = 0
        for name, seeds in HEALTHY:
            run = catalog.load("method", name).get("_run_", {})
            plant = Plant(
                "", "", name, {"mae": "vit", "greedy_ae": "mlp"}.get(name, "cnn"), run.get("augment", "neutral")
            )
            for seed in range(seeds):
                watched = go(store, work / f"{name}{seed}", plant, seed, given)
                wrong = [f"{'/'.join(c)} at {s}" for s, c, _ in watched.looks if c]
                runs, quiet = runs + 1, quiet + (not wrong)
                print(
                    f"{name + ', seed ' + str(seed):24} {len(watched.looks):<6} {', '.join(wrong) or 'none'}",
                    flush=True,
                )
                for _, _, seen in watched.looks:
                    for key in LIMITS:
                        if key in seen:
                            near.setdefault(key, []).append(seen[key])
        print(f"{quiet} of {runs} healthy runs without a false alarm\n")
    print(f"{'number':18} {'limit':>8}  nearest in a healthy run")
    for key, values in near.items():
        if key != "chance":
            print(f"{key:18} {LIMITS[key]:8g}  {min(values) if key in LOWEST else max(values):.3g}")
    print(f"\n{(time.process_time() - began) / 60:.1f} minutes of one core")


if __name__ == "__main__":
    main()
