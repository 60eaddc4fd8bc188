"""`medssl quality`: measure an encoder without labels, or find the measure that ranks runs as their probe scores do."""

from pathlib import Path
from typing import Any

from medssl.errors import UserError
from medssl.pretraining.held_out_subset import VIEWS_SEED, held_out_subset
from medssl.progress import say
from medssl.results import Result
from medssl.runs.runs_by_seed import find_runs
from medssl.scoring.baselines import FeatureSources
from medssl.scoring.label_free import FILE, MeasureOptions, describe_measures, measure, rank_measures, read_measures
from medssl.store.store import Store


def quality(
    run: str | Path | None = None,
    store: str | Path | Store | None = None,
    *,
    runs: str | list[str] | None = None,
    where: str | None = None,
    target: str | None = None,
    scans: int = 512,
    views: int = 10,
    seed: int = 0,
    device: str = "auto",
) -> Result:
    """Measure encoders without labels, or find the measure that ranks runs as their probe scores do.

    With `run`: all measures of `medssl.evals.label_free.quality` on a fixed subset of held-out scans and views of them,
    with intervals over patients, and on half of the patients, to show the influence of the number of scans; bounds on the
    mutual information of two views; and a check of the axioms of a metric for distances of the features. Writes
    RUN/quality.json and returns it.

    With `runs`: the rank correlation over runs of each measure with the runs' probe scores in RUN/scores.json (linear
    probe, all labels, first metric). Measures are read from quality.json; runs without it are measured if `store` is given.
    Returns {"runs": …, "agreement": …, "trust": a sentence}.

    Args:
        run: a finished run folder.
        store: the validation scans of this store are measured (training scans if fewer than 16 are in validation). Labels
            are not read.
        runs: run folders, or folders of them.
        where: filter expression selecting scans; see `medssl.store.query`.
        target: the target of the probe scores, if runs have several.
        scans: the largest number of scans, of as many patients as possible.
        views: views of each scan, by the run's own augmentation; at least 2; LiDAR needs fewer than half of the scans.
        seed: for the subset, the groups of patients and SIGReg's directions; the same for all runs to be compared.
        device: auto, cpu or cuda.

    Raises UserError for encoders that cannot be measured or compared.
    """
    if (run is None) == (runs is None):
        raise UserError("give run=RUN store=STORE to measure one encoder, or runs=FOLDER to compare several")
    options = MeasureOptions(scans, views, seed)
    if run is not None and store is None:
        raise UserError("give store=, the scans that the encoder is measured on")
    held_out = None if store is None else Store.open(store, where)

    def measured(folder: str | Path, source: Store) -> dict[str, Any]:
        subset = held_out_subset(source, scans, seed)
        return measure(FeatureSources(folder, source, device), subset.rows, subset.split, options, VIEWS_SEED)

    if run is not None and held_out is not None:
        found = measured(run, held_out)
        return Result(found, describe_measures(found))
    folders, every = find_runs(runs or []), []
    for folder in folders:
        kept = read_measures(folder)
        if held_out is not None and not (kept and options.described(held_out).items() <= kept["subset"].items()):
            say(f"measuring {folder.path.name}")
            kept = measured(folder.path, held_out)
        if kept is None:
            raise UserError(f"{folder.path} has no {FILE} for its present encoder; add store=STORE to measure it")
        every.append(kept)
    return rank_measures(folders, every, target, seed)
