"""Store -> run folder: an encoder pretrained by one method, resumable to the bit."""

import math
import sys
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy

from medssl import catalog
from medssl.encoders.export import save_encoder
from medssl.errors import UserError, nearest
from medssl.files import atomic
from medssl.leakage.leak_check import PRETRAINED_ON_COLUMNS
from medssl.pretraining.collapse_monitor import ACTIONS, CollapseMonitor
from medssl.pretraining.pretrain_targets import PretrainTargets
from medssl.rng import seed_from
from medssl.runs.run_folder import Run
from medssl.store.resampled import ResampledScans, resample_scans
from medssl.store.store import Store
from medssl.train.log import SINKS, Log
from medssl.train.loop import train
from medssl.train.optim import Optim
from medssl.train.options import TrainingData, TrainOptions
from medssl.train.stop import TrainingStopped

DEFAULTS = {"encoder": "resnet18", "steps": 2000, "batch": 128, "lr": 1e-3, "lr_end": 0.0}
RANGES = {  # what can work, both ends included
    "steps": (1, inf), "batch": (2, inf), "accumulate": (1, inf), "devices": (1, inf), "workers": (0, inf), "seed": (0, inf),
    "log_every": (1, inf), "save_every": (1, inf), "monitor_every": (0, inf), "warmup": (0, 0.99), "lr_end": (0, 1),
    "weight_decay": (0, inf), "momentum": (0, 0.9999), "spacing": (1e-3, inf),
}  # fmt: skip
PRECISIONS = ("32-true", "bf16-mixed")
ACCELERATORS = ("auto", "cpu", "cuda")
FREE = {
    "workers",
    "accelerator",
    "devices",
    "log",
    "save_every",
    "store",
    "on_collapse",
}  # may differ between starts of one run


