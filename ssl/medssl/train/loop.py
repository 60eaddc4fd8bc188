"""The training loop, for every method and task."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_

from medssl.augmentations.loader import batch_target, images_to, loader, make_views
from medssl.errors import UserError
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.norm import convert_batch_norm
from medssl.progress import Progress
from medssl.rng import seed_from
from medssl.train.checkpoint import load, save
from medssl.train.finite import FiniteChecks
from medssl.train.log import Log
from medssl.train.options import TrainingData, TrainOptions, advice
from medssl.train.precision import channels_last
from medssl.train.ranks import stop_searching, unsharded
from medssl.train.stop import StopRequest, TrainingStopped


def train(
    fabric: Fabric,
    method: Method,
    data: TrainingData,
    options: TrainOptions,
    out: Path,
    log: Log,
    monitor: Callable[[Method, list[dict[str, Any]]], dict[str, Any]] | None = None,
    quiet: bool = False,
) -> Path:
    """Train `method` and return its last checkpoint. Continues from `out/last.ckpt` if that exists.

    Exact resumption: with the same settings, an interrupted and restarted run ends with the same bits as an
    uninterrupted one, on the CPU with any number of workers, because the scans, views and masks of a step depend on
    (seed, step) alone.

    monitor: called with the method and the logged rows every `monitor_every` steps. Returns scalars to log, optionally a
    "warning" (text), and optionally "do": "keep" saves the state as `out/healthy.ckpt`, "end" ends the run.

    Between two log intervals nothing waits for a GPU.

    Raises TrainingStopped when a loss or gradient is not finite (see `FiniteChecks` for when) or the monitor ends the run,
    and UserError when a signal stopped the run.
    """
    steps, batch, seed = options.steps, options.batch, options.seed
    accumulate, optim = options.accumulate, options.optim
    if batch % (fabric.world_size * accumulate):
        raise UserError(f"batch={batch} does not divide over {fabric.world_size} processes x accumulate={accumulate}")
    if (at_once := batch // (fabric.world_size * accumulate)) < method.fewest_scans:
        each = "one scan" if at_once == 1 else f"{at_once} scans"
        raise UserError(
            f"batch={batch} over {fabric.world_size} processes x accumulate={accumulate} is {each} at a time, and "
            f"{type(method).__name__} needs {method.fewest_scans}; raise batch or lower accumulate"
        )
    out.mkdir(parents=True, exist_ok=True)
    last = out / "last.ckpt"
    channels_last(method)
    if fabric.world_size > 1:
        convert_batch_norm(method)
    trains = any(p.requires_grad for p in method.parameters())  # else ranks have nothing to synchronise
    module: Any = fabric.setup_module(method) if trains else method.to(fabric.device)
    state: dict[str, Any] = {"method": module, "step": 0}
    if (optimizer := optim.build(method)) is not None:  # after the module, which may be sharded
        wrapped: Any = fabric.setup_optimizers(optimizer)
        state["optimizer"] = wrapped
    if last.exists():
        load(fabric, last, state)
    start = state["step"]
    history = log.rewind(start, writes=fabric.is_global_zero)
    scans, window = data.resampled, (start * accumulate, steps * accumulate)
    ranks = fabric.global_rank, fabric.world_size
    drawn = (scans, data.rows, batch // accumulate, *window, seed, *ranks)
    raws = iter(loader(*drawn, options.workers, data.targets, data.partners))
    started, waited = time.perf_counter(), 0.0
    checks = FiniteChecks(method, last, at_once=fabric.device.type == "cpu")
    bar = Progress(type(method).__name__, steps, "step", start, quiet or fabric.global_rank > 0, advice(fabric.device))
    with StopRequest() as stop, bar:
        method.train()
        for step in range(start, steps):
            clock = Clock(step, steps)
            lr = optim.lr_at(clock.frac)
            torch.manual_seed(seed_from(seed, step, fabric.global_rank))  # for dropout etc.
            means: dict[str, Tensor] = {}
            norm = None
            for micro in range(accumulate):
                requested = time.perf_counter()
                raw = images_to(next(raws), fabric.device)
                of = data.recipe, method.views, seed, scans.mean, scans.std, method.small_views
                views, key = make_views(raw, *of)
                waited += time.perf_counter() - requested
                inputs: Batch = {"views": views, "key": key.to(fabric.device)}
                if "target" in raw:
                    inputs["target"] = batch_target(raw, data.recipe, key, fabric.device)
                more = optimizer is not None and micro < accumulate - 1
                with fabric.no_backward_sync(module) if more else nullcontext():
                    with checks.of_losses(step):
                        losses = module(inputs, clock)
                    if optimizer is not None:
                        fabric.backward(losses["loss"] / accumulate)
                means = {k: means.get(k, 0) + v.detach().float() / accumulate for k, v in losses.items()}
            if optimizer is not None:
                if step == start:
                    module = state["method"] = stop_searching(fabric, method, module)
                norm = checks.norm(step)
                clip_grads_with_norm_(method.parameters(), optim.clip, norm)
                for group in wrapped.param_groups:
                    group["lr"] = lr * group["lr_scale"]
                wrapped.step()
                wrapped.zero_grad()
            method.after_step(clock)
            state["step"] = done = step + 1

            final, every = done == steps, options.monitor_every
            watch = monitor is not None and every and done % every == 0
            if done % options.log_every == 0 or final or watch:
                row: dict[str, Any] = {"step": done} | checks.read(fabric, step, means, norm)
                if norm is not None:
                    row |= {"lr": lr, "grad_norm": row.pop("grad_norm")}
                history.append(row)
                if watch and monitor is not None:
                    with unsharded(method):
                        row |= fabric.broadcast(monitor(method, history))
                    method.train()
                do = row.pop("do", None)
                if fabric.is_global_zero:
                    seconds = time.perf_counter() - started
                    rate = batch * (done - start) / seconds
                    log.write(row, {"step": done, "seconds": seconds, "data_seconds": waited, "scans_per_s": rate})
                bar.update(0, loss=f"{row['loss']:.4g}")
                if do == "end":
                    raise TrainingStopped(str(row["warning"]), step)
                if do == "keep":
                    save(fabric, last.with_name("healthy.ckpt"), state)
            stopping = stop.wanted(fabric)
            if done % options.save_every == 0 or final or stopping:
                checks.read(fabric, step)
                save(fabric, last, state)
            if stopping:
                raise stop.reason(f"at step {done} of {steps}")
            bar.update()
    log.close()
    return last
