"""`medssl knn`: score a frozen encoder by the labels of the most similar training scans."""

from collections.abc import Iterable
from pathlib import Path

from medssl.commands.options import accepts
from medssl.results import Result
from medssl.runs.predictions import PredictedRow
from medssl.scoring import probes
from medssl.scoring.baselines import DEFAULT_FROZEN, FROZEN, FeatureSources, select_baselines
from medssl.scoring.eval_splits import SplitOptions
from medssl.scoring.score_table import compute_scores, keep
from medssl.store.store import Store


@accepts(SplitOptions)
def knn(
    run: str | Path,
    store: str | Path | Store,
    target: str | list[str],
    *,
    k: int = 20,
    features: Iterable[str] = (),
    baselines: Iterable[str] = DEFAULT_FROZEN,
    options: SplitOptions,
) -> Result:
    """Score the frozen encoder of a run by a kNN probe; adds the table to RUN/scores.json and returns it.

    The `k` most similar training scans of other patients vote on each test scan (cosine similarity s, weight
    exp(s / 0.07)). Everything else is as in `medssl.probe`.

    Args:
        run, store, target, features, baselines: see `medssl.probe`.
        k: number of neighbours.
        options: keyword arguments; see `medssl.scoring.eval_splits.SplitOptions`.

    Raises UserError as `medssl.probe` does.
    """
    names = select_baselines(baselines, FROZEN)
    sources, splits = FeatureSources.load(run, store, target, options)
    rows = []
    for name, source in sources.all(names, features):
        p, *val = probes.nearest(source, splits, splits.predicted, k)
        rows.append(PredictedRow(name, "kNN", [p], val=val))
    return keep(sources.path, compute_scores("knn", splits, rows, sources.name, options.seed, asked={"k": k}, k=k))
