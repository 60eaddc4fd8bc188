"""Reconstruct the batch that a run was training on when a collapse was found."""

from pathlib import Path

from torch import Tensor

from medssl import catalog
from medssl.augmentations.loader import RawScans, make_views
from medssl.augmentations.recipes import SmallViews
from medssl.errors import UserError
from medssl.rng import Key
from medssl.runs.alarms import FILE, alarms_of
from medssl.runs.run_folder import Run
from medssl.store.partners import training_rows
from medssl.store.resampled import resample_scans
from medssl.store.store import Store


def replay_batch(run: str | Path, store: str | Path | Store, alarm: int = 0) -> list[tuple[list[Tensor], Key]]:
    """Return the views and the random key of every forward pass of the step at which a collapse was found.

    The bits are those of training (on the CPU). All randomness inside a method follows from the key.

    Args:
        run: a run folder with an alarm.json.
        store: the store that the run was trained on.
        alarm: which collapse in alarm.json, counted from 0.

    Returns:
        For each forward pass, the views, each (B, C, *size) float32 and standardised, small ones last, and their key.

    Raises UserError if there is no such alarm, or if the store has changed.
    """
    folder = Run(Path(run))
    config, alarms = folder.config(), alarms_of(folder.path)
    if not 0 <= alarm < len(alarms):
        raise UserError(f"{folder.path} has no alarm {alarm}: {FILE} holds {len(alarms)}, counted from 0")
    batch = alarms[alarm]["batch"]
    scans = Store.open(store, config.where)
    if scans.fingerprint != batch["store"]:
        raise UserError(f"{scans.path} is not the store of that run, or has changed since; ingest the same scans again")
    resampled = resample_scans(scans, config.size, config.spacing, config.equalise)
    recipe = catalog.build(config.augment.spec("augment"), size=resampled.size)
    partners = training_rows(scans, batch["paired_within"], config.method.name)[1]
    kept = batch.get("small_views")  # absent where a method has none
    small = SmallViews(kept["count"], tuple(kept["size"]), tuple(kept["scale"])) if kept else SmallViews()
    source, out = RawScans(resampled, partners=partners), []
    for one in batch["passes"]:
        raw = source.__getitems__(list(zip(one["row"], one["epoch"], strict=True)))
        of = recipe, batch["views"], batch["seed"], resampled.mean, resampled.std, small
        out.append(make_views(raw, *of))
    return out
