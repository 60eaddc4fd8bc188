"""The batch that was trained on when an alarm went off, made again."""

from pathlib import Path

from torch import Tensor

from medssl import catalog
from medssl.augmentations.loader import RawScans, make_views
from medssl.errors import UserError
from medssl.rng import Key
from medssl.runs.alarms import FILE, alarms_of
from medssl.runs.run_folder import Run
from medssl.store.resampled import resample_scans
from medssl.store.store import Store


def replay(run: str | Path, store: str | Path | Store, alarm: int = 0) -> list[tuple[list[Tensor], Key]]:
    """For each forward pass of the step that raised an alarm of a run: its views and its key, bit for bit (on the CPU).

    Views are (B, C, *size) float32, standardised, as the method was given them; all randomness inside the method follows from
    the key. `alarm` counts those in RUN/alarm.json. Raises UserError when there is none, or for a store that has changed.
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
    source, out = RawScans(resampled), []
    for one in batch["passes"]:
        raw = source.__getitems__(list(zip(one["row"], one["epoch"], strict=True)))
        out.append(make_views(raw, recipe, batch["views"], batch["seed"], resampled.mean, resampled.std))
    return out
