"""`medssl pretrain`: pretrain an encoder by one method on the training patients of a store; runs resume exactly."""

import copy
import math
import shlex
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from medssl import catalog
from medssl.commands.options import accepts
from medssl.encoders.adaptation import adapt, merge
from medssl.encoders.config import EncoderConfig, InputConfig
from medssl.encoders.export import ENCODER, save_encoder
from medssl.encoders.own import build_encoder
from medssl.errors import UserError
from medssl.files import atomic, locked
from medssl.leakage.leak_check import pretrained_on
from medssl.methods.base import Method
from medssl.methods.parts.heads import pairs_of
from medssl.pretraining.collapse_monitor import CollapseMonitor
from medssl.pretraining.origins import Origins
from medssl.pretraining.pretrain_targets import PretrainTargets
from medssl.progress import say
from medssl.rng import seed_from
from medssl.runs.config import Choice, PretrainConfig, PretrainOptions, default_augment
from medssl.runs.run_folder import Run
from medssl.store.partners import training_rows
from medssl.store.resampled import ResampledScans, resample_scans
from medssl.store.store import Store
from medssl.train.log import Log
from medssl.train.loop import train
from medssl.train.lost_process import lost_process
from medssl.train.options import TrainingData
from medssl.train.ranks import check_shards, make_fabric, put_together
from medssl.train.stop import TrainingStopped

DEFAULTS = {"encoder": "resnet18", "steps": 2000, "batch": 128, "lr": 1e-3, "lr_end": 0.0}
"""Defaults where neither the call nor the method's yaml gives a value."""
LARS_RATE = 0.3
"""The default lr of lars per 256 scans of a batch: Chen et al., 2020, https://arxiv.org/abs/2002.05709, section 2.2."""


@accepts(PretrainOptions)
def pretrain(store: str | Path | Store, out: str | Path, *, options: PretrainOptions) -> Path:
    """Pretrain an encoder on the training patients of a store, and return the run folder `out`.

    All settings are written to RUN/resolved.yaml. The same call again continues a stopped run, with bit-identical results.

    Args:
        store: a folder made by `medssl.ingest`.
        out: the run folder.
        options: keyword arguments; see `medssl.runs.config.PretrainOptions`.

    Raises UserError for input that cannot work, before training where possible, and TrainingStopped if a collapse or a
    gradient that is not finite ended the run.
    """
    return pretrain_watched(store, out, options, None)


def pretrain_watched(
    store: str | Path | Store, out: str | Path, options: PretrainOptions, watch: Callable[[dict[str, Any]], None] | None
) -> Path:
    """`pretrain`, which calls `watch` with each evaluated row of metrics.jsonl; what it raises ends the run, unfinished."""
    with ExitStack() as held:
        return _pretrain(store, out, options, watch, held)


def _pretrain(
    store: str | Path | Store,
    out: str | Path,
    options: PretrainOptions,
    watch: Callable[[dict[str, Any]], None] | None,
    held: ExitStack,
) -> Path:
    """`pretrain_watched`; `held` keeps the run folder for this process."""
    scans = Store.open(store, options.where)
    spec = catalog.spec("method", options.method, **(options.method_options or {}))
    defaults = DEFAULTS | spec.pop("_run_", {})
    paired_within = pairs_of(spec["pairs"]) if "pairs" in spec else catalog.attribute(spec, "paired_within") or ""
    rows, partners = training_rows(scans, paired_within, options.method)
    labels = (options.target, options.task, options.positive, options.unknown)
    targets = PretrainTargets.of(scans, rows, options.method, spec, *labels)
    origins = Origins.of(options, spec)
    config = _config(options, scans, len(rows), defaults, targets, origins)
    fabric = make_fabric(config.accelerator, config.devices, config.precision, config.strategy)
    fabric.launch()
    zero = fabric.is_global_zero
    recipe = catalog.build(config.augment.spec("augment"), size=config.size)
    with torch.random.fork_rng():
        torch.manual_seed(seed_from(config.seed, 0))
        model = build_encoder(config.encoder.spec("encoder"), scans.channels, config.size)
        changed = [] if origins.init is None else origins.init.load_into(model, config.encoder.name)
        adapt(model, config.adapt, config.lora_rank)
        resampled = resample_scans(scans, config.size, config.spacing, config.equalise)
        student = InputConfig(
            scans.channels, config.size, config.spacing, config.equalise, resampled.mean, resampled.std
        )
        given = targets.given | origins.arguments(student)
        given |= {"rows": torch.from_numpy(rows)} if catalog.takes(spec, "rows") != "no" else {}
        method = catalog.build(spec, encoder=model, **given)
        if config.strategy == "fsdp":
            check_shards(method)
        if method.small_views.count:
            recipe.small(method.small_views)  # refuses what has no crop, before the run folder
        by_row = targets.rows_of(method)
        run = Run(Path(out))
        if zero:
            run.start({"store": str(scans.path), "out": str(out)} | options.given(), config)
            held.enter_context(locked(run.path, "medssl pretrain"))
            passes = config.steps * config.batch / len(rows)
            what = f"{config.steps} steps of {config.batch} ({passes:.0f} epochs)"
            where = torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else "CPU"
            say(f"{options.method}, {config.encoder.name} on {where}: {len(rows)} scans, {what}")
            for words in changed:
                say(f"init: {words}")
        fabric.barrier()
        monitor = CollapseMonitor(scans, resampled, recipe, method, config, str(fabric.device), run.path, zero)

        def monitored(method: Method, rows: list[dict[str, Any]]) -> dict[str, Any]:
            found = monitor(method, rows)
            if watch is not None:
                for row in (*rows[:-1], rows[-1] | found):
                    watch(row)
            return found

        exported = copy.deepcopy(method) if config.strategy == "fsdp" and zero else method
        logged = {k: v for k, v in config.as_dict().items() if k != "store"}
        steps = config.steps
        try:
            with lost_process(fabric):
                train(
                    fabric,
                    method,
                    TrainingData(resampled, rows, recipe, by_row, partners),
                    config.train_options,
                    run.checkpoints,
                    Log(run.path, config.log if zero else "jsonl", logged),
                    monitored,
                )
        except TrainingStopped as e:
            steps = monitor.fall_back(fabric, method, run.checkpoints, e)
        if config.strategy == "fsdp":
            put_together(method, exported)
    if zero:
        _export(run, scans, resampled, exported, config, steps, origins)
        words = f"run={shlex.quote(str(run.path))} store={shlex.quote(str(scans.path))}"
        own = getattr(method.encoder, "own_name", "")
        first = f"MEDSSL_IMPORT={own.rpartition('.')[0]} " * bool(own)  # a run folder does not import a user's code
        say(
            f"encoder: {run.path / ENCODER}. Next: {first}medssl embed {words}; {first}medssl probe {words} target=LABEL"
        )
    fabric.barrier()
    return run.path


