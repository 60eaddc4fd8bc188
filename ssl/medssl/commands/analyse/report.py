"""`medssl report`: write one self-contained HTML page about a run, or about several beside each other."""

from pathlib import Path

from medssl import catalog
from medssl.errors import UserError
from medssl.progress import say
from medssl.reporting.compared import write_comparison
from medssl.reporting.messages import messages
from medssl.reporting.report import write_report
from medssl.reporting.sample_views import sample_views
from medssl.runs.run_folder import Run
from medssl.scoring.comparable_settings import RowFilter
from medssl.scoring.compared_runs import compare_runs
from medssl.store.resampled import resample_scans
from medssl.store.store import Store

SHOWN = 4  # scans whose views are shown
SEED = 0  # for resamples of patients, as the default of compare


def report(
    run: str | Path | None = None,
    *,
    runs: str | list[str] | None = None,
    store: str | Path | Store | None = None,
    out: str | Path | None = None,
    language: str = "en",
) -> Path:
    """Write RUN/report.html (or `out`) from the contents of the run folder; returns its path.

    Args:
        run: a run folder. Sections without their input name the command that makes it.
        runs: instead of `run`, folders of several runs, compared as `medssl.compare` does; RUN/comparison.html of the first.
        store: needed only if the run's store has moved.
        out: the file.
        language: en or ko.

    Raises UserError if the store is not the run's, or has moved and is not given, for an unknown language, for both or neither
    of `run` and `runs`, and as `medssl.compare` does.
    """
    messages(language)
    if (run is None) == (runs is None):
        raise UserError("give either one run (run=RUN) or several to compare (runs=RUN_A,RUN_B)")
    path = Path(out).expanduser() if out else None
    if runs is not None:
        if store is not None:
            raise UserError("store= goes with run=; a comparison reads the predictions that the runs keep")
        groups, comparisons, found = compare_runs(runs, (), RowFilter(), SEED)
        path = write_comparison(groups, comparisons, found, out=path, language=language)
    else:
        assert run is not None
        path = _one(run, store, path, language)
    say(f"report: {path}")
    return path


def _one(run: str | Path, store: str | Path | Store | None, out: Path | None, language: str) -> Path:
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
    return write_report(folder.path, scans, out=out, views=shown, language=language)