def pretrain(
    store: str | Path | Store,
    out: str | Path,
    *,
    method: str = "simclr",
    encoder: str | None = None,
    augment: str | None = None,
    method_options: dict[str, Any] | None = None,
    encoder_options: dict[str, Any] | None = None,
    augment_options: dict[str, Any] | None = None,
    where: str | None = None,
    target: str | list[str] | None = None,
    task: str = "auto",
    positive: str | list[str] | None = None,
    size: int | None = None,
    spacing: float | None = None,
    equalise: bool = False,
    steps: int | None = None,
    batch: int | None = None,
    accumulate: int = 1,
    seed: int = 0,
    optimizer: str = "adamw",
    lr: float | None = None,
    lr_end: float | None = None,
    warmup: float = 0.05,
    weight_decay: float = 1e-4,
    momentum: float = 0.9,
    clip: float = 10.0,
    precision: str = "32-true",
    accelerator: str = "auto",
    devices: int = 1,
    workers: int = 0,
    log: str = "jsonl",
    log_every: int = 10,
    save_every: int = 100,
    monitor_every: int | None = None,
    on_collapse: str = "warn",
) -> Path:
    """Pretrain an encoder on the training patients of a store; returns the run folder `out`.

    What is None is the method's own default (its yaml), else a general one; `resolved.yaml` in the run says what was used.
    Running the same call again goes on where a stopped run was, and ends with the same bits.

    Args:
        store: a folder made by `ingest`.
        where: which of its scans; see `medssl.store.query`.
        target, task, positive: what methods that learn from labels learn: label columns, the kind of task, and the values
            that count as there, as in `probe`. Scans without a label take part unlabelled.
        out: the run folder.
        method, encoder, augment: names of configs/method, configs/encoder, configs/augment, with their `_options`. An encoder
            may be any timm model's name, a method the import path of a Method of your own. augment=None takes the recipe of
            the store's modality.
        size: edge of the square or cube that scans are brought to, in pixels; None: 64 in 2D, 32 in 3D, or what the scans have.
        spacing: mm per pixel of that grid; None fits each scan into it.
        equalise: give the encoder every scan's ranks in place of its values, here and wherever it is scored
            (`medssl.store.equalise`): what scanners do to contrast is gone, and so is what values mean, as in CT.
        steps, batch: updates, and scans per update over all devices.
        accumulate: forward passes a batch is split into.
        optimizer, lr, lr_end, warmup, weight_decay, momentum, clip: see train.optim.Optim.
        precision: 32-true or bf16-mixed. accelerator: auto, cpu or cuda. devices: processes. workers: loading processes.
        log: jsonl, wandb (offline) or wandb-online.
        monitor_every: steps between looks at held-out scans (label-free measures, kNN, causes of collapse); None: ten in a
            run, 0: never.
        on_collapse: what an alarm does: warn says it; stop ends the run; rollback ends it and hands over the encoder of the
            last look without an alarm. All three keep RUN/alarm.json; see steps.replay for the batch.

    Raises UserError for anything in the input that cannot work, before training where that can be known, and Broken for a run
    that an alarm or a gradient that is not finite ended.
    """
    asked = {k: str(v) if isinstance(v, Path) else v for k, v in locals().items() if v is not None}
    scans = Store.open(store, where)
    asked["store"] = str(scans.path)
    dims = scans.dims
    spec = catalog.spec("method", method, **(method_options or {}))
    run_defaults = DEFAULTS | spec.pop("_run_", {})

    def chosen(key: str, given: Any) -> Any:
        return given if given is not None else run_defaults.get(key)

    encoder_name, encoder_spec = encoder_of(chosen("encoder", encoder), encoder_options)
    views_name = chosen("augment", augment) or views_for(scans)
    rows = scans.rows("train")
    size = default_size(scans) if size is None else size
    steps = chosen("steps", steps)
    asked_batch, batch = batch, chosen("batch", batch)
    if asked_batch is None:
        batch = min(batch, len(rows) - len(rows) % (devices * accumulate))
    views_spec = catalog.spec("augment", views_name, **(augment_options or {}))
    truth = PretrainTargets.of(scans, rows, method, spec, target, task, positive)
    resolved: dict[str, Any] = {
        "store": str(scans.path),
        "where": scans.where,
        "target": truth.described(),
        "fingerprint": scans.fingerprint,
        "method": described(method, spec),
        "encoder": described(encoder_name, encoder_spec),
        "augment": described(views_name, views_spec),
        "size": [size] * dims,
        "spacing": spacing,
        "equalise": equalise,
        "steps": steps,
        "batch": batch,
        "accumulate": accumulate,
        "seed": seed,
        "optimizer": optimizer,
        "lr": chosen("lr", lr),
        "lr_end": chosen("lr_end", lr_end),
        "warmup": warmup,
        "weight_decay": weight_decay,
        "momentum": momentum,
        "clip": clip,
        "precision": precision,
        "log_every": log_every,
        "monitor_every": max(1, steps // 10) if monitor_every is None else monitor_every,
        "on_collapse": on_collapse,
        "accelerator": accelerator,
        "devices": devices,
        "workers": workers,
        "log": log,
        "save_every": save_every,
    }
    check(resolved, len(rows))
    optim = Optim(optimizer, resolved["lr"], warmup, resolved["lr_end"], weight_decay, momentum, clip)
    watched = resolved["monitor_every"]
    options = TrainOptions(steps, batch, seed, optim, accumulate, workers, log_every, save_every, watched)
    strategy = DDPStrategy(find_unused_parameters=True) if devices > 1 else "auto"
    fabric = Fabric(accelerator=accelerator, devices=devices, precision=precision, strategy=strategy)  # type: ignore[arg-type]
    fabric.launch()
    recipe = catalog.build(views_spec, size=tuple(resolved["size"]))
    with torch.random.fork_rng():
        torch.manual_seed(seed_from(seed, 0))
        model = catalog.build(encoder_spec, channels=scans.channels, size=tuple(resolved["size"]))
        ssl_method = catalog.build(spec, encoder=model, **truth.given)
        targets = truth.rows_of(ssl_method)
        resampled = resample_scans(scans, tuple(resolved["size"]), spacing, equalise)
        run = Run(Path(out))
        if fabric.is_global_zero:
            run.start(asked, resolved, FREE)
            epochs = steps * batch / len(rows)
            print(
                f"{method}, {encoder_name}: {len(rows)} scans, {steps} steps of {batch} ({epochs:.0f} epochs)",
                file=sys.stderr,
            )
        fabric.barrier()
        zero = fabric.is_global_zero
        monitor = CollapseMonitor(scans, resampled, recipe, ssl_method, resolved, str(fabric.device), run.path, zero)
        try:
            train(
                fabric,
                ssl_method,
                TrainingData(resampled, rows, recipe, targets),
                options,
                run.checkpoints,
                Log(run.path, log if zero else "jsonl", {k: v for k, v in resolved.items() if k != "store"}),
                monitor,
            )
        except TrainingStopped as e:
            steps = monitor.fall_back(fabric, ssl_method, run.checkpoints, e)
    if fabric.is_global_zero:
        hand_over(run, scans, resampled, ssl_method.encoder, resolved | {"steps": steps})
    fabric.barrier()
    return run.path


def check(resolved: dict[str, Any], n: int) -> None:
    """Numbers that cannot work, said before anything is built."""
    for key, (low, high) in RANGES.items():
        value = resolved[key]
        if value is not None and not low <= value <= high:
            most = f" and at most {high:g}" if high < inf else ""
            raise UserError(f"{key} must be at least {low:g}{most}, got {value}")
    if resolved["size"][0] < 4:
        raise UserError(f"size must be at least 4 pixels, got {resolved['size'][0]}")
    words = {"log": SINKS, "precision": PRECISIONS, "accelerator": ACCELERATORS, "on_collapse": ACTIONS}
    for key, known in words.items():
        if resolved[key] not in known:
            raise UserError(f"{key} is {resolved[key]!r}.{nearest(str(resolved[key]), known)}")
    if resolved["accelerator"] == "cuda" and not torch.cuda.is_available():
        raise UserError("accelerator=cuda, and torch sees no GPU; use accelerator=cpu")
    if n < 2:
        raise UserError(f"{resolved['store']} has {n} training scans; ingest more patients")
    if resolved["batch"] > n:
        raise UserError(f"batch={resolved['batch']} is more than the {n} training scans; lower batch to at most {n}")


def described(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """A choice for resolved.yaml: its name and options, and no import path, since that file may come from elsewhere."""
    return {"name": name} | {k: v for k, v in spec.items() if k != "_target_"}


def spec_of(group: str, choice: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `described`, with the import path from the catalog."""
    options = {k: v for k, v in choice.items() if k != "name"}
    if group == "encoder":
        return encoder_of(choice["name"], options)[1]
    return catalog.spec(group, choice["name"], **options)


def encoder_of(name: str, options: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """(what to call it, its spec): the yaml of that name, or any timm model."""
    if name in catalog.choices("encoder"):
        spec = catalog.spec("encoder", name, **(options or {}))
        return (spec["model"] if name == "timm" else name), spec
    return name, catalog.spec("encoder", "timm", **({"model": name} | (options or {})))


def views_for(scans: Store) -> str:
    """The recipe of the store's modality; ultrasound and what else has none of its own gets the neutral one."""
    return scans.intensity if scans.intensity in catalog.choices("augment") else "neutral"


def default_size(store: Store) -> int:
    """64 in 2D and 32 in 3D, or the median of the scans' longest sides where that is less."""
    longest = [max(shape[1:]) for shape in store.column("shape")]
    return int(min(64 if store.dims == 2 else 32, math.ceil(np.median(longest))))


def hand_over(
    run: Run, store: Store, resampled: ResampledScans, encoder: torch.nn.Module, resolved: dict[str, Any]
) -> None:
    """The pair that other software loads, and the list of what the encoder has seen."""
    with atomic(run.path / "pretrained_on.parquet") as part:
        pq.write_table(store.table.select(list(PRETRAINED_ON_COLUMNS)).take(store.rows("train")), part)
    card = {
        "mean": resampled.mean,
        "std": resampled.std,
        "modality": store.modality,
        "intensity": store.intensity_description,
        "key_id": store.info["key_id"],
        "orientation": "RAS+ reversed: (D, H, W) is (S, A, R)" if store.dims == 3 else "as displayed",
        "spacing": resolved["spacing"],
        "equalise": resolved["equalise"],
        "method": resolved["method"]["name"],
        "encoder": resolved["encoder"]["name"],
        "store": store.fingerprint,
        "step": resolved["steps"],
    }
    save_encoder(run.path, encoder, card)
