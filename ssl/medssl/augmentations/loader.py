"""Store to views: which scan at which step, one read per batch, and views on whatever device the batch is on.

Everything is a function of (seed, step), so resuming needs only the step, and the stream does not depend on how many
workers or ranks share it.
"""

import signal
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from medssl import rng
from medssl.augmentations.recipes import Recipe
from medssl.errors import UserError
from medssl.store.resampled import ResampledScans

RawBatch = dict[str, Tensor]


class StepSampler(Sampler[list[tuple[int, int]]]):
    """For each step in [start, stop), this rank's share of the batch as (row, epoch) pairs.

    An epoch is a permutation of `rows` keyed by (seed, epoch); what does not fill a last batch is left out of it. Ranks
    take consecutive parts of the global batch. Raises UserError when `batch` cannot be filled or divided.
    """

    def __init__(self, rows: np.ndarray, batch: int, start: int, stop: int, seed: int, rank: int = 0, world: int = 1):
        if batch < 1 or batch % world:
            raise UserError(f"a batch of {batch} does not divide over {world} ranks; make it a multiple of {world}")
        if len(rows) < batch:
            most = len(rows) // world * world
            way_out = f"lower batch to at most {most}" if most else "add scans or use fewer ranks"
            raise UserError(f"{len(rows)} scans cannot fill a batch of {batch}; {way_out}")
        self.rows, self.batch, self.start, self.stop = rows, batch, start, stop
        self.seed, self.rank, self.world = seed, rank, world

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch, mine = len(self.rows) // self.batch, self.batch // self.world
        epoch, order = -1, self.rows
        for step in range(self.start, self.stop):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order = self.rows[torch.randperm(len(self.rows), generator=rng.generator(self.seed, epoch)).numpy()]
            at = step % per_epoch * self.batch + self.rank * mine
            yield [(row, epoch) for row in order[at : at + mine].tolist()]

    def __len__(self) -> int:
        return self.stop - self.start


class RawScans(Dataset[RawBatch]):
    """A canvas read a batch at a time. `targets`: (N, …) by row of the canvas, given out as int64 or, of floats, float32."""

    def __init__(self, resampled: ResampledScans, targets: np.ndarray | None = None):
        self.resampled, self.targets = resampled, targets

    def __len__(self) -> int:
        return len(self.resampled.array)

    def __getitems__(self, pairs: list[tuple[int, int]]) -> RawBatch:
        """(row, epoch) pairs -> image (B, C, *S) in the canvas's type (uint16 as int32), low, high, scan, epoch, …"""
        rows, epochs = np.array(pairs, dtype=np.int64).T
        image = np.asarray(self.resampled.array[rows])
        raw = {
            "image": torch.from_numpy(image.astype(np.int32) if image.dtype == np.uint16 else image),
            "low": torch.from_numpy(np.asarray(self.resampled.low[rows], dtype=np.float32)),
            "high": torch.from_numpy(np.asarray(self.resampled.high[rows], dtype=np.float32)),
            "scan": torch.from_numpy(rows.copy()),
            "epoch": torch.from_numpy(epochs.copy()),
        }
        if self.targets is not None:
            asked = self.targets[rows]
            raw["target"] = torch.from_numpy(asked.astype(np.float32 if asked.dtype.kind == "f" else np.int64))
        return raw


def _as_is(raw: Any) -> Any:
    return raw


def _leave_signals_to_the_loop(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the loop finishes its step first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def loader(
    resampled: ResampledScans,
    rows: np.ndarray,
    batch: int,
    start: int,
    stop: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    targets: np.ndarray | None = None,
) -> DataLoader[RawBatch]:
    """Raw batches of steps [start, stop): the same for any number of workers. `batch` is over all ranks."""
    return DataLoader(
        RawScans(resampled, targets),
        batch_sampler=StepSampler(rows, batch, start, stop, seed, rank, world),
        collate_fn=_as_is,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_leave_signals_to_the_loop,
        # forked from this process, workers see it die and follow; a fork server would keep them
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        pin_memory=torch.cuda.is_available(),
    )


def to_unit_range(raw: RawBatch) -> Tensor:
    """(B, C, *S) float32 in [0, 1]: the window [low, high] of each scan. A scan without a width comes out 0."""
    x = raw["image"].float()
    low, high = (raw[k].view(-1, *[1] * (x.ndim - 1)) for k in ("low", "high"))
    return (x - low).div_(torch.where(high > low, high - low, 1.0)).clamp_(0, 1)


def batch_target(raw: RawBatch, recipe: Recipe, key: rng.Key) -> Tensor:
    """The truth of a raw batch: what is known of whole scans as it is, a mask (B, *S) as view 0 shows it, (B, *size)."""
    target = raw["target"]
    if target.ndim <= 2:
        return target
    with torch.no_grad(), torch.autocast(target.device.type, enabled=False):
        return recipe.transform_mask(target, key, 0)


def make_views(
    raw: RawBatch, recipe: Recipe, n_views: int, seed: int | Tensor, mean: float, std: float
) -> tuple[list[Tensor], rng.Key]:
    """Views 0 … n_views - 1 of a raw batch, each (B, C, *size) float32 and (unit - mean) / std, and the batch's key.

    Runs where raw["image"] is, in float32 whatever the autocast around it. "scan" and "epoch" may stay on the CPU.
    """
    key = rng.Key(seed, raw["epoch"], raw["scan"])
    with torch.no_grad(), torch.autocast(raw["image"].device.type, enabled=False):
        x = to_unit_range(raw)
        return [recipe(x, key, view).sub(mean).div_(std) for view in range(n_views)], key
