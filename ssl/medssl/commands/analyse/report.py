"""`medssl report`: write one self-contained HTML page about a run."""

from pathlib import Path

from medssl import catalog
from medssl.errors import UserError
from medssl.progress import say
from medssl.reporting.report import write_report
from medssl.reporting.sample_views import sample_views
from medssl.runs.run_folder import Run
from medssl.store.resampled import resample_scans
from medssl.store.store import Store

SHOWN = 4  # scans whose views are shown


def report(run: str | Path, *, store: str | Path | Store | None = None, out: str | Path | None = None) -> Path:
    """Write RUN/report.html (or `out`) from the contents of the run folder; returns its path.

    `store` is needed only if the run's store has moved. Sections without their input name the command that makes it.
    Raises UserError if the store is not the run's, or has moved and is not given.
    """
    folder = Run(Path(run))
    config = folder.config()
    if store is None and not Path(config.store).exists():
        raise UserError(f"the store of {folder.path} is no longer at {config.store}; say where it is: store=STORE")
    scans = Store.open(store or config.store, config.where)
    if scans.fingerprint != config.fingerprint:
        raise UserError(f"{scans.path} is not the store this run was trained on; give that one as store=")
    recipe = catalog.build(config.augment.spec("augment"), size=config.size)
    resampled = resample_scans(scans, config.size, config.spacing, config.equalise)
    shown = sample_views(resampled, recipe, scans.rows("train")[:SHOWN], views=2, seed=config.seed)
    path = write_report(folder.path, scans, out=Path(out).expanduser() if out else None, views=shown)
    say(f"report: {path}")
    return path
