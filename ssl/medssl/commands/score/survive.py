"""`medssl survive`: score a frozen encoder by the concordance of a Cox model on its features."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from medssl.commands.options import accepts
from medssl.results import Result
from medssl.scoring import probes
from medssl.scoring.baselines import DEFAULT_FROZEN, FROZEN, FeatureSources, select_baselines
from medssl.scoring.eval_splits import SplitOptions
from medssl.scoring.score_table import compute_scores, keep
from medssl.store.store import Store


@accepts(SplitOptions, omit=("task",))
def survive(
    run: str | Path,
    store: str | Path | Store,
    time: str,
    event: str,
    *,
    baselines: Iterable[str] = DEFAULT_FROZEN,
    options: SplitOptions,
) -> Result:
    """Score the frozen encoder of a run by Harrell's concordance; adds the table to RUN/scores.json and returns it.

    A ridge Cox model (`medssl.evals.probes.cox`) is fitted on the training patients; validation patients choose its
    penalty.

    Args:
        run, baselines: see `medssl.probe`.
        store: a store with both labels.
        time: the label with the time to the event or to censoring, above 0.
        event: the label for the event; the values in `positive` mean that it occurred.
        options: keyword arguments; see `medssl.scoring.eval_splits.SplitOptions`.

    Raises UserError as `medssl.probe` does, and if no training patient had the event.
    """
    names = select_baselines(baselines, FROZEN)
    sources, splits = FeatureSources.load(run, store, [time, event], replace(options, task="survival"))
    seed, tests = options.seed, splits.predicted
    labelled = probes.describe_draws(splits, {probes.ALL: [np.arange(len(splits.train))]}, seed)[probes.ALL]
    rows = [
        probes.predicted_row(name, "Cox", found[probes.ALL], labelled=labelled, val=len(tests) - 1 or None)
        for name, source in sources.all(names)
        for found in [probes.linear(source, splits, tests, seed=seed, device=sources.device)]
    ]
    return keep(sources.path, compute_scores("survive", splits, rows, sources.name, options.seed))
