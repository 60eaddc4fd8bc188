"""Load the scans of each training step and make their augmented views on the batch's device.

Everything is a function of (seed, step): resuming needs only the step, and the batches do not depend on the number of
workers or ranks.
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
from medssl.augmentations.recipes import Recipe, SmallViews
from medssl.errors import UserError
from medssl.store.intensity_windows import to_unit_range
from medssl.store.partners import Partners
from medssl.store.resampled import ResampledScans

RawBatch = dict[str, Tensor]
PARTNER_SLOT = 0  # of seed 0, which draws nothing else


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Yield, for each step in [start, stop), this rank's part of the batch as (row, epoch) pairs.

    An epoch is a permutation of `rows` keyed by (seed, epoch), without an incomplete last batch. Ranks take consecutive
    parts of the global batch. Raises UserError when `batch` cannot be filled or divided.
    """

    def __init__(self, rows: np.ndarray, batch: int, start: int, stop: int, seed: int, rank: int = 0, world: int = 1):
        if batch < 1 or batch % world:
            raise UserError(f"a batch of {batch} does not divide over {world} ranks; make it a multiple of {world}")
        if len(rows) < batch:
            most = len(rows) // world * world
            remedy = f"lower batch to at most {most}" if most else "add scans or use fewer ranks"
            raise UserError(f"{len(rows)} scans cannot fill a batch of {batch}; {remedy}")
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
    """Resampled scans, read a batch at a time.

    targets: (N, …), one per row of `resampled`; returned as float32 if they are floats, else as int64.
    partners: of the rows of `resampled`.
    """

    def __init__(self, resampled: ResampledScans, targets: np.ndarray | None = None, partners: Partners | None = None):
        self.resampled, self.targets, self.partners = resampled, targets, partners

    def __len__(self) -> int:
        return len(self.resampled.array)

    def __getitems__(self, pairs: list[tuple[int, int]]) -> RawBatch:
        """Return a raw batch of (row, epoch) pairs: image (B, C, *S), low, high, scan and epoch (B,), perhaps target.

        With partners, partner_image, partner_low and partner_high too, or aligned_… if they are aligned. Images have the type
        of the resampled scans, except uint16, which becomes int32.
        """
        rows, epochs = np.array(pairs, dtype=np.int64).T
        raw = self._images(rows) | {"scan": torch.from_numpy(rows.copy()), "epoch": torch.from_numpy(epochs.copy())}
        if self.partners is not None:
            draws = rng.words(rng.Key(0, raw["epoch"], raw["scan"]), 0, PARTNER_SLOT, 1)[:, 0].tolist()
            chosen = [of[n % len(of)] for n, of in zip(draws, (self.partners.rows[row] for row in rows), strict=True)]
            name = "aligned" if self.partners.aligned else "partner"
            raw |= {f"{name}_{k}": v for k, v in self._images(np.array(chosen, dtype=np.int64)).items()}
        if self.targets is not None:
            target = self.targets[rows]
            raw["target"] = torch.from_numpy(target.astype(np.float32 if target.dtype.kind == "f" else np.int64))
        return raw

    def _images(self, rows: np.ndarray) -> RawBatch:
        image = np.asarray(self.resampled.array[rows])
        return {
            "image": torch.from_numpy(image.astype(np.int32) if image.dtype == np.uint16 else image),
            "low": torch.from_numpy(np.asarray(self.resampled.low[rows], dtype=np.float32)),
            "high": torch.from_numpy(np.asarray(self.resampled.high[rows], dtype=np.float32)),
        }


def _identity(raw: Any) -> Any:
    return raw


def _ignore_interrupt(worker: int) -> None:
    """Ignore Ctrl-C, which reaches every process of a terminal, so that the loop can finish its step."""
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
    partners: Partners | None = None,
) -> DataLoader[RawBatch]:
    """Return a loader of the raw batches of steps [start, stop), the same for any number of workers.

    batch: scans per step, over all ranks.
    """
    return DataLoader(
        RawScans(resampled, targets, partners),
        batch_sampler=StepSampler(rows, batch, start, stop, seed, rank, world),
        collate_fn=_identity,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_ignore_interrupt,
        # workers forked from this process end when it dies; those of a fork server would stay
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        pin_memory=torch.cuda.is_available(),
    )


def apply_windows(raw: RawBatch) -> Tensor:
    """Return the images of a raw batch in the unit range, each by its own window: (B, C, *S) float32."""
    low, high = (raw[k].view(-1, *[1] * (raw["image"].ndim - 1)) for k in ("low", "high"))
    return to_unit_range(raw["image"], low, high)


def images_to(raw: RawBatch, device: torch.device | str) -> RawBatch:
    """Return a raw batch with its images and windows on `device`, without waiting for it; the rest stays on the CPU.

    There, "scan" and "epoch" give the parameters of the views, and "target" the number of classes.
    """
    stays = ("scan", "epoch", "target")
    return {k: v if k in stays else v.to(device, non_blocking=True) for k, v in raw.items()}


def batch_target(raw: RawBatch, recipe: Recipe, key: rng.Key, device: torch.device | str) -> Tensor:
    """Return the targets of a raw batch on `device`: masks (B, *S) transformed like view 0, (B, *size); others unchanged."""
    target = raw["target"].to(device, non_blocking=True)
    if target.ndim <= 2:
        return target
    classes = int(raw["target"].max()) + 1
    with torch.no_grad(), torch.autocast(target.device.type, enabled=False):
        return recipe.transform_mask(target, key, 0, classes)


def make_views(
    raw: RawBatch,
    recipe: Recipe,
    n_views: int,
    seed: int | Tensor,
    mean: float,
    std: float,
    small: SmallViews = SmallViews(),  # noqa: B008 - immutable
) -> tuple[list[Tensor], rng.Key]:
    """Return views 0 … n_views - 1 of a raw batch, each (B, C, *size) float32, and the batch's key.

    Small views, (B, C, *small.size), come after them and are numbered on from n_views. With partners the last view of those
    before is of the partner, with its own random numbers, or those of view 0 if partners are aligned.

    Views are standardised: (value in [0, 1] - mean) / std. Runs on the device of raw["image"], in float32 even under
    autocast. "scan" and "epoch" may stay on the CPU.
    """
    key = rng.Key(seed, raw["epoch"], raw["scan"])
    with torch.no_grad(), torch.autocast(raw["image"].device.type, enabled=False):
        x = apply_windows(raw)
        shown = [(x, view) for view in range(n_views + small.count)]
        for name, view in (("partner", n_views - 1), ("aligned", 0)):
            if f"{name}_image" in raw:
                other = {k: raw[f"{name}_{k}"] for k in ("image", "low", "high")}
                shown[n_views - 1] = apply_windows(other), view
        recipes = [recipe] * n_views + [recipe.small(small) for _ in range(small.count)]
        made = (of(image, key, view) for of, (image, view) in zip(recipes, shown, strict=True))
        return [view.sub(mean).div_(std) for view in made], key