def _config(
    options: PretrainOptions,
    scans: Store,
    n: int,
    defaults: dict[str, Any],
    targets: PretrainTargets,
    origins: Origins,
) -> PretrainConfig:
    """Return the settings that follow from the options, the method's defaults and the store's `n` training scans.

    Raises UserError if there are too few scans.
    """
    if n < 2:
        raise UserError(f"{scans.path} has {n} training scans; ingest more patients")
    chosen = defaults | {k: v for k in (*DEFAULTS, "augment") if (v := getattr(options, k)) is not None}
    if options.batch is None:
        chosen["batch"] = min(chosen["batch"], n - n % max(1, options.devices * options.accumulate))
    if options.optimizer == "lars" and options.lr is None:
        chosen["lr"] = LARS_RATE * chosen["batch"] / 256
    steps, batch = chosen["steps"], chosen["batch"]
    size = default_size(scans) if options.size is None else options.size
    every = max(1, steps // 10) if options.monitor_every is None else options.monitor_every
    same = (
        *("spacing", "equalise", "accumulate", "seed", "optimizer", "warmup", "weight_decay", "momentum", "clip"),
        *(
            "precision",
            "log_every",
            "on_collapse",
            "accelerator",
            "devices",
            "strategy",
            "workers",
            "log",
            "save_every",
        ),
        *("adapt", "lora_rank"),
    )
    config = PretrainConfig(
        store=str(scans.path),
        where=scans.where,
        target=targets.described(),
        fingerprint=scans.fingerprint,
        method=Choice.of("method", options.method, options.method_options),
        encoder=origins.encoder(options, chosen["encoder"]),
        augment=Choice.of("augment", chosen.get("augment") or default_augment(scans), options.augment_options),
        size=(size,) * scans.dims,
        steps=steps,
        batch=batch,
        lr=chosen["lr"],
        lr_end=chosen["lr_end"],
        monitor_every=every,
        init=None if origins.init is None else origins.init.described(),
        teacher=None if origins.teacher is None else origins.teacher.described(),
        **{k: getattr(options, k) for k in same},
    )
    if batch > n:
        raise UserError(f"batch={batch} is more than the {n} training scans; lower batch to at most {n}")
    return config


def default_size(scans: Store) -> int:
    """Return 64 pixels in 2D and 32 in 3D, or the median of the scans' longest sides if that is less."""
    longest = [max(shape[1:]) for shape in scans.column("shape")]
    return int(min(64 if scans.dims == 2 else 32, math.ceil(np.median(longest))))


def _export(
    run: Run,
    scans: Store,
    resampled: ResampledScans,
    method: Method,
    config: PretrainConfig,
    step: int,
    origins: Origins,
) -> None:
    """Write the encoder, its config, its decoder if it has one, and the patients and images that it has learned from."""
    with atomic(run.path / "pretrained_on.parquet") as part:
        pq.write_table(pretrained_on(scans, scans.rows("train"), origins.runs()), part)
    merge(method.encoder)
    exported = EncoderConfig(
        mean=resampled.mean,
        std=resampled.std,
        modality=scans.modality,
        intensity=scans.intensity_description,
        key_id=scans.info["key_id"],
        orientation="RAS+ reversed: (D, H, W) is (S, A, R)" if scans.dims == 3 else "as displayed",
        spacing=config.spacing,
        equalise=config.equalise,
        method=config.method.name,
        encoder=config.encoder.name,
        store=scans.fingerprint,
        step=step,
        init=config.init,
        teacher=config.teacher,
    )
    save_encoder(run.path, method.encoder, exported, method.kept_decoder())
